//! How sessions come by an identity, keep it, change it and lose it.

use rowcast::cli::client::Handle;
use serde_json::{Value, json};

use crate::edge::wire::Wire;
use crate::harness::dash::Dash;
use crate::harness::database::Database;
use crate::harness::node::Node;
use crate::harness::tokens::{SECRET, Signer, WITH_SECRET, now, token};
use crate::harness::{until, within};

/// A database with `items`, open to everybody, and `members`, open to whoever has a token.
async fn database() -> Database {
    let database = Database::with_items(2, 6).await;
    database.run("create table members (id int primary key, note text); insert into members values (1, 'm')").await;
    database.run("select rowcast.publish('members', policy => 'authenticated')").await;
    database
}

async fn node(database: &Database, more: &[(&str, &str)]) -> Node {
    Node::start_with(&database.url, None, &[&[WITH_SECRET], more].concat()).await
}

fn forged() -> String {
    Signer::secret("another secret, which is also long enough to be one").sign(&json!({"sub":"u1","exp":now() + 60}))
}

/// A connection that has been greeted, with these headers.
async fn greeted(node: &Node, headers: &[(&'static str, &str)]) -> Wire {
    let mut wire = Wire::open(node.address, headers).await;
    let hello = wire.frame().await;
    assert_eq!(hello["op"], "hello", "{hello}");
    wire
}

async fn say_auth(wire: &mut Wire, token: &str) {
    wire.say(&json!({"op":"auth","token":token}).to_string()).await;
}

/// The next answer says who the client is.
async fn authenticated(wire: &mut Wire, sub: &str) -> Value {
    let answer = wire.answer().await;
    assert_eq!((&answer["op"], &answer["sub"]), (&json!("authenticated"), &json!(sub)), "{answer}");
    answer
}

/// `members` is refused.
async fn is_nobody(wire: &mut Wire) {
    wire.say(r#"{"op":"subscribe","id":99,"channel":"members"}"#).await;
    let answer = wire.answer().await;
    assert_eq!((&answer["id"], &answer["code"]), (&json!(99), &json!("forbidden")), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_comes_as_first_message_as_subprotocol_or_in_a_cookie_and_in_this_order_of_precedence() {
    let database = database().await;
    let node = node(&database, &[("ROWCAST_COOKIE", "session")]).await;
    let origin = format!("http://{}", node.address);
    let (ann, bob, cleo) = (token("ann", 60, &json!({})), token("bob", 60, &json!({})), token("cleo", 60, &json!({})));
    let protocols = format!("rowcast.v1, bearer.{bob}");
    let cookie = format!("theme=dark; session={cleo}");

    let mut wire = greeted(&node, &[]).await;
    is_nobody(&mut wire).await;
    wire.subscribe(1, "items").await;
    say_auth(&mut wire, &ann).await;
    let left = authenticated(&mut wire, "ann").await["expires_in_ms"].as_u64().expect("an end");
    assert!((50_000..=60_000).contains(&left), "{left}");
    assert_eq!(wire.subscribe(2, "members").await.1.len(), 1);

    let mut wire =
        greeted(&node, &[("sec-websocket-protocol", &protocols), ("cookie", &cookie), ("origin", &origin)]).await;
    authenticated(&mut wire, "bob").await;
    assert_eq!(wire.subscribe(1, "members").await.1.len(), 1);
    say_auth(&mut wire, &ann).await;
    authenticated(&mut wire, "ann").await;

    let mut wire = greeted(&node, &[("cookie", &cookie), ("origin", &origin)]).await;
    authenticated(&mut wire, "cleo").await;
    assert_eq!(wire.subscribe(1, "members").await.1.len(), 1);

    // Never in the address.
    for name in ["token", "access_token", "bearer", "jwt"] {
        let (status, body) = node.get(&format!("/v1/rows/members?{name}={ann}")).await.expect("an answer");
        assert!([400, 403].contains(&status) && !body.contains("\"note\""), "{status} {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_is_taken_from_pages_of_ours_only_and_a_bad_one_gives_way_to_a_first_message() {
    let database = database().await;
    let environment = [("ROWCAST_COOKIE", "session"), ("ROWCAST_ALLOWED_ORIGINS", "https://app.example")];
    let node = node(&database, &environment).await;
    let (good, bad) = (format!("session={}", token("ann", 60, &json!({}))), format!("session={}", forged()));
    let page = ("origin", "https://app.example");
    let mut wire = greeted(&node, &[("cookie", &good), page]).await;
    authenticated(&mut wire, "ann").await;
    let mut stranger = Wire::open(node.address, &[("cookie", &good), ("origin", "https://evil.example")]).await;
    assert_eq!(stranger.closed().await.0, 4503);
    let mut nowhere = greeted(&node, &[("cookie", &good)]).await;
    nowhere.say(r#"{"op":"subscribe","id":1,"channel":"items"}"#).await;
    assert_eq!(nowhere.closed().await, (4503, json!({"code":"origin_refused"})));

    let mut wire = greeted(&node, &[("cookie", &bad), page]).await;
    assert_eq!(wire.answer().await["code"], "bad_token");
    wire.say(r#"{"op":"ping"}"#).await;
    assert_eq!(wire.closed().await, (4501, json!({"code":"token_refused"})));
    let mut silent = greeted(&node, &[("cookie", &bad), page]).await;
    assert_eq!(silent.closed().await.0, 4501);
    let mut wire = greeted(&node, &[("cookie", &bad), page]).await;
    say_auth(&mut wire, &token("bob", 60, &json!({}))).await;
    assert_eq!(wire.answer().await["code"], "bad_token");
    authenticated(&mut wire, "bob").await;
    wire.subscribe(1, "members").await;

    // The same cookie for reads.
    let client = reqwest::Client::new();
    for (headers, status) in [
        (vec![page], 200),
        (vec![("sec-fetch-site", "same-origin")], 200),
        (vec![("sec-fetch-site", "cross-site")], 403),
        (vec![("origin", "https://evil.example")], 403),
        (vec![], 403),
    ] {
        let mut request = client.get(node.url("/v1/rows/members")).header("cookie", &good);
        for (name, value) in &headers {
            request = request.header(*name, *value);
        }
        let answer = within("an answer", request.send()).await.expect("an answer");
        assert_eq!(answer.status().as_u16(), status, "{headers:?}");
        let credentials = answer.headers().get("access-control-allow-credentials");
        assert_eq!(credentials.is_some(), headers.contains(&page), "{headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_token_that_does_not_do_ends_the_connection_and_a_refresh_that_does_not_is_an_error() {
    let database = database().await;
    let node = node(&database, &[]).await;
    let expired = token("ann", 0, &json!({}));
    for (bad, close) in [
        (forged(), (4501, json!({"code":"token_refused"}))),
        ("abc".to_owned(), (4501, json!({"code":"token_refused"}))),
        (expired.clone(), (4401, json!({"code":"token_expired"}))),
    ] {
        let mut wire = greeted(&node, &[]).await;
        say_auth(&mut wire, &bad).await;
        let error = wire.answer().await;
        assert_eq!((&error["code"], error.get("id")), (&json!("bad_token"), None), "{error}");
        assert!(!error.to_string().contains(&bad), "{error}");
        assert_eq!(wire.closed().await, close);
        let mut wire = greeted(&node, &[("sec-websocket-protocol", &format!("rowcast.v1, bearer.{bad}"))]).await;
        assert_eq!(wire.closed().await, close);
    }

    let mut wire = greeted(&node, &[]).await;
    say_auth(&mut wire, &token("ann", 60, &json!({}))).await;
    authenticated(&mut wire, "ann").await;
    wire.subscribe(1, "members").await;
    for bad in [forged(), expired] {
        say_auth(&mut wire, &bad).await;
        assert_eq!(wire.answer().await["code"], "bad_token");
    }
    database.run("update members set note = 'n'").await;
    assert_eq!(wire.answer().await["rows"], json!([{"id":1,"note":"n"}]));
    assert_eq!(node.metric(r#"rowcast_tokens_total{result="accepted"}"#).await, 1.0);
    assert_eq!(node.metric(r#"rowcast_tokens_total{result="refused"}"#).await, 5.0);
    assert_eq!(node.metric(r#"rowcast_tokens_total{result="expired"}"#).await, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiring_token_is_announced_and_a_session_ends_with_it_unless_it_is_refreshed() {
    let database = database().await;
    let node = node(&database, &[]).await;
    let began = now();
    let (mut kept, handles) = Dash::open_as(node.address, &token("ann", 4, &json!({})), &["members"]).await;
    let (mut lost, _) = Dash::open_as(node.address, &token("bob", 4, &json!({})), &["members"]).await;
    kept.complete().await;
    kept.until("the end is announced", |dash| dash.seen.expiring == 1).await;
    assert!(now() < began + 4);
    // Longer, as somebody with other claims: the channel is the same, and nothing happens to it.
    kept.authenticate(&token("ann", 600, &json!({"tenant_id":7}))).await;
    kept.until("the new token is taken", |dash| dash.seen.authenticated == 2).await;
    assert_eq!(lost.closed().await, 4401);
    assert!((began + 4..=began + 6).contains(&now()), "{}", now() - began);
    assert_eq!(lost.seen.expiring, 1);
    database.run("insert into members values (2, 'after')").await;
    kept.until("the change", |dash| dash.table(handles[0]).len() == 2).await;
    assert_eq!((kept.seen.subscribed, kept.seen.snapshots, kept.seen.resets), (1, 1, 0));
    assert_eq!(node.metric(r#"rowcast_session_closes_total{reason="token_expired"}"#).await, 1.0);
}

/// The `tenant_id`s in a dashboard's rows.
fn tenants(dash: &Dash, handle: Handle) -> Vec<String> {
    let rows = dash.client.rows(handle).into_iter().flatten();
    let mut tenants: Vec<String> = rows.filter_map(|(_, row)| Some(row.value("tenant_id")?.to_owned())).collect();
    tenants.sort_unstable();
    tenants
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_with_other_claims_moves_what_they_concern_and_nothing_else() {
    let database = database().await;
    database
        .run(
            "create table tickets (id int primary key, tenant_id int);
             insert into tickets select i, i % 3 from generate_series(1, 30) i;
             select rowcast.publish('tickets', policy => 'tenant_id=eq.{tenant_id}')",
        )
        .await;
    let node = node(&database, &[]).await;
    let of = |tenant: Value| token("ann", 600, &json!({"tenant_id":tenant,"nonce":now()}));
    let channels = ["tickets", "tickets?id=lt.10", "members"];
    let (mut dash, handles) = Dash::open_as(node.address, &of(json!(1)), &channels).await;
    dash.complete().await;
    assert_eq!((tenants(&dash, handles[0]), tenants(&dash, handles[1])), (vec!["1".into(); 10], vec!["1".into(); 3]));
    let tag = dash.client.form(handles[0]).expect("a form").tag.clone();
    let (subscribed, snapshots) = (dash.seen.subscribed, dash.seen.snapshots);

    // The same tenant: nothing happens.
    dash.authenticate(&of(json!(1))).await;
    dash.until("the token is taken", |dash| dash.seen.authenticated == 2).await;
    database.run("insert into tickets values (100, 1), (101, 2); update members set note = 'a'").await;
    dash.until("a change", |dash| tenants(dash, handles[0]).len() == 11).await;
    assert_eq!((dash.seen.subscribed, dash.seen.snapshots), (subscribed, snapshots));

    // Another one: both texts move to its rows.
    dash.authenticate(&of(json!(2))).await;
    dash.until("the token is taken", |dash| dash.seen.authenticated == 3).await;
    database.run("insert into tickets values (102, 1), (103, 2); update tickets set tenant_id = 1 where id = 1").await;
    let moved = |dash: &Dash| {
        let of_others = |handle| tenants(dash, handle).iter().filter(|tenant| *tenant != "2").count();
        (of_others(handles[0]), of_others(handles[1])) == (0, 0)
    };
    dash.until("both have moved", moved).await;
    dash.until("the change", |dash| tenants(dash, handles[0]).len() == 12).await;
    assert_ne!(dash.client.form(handles[0]).expect("a form").tag, tag);
    assert_eq!((dash.seen.subscribed, dash.seen.snapshots), (subscribed + 2, snapshots + 2), "`members` has not moved");

    // No tenant at all: these end, the other goes on.
    dash.authenticate(&token("ann", 600, &json!({}))).await;
    dash.until("they end", |dash| dash.seen.refused == ["forbidden", "forbidden"]).await;
    database.run("insert into tickets values (104, 2); update members set note = 'b'").await;
    let changes = dash.seen.changes;
    dash.until("a change", |dash| dash.seen.changes > changes).await;
    assert_eq!((dash.seen.subscribed, dash.seen.resets, dash.seen.gaps), (subscribed + 2, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_changes_while_a_request_waits_decides_what_it_gets() {
    let database = database().await;
    database
        .run(
            "create table tickets (id int primary key, tenant_id int);
             insert into tickets select i, i % 30 from generate_series(1, 300) i;
             select rowcast.publish('tickets', policy => 'tenant_id=eq.{tenant_id}')",
        )
        .await;
    let node = node(&database, &[]).await;
    let mut wire = greeted(&node, &[]).await;
    // All in one go: what is asked for is resolved between the tokens, and each waits for casts of its own.
    for tenant in 1..=10 {
        say_auth(&mut wire, &token("ann", 600, &json!({"tenant_id":tenant}))).await;
        wire.say(&format!(r#"{{"op":"subscribe","id":{tenant},"channel":"tickets?id=gt.{tenant}"}}"#)).await;
    }
    // Whatever came before, at the end every subscription shows the last tenant, and no page is mixed.
    let mut latest = std::collections::HashMap::new();
    let mut ids = std::collections::HashMap::new();
    let all_of_ten = until("every subscription has the last tenant's rows", async || {
        let frame = wire.answer().await;
        match frame["op"].as_str() {
            Some("subscribed") => {
                ids.insert(frame["id"].as_u64(), frame["ch"].as_u64());
            }
            Some("snapshot") => {
                let rows = frame["rows"].as_array().cloned().unwrap_or_default();
                let tenants: std::collections::BTreeSet<_> = rows.iter().map(|row| row["tenant_id"].as_i64()).collect();
                assert_eq!(tenants.len(), 1, "{frame}");
                latest.insert(frame["ch"].as_u64(), tenants.into_iter().next().flatten());
            }
            Some("error") => panic!("{frame}"),
            _ => {}
        }
        let done = ids.len() == 10 && ids.values().all(|ch| latest.get(ch) == Some(&Some(10)));
        done.then_some(ids.len())
    });
    assert_eq!(all_of_ten.await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_anonymity_is_off_nobody_is_served_without_a_token() {
    let database = database().await;
    let node = node(&database, &[("ROWCAST_ANONYMOUS", "off"), ("ROWCAST_AUTH_TIMEOUT", "2s")]).await;
    let mut silent = greeted(&node, &[]).await;
    let mut early = greeted(&node, &[]).await;
    early.say(r#"{"op":"subscribe","id":1,"channel":"items"}"#).await;
    assert_eq!(early.answer().await["code"], "forbidden");
    let (mut in_time, _) = Dash::open_as(node.address, &token("ann", 60, &json!({})), &["items", "members"]).await;
    in_time.complete().await;
    assert_eq!(silent.closed().await, (4408, json!({"code":"no_auth_in_time"})));
    assert_eq!(early.closed().await.0, 4408);
    database.run("update members set note = 'n'").await;
    in_time.until("a change", |dash| dash.seen.changes == 1).await;
    let answer = within("an answer", reqwest::get(node.url("/v1/rows/items"))).await.expect("an answer");
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["www-authenticate"]),
        (401, &"Bearer".parse().expect("a header"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_answered_for_its_bearer_and_kept_by_nobody_else() {
    let database = database().await;
    let node = node(&database, &[]).await;
    let client = reqwest::Client::new();
    let read = async |publication: &str, token: Option<&str>, etag: Option<&str>| {
        let mut request = client.get(node.url(&format!("/v1/rows/{publication}")));
        request = token.into_iter().fold(request, |request, token| request.bearer_auth(token));
        request = etag.into_iter().fold(request, |request, etag| request.header("if-none-match", etag));
        let answer = within("an answer", request.send()).await.expect("an answer");
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
        (answer.status().as_u16(), header("etag"), header("cache-control"), header("vary"))
    };
    let ann = token("ann", 60, &json!({}));
    let (status, etag, cache, vary) = read("members", Some(&ann), None).await;
    let etag = etag.expect("an etag");
    assert_eq!(
        (status, cache.as_deref(), vary.as_deref()),
        (200, Some("private, no-cache"), Some("Authorization, Cookie, Origin"))
    );
    assert_eq!(read("members", Some(&ann), Some(&etag)).await.0, 304);
    assert_eq!(read("members", None, Some(&etag)).await.0, 403);
    let (status, _, cache, vary) = read("members", Some(&forged()), Some(&etag)).await;
    assert_eq!(
        (status, cache.as_deref(), vary.as_deref()),
        (401, Some("no-store"), Some("Authorization, Cookie, Origin"))
    );
    let (status, _, cache, vary) = read("items", Some(&ann), None).await;
    assert_eq!((status, cache.as_deref(), vary.as_deref()), (200, Some("public, no-cache"), Some("Origin")));
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_tokens_nor_claims_nor_the_secret_are_ever_logged() {
    let database = database().await;
    let log = tempfile::NamedTempFile::new().expect("a file");
    // The audit names the subject, and nothing else of a token.
    let canary = "canary-5d1f0c";
    let environment = [WITH_SECRET, ("ROWCAST_LOG", "trace"), ("ROWCAST_COOKIE", "session")];
    let file = log.as_file().try_clone().expect("a file");
    let mut node = Node::start_logging(file, &database.url, None, &environment).await;
    let good = token("someone", 60, &json!({"secret_claim":canary}));
    let bad = token("someone", 0, &json!({"secret_claim":canary}));
    let (mut dash, _) = Dash::open_as(node.address, &good, &["members"]).await;
    dash.complete().await;
    dash.authenticate(&bad).await;
    dash.until("the refusal", |dash| !dash.seen.errors.is_empty()).await;
    for token in [&good, &bad] {
        let mut wire = greeted(&node, &[("sec-websocket-protocol", &format!("rowcast.v1, bearer.{token}"))]).await;
        wire.answer().await;
        let origin = format!("http://{}", node.address);
        let mut wire = greeted(&node, &[("cookie", &format!("session={token}")), ("origin", &origin)]).await;
        wire.answer().await;
        let request = reqwest::Client::new().get(node.url("/v1/rows/members")).bearer_auth(token);
        within("an answer", request.send()).await.expect("an answer");
    }
    database.run("select rowcast.revoke('someone')").await;
    assert_eq!(dash.closed().await, 4401);
    let (_, figures) = node.get("/metrics").await.expect("figures");
    node.terminate().await;
    let written = figures + &std::fs::read_to_string(log.path()).expect("text");
    assert!(written.contains("session ended") && written.contains("rowcast_tokens_total"), "{} bytes", written.len());
    for secret in [canary, SECRET, good.as_str(), bad.as_str(), good.rsplit('.').next().expect("a signature")] {
        assert!(
            !written.contains(secret),
            "a line with what nobody may see: {:?}",
            written.lines().find(|line| line.contains(secret))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_be_are_refused_at_the_start_by_name() {
    let database = Database::create().await;
    for (environment, named) in [
        (vec![("ROWCAST_JWT_SECRET", "short")], "ROWCAST_JWT_SECRET"),
        (
            vec![("ROWCAST_JWT_PUBLIC_KEY", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----")],
            "ROWCAST_JWT_PUBLIC_KEY",
        ),
        (vec![("ROWCAST_JWKS_URL", "http://127.0.0.1:1/keys")], "ROWCAST_JWKS_URL"),
        (vec![("ROWCAST_JWKS_URL", "no/such/file")], "ROWCAST_JWKS_URL"),
        (vec![WITH_SECRET, ("ROWCAST_JWKS_URL", "http://127.0.0.1:1/keys")], "ROWCAST_JWKS_URL"),
        (vec![("ROWCAST_ANONYMOUS", "off")], "ROWCAST_ANONYMOUS"),
        (vec![("ROWCAST_JWT_ISSUER", "me")], "ROWCAST_JWT_ISSUER"),
        (vec![WITH_SECRET, ("ROWCAST_ANONYMOUS", "no")], "ROWCAST_ANONYMOUS"),
        (vec![WITH_SECRET, ("ROWCAST_AUTH_TIMEOUT", "5")], "ROWCAST_AUTH_TIMEOUT"),
        (vec![WITH_SECRET, ("ROWCAST_COOKIE", "a=b")], "ROWCAST_COOKIE"),
    ] {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_rowcast"));
        command.arg("serve").env("DATABASE_URL", database.url.expose()).env("ROWCAST_LISTEN", "127.0.0.1:0");
        let ended = within("it ends", command.envs(environment.iter().copied()).kill_on_drop(true).output()).await;
        let ended = ended.expect("the rowcast binary starts");
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(!ended.status.success() && said.contains(named), "{environment:?}: {said}");
        assert!(!said.contains(SECRET) && !said.contains("AAAA"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_mints_a_token_that_a_server_takes() {
    let database = database().await;
    let node = node(&database, &[("ROWCAST_JWT_ISSUER", "me"), ("ROWCAST_JWT_AUDIENCE", "rows")]).await;
    let rowcast = |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_rowcast"));
        command
            .args(arguments)
            .env("ROWCAST_JWT_SECRET", SECRET)
            .kill_on_drop(true)
            .stderr(std::process::Stdio::null());
        command
    };
    let mint =
        rowcast(&["token", "--sub", "ann", "--issuer", "me", "--audience", "rows", "--claim", "tenant_id=7"]).output();
    let minted = within("a token", mint).await.expect("the rowcast binary starts");
    let token = String::from_utf8(minted.stdout).expect("text").trim().to_owned();
    assert_eq!(token.split('.').count(), 3, "{token}");
    let url = format!("ws://{}/v1/ws", node.address);
    let mut watching = rowcast(&["watch", "members", "--json", "--url", &url, "--token", &token]);
    let mut watching = watching.stdout(std::process::Stdio::piped()).spawn().expect("the rowcast binary starts");
    let stdout = watching.stdout.take().expect("stdout is piped");
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(stdout));
    let snapshot = until("a snapshot", async || {
        let line = lines.next_line().await.expect("text").expect("a line");
        line.contains(r#""op":"snapshot""#).then_some(line)
    })
    .await;
    assert!(snapshot.contains(r#"[{"id":1,"note":"m"}]"#), "{snapshot}");
    // When its token is taken back it ends, and says that it failed.
    database.run("select rowcast.revoke('ann')").await;
    assert!(!within("it ends", watching.wait()).await.expect("an end").success());
}
