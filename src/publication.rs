//! What is published: names, generations, columns and keys, as the database described them in one snapshot.
//!
//! A [`Publication`] is read by `rowcast.describe()` inside the same transaction as the rows it explains (the leader's
//! cut, a node's snapshot query), so that rows and columns can never belong to different definitions of a table. The
//! SQL fragments that read keys and rows come from the database too: triggers and readers then share one definition of
//! a key's text. This file does not talk to Postgres.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::version::base36;

/// A publication's name with its generation: `orders.17`. A generation is new at every publish and at every change of
/// policy, key or columns; nothing of another generation is ever read. Store keys begin with this text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FeedKey {
    pub name: Arc<str>,
    pub generation: u64,
}

impl fmt::Display for FeedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.generation)
    }
}

impl fmt::Debug for FeedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not `<publication>.<generation>`.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a publication and its generation (name.number)")]
pub struct BadFeedKey(String);

impl FromStr for FeedKey {
    type Err = BadFeedKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.rsplit_once('.')
            .and_then(|(name, generation)| Some(Self { name: name.into(), generation: generation.parse().ok()? }))
            .ok_or_else(|| BadFeedKey(text.to_owned()))
    }
}

impl Serialize for FeedKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FeedKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A column as clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Column {
    pub name: Arc<str>,
    /// Postgres' name of the type (`int4`, `numeric`, `text`), of the base type for a domain, with `[]` for an array.
    #[serde(rename = "type")]
    pub type_name: Arc<str>,
    /// Whose type it is: a name alone does not tell, since anybody may call a type `int4`.
    #[serde(default, skip_serializing_if = "Kind::is_builtin")]
    pub kind: Kind,
    /// Read because the policy filters by it, and never shown to a client.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hidden: bool,
}

/// Where a column's type comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A type of `pg_catalog`, known by its name; or an array of one.
    #[default]
    Builtin,
    Enum,
    /// An extension's, a composite, a range of the user's own; arrays of these and of enums.
    Other,
}

impl Kind {
    fn is_builtin(&self) -> bool {
        *self == Self::Builtin
    }
}

impl Column {
    /// A column of a builtin type that is shown.
    pub fn new(name: impl Into<Arc<str>>, type_name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), type_name: type_name.into(), kind: Kind::Builtin, hidden: false }
    }
}

/// Columns in the order in which a row's values stand, and which of them are the key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Schema {
    pub columns: Vec<Column>,
    /// Indices into `columns`, in key order.
    pub key: Vec<usize>,
}

impl Schema {
    /// A short text that is equal exactly when names, types, order and key are: entries in the store carry it, so that
    /// a node never reads a row by the wrong columns.
    pub fn id(&self) -> String {
        let text = serde_json::to_string(self).expect("a schema has no maps with odd keys");
        base36(xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
    }

    /// The names of the key columns, in key order.
    pub fn key_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.key.iter().map(|&index| &self.columns[index].name)
    }
}

/// Who may open a publication, as it was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Everybody, without a token.
    Public,
    /// Whoever has a valid token: every row.
    Authenticated,
    /// Postgres' row security decides, by the role and the claims of the token.
    Rls,
    /// A filter over claims, `tenant_id=eq.{tenant_id}`.
    Filter(Arc<str>),
}

impl Policy {
    pub fn parse(text: &str) -> Self {
        match text {
            "public" => Self::Public,
            "authenticated" => Self::Authenticated,
            "rls" => Self::Rls,
            filter => Self::Filter(filter.into()),
        }
    }
}

/// What a publication's rows come from, and so who reads them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Changes are told key by key; nodes query snapshots.
    #[default]
    Table,
    /// The leader runs it and tells the difference; nodes take snapshots from the leader's base.
    View,
    /// The same. It changes by REFRESH only, and nobody can lock it beforehand.
    MaterializedView,
}

impl Source {
    /// By the word that `rowcast.describe()` has for it.
    pub fn parse(text: &str) -> Self {
        match text {
            "view" => Self::View,
            "materialized view" => Self::MaterializedView,
            _ => Self::Table,
        }
    }

    /// Whether the leader alone reads it.
    pub fn is_view(self) -> bool {
        self != Self::Table
    }
}

/// A publication as `rowcast.describe()` gives it: one row of that function.
#[derive(Clone, Debug)]
pub struct Publication {
    pub feed: FeedKey,
    /// The number under which the change log knows it; the same over all its generations.
    pub id: i32,
    /// The relation, schema-qualified and quoted, ready for SQL.
    pub relation: String,
    pub source: Source,
    pub policy: Policy,
    pub schema: Arc<Schema>,
    /// [`Schema::id`] of `schema`.
    pub schema_id: Arc<str>,
    /// For each column of `schema`, the SQL name of its (base) type, quoted, ready for a cast.
    pub casts: Vec<Arc<str>>,
    /// More changed keys than this in one cut become a marker.
    pub bulk_rows: u64,
    /// A view is run at most this often.
    pub refresh: Duration,
    /// SQL over a row `r` of the relation: the key as JSON text, `[1]`, `["a","2"]`.
    pub key_sql: String,
    /// SQL over a row `r`: the values as a JSON array in the order of the columns. An element more, if there is one, is
    /// an object that names the columns whose values were too large and are null, with their sizes in bytes.
    pub row_sql: String,
    /// SQL over a row `r`: its key is one of the key texts in `$1::text[]`.
    pub by_key_sql: String,
    /// Names everything whose change fires no trigger: storage (relfilenodes), leaves, the state of our triggers,
    /// columns. Compared for equality only.
    pub fingerprint: String,
}

/// All publications, at one snapshot.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    pub publications: HashMap<Arc<str>, Arc<Publication>>,
}

impl Catalogue {
    /// A short text that changes when anything about a publication does, also what fires no trigger: rows that were read under
    /// another id may not be those of this one's cut.
    pub fn id(&self) -> String {
        let mut names: Vec<String> = self
            .publications
            .values()
            .map(|publication| format!("{}/{}/{}", publication.feed, publication.schema_id, publication.fingerprint))
            .collect();
        names.sort_unstable();
        base36(xxhash_rust::xxh3::xxh3_64(names.join(" ").as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feed_key_keeps_the_dots_of_its_name() {
        let feed: FeedKey = "app.orders-2.17".parse().expect("a feed key");
        assert_eq!((&*feed.name, feed.generation), ("app.orders-2", 17));
        assert_eq!(feed.to_string(), "app.orders-2.17");
        assert!("orders".parse::<FeedKey>().is_err());
        assert!("orders.x".parse::<FeedKey>().is_err());
    }
}
