//! A client's view of cuts: rows by key, kept from states alone. A marker reloads a publication, in the cut's own snapshot,
//! as a channel under resync would. After a cut the mirror is compared with the tables, still in that snapshot.

use std::collections::BTreeMap;

use rowcast::capture::catalogue;
use rowcast::capture::reader::{Reader, Wanted};
use rowcast::entry::States;
use rowcast::publication::Publication;
use rowcast::version::{Epoch, PgSnapshot, Version};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::harness::postgres::{PrivatePostgres, attempt, run};

type Rows = BTreeMap<String, String>;

/// Follows a database cut by cut.
pub struct Mirror {
    pub reader: Reader,
    epoch: Epoch,
    snapshot: PgSnapshot,
    version: Version,
    /// By publication; absent while a marker has not been made good.
    rows: BTreeMap<String, Rows>,
    pub cuts: usize,
    pub comparisons: usize,
    pub states: usize,
    pub markers: Vec<(String, &'static str)>,
}

impl Mirror {
    /// Begins with everything marked.
    pub async fn new(postgres: &PrivatePostgres) -> Self {
        postgres
            .run("update rowcast.pulse set at = now(); insert into rowcast.epoch default values on conflict do nothing")
            .await;
        let mut reader = Reader::connect(&postgres.options()).await.expect("a reader");
        let epoch = catalogue::identity(reader.connection()).await.expect("an identity").expect("a planted token");
        let mut mirror = Self {
            reader,
            epoch,
            snapshot: "3:3:".parse().expect("a snapshot"),
            version: Version(0),
            rows: BTreeMap::new(),
            cuts: 0,
            comparisons: 0,
            states: 0,
            markers: Vec::new(),
        };
        mirror.cut(Wanted { all: Some("start"), even_if_quiet: true, ..Wanted::default() }).await;
        mirror.markers.clear();
        mirror
    }

    /// Polls, and takes a cut if anything changed or definitions differ. Whether there was one.
    pub async fn step(&mut self) -> bool {
        let poll = self.reader.poll(&self.snapshot).await.expect("a poll");
        let mut wanted = Wanted { changed: poll.changed, ..Wanted::default() };
        if wanted.changed.is_empty() && !self.reader.catalogue_changed().await.expect("a stamp") {
            return false;
        }
        // Only a table that was locked before the snapshot can be compared: now and then that is all of them.
        if !self.cuts.is_multiple_of(3) {
            let described = self.reader.described().expect("a catalogue");
            wanted.changed.extend(described.catalogue.publications.values().map(|publication| publication.id));
        }
        self.cut(wanted).await
    }

    pub async fn cut(&mut self, wanted: Wanted) -> bool {
        let Some(mut open) = self.reader.open(&self.epoch, &self.snapshot, &wanted).await.expect("a cut") else {
            return false;
        };
        let described = open.described().clone();
        let all_locked = !self.cuts.is_multiple_of(3);
        self.rows.retain(|name, _| described.catalogue.publications.contains_key(name.as_str()));
        for states in open.states().to_vec() {
            let name = states.feed.name.to_string();
            match States::parse(&states.parts).expect("states") {
                States::Rows { schema, states, .. } => {
                    assert_eq!(schema, described.catalogue.publications[name.as_str()].schema_id);
                    self.states += states.len();
                    let Some(rows) = self.rows.get_mut(&name) else { continue };
                    for state in states {
                        match state.row {
                            Some(row) => rows.insert(state.key.as_str().to_owned(), row.text().to_owned()),
                            None => rows.remove(state.key.as_str()),
                        };
                    }
                }
                States::Marker(_) => {
                    self.markers.push((name.clone(), states.marker.expect("a reason")));
                    self.rows.remove(&name);
                }
            }
        }
        for publication in described.catalogue.publications.values() {
            let name = publication.feed.name.to_string();
            let said = open.states().iter().any(|states| states.feed == publication.feed);
            if !all_locked && !said && self.rows.contains_key(&name) {
                continue;
            }
            let Some(table) = read(open.connection(), publication).await else { continue };
            match self.rows.get(&name) {
                Some(rows) => {
                    self.comparisons += 1;
                    compare(&name, open.snapshot(), rows, &table);
                }
                None => drop(self.rows.insert(name, table)),
            }
        }
        let read = open.close().await.expect("a version");
        assert!(read.cut.version > self.version, "versions ascend");
        assert!(self.snapshot.is_within(&read.cut.snapshot), "snapshots are a chain");
        self.cuts += 1;
        self.version = read.cut.version;
        self.snapshot = read.cut.snapshot;
        self.reader.delivered(Some(read.definitions));
        true
    }

    /// The rows of a publication, as far as they are known.
    pub fn rows(&self, name: &str) -> Option<&Rows> {
        self.rows.get(name)
    }

    /// The reasons of a publication's markers since the last call.
    pub fn take_markers(&mut self, name: &str) -> Vec<&'static str> {
        let (taken, rest) = std::mem::take(&mut self.markers).into_iter().partition(|(of, _)| of == name);
        self.markers = rest;
        let taken: Vec<(String, &'static str)> = taken;
        taken.into_iter().map(|(_, why)| why).collect()
    }
}

/// The table, in the transaction's snapshot; `None` while somebody keeps readers out.
async fn read(connection: &mut PgConnection, publication: &Publication) -> Option<Rows> {
    run(connection, "savepoint look").await;
    let lock = format!("lock table {} in access share mode nowait", publication.relation);
    if attempt(connection, &lock).await.is_err() {
        run(connection, "rollback to savepoint look").await;
        return None;
    }
    let sql = format!("select {}, {} from {} as r", publication.key_sql, publication.row_sql, publication.relation);
    let rows: Vec<(String, String)> =
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut *connection).await.expect("rows");
    run(connection, "release savepoint look").await;
    Some(rows.into_iter().collect())
}

fn compare(name: &str, snapshot: &PgSnapshot, mirror: &Rows, table: &Rows) {
    if mirror == table {
        return;
    }
    let missing: Vec<_> = table.iter().filter(|(key, row)| mirror.get(*key) != Some(row)).take(5).collect();
    let phantoms: Vec<_> = mirror.iter().filter(|(key, _)| !table.contains_key(*key)).take(5).collect();
    panic!("{name} differs from its table at {snapshot}: missing or old {missing:?}, not there any more {phantoms:?}");
}
