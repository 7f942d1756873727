//! Where a thing stands: snapshots of the database, versions, epochs and cuts.
//!
//! Rowcast's exactness is arithmetic on Postgres snapshots. A snapshot is the set of transactions whose effects a
//! reader sees; the snapshots of one primary form a chain under inclusion, so "newer" and "contains" are the same
//! question. This file answers that question and nothing else: it does no I/O.
//!
//! The text form `xmin:xmax:xip,…` is Postgres' own (`pg_current_snapshot()::text`, PostgreSQL documentation,
//! "Transaction ID and Snapshot Information Functions").

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The number of a cut, drawn from a Postgres sequence: never reused, ascending across epochs too. Zero stands below
/// every cut. Stays below 2^53, so that a browser can hold it in a number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// The time during which continuity is proved, as a short lower-case text. Rows and cuts of different epochs are never
/// combined.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(Arc<str>);

impl Epoch {
    /// An epoch under its text, as it stands in the store and on the wire.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The epoch of what a Postgres server says of itself: any difference in any part is another epoch.
    pub fn of_identity(identity: &str) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_64(identity.as_bytes());
        Self(base36(hash).into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}", self.0)
    }
}

/// The first 128 bits of SHA-256, as text of at most 27 characters: a name for texts of which clients choose a part, so that
/// nobody can make two of them collide.
pub fn digest(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    let half =
        |from: usize| base36(hash[from..from + 8].iter().fold(0, |number, &byte| (number << 8) | u64::from(byte)));
    format!("{}-{}", half(0), half(8))
}

/// A number in the digits `0-9a-z`: the short form of hashes on the wire.
pub fn base36(mut number: u64) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut text = Vec::with_capacity(13);
    loop {
        text.push(DIGITS[(number % 36) as usize]);
        number /= 36;
        if number == 0 {
            break;
        }
    }
    text.reverse();
    String::from_utf8(text).expect("base-36 digits are ASCII")
}

/// A Postgres snapshot: the transactions below `xmax` that are not in `xip` have ended, and what they committed is
/// visible. Transaction ids are the 64-bit ones (`xid8`), which do not wrap.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PgSnapshot {
    xmin: u64,
    xmax: u64,
    /// Running transactions in `xmin..xmax`, ascending.
    xip: Arc<[u64]>,
}

impl PgSnapshot {
    /// The first transaction id that had not been assigned.
    pub fn xmax(&self) -> u64 {
        self.xmax
    }

    /// The transactions below `xmax` that were running.
    pub fn xip(&self) -> &[u64] {
        &self.xip
    }

    /// Whether a transaction had ended when this snapshot was taken (its effects, if it committed, are visible).
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.xip.binary_search(&xid).is_err())
    }

    /// Whether everything this snapshot sees is seen by `other` too: S ⊆ S'.
    pub fn is_within(&self, other: &PgSnapshot) -> bool {
        if other.xip.iter().any(|&running| self.sees(running)) {
            return false;
        }
        // What `other` does not see besides its running list lies at or above its xmax; none of it may be seen here.
        // More ids than `xip` can hold cannot all be running, so the loop is as short as the list.
        if other.xmax >= self.xmax {
            return true;
        }
        let span = self.xmax - other.xmax;
        span <= self.xip.len() as u64 && (other.xmax..self.xmax).all(|xid| !self.sees(xid))
    }
}

impl fmt::Display for PgSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (index, xid) in self.xip.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{xid}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for PgSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a Postgres snapshot.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a Postgres snapshot (xmin:xmax:xip,…)")]
pub struct BadSnapshot(String);

impl FromStr for PgSnapshot {
    type Err = BadSnapshot;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || -> Option<Self> {
            let mut parts = text.splitn(3, ':');
            let xmin: u64 = parts.next()?.parse().ok()?;
            let xmax: u64 = parts.next()?.parse().ok()?;
            let list = parts.next()?;
            let mut xip = Vec::new();
            for item in list.split(',').filter(|item| !item.is_empty()) {
                xip.push(item.parse::<u64>().ok()?);
            }
            let ordered = xip.windows(2).all(|pair| pair[0] < pair[1]);
            let inside = xip.iter().all(|xid| (xmin..xmax).contains(xid));
            (xmin <= xmax && ordered && inside).then(|| Self { xmin, xmax, xip: xip.into() })
        };
        parse().ok_or_else(|| BadSnapshot(text.to_owned()))
    }
}

impl Serialize for PgSnapshot {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PgSnapshot {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One consistent state of the whole database, and its number: the step S(n-1) → S(n) ends here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    pub epoch: Epoch,
    pub version: Version,
    /// S(n): what the cut's transaction saw.
    #[serde(rename = "cut")]
    pub snapshot: PgSnapshot,
    /// `now()` of the cut's transaction: milliseconds since 1970, database clock.
    pub as_of: i64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn snapshot(text: &str) -> PgSnapshot {
        text.parse().expect("a snapshot")
    }

    #[test]
    fn text_form_is_postgres_own() {
        for text in ["10:20:10,14,15", "10:10:", "3:4:3"] {
            assert_eq!(snapshot(text).to_string(), text);
        }
        for text in ["", "10:20", "20:10:", "10:20:25", "10:20:12,11", "10:20:x", "-1:2:"] {
            assert_eq!(text.parse::<PgSnapshot>(), Err(BadSnapshot(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn a_running_transaction_is_not_seen() {
        let snapshot = snapshot("10:20:10,14");
        assert!(snapshot.sees(9) && snapshot.sees(11) && snapshot.sees(19));
        assert!(!snapshot.sees(10) && !snapshot.sees(14) && !snapshot.sees(20));
    }

    #[test]
    fn within_looks_past_a_smaller_xmax_whose_rest_is_running() {
        assert!(snapshot("9:10:9").is_within(&snapshot("9:9:")));
        assert!(!snapshot("10:10:").is_within(&snapshot("9:9:")));
    }

    /// All snapshots over the ids 1..=8, as the set of transactions that are still running below xmax.
    fn any_snapshot() -> impl Strategy<Value = PgSnapshot> {
        (1u64..9, proptest::collection::btree_set(1u64..9, 0..8)).prop_map(|(xmax, running)| {
            let xip: Vec<u64> = running.into_iter().filter(|&xid| xid < xmax).collect();
            let xmin = xip.first().copied().unwrap_or(xmax);
            PgSnapshot { xmin, xmax, xip: xip.into() }
        })
    }

    proptest! {
        #[test]
        fn within_is_inclusion_of_the_sets_seen(a in any_snapshot(), b in any_snapshot()) {
            let included = (0..12).all(|xid| !a.sees(xid) || b.sees(xid));
            prop_assert_eq!(a.is_within(&b), included);
        }
    }

    #[test]
    fn base36_is_short_and_distinct() {
        assert_eq!(base36(0), "0");
        assert_eq!(base36(35), "z");
        assert_eq!(base36(36), "10");
        assert_eq!(base36(u64::MAX), "3w5e11264sgsf");
    }
}
