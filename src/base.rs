//! What the store keeps of a view: the leader's last result, or why there is none.
//!
//! A view is run by the leader alone, and its log holds only what differed from one run to the next. So every channel on it
//! begins with the *base*: all rows of the view at some version, kept in the store under a name that no channel has. A node
//! rolls it forward by the log and takes from it what its channel may show. The leader writes the base anew before the log
//! no longer reaches back to it, and together with every marker: a node that meets one finds rows that contain it.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::channel::ChannelSpec;
use crate::checkpoint::{BadCheckpoint, Checkpoint};
use crate::protocol::{ErrorCode, Refusal};
use crate::rows::Rows;
use crate::version::Epoch;
use crate::view::{Verdict, View};

/// Stands in the place of a channel's hash; those have a hyphen.
pub const CHANNEL: &str = "base";

/// See the module.
#[derive(Clone, Debug)]
pub enum Base {
    Rows(Box<Checkpoint>),
    /// The last run gave no rows that could be kept apart.
    Broken {
        epoch: Epoch,
        trouble: Trouble,
    },
}

/// Why a view has no rows. Said to clients, so nothing of its rows or its text stands in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// Two rows have the same key.
    DuplicateKey,
    /// A key column is null.
    NullKey,
    /// More rows, or more bytes, than a channel may have.
    TooManyRows,
    /// It ran longer than the leader can wait without holding up everybody else.
    TooSlow,
    /// Its query fails.
    Fails,
}

impl Trouble {
    /// For logs, and as the reason of the marker.
    pub fn reason(self) -> &'static str {
        match self {
            Self::DuplicateKey => "two rows of the view have the same key",
            Self::NullKey => "a row of the view has no key",
            Self::TooManyRows => "the view has too many rows",
            Self::TooSlow => "the view takes too long",
            Self::Fails => "the view's query fails",
        }
    }

    /// What clients are told. It may pass: the view is run again.
    pub fn refusal(self) -> Refusal {
        match self {
            Self::TooManyRows => Refusal::new(ErrorCode::TooManyRows, self.reason()),
            _ => Refusal::unavailable(self.reason()),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct BrokenText {
    broken: Trouble,
    epoch: Epoch,
}

/// What only the text of a broken base begins with.
const BROKEN: &[u8] = b"{\"broken\":";

impl Base {
    /// The text form: a checkpoint's, or `{"broken":"duplicate_key","epoch":"k3f9"}`.
    ///
    /// # Errors
    /// See [`Checkpoint::encode`].
    pub fn encode(&self) -> Result<Bytes, serde_json::Error> {
        match self {
            Self::Rows(checkpoint) => checkpoint.encode(),
            Self::Broken { epoch, trouble } => {
                serde_json::to_vec(&BrokenText { broken: *trouble, epoch: epoch.clone() }).map(Bytes::from)
            }
        }
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// Anything that [`Self::encode`] does not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadCheckpoint> {
        if bytes.starts_with(BROKEN) {
            let text: BrokenText = serde_json::from_slice(bytes)?;
            return Ok(Self::Broken { epoch: text.epoch, trouble: text.broken });
        }
        Ok(Self::Rows(Box::new(Checkpoint::decode_whole(bytes)?)))
    }
}

/// What a channel takes of a base. Where it shows everything, what is known of earlier versions holds for it too; else
/// nothing is: a key that left before must not be told to who may never have seen its row. `None`: the channel names what
/// the columns are not.
pub fn channel_of(base: Checkpoint, spec: &ChannelSpec) -> Option<Checkpoint> {
    let view = View::new(spec, base.view.feed_schema())?;
    if view.shows_all() && view.schema() == base.view.schema() {
        return Some(Checkpoint { view: Arc::new(view), ..base });
    }
    let members = base.rows.iter().filter_map(|(key, held)| match view.judge(Some(&held.row)) {
        Verdict::Member(row) => Some((key.clone(), row)),
        Verdict::Not(_) => None,
    });
    let rows = Rows::read(&view, base.cut.version, members.collect(), true);
    Some(Checkpoint { rows, view: Arc::new(view), ..base })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::seen::Visible;
    use crate::entry::{Key, Row, State};
    use crate::identity::ResolvedPolicy;
    use crate::publication::{Column, FeedKey, Schema};
    use crate::query::{Comparison, Filter, Query};
    use crate::version::{Cut, Version};

    fn base() -> Checkpoint {
        let schema = Schema { columns: vec![Column::new("region", "text"), Column::new("n", "int4")], key: vec![0] };
        let row = |region: &str| {
            let text = format!("[\"{region}\",1]");
            (Key::new(format!("[\"{region}\"]")), Arc::new(Row::parse(&text).expect("a row")))
        };
        let mut rows = Rows::at(Version(40), [row("north"), row("south"), row("west")]);
        let gone = State { key: Key::new("[\"west\"]"), row: None };
        let view = View::whole(&Arc::new(schema));
        rows.apply(Version(40), Version(41), Visible::All.mark(&[gone]), &view).expect("no window");
        let snapshot = "1:1:".parse().expect("a snapshot");
        Checkpoint {
            cut: Cut { epoch: Epoch::new("e"), version: Version(41), snapshot, as_of: 7 },
            view: Arc::new(view),
            rows,
        }
    }

    fn spec(filter: Filter) -> ChannelSpec {
        ChannelSpec {
            feed: FeedKey { name: "sums".into(), generation: 1 },
            policy: ResolvedPolicy::Public,
            query: Query { filter, ..Query::default() },
        }
    }

    #[test]
    fn a_channel_of_all_rows_knows_what_the_base_knows_and_a_filtered_one_only_its_rows() {
        let all = channel_of(base(), &spec(Filter::default())).expect("a channel");
        assert_eq!((all.rows.len(), all.rows.floor(), all.rows.tombstones().count()), (2, Version(40), 1));
        let value = "\"north\"".into();
        let north = Filter::Compare { column: "region".into(), op: Comparison::Eq, value };
        for spec in [
            spec(north.clone()),
            ChannelSpec { policy: ResolvedPolicy::Filter(north.clone()), ..spec(Filter::default()) },
        ] {
            let one = channel_of(base(), &spec).expect("a channel");
            assert_eq!((one.rows.len(), one.rows.floor(), one.rows.tombstones().count()), (1, Version(41), 0));
        }
        let other = Filter::Compare { column: "nope".into(), op: Comparison::Eq, value: "1".into() };
        assert!(channel_of(base(), &spec(other)).is_none());
    }

    #[test]
    fn a_broken_base_comes_back() {
        let broken = Base::Broken { epoch: Epoch::new("e"), trouble: Trouble::DuplicateKey };
        let read = Base::decode(&broken.encode().expect("JSON")).expect("a base");
        assert!(matches!(read, Base::Broken { trouble: Trouble::DuplicateKey, .. }));
        let read = Base::decode(&Base::Rows(Box::new(base())).encode().expect("JSON")).expect("a base");
        assert!(matches!(read, Base::Rows(checkpoint) if checkpoint.rows.len() == 2));
    }
}
