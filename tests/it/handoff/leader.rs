//! The test as the leader: carries cuts into the store as the relay does, and writes down what the tables contain at each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use rowcast::capture::lease::{self, LeaseHandle};
use rowcast::capture::reader::{self, OpenCut, Reader, Wanted};
use rowcast::capture::{catalogue, sight, slices};
use rowcast::identity::{Onlooker, RlsIdentity};
use rowcast::publication::{Policy, Publication};
use rowcast::store::redis::{DEFAULT_PREFIX, RedisStore};
use rowcast::store::{Append, Beat, Closing, Fence, LiveIdentities, Part, Retention, Store, Touched};
use rowcast::version::{Cut, Version};
use tokio::task::JoinHandle;

use crate::harness::content::Content;
use crate::harness::world::{World, run};

/// A channel, and how Postgres is asked for its rows.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    pub channel: &'static str,
    pub publication: &'static str,
    /// Those that its rows have, the key's and the order's included.
    pub columns: &'static [&'static str],
    /// `where … order by … limit …`, over the row `r`.
    pub clause: &'static str,
}

/// What every channel contained at every version. `None`: somebody kept readers out, so that it is not known.
#[derive(Default)]
pub struct Oracle(RwLock<HashMap<Version, BTreeMap<String, Option<Content>>>>);

impl Oracle {
    /// Outside, `None` where there was no such version.
    pub fn content(&self, version: Version, channel: &str) -> Option<Option<Content>> {
        let versions = self.0.read().expect("a lock");
        Some(versions.get(&version)?.get(channel).copied().flatten())
    }
}

pub struct Leader {
    pub oracle: Arc<Oracle>,
    pub cuts: usize,
    /// Cuts with markers, and how many of each kind.
    pub marked: usize,
    pub reasons: BTreeMap<&'static str, usize>,
    /// Channels whose rows are written down too, besides those of whole publications.
    queries: &'static [Query],
    /// Through whose eyes the oracle looks as well, where row security decides: `notes as ann`.
    pub eyes: Vec<(&'static str, RlsIdentity)>,
    onlookers: LiveIdentities,
    reader: Reader,
    store: RedisStore,
    fence: Fence,
    position: Cut,
    /// Whether the store has `position`.
    appended: bool,
    beat_next: Instant,
    catalogue: String,
    keeping: JoinHandle<()>,
    _lease: LeaseHandle,
}

impl Leader {
    /// Comes into office, with an epoch of its own and a first cut in the store.
    pub async fn begin(world: &World) -> Self {
        Self::begin_with(world, &[]).await
    }

    /// The same, knowing the rows of further channels.
    pub async fn begin_with(world: &World, queries: &'static [Query]) -> Self {
        let database = world.postgres.url().options();
        let (mut lease, handle) = lease::acquire(&database).await.expect("the lease");
        let keeping = tokio::spawn(async move {
            let error = lease.keep().await;
            panic!("the lease is lost: {error}");
        });
        // The reader polls: nobody has to ring.
        while !handle.wake().await.expect("the lease") {}
        let mut reader = Reader::connect(&database).await.expect("a reader");
        run(
            reader.connection(),
            "insert into rowcast.epoch default values on conflict (only_row) do update set token = gen_random_uuid()",
        )
        .await;
        slices::begin_logging(reader.connection()).await.expect("logging");
        let moment = catalogue::begin(reader.connection(), []).await.expect("a moment");
        catalogue::rollback(reader.connection()).await.expect("its end");
        let store = RedisStore::new(world.redis.url().expose(), DEFAULT_PREFIX, Retention::default()).expect("a store");
        let version = reader::draw_version(reader.connection()).await.expect("a version");
        let (fence, head) = store.claim(version.0).await.expect("a claim");
        assert!(head.is_none(), "a new store is empty");
        let mut leader = Self {
            oracle: Arc::default(),
            cuts: 0,
            marked: 0,
            reasons: BTreeMap::new(),
            queries,
            eyes: Vec::new(),
            onlookers: LiveIdentities::default(),
            reader,
            store,
            fence,
            position: Cut {
                epoch: moment.epoch.expect("a planted epoch"),
                version: Version(0),
                snapshot: moment.snapshot,
                as_of: moment.now_ms,
            },
            appended: false,
            beat_next: Instant::now(),
            catalogue: String::new(),
            keeping,
            _lease: handle,
        };
        assert!(leader.turn().await, "a first cut");
        leader
    }

    /// Delivers what has changed; false if nothing has.
    pub async fn turn(&mut self) -> bool {
        assert!(!self.keeping.is_finished(), "the lease is held");
        let poll = self.reader.poll(&self.position.snapshot).await.expect("a poll");
        if let Some(live) = self.store.live_identities(&self.onlookers.stamp).await.expect("an answer") {
            self.onlookers = live;
        }
        let beat_due = Instant::now() >= self.beat_next;
        let mut delivered = false;
        if !poll.changed.is_empty()
            || !self.appended
            || (beat_due && self.reader.catalogue_changed().await.expect("a stamp"))
        {
            delivered = self.cut().await;
        }
        if beat_due {
            self.beat_next = Instant::now() + Duration::from_millis(200);
            let beat = Beat {
                base: self.position.version,
                cut: self.position.clone(),
                polled_at: poll.polled_at.max(self.position.as_of),
                touched: Vec::new(),
                catalogue: self.catalogue.clone(),
                stale: Vec::new(),
            };
            self.store.beat(self.fence, &beat).await.expect("a beat");
        }
        delivered
    }

    async fn cut(&mut self) -> bool {
        // Every table is locked before the snapshot, so that all of them can be read in it.
        let ids = |reader: &Reader| -> BTreeSet<i32> {
            let described = reader.described().into_iter();
            described.flat_map(|described| described.catalogue.publications.values()).map(|known| known.id).collect()
        };
        let wanted = Wanted {
            changed: ids(&self.reader),
            all: (!self.appended).then_some("new epoch"),
            even_if_quiet: !self.appended,
            onlookers: Arc::new(sight::by_feed(
                self.onlookers.identities.iter().map(|text| Onlooker::parse(text).expect("what a node has registered")),
            )),
            ..Wanted::default()
        };
        let epoch = self.position.epoch.clone();
        let Some(mut open) = self.reader.open(&epoch, &self.position.snapshot, &wanted).await.expect("a cut") else {
            return false;
        };
        let contents = contents(&mut open, self.queries, &self.eyes).await;
        let read = open.close().await.expect("a version");
        assert!(read.cut.version > self.position.version && self.position.snapshot.is_within(&read.cut.snapshot));
        self.oracle.0.write().expect("a lock").insert(read.cut.version, contents);
        let parts = read.states.iter().flat_map(|states| {
            let numbered = states.parts.iter().zip(0..);
            numbered.map(|(text, number)| Part { feed: states.feed.clone(), number, states: text.clone() })
        });
        let touched =
            read.states.iter().map(|states| Touched { feed: states.feed.clone(), parts: states.parts.len() as u32 });
        let append = Append {
            fence: self.fence,
            follows: self.appended.then(|| (epoch.clone(), self.position.version)),
            base: self.position.version,
            cut: read.cut.clone(),
            parts: parts.collect(),
            closes: Some(Closing {
                touched: touched.collect(),
                catalogue: read.catalogue.clone(),
                forget: read.forget.clone(),
                stale: Vec::new(),
            }),
        };
        self.store.append(&append).await.expect("an append");
        self.cuts += 1;
        let markers: Vec<&'static str> = read.states.iter().filter_map(|states| states.marker).collect();
        self.marked += usize::from(!markers.is_empty());
        for why in markers {
            *self.reasons.entry(why).or_default() += 1;
        }
        self.catalogue = read.catalogue;
        self.position = read.cut;
        self.appended = true;
        self.reader.delivered(Some(read.definitions));
        true
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

/// What every publication contains in the cut's snapshot. A table that was not locked before the snapshot was taken is
/// left out: after a rewrite it would look empty.
async fn contents(
    open: &mut OpenCut<'_>,
    queries: &[Query],
    eyes: &[(&'static str, RlsIdentity)],
) -> BTreeMap<String, Option<Content>> {
    let publications: Vec<_> = open.described().catalogue.publications.values().cloned().collect();
    let locked: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', n.nspname, c.relname) from pg_locks as l join pg_class as c on c.oid = l.relation
         join pg_namespace as n on n.oid = c.relnamespace
         where l.pid = pg_backend_pid() and l.locktype = 'relation' and l.granted",
    )
    .fetch_all(open.connection())
    .await
    .expect("locks");
    let mut contents = BTreeMap::new();
    for publication in publications {
        let is_locked = locked.iter().any(|name| publication.relation.trim_start_matches("only ") == name);
        let content = match is_locked {
            true => Some(Content::of_table(open.connection(), &publication).await),
            false => None,
        };
        contents.insert(publication.feed.name.to_string(), content);
        for query in queries.iter().filter(|query| *query.publication == *publication.feed.name) {
            let content = match is_locked {
                true => {
                    let Query { columns, clause, .. } = query;
                    Some(Content::of_query(open.connection(), &publication, columns, clause).await)
                }
                false => None,
            };
            contents.insert(query.channel.to_owned(), content);
        }
        for (who, identity) in eyes.iter().filter(|_| publication.policy == Policy::Rls) {
            let content = match is_locked {
                true => Some(content_for(open, &publication, identity).await),
                false => None,
            };
            contents.insert(format!("{} as {who}", publication.feed.name), content);
        }
    }
    contents
}

/// What row security shows of it to an identity, in the cut's snapshot.
async fn content_for(open: &mut OpenCut<'_>, publication: &Publication, identity: &RlsIdentity) -> Content {
    let connection = open.connection();
    sqlx::query("select rowcast.become($1, $2)")
        .bind(&identity.role)
        .bind(&identity.claims)
        .execute(&mut *connection)
        .await
        .expect("a role");
    let content = Content::of_table(connection, publication).await;
    run(connection, "set local role none; set local row_security = off; set local search_path = pg_catalog").await;
    content
}
