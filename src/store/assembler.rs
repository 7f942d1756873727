//! Puts the parts of entries together: as they are pushed, and as they lie in a log.
//!
//! Both ways have to tell what is whole from what is not. A push counts once a beat names its version and the number of
//! its parts. An entry of a log counts if it stands on the feed's chain: the head names the version of the last entry,
//! and every entry names the one before it.
//!
//! ```text
//!   head: last = 9             ┌──────────prev───────┐
//!   log:   …   5-0   7-0   7-1 ┴  8-0        9-0 ◀───┘   8 was never closed: nobody's prev, so it is nothing
//!               ▲────prev───┘
//! ```
//!
//! So what a killed leader left behind is invisible even before the next leader removes it, and a hole, wherever it
//! comes from, is "does not reach". This file does no I/O and knows no store.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use super::{Beat, Entry};
use crate::publication::FeedKey;
use crate::version::{Epoch, PgSnapshot, Version};

/// One part of an entry as a store holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fragment {
    pub epoch: Epoch,
    pub version: Version,
    pub part: u32,
    pub snapshot: PgSnapshot,
    pub as_of: i64,
    pub base: Version,
    pub prev: Version,
    pub states: String,
}

impl Fragment {
    fn into_entry(self) -> Entry {
        Entry {
            epoch: self.epoch,
            version: self.version,
            snapshot: self.snapshot,
            as_of: self.as_of,
            base: self.base,
            prev: self.prev,
            states: vec![self.states],
        }
    }
}

/// Pushed parts of the newest version, until its beat comes. Holds one version at a time: a part of a higher version
/// means that the one before will never be closed.
#[derive(Default)]
pub(super) struct Assembler {
    version: Version,
    entries: HashMap<FeedKey, Entry>,
}

impl Assembler {
    /// Takes a part. One that does not continue its entry breaks it: the entry is then missing, and who misses it reads
    /// the log.
    pub fn part(&mut self, feed: FeedKey, fragment: Fragment) {
        match fragment.version.cmp(&self.version) {
            Ordering::Less => return,
            Ordering::Equal => {}
            Ordering::Greater => {
                self.entries.clear();
                self.version = fragment.version;
            }
        }
        if fragment.part == 0 {
            self.entries.insert(feed, fragment.into_entry());
            return;
        }
        match self.entries.get_mut(&feed) {
            Some(entry) if entry.states.len() == fragment.part as usize => entry.states.push(fragment.states),
            _ => {
                self.entries.remove(&feed);
            }
        }
    }

    /// The entries that a beat closes, as far as all their parts are here.
    pub fn close(&mut self, beat: &Beat) -> Vec<(FeedKey, Arc<Entry>)> {
        if beat.cut.version < self.version {
            return Vec::new();
        }
        let mut entries = std::mem::take(&mut self.entries);
        if beat.cut.version > self.version {
            self.version = beat.cut.version;
            return Vec::new();
        }
        beat.touched
            .iter()
            .filter_map(|touched| {
                let entry = entries.remove(&touched.feed)?;
                let whole = entry.states.len() == touched.parts as usize && entry.epoch == beat.cut.epoch;
                whole.then(|| (touched.feed.clone(), Arc::new(entry)))
            })
            .collect()
    }

    /// Drops what has arrived for a feed.
    pub fn forget(&mut self, feed: &FeedKey) {
        self.entries.remove(feed);
    }

    /// Starts over, after a connection was lost.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// What a log says of a feed, besides its parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    /// From here on the store's head is continuous.
    pub since: Version,
    /// The version of the feed's last entry, if it ever had one.
    pub last: Option<Version>,
}

impl Reach {
    /// The feed's entries above `after`, ascending, out of all its parts above `after` in the log's order; `None` where
    /// the log does not reach back.
    pub fn entries(&self, after: Version, fragments: Vec<Fragment>) -> Option<Vec<Arc<Entry>>> {
        let Some(last) = self.last else { return (after >= self.since).then(Vec::new) };
        let mut wanted = last;
        let mut entries = Vec::new();
        for entry in joined(fragments).into_iter().rev() {
            if wanted <= after {
                break;
            }
            match entry.version.cmp(&wanted) {
                Ordering::Greater => {}
                Ordering::Equal => {
                    wanted = entry.prev;
                    entries.push(Arc::new(entry));
                }
                Ordering::Less => return None,
            }
        }
        entries.reverse();
        (wanted <= after).then_some(entries)
    }
}

/// Joins parts that follow each other. What lacks its first parts, because the log was trimmed within it, is left out.
fn joined(fragments: Vec<Fragment>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for fragment in fragments {
        match entries.last_mut() {
            _ if fragment.part == 0 => entries.push(fragment.into_entry()),
            Some(entry) if entry.version == fragment.version && entry.states.len() == fragment.part as usize => {
                entry.states.push(fragment.states);
            }
            Some(entry) if entry.version == fragment.version => {
                entries.pop();
            }
            _ => {}
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Touched;
    use crate::version::Cut;

    fn feed(name: &str) -> FeedKey {
        FeedKey { name: name.into(), generation: 1 }
    }

    fn fragment(version: u64, part: u32, prev: u64) -> Fragment {
        Fragment {
            epoch: Epoch::new("e"),
            version: Version(version),
            part,
            snapshot: "1:1:".parse().expect("a snapshot"),
            as_of: 0,
            base: Version(version - 1),
            prev: Version(prev),
            states: format!("{version}-{part}"),
        }
    }

    fn beat(version: u64, touched: &[(&str, u32)]) -> Beat {
        Beat {
            base: Version(version - 1),
            cut: Cut {
                epoch: Epoch::new("e"),
                version: Version(version),
                snapshot: "1:1:".parse().expect("a snapshot"),
                as_of: 0,
            },
            polled_at: 0,
            touched: touched.iter().map(|&(name, parts)| Touched { feed: feed(name), parts }).collect(),
            catalogue: String::new(),
            stale: Vec::new(),
        }
    }

    fn closed(assembler: &mut Assembler, beat: &Beat) -> Vec<(String, Vec<String>)> {
        assembler.close(beat).into_iter().map(|(feed, entry)| (feed.to_string(), entry.states.clone())).collect()
    }

    #[test]
    fn a_version_is_whole_when_its_beat_comes() {
        let mut assembler = Assembler::default();
        assembler.part(feed("a"), fragment(5, 0, 4));
        assembler.part(feed("b"), fragment(5, 0, 4));
        assert!(assembler.close(&beat(4, &[])).is_empty(), "a beat of the version before changes nothing");
        assembler.part(feed("a"), fragment(5, 1, 4));
        let entries = closed(&mut assembler, &beat(5, &[("a", 2), ("b", 1)]));
        assert_eq!(entries, [("a.1".into(), vec!["5-0".into(), "5-1".into()]), ("b.1".into(), vec!["5-0".into()])]);
        assert!(assembler.close(&beat(5, &[("a", 2)])).is_empty(), "each entry once");
    }

    #[test]
    fn what_misses_a_part_is_not_pushed() {
        let mut assembler = Assembler::default();
        assembler.part(feed("first"), fragment(5, 1, 4));
        assembler.part(feed("middle"), fragment(5, 0, 4));
        assembler.part(feed("middle"), fragment(5, 2, 4));
        assembler.part(feed("last"), fragment(5, 0, 4));
        assert!(assembler.close(&beat(5, &[("first", 2), ("middle", 3), ("last", 2)])).is_empty());
    }

    #[test]
    fn parts_of_a_version_that_was_given_up_are_dropped() {
        let mut assembler = Assembler::default();
        assembler.part(feed("a"), fragment(5, 0, 4));
        assembler.part(feed("b"), fragment(6, 0, 4));
        assembler.part(feed("a"), fragment(5, 1, 4));
        assert_eq!(closed(&mut assembler, &beat(6, &[("a", 1), ("b", 1)])), [("b.1".into(), vec!["6-0".into()])]);
    }

    fn versions(reach: Reach, after: u64, fragments: &[Fragment]) -> Option<Vec<u64>> {
        let entries = reach.entries(Version(after), fragments.to_vec())?;
        Some(entries.iter().map(|entry| entry.version.0).collect())
    }

    #[test]
    fn a_log_reaches_back_as_far_as_its_chain() {
        let reach = Reach { since: Version(2), last: Some(Version(9)) };
        let log = [fragment(5, 0, 4), fragment(7, 0, 5), fragment(7, 1, 5), fragment(9, 0, 7)];
        assert_eq!(versions(reach, 4, &log), Some(vec![5, 7, 9]));
        assert_eq!(versions(reach, 3, &log), None, "the entry 4 is gone");
        assert_eq!(versions(reach, 6, &log[1..]), Some(vec![7, 9]), "between 5 and 7 nothing changed");
        assert_eq!(versions(reach, 9, &[]), Some(vec![]));
        assert_eq!(versions(reach, 8, &[]), None, "the stream is gone");
    }

    #[test]
    fn a_feed_without_entries_reaches_back_to_where_the_head_began() {
        let reach = Reach { since: Version(2), last: None };
        assert_eq!(versions(reach, 2, &[]), Some(vec![]));
        assert_eq!(versions(reach, 1, &[]), None);
        assert_eq!(versions(reach, 2, &[fragment(5, 0, 2)]), Some(vec![]), "never closed");
    }

    #[test]
    fn what_was_never_closed_is_not_on_the_chain() {
        let reach = Reach { since: Version(2), last: Some(Version(9)) };
        let log = [fragment(5, 0, 4), fragment(8, 0, 5), fragment(9, 0, 5), fragment(10, 0, 9)];
        assert_eq!(versions(reach, 4, &log), Some(vec![5, 9]));
    }

    #[test]
    fn a_trim_within_an_entry_ends_the_log_behind_it() {
        let reach = Reach { since: Version(2), last: Some(Version(9)) };
        let log = [fragment(7, 1, 5), fragment(9, 0, 7)];
        assert_eq!(versions(reach, 5, &log), None);
        assert_eq!(versions(reach, 7, &log), Some(vec![9]));
        assert_eq!(versions(reach, 5, &[fragment(7, 0, 5), fragment(7, 2, 5), fragment(9, 0, 7)]), None);
    }
}
