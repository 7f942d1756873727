//! A channel: publication + resolved policy + query, in canonical form. The unit of caching, of fan-out and of permission.

use sha2::{Digest, Sha256};

use crate::identity::{Onlooker, ResolvedPolicy};
use crate::protocol::{Direction, Nulls, OrderBy};
use crate::publication::{FeedKey, Schema};
use crate::query::Query;
use crate::version::base36;

/// Publication + resolved policy + query, in canonical form: the unit of caching, of fan-out and of permission.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChannelSpec {
    pub feed: FeedKey,
    pub policy: ResolvedPolicy,
    pub query: Query,
}

impl ChannelSpec {
    /// The channel's part of a store key: permission and query, so that no entry is ever shared across them. Clients
    /// choose a part of what goes in, so this is a hash for which nobody can make two channels collide.
    pub fn hash(&self) -> String {
        digest(&self.canonical())
    }

    /// The tag that clients resume with: the channel, and the columns with types and key that its rows have.
    pub fn tag(&self, schema: &Schema) -> String {
        digest(&format!("{} {}", self.canonical(), schema.id()))
    }

    /// Whose sight of the feed the leader has to work out for it; `None` where row security does not decide.
    pub fn onlooker(&self) -> Option<Onlooker> {
        match &self.policy {
            ResolvedPolicy::Rls(identity) => Some(Onlooker { feed: self.feed.clone(), identity: identity.clone() }),
            ResolvedPolicy::Public | ResolvedPolicy::Authenticated | ResolvedPolicy::Filter(_) => None,
        }
    }

    /// JSON texts, so nothing in a value can be taken for what stands between two.
    fn canonical(&self) -> String {
        let Query { filter, select, order, limit } = &self.query;
        let parts = serde_json::to_string(&(&self.policy, filter, select, order, limit));
        format!("{}?{}", self.feed, parts.expect("texts and numbers are always JSON"))
    }

    /// The order of the channel's rows: the key, ascending, where the query names none.
    pub fn order(&self, schema: &Schema) -> Vec<OrderBy> {
        schema
            .key_names()
            .map(|name| OrderBy { column: name.clone(), dir: Direction::Asc, nulls: Nulls::Last })
            .collect()
    }
}

/// The first 128 bits of SHA-256, as text of at most 27 characters.
fn digest(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    let half =
        |from: usize| base36(hash[from..from + 8].iter().fold(0, |number, &byte| (number << 8) | u64::from(byte)));
    format!("{}-{}", half(0), half(8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::{Comparison, Filter};

    #[test]
    fn equal_queries_are_one_channel_and_different_ones_are_not() {
        let spec = |filters: &[(&str, &str)]| {
            let filter = Filter::all(filters.iter().map(|(column, value)| Filter::Compare {
                column: (*column).into(),
                op: Comparison::Eq,
                value: (*value).into(),
            }));
            let feed = FeedKey { name: "orders".into(), generation: 1 };
            ChannelSpec { feed, policy: ResolvedPolicy::Public, query: Query { filter, ..Query::default() } }.hash()
        };
        assert_eq!(spec(&[("a", "1"), ("b", "2")]), spec(&[("b", "2"), ("a", "1")]));
        let different = [
            spec(&[]),
            spec(&[("a", "1")]),
            spec(&[("a", "\"1\"")]),
            spec(&[("a", "\"1&\\\"b\\\"=2\"")]),
            spec(&[("a", "1"), ("b", "2")]),
        ];
        assert_eq!(different.iter().collect::<std::collections::HashSet<_>>().len(), different.len());
    }
}
