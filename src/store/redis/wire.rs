//! How the words of the contract are written in Redis: head, stream items, pushed parts.

use std::collections::HashMap;
use std::str::FromStr;

use redis::FromRedisValue;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::store::assembler::{Fragment, Reach};
use crate::store::{Append, StoreError};
use crate::version::{Cut, Epoch, PgSnapshot, Version};

/// A text field, or nothing.
pub(super) type Field = Option<String>;

/// An item of a stream: its id, and its fields and values in turn.
#[derive(Debug)]
pub(super) struct Item {
    pub id: String,
    fields: Vec<String>,
}

impl FromRedisValue for Item {
    fn from_redis_value(value: redis::Value) -> Result<Self, redis::ParsingError> {
        let (id, fields) = redis::from_redis_value(value)?;
        Ok(Self { id, fields })
    }
}

fn corrupt(what: &str, text: &str) -> StoreError {
    StoreError::Corrupt(format!("{what}: `{}`", text.chars().take(80).collect::<String>()))
}

fn number<T: FromStr>(what: &str, text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|_| corrupt(what, text))
}

fn snapshot(text: &str) -> Result<PgSnapshot, StoreError> {
    text.parse().map_err(|_| corrupt("the cut of an entry or the head", text))
}

/// The head out of its fields epoch, version, cut and as_of: all of them, or none.
pub(super) fn head(fields: &[Field]) -> Result<Option<Cut>, StoreError> {
    match fields {
        [None, None, None, None, ..] => Ok(None),
        [Some(epoch), Some(version), Some(cut), Some(as_of), ..] => Ok(Some(Cut {
            epoch: Epoch::new(epoch.as_str()),
            version: Version(number("the version of the head", version)?),
            snapshot: snapshot(cut)?,
            as_of: number("the as_of of the head", as_of)?,
        })),
        _ => Err(StoreError::Corrupt("the head is not complete".to_owned())),
    }
}

/// The reach of a log out of the head's fields since and last:<feed>.
pub(super) fn reach(since: &Field, last: &Field) -> Result<Reach, StoreError> {
    let since = since.as_deref().ok_or_else(|| StoreError::Corrupt("the head has no `since`".to_owned()))?;
    let last = last.as_deref().map(|last| number("the last version of a feed", last)).transpose()?;
    Ok(Reach { since: Version(number("the `since` of the head", since)?), last: last.map(Version) })
}

impl Item {
    pub fn into_fragment(self) -> Result<Fragment, StoreError> {
        let missing = || corrupt("an entry of a log is not complete", &self.id);
        let (version, part) = self.id.split_once('-').ok_or_else(missing)?;
        let (version, part) = (number("a version", version)?, number("a part", part)?);
        let mut fields: HashMap<String, String> = HashMap::with_capacity(self.fields.len() / 2);
        let mut texts = self.fields.into_iter();
        while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
            fields.insert(name, value);
        }
        let mut take = |name: &str| fields.remove(name).ok_or_else(|| corrupt("an entry lacks a field", name));
        Ok(Fragment {
            epoch: Epoch::new(take("epoch")?),
            version: Version(version),
            part,
            snapshot: snapshot(&take("cut")?)?,
            as_of: number("the as_of of an entry", &take("as_of")?)?,
            base: Version(number("the base of an entry", &take("base")?)?),
            prev: Version(number("the prev of an entry", &take("prev")?)?),
            states: take("states")?,
        })
    }
}

/// What all parts of a version have in common on the live channel.
#[derive(Serialize)]
struct Common {
    #[serde(flatten)]
    cut: Cut,
    base: Version,
}

/// The members of [`Common`] as JSON, without the braces: the append script adds the rest.
pub(super) fn common_members(append: &Append) -> String {
    let common = Common { cut: append.cut.clone(), base: append.base };
    let text = serde_json::to_string(&common).expect("a cut is plain JSON");
    text[1..text.len() - 1].to_owned()
}

/// A part as it is pushed. Its members are named here once more, since flattened structs cannot borrow raw JSON.
#[derive(Deserialize)]
struct Live<'a> {
    epoch: Epoch,
    version: Version,
    part: u32,
    cut: PgSnapshot,
    as_of: i64,
    base: Version,
    prev: Version,
    #[serde(borrow)]
    states: &'a RawValue,
}

pub(super) fn pushed_fragment(payload: &[u8]) -> Result<Fragment, serde_json::Error> {
    let live: Live<'_> = serde_json::from_slice(payload)?;
    Ok(Fragment {
        epoch: live.epoch,
        version: live.version,
        part: live.part,
        snapshot: live.cut,
        as_of: live.as_of,
        base: live.base,
        prev: live.prev,
        states: live.states.get().to_owned(),
    })
}
