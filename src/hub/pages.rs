//! Rows frozen at a version, encoded page by page by whoever needs the next page first, and shared by all who send it.
//!
//! Freezing costs the hub a reference per row; encoding is paid by the sessions, outside the hub's task, once.

use std::sync::{Arc, Mutex, PoisonError};

use crate::entry::{Key, Row};
use crate::protocol::{ChannelNumber, Frame, PAGE_BYTES, RowsFrame, Why};
use crate::publication::Schema;
use crate::version::{Cut, Version};

/// What the pages say of their channel.
#[derive(Clone, Debug)]
pub(super) enum Heading {
    Snapshot { version: Version },
    Delta { prev: Version, cut: Cut, names_epoch: bool },
}

/// A snapshot, or a difference of whole rows, to be sent in pages of about 64 KiB.
#[derive(Debug)]
pub(super) struct Pages {
    channel: ChannelNumber,
    schema: Arc<Schema>,
    heading: Heading,
    rows: Vec<(Key, Arc<Row>)>,
    gone: Vec<(Key, Option<Why>)>,
    encoded: Mutex<Encoded>,
}

#[derive(Debug, Default)]
struct Encoded {
    pages: Vec<Frame>,
    /// Rows, then gone keys, encoded so far.
    items: usize,
    complete: bool,
}

impl Pages {
    pub(super) fn new(
        channel: ChannelNumber,
        schema: Arc<Schema>,
        heading: Heading,
        rows: Vec<(Key, Arc<Row>)>,
        gone: Vec<(Key, Option<Why>)>,
    ) -> Self {
        Self { channel, schema, heading, rows, gone, encoded: Mutex::default() }
    }

    /// The page of a number, from 0; `None` behind the last one. There is always a first page.
    pub(super) fn page(&self, number: usize) -> Option<Frame> {
        // A panic while encoding leaves whole pages behind, which stay right.
        let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        while encoded.pages.len() <= number && !encoded.complete {
            let (frame, items) = self.encode_from(encoded.items);
            encoded.items = items;
            encoded.complete = items == self.rows.len() + self.gone.len();
            encoded.pages.push(frame);
        }
        encoded.pages.get(number).cloned()
    }

    fn encode_from(&self, start: usize) -> (Frame, usize) {
        let mut frame = match &self.heading {
            Heading::Snapshot { version } => RowsFrame::snapshot(self.channel, *version),
            Heading::Delta { prev, cut, names_epoch } => RowsFrame::delta(self.channel, *prev, cut, *names_epoch),
        };
        let mut items = start;
        for (key, row) in self.rows.iter().skip(start) {
            if frame.len() > PAGE_BYTES {
                return (frame.finish(true), items);
            }
            frame.row(&self.schema, key, row, 0..self.schema.columns.len());
            items += 1;
        }
        for (key, why) in self.gone.iter().skip(items - self.rows.len()) {
            if frame.len() > PAGE_BYTES {
                return (frame.finish(true), items);
            }
            frame.gone(key, *why);
            items += 1;
        }
        (frame.finish(false), items)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::publication::Column;
    use crate::version::Epoch;

    #[test]
    fn pages_hold_every_item_once_and_only_the_last_says_so() {
        let schema = Schema { columns: ["id", "text"].map(|name| Column::new(name, "text")).to_vec(), key: vec![0] };
        let key = |id: usize| Key::new(format!("[{id}]"));
        let text = "x".repeat(1000);
        let rows =
            (0..300).map(|id| (key(id), Arc::new(Row::parse(&format!("[{id},\"{text}\"]")).expect("a row")))).collect();
        let gone = (1000..9000).map(|id| (key(id), Some(Why::Deleted))).collect();
        let cut = Cut {
            epoch: Epoch::new("e"),
            version: Version(9),
            snapshot: "1:1:".parse().expect("a snapshot"),
            as_of: 1,
        };
        let heading = Heading::Delta { prev: Version(3), cut, names_epoch: false };
        let pages = Pages::new(ChannelNumber(1), Arc::new(schema), heading, rows, gone);
        let (mut row_ids, mut gone_ids, mut number) = (vec![], vec![], 0);
        while let Some(frame) = pages.page(number) {
            assert!(frame.len() < PAGE_BYTES + 2_000);
            number += 1;
            let read: Value = serde_json::from_str(frame.as_str()).expect("JSON");
            assert_eq!(read["more"] == true, pages.page(number).is_some());
            row_ids.extend(read["rows"].as_array().into_iter().flatten().map(|row| row["id"].as_u64()));
            gone_ids.extend(read["gone"].as_array().into_iter().flatten().map(|gone| gone["key"][0].as_u64()));
        }
        assert!(number > 5);
        assert!(row_ids.into_iter().flatten().eq(0..300));
        assert!(gone_ids.into_iter().flatten().eq(1000..9000));
    }

    #[test]
    fn an_empty_snapshot_is_one_page() {
        let schema = Arc::new(Schema { columns: vec![], key: vec![] });
        let heading = Heading::Snapshot { version: Version(4) };
        let pages = Pages::new(ChannelNumber(2), schema, heading, vec![], vec![]);
        assert_eq!(pages.page(0).expect("a page").as_str(), r#"{"op":"snapshot","ch":2,"version":4}"#);
        assert!(pages.page(1).is_none());
    }
}
