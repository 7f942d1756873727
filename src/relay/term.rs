//! One term: from a claim on the store to the first thing that is unclear.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::base::{self, Base};
use crate::capture::catalogue::{self, CatalogueError};
use crate::capture::doorbell::{Doorbell, Pace, Rung, SAFETY_POLL};
use crate::capture::lease::{LeaseHandle, LeaseLost};
use crate::capture::reader::{self, CutRead, Poll, ReadError, Reader, Wanted};
use crate::capture::session;
use crate::capture::slices::{self, StateError};
use crate::capture::views::{Step, Views};
use crate::checkpoint::Checkpoint;
use crate::metrics;
use crate::publication::FeedKey;
use crate::relay::Relay;
use crate::relay::onlookers::{self, Register};
use crate::relay::start::{Found, Start, decide};
use crate::store::{Append, AppendError, Beat, Closing, Fence, Part, StoreError, Touched};
use crate::version::{Cut, Epoch, PgSnapshot, Version};

/// States in one append, so that no script of the store runs long.
const APPEND_BYTES: usize = 4 << 20;
/// An answer of the store that takes longer is unclear.
const STORE_ANSWER: Duration = Duration::from_secs(10);
/// A publication whose changes are not all logged is marked so often.
const RESYNC_EVERY: Duration = Duration::from_secs(2);
/// Between two looks for slices to empty.
const EMPTY_EVERY: Duration = Duration::from_secs(30);
/// Between two signs of life, unless triggers would stop logging earlier.
const LIFE_EVERY: Duration = Duration::from_secs(60);
/// How long a view's base stays in the store without a sign of life of its leader.
const BASE_TTL: Duration = Duration::from_secs(600);
/// Between two looks whether old transactions have ended.
const OLD_TRANSACTIONS: Duration = Duration::from_millis(100);

/// Why a term ended.
#[derive(Debug)]
pub enum Ended {
    /// Ask the store again what it has.
    Reclaim(String),
    /// The session is lost.
    Session(String),
}

/// The position of a term, and what it has to do when.
struct Term<'a> {
    relay: &'a Relay,
    reader: &'a mut Reader,
    fence: Fence,
    epoch: Epoch,
    /// The cut to continue from. In the store since [`Self::follows`] names it.
    position: Cut,
    /// Between the position and this snapshot nothing changed that is to be told.
    seen: PgSnapshot,
    /// How many keys the last look told of.
    keys_told: usize,
    /// The store's head.
    follows: Option<(Epoch, Version)>,
    /// Mark everything in the next cut: why.
    mark: Option<&'static str>,
    /// Publications whose capture function was renewed: until the transactions below this id have ended, some of their
    /// changes may have been logged by the old one.
    renewed: BTreeMap<i32, u64>,
    /// The catalogue stamp for which renewing was tried.
    renew_tried: BTreeSet<i32>,
    views: Views,
    /// Views whose result was looked for in the store.
    recalled: BTreeSet<FeedKey>,
    /// Bases on their way to the store.
    bases: JoinSet<()>,
    /// Who has to be told of where row security decides.
    register: Register,
    acknowledged: Option<Version>,
    beat_next: Instant,
    acknowledge_next: Instant,
    resync_next: Instant,
    empty_next: Instant,
    life_every: Duration,
    life_next: Instant,
}

/// Claims the store and delivers until something is unclear.
pub async fn serve(
    relay: &Relay,
    reader: &mut Reader,
    bell: &mut Doorbell,
    lease: &LeaseHandle,
) -> Result<Infallible, Ended> {
    let mut term = Term::begin(relay, reader).await?;
    // Hung before the pace begins: who does not hear the bell is a straggler, and those are looked for.
    bell.listen().await;
    let bell_works: bool = sqlx::query_scalar(
        "select current_setting('max_prepared_transactions') = '0' or current_setting('rowcast.doorbell', true) = 'on'",
    )
    .fetch_one(term.reader.connection())
    .await?;
    let mut pace = Pace::begin(lease.clone(), bell_works).await?;
    loop {
        let poll = term.turn().await?;
        pace.polled(&poll.snapshot, !poll.changed.is_empty(), term.keys_told).await?;
        // Wakes up for: a ring; the next poll; a view that is due. What is due otherwise is due with a poll.
        let view_due = term.views.pause(Instant::now()).unwrap_or(SAFETY_POLL);
        let pause = pace.pause().min(SAFETY_POLL).min(view_due);
        if pace.is_awake() {
            tokio::time::sleep(pause).await;
        } else if let Rung::Rang(rings) = bell.wait(pause).await {
            pace.rung(rings).await?;
        }
    }
}

impl<'a> Term<'a> {
    async fn begin(relay: &'a Relay, reader: &'a mut Reader) -> Result<Self, Ended> {
        let version = reader::draw_version(reader.connection()).await?;
        let (fence, head) = in_time(relay.store.claim(version.0)).await?;
        let delivered = slices::delivered(reader.connection()).await?;
        let epoch = catalogue::identity(reader.connection()).await?;
        let moment = catalogue::begin(reader.connection(), []).await?;
        catalogue::rollback(reader.connection()).await?;
        let lapsed = delivered.lapsed;
        let life_every = (delivered.log_keep / 10).min(LIFE_EVERY);
        let found = Found { head, delivered, epoch, snapshot: moment.snapshot, version };
        let start = decide(&found);
        let is_first = found.head.is_none() && found.delivered.acknowledged.is_none();
        tracing::info!(node = %relay.node, start = ?start_word(&start), head = ?found.head, lapsed, "a term begins");
        slices::begin_logging(reader.connection()).await?;
        if lapsed {
            wait_for_old_transactions(reader).await?;
        }
        let follows = found.head.as_ref().map(|head| (head.epoch.clone(), head.version));
        let (position, mark) = match start {
            Start::Continue { from, definitions, mark } => {
                reader.delivered(definitions);
                (from, if lapsed { Some("log lapsed") } else { mark })
            }
            Start::Begin { why, plant } => {
                match is_first {
                    true => tracing::info!(node = %relay.node, "the first start on this database"),
                    false => tracing::warn!(node = %relay.node, why, "a new epoch begins"),
                }
                reader.delivered(None);
                let base = found.head.as_ref().map_or(Version(0), |head| head.version);
                (new_epoch(reader, plant, base).await?, Some("new epoch"))
            }
        };
        let now = Instant::now();
        Ok(Self {
            relay,
            reader,
            fence,
            epoch: position.epoch.clone(),
            seen: position.snapshot.clone(),
            position,
            keys_told: 0,
            follows,
            mark,
            renewed: BTreeMap::new(),
            renew_tried: BTreeSet::new(),
            views: Views::new(now),
            recalled: BTreeSet::new(),
            bases: JoinSet::new(),
            register: Register::new(now),
            acknowledged: None,
            beat_next: now,
            acknowledge_next: now,
            resync_next: now,
            empty_next: now,
            life_every,
            life_next: now + life_every,
        })
    }

    /// Looks, delivers what there is, and does what is due.
    async fn turn(&mut self) -> Result<Poll, Ended> {
        let now = Instant::now();
        self.keys_told = 0;
        let asks = self.reader.described().is_some_and(|described| onlookers::are_needed(&described.catalogue));
        let refreshed = async {
            if asks {
                self.register.refresh(&*self.relay.store).await;
            }
        };
        let (poll, ()) = tokio::join!(self.reader.poll(&self.seen), refreshed);
        let poll = poll?;
        let beat_due = now >= self.beat_next;
        self.follow_views(&poll.changed, now).await?;
        let mut wanted = Wanted {
            changed: poll.changed.clone(),
            all: self.mark,
            even_if_quiet: self.follows.is_none() || self.mark.is_some(),
            onlookers: self.register.feeds(),
            ..Wanted::default()
        };
        let unsafe_due = now >= self.resync_next;
        if unsafe_due {
            wanted.markers = self.unsafe_publications(&poll).await?;
            self.views.changed(wanted.markers.keys());
            wanted.markers.retain(|&id, _| !self.views.contains(id));
            self.resync_next = now + RESYNC_EVERY;
        }
        wanted.views = self.views.plan(now);
        wanted.view_limits = self.relay.view_limits.clone();
        wanted.stale = self.views.stale_ids();
        // That a stale view changed once more is nothing to tell.
        wanted.changed.retain(|id| !wanted.stale.contains(id));
        let definitions_due = beat_due && self.reader.catalogue_changed().await?;
        if !wanted.changed.is_empty()
            || !wanted.views.is_empty()
            || wanted.even_if_quiet
            || !wanted.markers.is_empty()
            || definitions_due
        {
            // Without a cut, what the poll found was of publications that have ended, or of views that wait for their run.
            if !self.cut(wanted, now).await? {
                self.seen = poll.snapshot.clone();
            }
        } else {
            self.seen = poll.snapshot.clone();
        }
        self.relay.polled();
        if beat_due {
            self.beat(poll.polled_at).await?;
            self.beat_next = now + SAFETY_POLL;
            self.keep_bases(now).await?;
        }
        self.keep_house(now).await?;
        Ok(poll)
    }

    /// Reads a cut and appends it; false where there was nothing to say.
    async fn cut(&mut self, wanted: Wanted, started: Instant) -> Result<bool, Ended> {
        let tried: BTreeSet<i32> = wanted.views.keys().copied().collect();
        let open = self.reader.open(&self.epoch, &self.seen, &wanted).await?;
        // It holds the results that are about to be replaced.
        drop(wanted);
        let Some(open) = open else {
            self.views.put_off(&tried, Instant::now());
            return Ok(false);
        };
        let read = open.close().await?;
        if read.cut.version <= self.position.version {
            return Err(Ended::Reclaim("the version sequence went back".into()));
        }
        if let Some(described) = self.reader.described() {
            self.views.follow(&described.catalogue, started);
        }
        self.put_bases(&read).await?;
        let stale = self.views.stale_after(&read.runs, &read.views_changed);
        self.append(&read, stale).await?;
        self.keys_told = read.states.iter().map(|states| states.keys).sum();
        metrics::cut(started.elapsed());
        for why in read.states.iter().filter_map(|states| states.marker) {
            metrics::marker(why);
        }
        let step = Step { base: self.position.version, cut: &read.cut, started, now: Instant::now() };
        self.views.accepted(read.runs, &read.views_changed, &tried, &step);
        let redefined = self.reader.is_new(&read.definitions);
        self.position = read.cut;
        self.seen = self.position.snapshot.clone();
        self.follows = Some((self.epoch.clone(), self.position.version));
        self.mark = None;
        if redefined {
            slices::remember(self.reader.connection(), &read.definitions, &self.position).await?;
            self.reader.delivered(Some(read.definitions));
            self.renew_tried.clear();
        }
        Ok(true)
    }

    /// What is known of views before a cut: which there are, what changed under them, and what the store has of them.
    async fn follow_views(&mut self, changed: &BTreeSet<i32>, now: Instant) -> Result<(), Ended> {
        let Some(described) = self.reader.described() else { return Ok(()) };
        self.views.follow(&described.catalogue, now);
        self.views.changed(changed);
        for feed in self.views.unknown() {
            if self.recalled.insert(feed.clone())
                && let Some(rows) = self.recall(&feed).await?
            {
                tracing::debug!(view = %feed, version = %self.position.version, "its last result is in the store");
                self.views.recall(&feed, rows, now);
            }
        }
        Ok(())
    }

    /// A view's last result, which is its base rolled forward to the head; `None` where there is none to continue from.
    async fn recall(&self, feed: &FeedKey) -> Result<Option<Checkpoint>, Ended> {
        if self.follows.as_ref() != Some(&(self.epoch.clone(), self.position.version)) {
            return Ok(None);
        }
        let Some(bytes) = in_time(self.relay.store.checkpoint(feed, base::CHANNEL)).await? else { return Ok(None) };
        let Ok(Ok(Base::Rows(checkpoint))) = tokio::task::spawn_blocking(move || Base::decode(&bytes)).await else {
            return Ok(None);
        };
        // A base above the head is of a version that was never accepted.
        if checkpoint.cut.version > self.position.version {
            return Ok(None);
        }
        let log = in_time(self.relay.store.read_log(feed, checkpoint.cut.version)).await?;
        let (Some(head), Some(entries)) = (log.head, log.entries) else { return Ok(None) };
        if head.version != self.position.version {
            return Ok(None);
        }
        Ok(checkpoint.roll_forward(&entries, &head).ok())
    }

    /// Writes the bases of views that a cut tells by a marker, before the cut: who meets the marker finds them. Until the
    /// cut is accepted they stand above the head, and if it never is, the next term tells those views by a marker too.
    async fn put_bases(&mut self, read: &CutRead) -> Result<(), Ended> {
        let bases = Views::bases_of(&read.runs, &read.cut);
        if bases.is_empty() {
            return Ok(());
        }
        // An older one must not arrive after it.
        self.bases.shutdown().await;
        for (feed, base) in bases {
            let encoded = tokio::task::spawn_blocking(move || base.encode()).await;
            let Ok(Ok(bytes)) = encoded else {
                return Err(Ended::Reclaim(format!("the base of {feed} could not be encoded")));
            };
            in_time(self.relay.store.put_checkpoint(&feed, base::CHANNEL, bytes, BASE_TTL)).await?;
        }
        Ok(())
    }

    /// Sees to it that every view's base is in the store, and that the log reaches back to it.
    async fn keep_bases(&mut self, now: Instant) -> Result<(), Ended> {
        if self.follows.is_none() {
            return Ok(());
        }
        while self.bases.try_join_next().is_some() {}
        let mut missing = BTreeSet::new();
        for feed in self.views.with_base() {
            if !in_time(self.relay.store.extend_checkpoint(&feed, base::CHANNEL, BASE_TTL)).await? {
                missing.insert(feed);
            }
        }
        for (feed, base) in self.views.bases_due(&missing, &self.position, now) {
            let store = self.relay.store.clone();
            self.bases.spawn(async move {
                let Ok(Ok(bytes)) = tokio::task::spawn_blocking(move || base.encode()).await else { return };
                if let Err(error) = store.put_checkpoint(&feed, base::CHANNEL, bytes, BASE_TTL).await {
                    tracing::debug!(%error, view = %feed, "a base was not kept; it is missed within a second");
                }
            });
        }
        Ok(())
    }

    async fn append(&self, read: &CutRead, stale: Vec<FeedKey>) -> Result<(), Ended> {
        let mut parts = Vec::new();
        let mut bytes = 0;
        let append = |parts: Vec<Part>, closes: Option<Closing>| Append {
            fence: self.fence,
            follows: self.follows.clone(),
            base: self.position.version,
            cut: read.cut.clone(),
            parts,
            closes,
        };
        for states in &read.states {
            for (number, text) in (0..).zip(&states.parts) {
                if bytes + text.len() > APPEND_BYTES && !parts.is_empty() {
                    in_time(self.relay.store.append(&append(std::mem::take(&mut parts), None))).await?;
                    bytes = 0;
                }
                bytes += text.len();
                parts.push(Part { feed: states.feed.clone(), number, states: text.clone() });
            }
        }
        let touched = read
            .states
            .iter()
            .map(|states| Touched { feed: states.feed.clone(), parts: states.parts.len() as u32 })
            .collect();
        let closing = Closing { touched, catalogue: read.catalogue.clone(), forget: read.forget.clone(), stale };
        in_time(self.relay.store.append(&append(parts, Some(closing)))).await?;
        Ok(())
    }

    /// Says that everything up to the poll is in the store.
    async fn beat(&self, polled_at: i64) -> Result<(), Ended> {
        let Some(described) = self.reader.described() else { return Ok(()) };
        let beat = Beat {
            base: self.position.version,
            cut: self.position.clone(),
            polled_at: polled_at.max(self.position.as_of),
            touched: Vec::new(),
            catalogue: described.catalogue.id(),
            stale: self.views.stale(),
        };
        in_time(self.relay.store.beat(self.fence, &beat)).await?;
        Ok(())
    }

    /// Publications some of whose changes are not logged, or were not for a while. What can be mended is.
    async fn unsafe_publications(&mut self, poll: &Poll) -> Result<BTreeMap<i32, &'static str>, Ended> {
        let not_intact = self.reader.described().map(|described| described.not_intact.clone()).unwrap_or_default();
        if not_intact.iter().any(|id| !self.renew_tried.contains(id)) {
            self.renew_tried.extend(&not_intact);
            tracing::warn!(publications = ?not_intact, "not every change is logged: triggers are missing or disabled");
            match sqlx::query_scalar::<_, Vec<i32>>("select rowcast.renew_capture()")
                .fetch_one(self.reader.connection())
                .await
            {
                Ok(renewed) if !renewed.is_empty() => {
                    let below: String = sqlx::query_scalar("select pg_current_xact_id()::text")
                        .fetch_one(self.reader.connection())
                        .await?;
                    let below =
                        below.parse().map_err(|error| Ended::Reclaim(format!("not a transaction id: {error}")))?;
                    tracing::info!(publications = ?renewed, "their capture functions are renewed");
                    self.renewed.extend(renewed.into_iter().map(|id| (id, below)));
                }
                Ok(_) => {}
                Err(error) if session::is_statement_error(&error) => {
                    tracing::warn!(%error, "capture functions cannot be renewed");
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.renew_watches(&not_intact, poll).await?;
        let mut markers: BTreeMap<i32, &'static str> = not_intact.iter().map(|&id| (id, "triggers")).collect();
        markers.extend(self.renewed.keys().map(|&id| (id, "triggers")));
        // This poll's marker follows the last of them: its cut is taken after the poll.
        self.renewed.retain(|_, &mut below| {
            poll.snapshot.xmax() < below || poll.snapshot.xip().iter().any(|&running| running < below)
        });
        Ok(markers)
    }

    /// Has watches made what they should be, also where something that was depended on is depended on no longer. That needs
    /// a lock on the tables, which is tried again each time.
    async fn renew_watches(&mut self, not_intact: &[i32], poll: &Poll) -> Result<(), Ended> {
        let Some(described) = self.reader.described().cloned() else { return Ok(()) };
        let ended = poll.changed.iter().any(|&id| described.by_id(id).is_none());
        if not_intact.is_empty() && !ended {
            return Ok(());
        }
        match sqlx::query_scalar::<_, Vec<i32>>("select rowcast.renew_watches_as_owner()")
            .fetch_one(self.reader.connection())
            .await
        {
            Ok(renewed) => {
                if !renewed.is_empty() {
                    tracing::info!(publications = ?renewed, "the watches on what they depend on are renewed");
                }
                self.views.changed(&renewed);
                Ok(())
            }
            Err(error) if session::is_statement_error(&error) => {
                tracing::warn!(%error, "the watches on what views depend on cannot be renewed");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What is due besides delivering: the position, the sign of life, slices to empty.
    async fn keep_house(&mut self, now: Instant) -> Result<(), Ended> {
        if self.follows.is_none() {
            return Ok(());
        }
        if now >= self.acknowledge_next && self.acknowledged != Some(self.position.version) {
            slices::acknowledge(self.reader.connection(), &self.position).await?;
            self.acknowledged = Some(self.position.version);
            self.acknowledge_next = now + SAFETY_POLL;
        }
        if now >= self.life_next {
            if !slices::show_life(self.reader.connection()).await? {
                return Err(Ended::Reclaim("triggers may have stopped logging".into()));
            }
            self.life_next = now + self.life_every;
        }
        if now >= self.empty_next {
            match slices::empty(self.reader.connection(), &self.position).await {
                Err(error) if session::is_statement_error(&error) => tracing::warn!(%error, "no slice can be emptied"),
                emptied => drop(emptied?),
            }
            self.empty_next = now + EMPTY_EVERY;
        }
        Ok(())
    }
}

/// Makes the epoch another one, where it is not yet, and gives the position before its first cut.
async fn new_epoch(reader: &mut Reader, plant: bool, base: Version) -> Result<Cut, Ended> {
    if plant {
        sqlx::query(
            "insert into rowcast.epoch default values on conflict (only_row) do update set token = gen_random_uuid()",
        )
        .execute(reader.connection())
        .await?;
    }
    sqlx::query("select setval('rowcast.version', greatest(last_value, $1)) from rowcast.version")
        .bind(i64::try_from(base.0).unwrap_or(i64::MAX))
        .execute(reader.connection())
        .await?;
    let moment = catalogue::begin(reader.connection(), []).await?;
    catalogue::rollback(reader.connection()).await?;
    let epoch = moment.epoch.ok_or_else(|| Ended::Reclaim("the token was taken away".into()))?;
    Ok(Cut { epoch, version: base, snapshot: moment.snapshot, as_of: moment.now_ms })
}

/// Waits until every transaction that runs now has ended: they may not have logged what they changed.
async fn wait_for_old_transactions(reader: &mut Reader) -> Result<(), Ended> {
    let mut old: BTreeSet<String> = slices::running_transactions(reader.connection()).await?.into_iter().collect();
    let count = old.len();
    let mut told = false;
    while !old.is_empty() {
        tokio::time::sleep(OLD_TRANSACTIONS).await;
        let running: BTreeSet<String> = slices::running_transactions(reader.connection()).await?.into_iter().collect();
        old.retain(|transaction| running.contains(transaction));
        if !old.is_empty() && !told {
            tracing::info!(count, "nothing was logged for long: waiting for transactions that began before now");
            told = true;
        }
    }
    Ok(())
}

fn start_word(start: &Start) -> &'static str {
    match start {
        Start::Continue { mark: None, .. } => "continue",
        Start::Continue { mark: Some(why), .. } => why,
        Start::Begin { .. } => "new epoch",
    }
}

/// An answer of the store; a late one is unclear.
async fn in_time<T, E: Into<Ended>>(answer: impl Future<Output = Result<T, E>>) -> Result<T, Ended> {
    match timeout(STORE_ANSWER, answer).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(Ended::Reclaim("the store did not answer in time".into())),
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reclaim(why) | Self::Session(why) => f.write_str(why),
        }
    }
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        Self::Reclaim(error.to_string())
    }
}

impl From<AppendError> for Ended {
    fn from(error: AppendError) -> Self {
        Self::Reclaim(error.to_string())
    }
}

impl From<LeaseLost> for Ended {
    fn from(error: LeaseLost) -> Self {
        Self::Session(error.to_string())
    }
}

impl From<sqlx::Error> for Ended {
    fn from(error: sqlx::Error) -> Self {
        if session::is_statement_error(&error) {
            Self::Reclaim(format!("the database refuses: {error}"))
        } else {
            Self::Session(format!("the database is lost: {error}"))
        }
    }
}

impl From<StateError> for Ended {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Database(error) => error.into(),
            error => Self::Session(error.to_string()),
        }
    }
}

impl From<CatalogueError> for Ended {
    fn from(error: CatalogueError) -> Self {
        match error {
            CatalogueError::Database(error) => error.into(),
            error => Self::Reclaim(error.to_string()),
        }
    }
}

impl From<ReadError> for Ended {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Database(error) => error.into(),
            ReadError::Catalogue(error) => error.into(),
            error => Self::Reclaim(error.to_string()),
        }
    }
}
