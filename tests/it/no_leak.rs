//! No leak: whatever policies, row security, refreshes, revocations, resumes and moves of rows come together, no frame
//! ever carries a row, or the key of a row, that its receiver could not see.
//!
//! Every row says in its `label` whose it is, so a spy needs nobody to ask: it looks at each raw frame, and judges it by the
//! claims that the connection had when the frame's channel was opened. Labels of other tenants, owners or regions are
//! leaks; so is a key in `gone` of a row that was never shown.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use sqlx::PgConnection;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::dash::connect;
use crate::harness::tokens::{SECRET, Signer, WITH_SECRET, now};
use crate::harness::within;
use crate::harness::world::{World, run};

/// As many identities as there are tenants times owners: few enough that their channels are open most of the time.
const TENANTS: u32 = 12;
const OWNERS: u32 = 5;
const SPIES: u64 = 52;
const WRITERS: u64 = 4;
const ROWS: i32 = 400;
/// A busy machine takes longer to show enough.
const LOAD: std::ops::Range<Duration> = Duration::from_secs(8)..Duration::from_secs(45);

/// What a revoked session may still get comes within this.
const REVOKED_WITHIN: Duration = Duration::from_secs(1);

/// The policies, and what each lets an identity see: of a row's tenant, region and owner.
const CHANNELS: [(&str, &str, Rule); 6] = [
    ("by_tenant", "tenant=eq.{tenant}", |who, row| row.tenant == who.tenant),
    (NEEDS_REGIONS, "tenant=eq.{tenant}&region=in.{app.regions}", |who, row| {
        row.tenant == who.tenant && who.regions.contains(&row.region)
    }),
    ("by_owner", "tenant=eq.{tenant}&or=(owner.eq.{sub},region.eq.north)", |who, row| {
        row.tenant == who.tenant && (row.owner == who.sub || row.region == "north")
    }),
    ("not_mine", "tenant=eq.{tenant}&owner=not.eq.{sub}", |who, row| row.tenant == who.tenant && row.owner != who.sub),
    ("anybody", "authenticated", |_, _| true),
    (SECURED, "rls", |who, row| row.tenant == who.tenant || row.owner == who.sub),
];

/// What is decided by Postgres, and how.
const SECURED: &str = "secured";
const ROW_SECURITY: &str = "
    create role app nologin;
    grant select on items to app;
    alter table items enable row level security;
    create policy seen on items for select to app using (
        tenant = current_setting('request.jwt.claims', true)::json ->> 'tenant'
        or owner = current_setting('request.jwt.claims', true)::json ->> 'sub');";

/// What alone is forbidden to anybody: to who has no region.
const NEEDS_REGIONS: &str = "by_region";

const ENVIRONMENT: [(&str, &str); 3] =
    [WITH_SECRET, ("ROWCAST_RLS_ROLES", "app"), ("ROWCAST_RLS_CLAIMS", "sub,role,tenant")];

type Rule = fn(&Who, &Label) -> bool;

const QUERIES: [&str; 5] =
    ["", "?n=gte.50", "?order=n.desc&limit=5", "?select=label", "?region=eq.south&order=id&limit=20"];

/// Whose a row is, as its label says.
#[derive(Clone, Debug)]
struct Label {
    tenant: String,
    region: String,
    owner: String,
}

/// What a token says.
#[derive(Clone, Debug)]
struct Who {
    sub: String,
    tenant: String,
    regions: Vec<String>,
}

impl Who {
    fn random(random: &mut StdRng, number: u64) -> Self {
        let sets: [&[&str]; 3] = [&["north", "west"], &["south"], &[]];
        let regions = sets[random.random_range(0..sets.len())].iter().map(|&region| region.to_owned()).collect();
        Self {
            sub: format!("u{}", number % u64::from(OWNERS)),
            tenant: format!("t{}", random.random_range(0..TENANTS)),
            regions,
        }
    }

    fn token(&self, jti: &str) -> String {
        Signer::secret(SECRET).sign(&json!({
            "sub": self.sub, "role": "app", "tenant": self.tenant, "app": {"regions": self.regions}, "jti": jti,
            "iat": now(), "exp": now() + 600,
        }))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_frame_ever_carries_a_row_that_its_receiver_could_not_see() {
    let publish: String = CHANNELS
        .iter()
        .map(|(name, policy, _)| {
            format!("select rowcast.publish('items', name => '{name}', policy => '{policy}', columns => '{{id,region,n,label}}');")
        })
        .collect();
    let world = World::start(&format!(
        "create table items (id int primary key, tenant text, region text, owner text, n int, label text);
         insert into items select i, 't' || i % {TENANTS}, (array['north','south','west'])[i % 3 + 1], 'u' || i % {OWNERS}, i % 100, ''
         from generate_series(1, {ROWS}) i;
         update items set label = tenant || '/' || region || '/' || owner; {ROW_SECURITY} {publish}"
    ))
    .await;
    let nodes = [
        world.node_with(&[&ENVIRONMENT[..], &[("ROWCAST_LINGER", "300ms")]].concat()).await,
        world.node_with(&ENVIRONMENT).await,
    ];
    for node in &nodes {
        node.ready().await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut writing = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        writing.spawn(write(world.connect().await, number, stop.clone()));
    }
    let shared = Arc::new(Shared::default());
    let mut spying = tokio::task::JoinSet::new();
    for number in 0..SPIES {
        let spy = Spy {
            number,
            random: StdRng::seed_from_u64(number),
            nodes: [nodes[0].address, nodes[1].address],
            shared: shared.clone(),
            revoker: world.connect().await,
        };
        spying.spawn(spy.run(stop.clone()));
    }
    let began = Instant::now();
    while began.elapsed() < LOAD.start || (began.elapsed() < LOAD.end && !shared.is_enough()) {
        assert!(spying.try_join_next().is_none(), "a spy has ended: see its panic");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = within("spies end", spying.join_next()).await {
        ended.expect("a spy without complaints");
    }
    writing.join_all().await;
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    println!(
        "{} frames with {} rows and {} keys looked at; {} visits, {} refreshes, {} revocations, {} resumes by a stranger's position, {} of a channel of one's own; {} rows by row security, {} of them by their owner alone; {} unavailable",
        count(&shared.frames),
        count(&shared.rows),
        count(&shared.keys),
        count(&shared.visits),
        count(&shared.refreshes),
        count(&shared.revocations),
        count(&shared.strange),
        count(&shared.resumed),
        count(&shared.secured),
        count(&shared.owned),
        count(&shared.unavailable)
    );
    assert!(shared.is_enough(), "too little was seen");
}

/// Moves rows between tenants, regions and owners; the label goes with them in the same statement.
async fn write(mut connection: PgConnection, number: u64, stop: Arc<AtomicBool>) {
    let mut random = StdRng::seed_from_u64(1_000 + number);
    while !stop.load(Ordering::Relaxed) {
        let first = random.random_range(1..=ROWS);
        let count = [1, 1, 1, 5, 20][random.random_range(0..5)];
        let sql = match random.random_range(0..10) {
            0..5 => format!(
                "update items set tenant = 't' || {}, label = 't' || {0} || '/' || region || '/' || owner \
                 where id between {first} and {first} + {count} - 1",
                random.random_range(0..TENANTS)
            ),
            5..7 => format!(
                "update items set region = 'south', owner = 'u{0}', label = tenant || '/south/u{0}' \
                 where id between {first} and {first} + {count} - 1",
                random.random_range(0..OWNERS)
            ),
            7 => format!("update items set region = 'north', label = tenant || '/north/' || owner where id = {first}"),
            8 => format!(
                "update items set n = {} where id between {first} and {first} + {count} - 1",
                random.random_range(0..100)
            ),
            _ => format!(
                "with gone as (delete from items where id = {first} returning *) \
                 insert into items select id + {ROWS} * (1 - 2 * (id > {ROWS})::int), tenant, region, owner, n, label from gone"
            ),
        };
        // Two writers may meet at a key.
        let _ = crate::harness::world::attempt(&mut connection, &sql).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What all spies count, and the positions that they leave for each other.
#[derive(Default)]
struct Shared {
    frames: AtomicUsize,
    rows: AtomicUsize,
    keys: AtomicUsize,
    visits: AtomicUsize,
    refreshes: AtomicUsize,
    revocations: AtomicUsize,
    strange: AtomicUsize,
    resumed: AtomicUsize,
    /// Rows of `secured`, and of those the ones that are seen for their owner alone.
    secured: AtomicUsize,
    owned: AtomicUsize,
    /// Subscriptions that were refused for a while.
    unavailable: AtomicUsize,
    positions: Mutex<Vec<Value>>,
}

impl Shared {
    fn is_enough(&self) -> bool {
        let above = |counter: &AtomicUsize, least| counter.load(Ordering::Relaxed) > least;
        above(&self.rows, 20_000)
            && above(&self.keys, 500)
            && above(&self.refreshes, 30)
            && above(&self.revocations, 10)
            && above(&self.strange, 50)
            && above(&self.secured, 1_000)
            && above(&self.owned, 200)
    }
}

/// A channel of a connection, as the spy sees it.
struct Watched {
    name: &'static str,
    rule: Rule,
    who: Who,
    /// Every key that was shown since the last snapshot began.
    shown: HashSet<String>,
    tag: String,
    epoch: Value,
}

struct Spy {
    number: u64,
    random: StdRng,
    nodes: [SocketAddr; 2],
    shared: Arc<Shared>,
    revoker: PgConnection,
}

impl Spy {
    async fn run(mut self, stop: Arc<AtomicBool>) {
        while !stop.load(Ordering::Relaxed) {
            self.shared.visits.fetch_add(1, Ordering::Relaxed);
            self.visit(&stop).await;
        }
    }

    /// One connection: some channels, perhaps a refresh, perhaps a revocation, and away.
    async fn visit(&mut self, stop: &AtomicBool) {
        let node = self.nodes[self.random.random_range(0..2)];
        let Some(mut socket) = connect(node).await else { return };
        let jti = format!("{}-{}", self.number, self.random.random::<u32>());
        let mut who = Who::random(&mut self.random, self.number);
        let mut had_no_region = who.regions.is_empty();
        let mut channels: HashMap<u64, Watched> = HashMap::new();
        let mut asked: BTreeMap<u64, (&'static str, Rule, Option<Value>)> = BTreeMap::new();
        say(&mut socket, json!({"op": "auth", "token": who.token(&jti)})).await;
        for id in 1..=self.random.random_range(1..=4_u64) {
            let (name, _, rule) = CHANNELS[self.random.random_range(0..CHANNELS.len())];
            let text = format!("{name}{}", QUERIES[self.random.random_range(0..QUERIES.len())]);
            let resume = self.position();
            say(&mut socket, json!({"op": "subscribe", "id": id, "channel": text, "resume": resume.clone()})).await;
            asked.insert(id, (name, rule, resume));
        }
        let leave_at = Instant::now() + Duration::from_millis(self.random.random_range(300..3_000));
        let mut refresh_at = self
            .random
            .random_bool(0.5)
            .then(|| Instant::now() + Duration::from_millis(self.random.random_range(50..800)));
        let mut revoke_at = self
            .random
            .random_bool(0.2)
            .then(|| Instant::now() + Duration::from_millis(self.random.random_range(300..900)));
        let mut revoked: Option<Instant> = None;
        // Tokens that the server has not answered yet; their claims count once it has.
        let mut said = VecDeque::from([who.clone()]);
        loop {
            let now = Instant::now();
            if stop.load(Ordering::Relaxed) || (now >= leave_at && revoked.is_none()) {
                return;
            }
            if refresh_at.is_some_and(|at| at <= now) {
                refresh_at = None;
                let mut next = Who::random(&mut self.random, self.number);
                next.sub.clone_from(&who.sub);
                say(&mut socket, json!({"op": "auth", "token": next.token(&jti)})).await;
                had_no_region |= next.regions.is_empty();
                said.push_back(next);
                self.shared.refreshes.fetch_add(1, Ordering::Relaxed);
            }
            if revoke_at.is_some_and(|at| at <= now) {
                revoke_at = None;
                run(&mut self.revoker, &format!("select rowcast.revoke_session('{jti}')")).await;
                revoked = Some(Instant::now());
                self.shared.revocations.fetch_add(1, Ordering::Relaxed);
            }
            let Ok(message) = tokio::time::timeout(Duration::from_millis(20), socket.next()).await else {
                if let Some(at) = revoked {
                    assert!(at.elapsed() < Duration::from_secs(5), "a revoked session stays open");
                }
                continue;
            };
            let text = match message {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(other)) => panic!("{other:?}"),
            };
            if let Some(at) = revoked {
                assert!(at.elapsed() <= REVOKED_WITHIN, "a frame {:?} after the revocation: {text}", at.elapsed());
            }
            let frame: Value = serde_json::from_str(&text).expect("JSON");
            self.shared.frames.fetch_add(1, Ordering::Relaxed);
            let ch = frame["ch"].as_u64().unwrap_or_default();
            match frame["op"].as_str().expect("an op") {
                "authenticated" => who = said.pop_front().expect("a token that was said"),
                "subscribed" => {
                    let id = frame["id"].as_u64().expect("an id");
                    if frame["shared"] == true {
                        continue;
                    }
                    // After a refresh was sent, which claims a channel was opened by is known once it was taken; what a
                    // frame between shows is judged by either.
                    let earlier = channels.remove(&ch);
                    let mut shown = HashSet::new();
                    let (name, rule, resume) = &asked[&id];
                    if frame["resumed"] == true {
                        let tag = resume.as_ref().map(|resume| &resume["tag"]);
                        assert_eq!(tag, Some(&frame["tag"]), "resumed from a position of another channel: {text}");
                        self.shared.resumed.fetch_add(1, Ordering::Relaxed);
                        shown.insert("*".to_owned());
                        if let Some(earlier) = earlier {
                            shown.extend(earlier.shown);
                        }
                    }
                    let watched = Watched {
                        name,
                        rule: *rule,
                        who: who.clone(),
                        shown,
                        tag: frame["tag"].as_str().expect("a tag").to_owned(),
                        epoch: frame["epoch"].clone(),
                    };
                    channels.insert(ch, watched);
                }
                "snapshot" | "delta" => {
                    let watched = channels.get_mut(&ch).unwrap_or_else(|| panic!("a frame of no channel: {text}"));
                    self.look(watched, &frame, &text);
                    if let Some(version) = frame["version"].as_u64().filter(|_| frame["more"] != true) {
                        let position = json!({"tag": watched.tag, "epoch": watched.epoch, "version": version});
                        let mut positions = self.shared.positions.lock().expect("a lock");
                        if positions.len() > 200 {
                            positions.remove(0);
                        }
                        positions.push(position);
                    }
                }
                "error" => {
                    let code = frame["code"].as_str().unwrap_or_default();
                    let of = frame["id"].as_u64().and_then(|id| asked.get(&id)).map(|&(name, ..)| name);
                    let denied = code == "forbidden" && had_no_region && of == Some(NEEDS_REGIONS);
                    self.shared.unavailable.fetch_add(usize::from(code == "unavailable"), Ordering::Relaxed);
                    assert!(
                        denied || ["unavailable", "bad_token"].contains(&code),
                        "{who:?} {said:?} {asked:?} {text}"
                    );
                }
                _ => {}
            }
        }
    }

    /// A position of somebody, most of the time a stranger's.
    fn position(&mut self) -> Option<Value> {
        let positions = self.shared.positions.lock().expect("a lock");
        if positions.is_empty() || self.random.random_bool(0.4) {
            return None;
        }
        self.shared.strange.fetch_add(1, Ordering::Relaxed);
        let place = self.random.random_range(0..positions.len());
        Some(positions[place].clone())
    }

    fn look(&self, watched: &mut Watched, frame: &Value, text: &str) {
        if frame["op"] == "snapshot" {
            watched.shown.remove("*");
        }
        for row in frame["rows"].as_array().into_iter().flatten() {
            self.shared.rows.fetch_add(1, Ordering::Relaxed);
            watched.shown.insert(json!([row["id"]]).to_string());
            // A delta of a row that is held may say no more than what changed.
            let Some(label) = row["label"].as_str() else { continue };
            let parts: Vec<&str> = label.split('/').collect();
            let [tenant, region, owner] = parts[..] else { panic!("a label: {label}") };
            let label = Label { tenant: tenant.into(), region: region.into(), owner: owner.into() };
            if watched.name == SECURED {
                self.shared.secured.fetch_add(1, Ordering::Relaxed);
                self.shared.owned.fetch_add(usize::from(label.tenant != watched.who.tenant), Ordering::Relaxed);
            }
            assert!((watched.rule)(&watched.who, &label), "{:?} was shown {label:?}: {text}", watched.who);
        }
        for gone in frame["gone"].as_array().into_iter().flatten() {
            self.shared.keys.fetch_add(1, Ordering::Relaxed);
            let key = gone["key"].to_string();
            // Whoever resumes has seen rows on another connection.
            let known = watched.shown.contains(&key) || watched.shown.contains("*");
            assert!(known, "{:?} was told of the key {key}: {text}", watched.who);
        }
    }
}

async fn say(
    socket: &mut tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>,
    message: Value,
) {
    // A connection that has ended is noticed by the next read.
    let _ = socket.send(Message::text(message.to_string())).await;
}
