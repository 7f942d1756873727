//! The rows of one channel, and how pages, snapshots and deltas change them.

use std::collections::{HashMap, HashSet};

use super::frame::{Page, Subscribed};
use super::row::key_of;
use super::{Change, Form, Live, Position, Row, Violation};
use crate::entry::Key;
use crate::protocol::Why;
use crate::version::{Epoch, Version};

/// Rows and what is known about them.
///
/// `form` is how `rows` are made. `awaited` is the form of a snapshot that is to come: then there is no position, and
/// the rows are the last ones known. `served`: the server has said `subscribed` on this connection.
#[derive(Clone, Debug)]
pub(super) struct Channel {
    text: String,
    pub(super) form: Option<Form>,
    pub(super) rows: HashMap<Key, Row>,
    pub(super) position: Option<Position>,
    awaited: Option<(Form, Epoch)>,
    pages: Option<Pages>,
    served: bool,
    /// The highest version that the server knows the client had: nothing below it may be shown again.
    floor: Version,
}

/// Pages of one snapshot or delta, until the last has come.
#[derive(Clone, Debug)]
struct Pages {
    is_snapshot: bool,
    prev: Option<Version>,
    version: Version,
    epoch: Option<Epoch>,
    rows: Vec<(Key, Row)>,
    gone: Vec<(Key, Option<Why>)>,
    seen: HashSet<Key>,
}

/// What a page did.
#[derive(Debug)]
pub(super) enum Applied {
    /// More pages follow.
    NotYet,
    Snapshot,
    Delta(Vec<Change>),
    /// A delta that continues from above the position: nothing of it was applied.
    Gap,
}

impl Channel {
    pub(super) fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            form: None,
            rows: HashMap::new(),
            position: None,
            awaited: None,
            pages: None,
            served: false,
            floor: Version::default(),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.served && self.position.is_some() && self.pages.is_none()
    }

    pub(super) fn disconnected(&mut self) {
        self.served = false;
        self.pages = None;
    }

    /// What to resume with. Without a position the server knows nothing of what the client has had.
    pub(super) fn asked(&mut self) -> Option<(&str, &Position)> {
        if self.position.is_none() {
            self.floor = Version::default();
        }
        Some((self.form.as_ref()?.tag.as_str(), self.position.as_ref()?))
    }

    pub(super) fn subscribed(&mut self, said: &Subscribed) -> Result<(), Violation> {
        let form = Form {
            tag: said.tag.clone(),
            key: said.key.clone(),
            order: said.order.clone(),
            columns: said.columns.clone(),
        };
        self.pages = None;
        if said.resumed {
            let Some(position) = &mut self.position else {
                return Err(self.violation("resumed, but the client had no position"));
            };
            if self.form.as_ref() != Some(&form) {
                return Err(self.violation("resumed with another tag, key, order or columns"));
            }
            // Above the position: nothing has changed up to there. Below: the missed changes follow from there.
            position.epoch = said.epoch.clone();
            position.version = position.version.max(said.version);
            self.floor = position.version;
        } else {
            self.position = None;
            self.awaited = Some((form, said.epoch.clone()));
        }
        self.served = true;
        Ok(())
    }

    pub(super) fn reset(&mut self) {
        self.pages = None;
        if let (Some(form), Some(position)) = (self.form.clone(), self.position.take()) {
            self.awaited = Some((form, position.epoch));
        }
    }

    pub(super) fn live(&mut self, live: &Live) {
        if !self.is_complete() {
            return;
        }
        if let Some(position) = &mut self.position
            && live.version >= position.version
        {
            *position = Position { epoch: live.epoch.clone(), version: live.version };
            self.floor = live.version;
        }
    }

    pub(super) fn snapshot_page(&mut self, page: Page) -> Result<Applied, Violation> {
        let Some((form, epoch)) = self.awaited.clone() else {
            return Err(self.violation("a snapshot that nothing announced"));
        };
        if page.version < self.floor {
            return Err(self.back_in_time(page.version));
        }
        let Some(pages) = self.add_page(page, true, &form)? else { return Ok(Applied::NotYet) };
        for (_, row) in &pages.rows {
            self.check_whole(row, &form)?;
        }
        self.rows = pages.rows.into_iter().collect();
        self.form = Some(form);
        self.awaited = None;
        self.position = Some(Position { epoch: pages.epoch.unwrap_or(epoch), version: pages.version });
        self.floor = pages.version;
        Ok(Applied::Snapshot)
    }

    pub(super) fn delta_page(&mut self, page: Page) -> Result<Applied, Violation> {
        let (Some(form), Some(position)) = (self.form.clone(), self.position.clone()) else {
            return Err(self.violation("a delta before the snapshot"));
        };
        let Some(prev) = page.prev else { return Err(self.violation("a delta without `prev`")) };
        if prev > position.version {
            return Ok(Applied::Gap);
        }
        if page.version < position.version {
            return Err(self.back_in_time(page.version));
        }
        if prev > page.version {
            return Err(self.violation("a delta that ends before it begins"));
        }
        let Some(pages) = self.add_page(page, false, &form)? else { return Ok(Applied::NotYet) };
        let mut changes = Vec::with_capacity(pages.rows.len() + pages.gone.len());
        for (key, newer) in pages.rows {
            let before = self.rows.get(&key).cloned();
            if before.is_none() {
                self.check_whole(&newer, &form)?;
            }
            let row = self.rows.entry(key.clone()).or_default();
            let changed = row.merge(newer);
            changes.push(Change::Upsert { key, before, row: row.clone(), changed });
        }
        for (key, why) in pages.gone {
            let row = self.rows.remove(&key);
            changes.push(Change::Gone { key, row, why });
        }
        self.position = Some(Position { epoch: pages.epoch.unwrap_or(position.epoch), version: pages.version });
        self.floor = pages.version;
        Ok(Applied::Delta(changes))
    }

    /// Adds a page; gives all of them with the last.
    fn add_page(&mut self, page: Page, is_snapshot: bool, form: &Form) -> Result<Option<Pages>, Violation> {
        let mut pages = match self.pages.take() {
            None => Pages {
                is_snapshot,
                prev: page.prev,
                version: page.version,
                epoch: None,
                rows: Vec::new(),
                gone: Vec::new(),
                seen: HashSet::new(),
            },
            Some(pages) if (pages.is_snapshot, pages.prev, pages.version) == (is_snapshot, page.prev, page.version) => {
                pages
            }
            Some(_) => return Err(self.violation("a page of something else between two pages")),
        };
        pages.epoch = page.epoch.or(pages.epoch);
        let (first_row, first_gone) = (pages.rows.len(), pages.gone.len());
        for values in page.rows {
            if let Some(unknown) = values.keys().find(|name| !form.columns.iter().any(|column| *column.name == ***name))
            {
                return Err(self.violation(format!("a row with the unknown column `{unknown}`")));
            }
            let row = Row::of_frame(values);
            let Some(key) = row.key(&form.key) else { return Err(self.violation("a row without its key")) };
            pages.rows.push((key, row));
        }
        for gone in page.gone {
            let values: Vec<&str> = gone.key.iter().map(|value| value.get()).collect();
            pages.gone.push((key_of(&values), gone.why));
        }
        let keys = pages.rows[first_row..].iter().map(|(key, _)| key);
        let gone_keys = pages.gone[first_gone..].iter().map(|(key, _)| key);
        let twice = keys.chain(gone_keys).find(|key| !pages.seen.insert((*key).clone())).cloned();
        if let Some(key) = twice {
            return Err(self.violation(format!("the key {} stands twice in one version", key.as_str())));
        }
        for large in page.large {
            let values: Vec<&str> = large.key.iter().map(|value| value.get()).collect();
            let key = key_of(&values);
            match pages.rows.iter_mut().find(|(known, _)| *known == key) {
                Some((_, row)) => row.set_large(large.columns),
                None => return Err(self.violation("`large` names a row that the page does not have")),
            }
        }
        if page.more {
            self.pages = Some(pages);
            return Ok(None);
        }
        Ok(Some(pages))
    }

    fn check_whole(&self, row: &Row, form: &Form) -> Result<(), Violation> {
        match form.columns.iter().find(|column| row.value(&column.name).is_none()) {
            Some(column) => Err(self.violation(format!("a new row without the column `{}`", column.name))),
            None => Ok(()),
        }
    }

    fn back_in_time(&self, to: Version) -> Violation {
        Violation::BackInTime { channel: self.text.clone(), from: self.floor, to }
    }

    fn violation(&self, what: impl Into<String>) -> Violation {
        Violation::Form { channel: self.text.clone(), what: what.into() }
    }
}
