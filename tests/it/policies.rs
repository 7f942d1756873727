//! Filter policies: what cannot be published, what claims become, and that a claim is data whatever it holds.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rowcast::identity::{Identity, ResolvedPolicy, RlsSettings, resolve};
use rowcast::protocol::{ErrorCode, Refusal};
use rowcast::publication::{Policy, Publication};
use rowcast::query::{ChannelRequest, Condition};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::harness::asker::Asker;
use crate::harness::database::Database;
use crate::harness::postgres::{attempt, run};

const NAMES: &[&str] =
    &["a", "b", "a,b", "a)", "(a", "\"", "\"a\"", "a*", "a%", "a_", "ab", "\\", "a\\", "'", "{a}", "a&b", "é", ""];

async fn shop() -> Database {
    let database = Database::create().await;
    let rows: Vec<String> = NAMES
        .iter()
        .enumerate()
        .map(|(id, name)| {
            let name = name.replace('\'', "''");
            format!("({id}, {}, '{name}', 'r{}', {}, '{name}/x', '{{}}', '{{}}', 'so')", id % 4, id % 3, id % 2 == 0)
        })
        .collect();
    database
        .run(&format!(
            "create type mood as enum ('so', 'la');
             create table orders (id int primary key, tenant_id int8, name text, region text, is_open bool, path text,
                                  data jsonb, tags text[], mood mood, \"odd,\"\"name\" text);
             insert into orders values {}",
            rows.join(", ")
        ))
        .await;
    database
}

async fn publish(database: &Database, policy: &str) {
    database.run(&format!("select rowcast.publish('orders', policy => '{}')", policy.replace('\'', "''"))).await;
}

/// The rows of a policy, by a condition in SQL.
async fn expect(asker: &mut Asker, claims: Value, condition: &str) {
    let ResolvedPolicy::Filter(filter) =
        asker.policy(&claims).await.unwrap_or_else(|refusal| panic!("{claims}: {refusal}"))
    else {
        panic!("not a filter")
    };
    let expected = asker.keys(&format!("select json_build_array(id)::text from public.orders where {condition}")).await;
    assert_eq!(asker.in_memory(&filter), expected, "in memory: {claims} {filter:?}");
    assert_eq!(asker.by_filter(&filter).await, expected, "in SQL: {claims} {filter:?}");
}

/// Refused, and nothing is said of why.
async fn expect_denied(asker: &mut Asker, claims: Value) {
    let refusal = asker.policy(&claims).await.expect_err(&claims.to_string());
    assert_eq!(refusal, Refusal::new(ErrorCode::Forbidden, "this publication is not open to you"), "{claims}");
}

#[tokio::test]
async fn a_policy_that_cannot_be_read_or_answered_is_not_published() {
    let database = shop().await;
    let mut connection = database.connect().await;
    for (policy, reason) in [
        ("tenant_id", "cannot be read at \"tenant_id\""),
        ("tenant_id={x}", "cannot be read at \"{x}\""),
        ("tenant_id=is.{x}", "cannot be read at \"{x}\""),
        ("tenant_id=in.x", "cannot be read at \"x\""),
        ("tenant_id=in.()", "cannot be read at \"()\""),
        ("tenant_id=in.(1,)", "cannot be read"),
        ("tenant_id=in.{x}y", "cannot be read"),
        ("name=eq.\"x", "cannot be read"),
        ("and=(name.eq.x", "cannot be read"),
        ("and=(name.eq.x))", "cannot be read at \")\""),
        ("and=name.eq.x", "cannot be read at \"name.eq.x\""),
        ("and=()", "cannot be read"),
        ("or=(name.eq.x,(id.eq.1))", "cannot be read"),
        ("name=eq.{}", "braces that are no claim"),
        ("name=eq.{x", "braces that are no claim"),
        ("or=(name.eq.x}y,id.eq.1)", "braces that are no claim"),
        ("nobody=eq.1", "filters by \"nobody\", which is not a column"),
        ("or=(id.eq.1,not.and(name.eq.x,nobody.eq.1))", "filters by \"nobody\""),
        ("ctid=eq.{x}", "filters by \"ctid\""),
        ("select=id", "a policy has no \"select\""),
        ("id=eq.1&order=id", "a policy has no \"order\""),
        ("id=eq.1&limit=5", "a policy has no \"limit\""),
        ("tags=eq.{x}", "asks \"eq\" of \"tags\", of type text[]"),
        ("data=is.null", "asks \"is\" of \"data\""),
        ("data=gt.1", "asks \"gt\" of \"data\""),
        ("mood=lt.la", "asks \"lt\" of \"mood\""),
        ("id=like.1*", "asks \"like\" of \"id\""),
        ("&", "between 1 and 256 conditions"),
        (&["id=eq.1"; 257].join("&"), "between 1 and 256 conditions"),
        (&format!("and={}id.eq.1{}", "(and".repeat(32) + "(", ")".repeat(33)), "more than 32 deep"),
        (&format!("name=like.{}", "x".repeat(1001)), "more than 1000 bytes"),
        (&format!("name=eq.{}", "x".repeat(70_000)), "more than 65536 bytes"),
        ("'; drop table orders; --=eq.1", "which is not a column"),
    ] {
        let sql = format!("select rowcast.publish('orders', policy => '{}')", policy.replace('\'', "''"));
        let error = attempt(&mut connection, &sql).await.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(reason), "{}: {error}", &policy[..policy.len().min(100)]);
    }
}

#[tokio::test]
async fn what_is_published_is_what_nodes_can_read() {
    let database = shop().await;
    let mut connection = database.connect().await;
    let policies = [
        ("tenant_id=eq.{tenant_id}", vec!["tenant_id"]),
        ("region=in.{regions}&is_open=is.true", vec!["region", "is_open"]),
        ("region=not.in.({a},\"b,\\\"c\",d)", vec!["region"]),
        ("or=(tenant_id.eq.{app.tenant},not.and(name.like.{p}/*,name.not.is.null))", vec!["tenant_id", "name"]),
        ("and=(or(and(id.gt.5,id.lte.{max}),id.eq.1))&name=neq.a(b,c:d.e", vec!["id", "name"]),
        ("n%61me=eq.a%2Cb+c", vec!["name"]),
        ("and=(\"odd,\\\"name\".eq.\"(x)\",name.eq.)", vec!["odd,\"name", "name"]),
        ("\"odd,\\\"name\"=ilike.*{x}*", vec!["odd,\"name"]),
        ("tenant_id=eq.{https://example.com/tenant}", vec!["tenant_id"]),
    ];
    for (policy, columns) in policies {
        let quoted = policy.replace('\'', "''");
        let read: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(format!("select unnest(rowcast.checked_policy('orders', '{quoted}'))")))
                .fetch_all(&mut connection)
                .await
                .unwrap_or_else(|error| panic!("{policy}: {error}"));
        assert_eq!(read, columns, "{policy}");
        ChannelRequest::parse_policy(policy).unwrap_or_else(|refusal| panic!("{policy}: {refusal:?}"));
    }
}

/// A policy that is right, and then perhaps not any more: pieces of the syntax are left out or put in.
fn somewhat(chance: &mut StdRng) -> String {
    const PIECES: &[&str] = &[
        "id",
        "name",
        "\"odd,\\\"name\"",
        ".",
        "eq.",
        "not.",
        "in.",
        "is.",
        "like.",
        "(",
        ")",
        ",",
        "and",
        "or",
        "not.and",
        "=",
        "&",
        "{x}",
        "{",
        "1",
        "\"q\"",
        "\"",
        "null",
        "*",
        "%2C",
        "%22",
        "+",
        "\\",
        "(1,2)",
        "(a,\"b)\")",
        ":",
        "",
    ];
    fn condition(chance: &mut StdRng, depth: usize, pieces: &mut Vec<&str>) {
        if depth > 0 && chance.random_ratio(1, 3) {
            pieces.extend([*["and", "or", "not.and", "not.or"].choose(chance).expect("words"), "("]);
            condition(chance, depth - 1, pieces);
            pieces.push(",");
            condition(chance, depth - 1, pieces);
            pieces.push(")");
            return;
        }
        pieces.extend([*["id", "name", "\"odd,\\\"name\""].choose(chance).expect("names"), "."]);
        operation(chance, pieces);
    }
    fn operation(chance: &mut StdRng, pieces: &mut Vec<&str>) {
        const OPERATIONS: [&[&str]; 7] = [
            &["eq.", "{x}"],
            &["in.", "{x}"],
            &["in.", "(", "1", ",", "{x}", ")"],
            &["is.", "null"],
            &["like.", "1", "*"],
            &["eq.", "\"q\""],
            &["not.", "eq.", "1"],
        ];
        pieces.extend(*OPERATIONS.choose(chance).expect("operations"));
    }
    let mut pieces = Vec::new();
    for _ in 0..chance.random_range(1..3) {
        if chance.random() {
            pieces.extend([*["and", "or", "not.or"].choose(chance).expect("words"), "=", "("]);
            condition(chance, 2, &mut pieces);
            pieces.extend([",", "id", ".", "eq.", "1", ")"]);
        } else {
            pieces.extend([*["id", "name", "\"odd,\\\"name\""].choose(chance).expect("names"), "="]);
            operation(chance, &mut pieces);
        }
        pieces.push("&");
    }
    for _ in 0..chance.random_range(0..3) {
        let at = chance.random_range(0..pieces.len());
        match chance.random_range(0..3) {
            0 => drop(pieces.remove(at)),
            1 => pieces.insert(at, PIECES.choose(chance).expect("pieces")),
            _ => pieces[at] = PIECES.choose(chance).expect("pieces"),
        }
        if pieces.is_empty() {
            pieces.push("&");
        }
    }
    pieces.concat()
}

fn columns_of(conditions: &[Condition]) -> BTreeSet<String> {
    let mut columns = BTreeSet::new();
    for condition in conditions {
        match condition {
            Condition::All(inner) | Condition::Any(inner) => columns.extend(columns_of(inner)),
            Condition::Not(inner) => columns.extend(columns_of(std::slice::from_ref(inner))),
            Condition::Compare { column, .. }
            | Condition::In { column, .. }
            | Condition::InClaim { column, .. }
            | Condition::Like { column, .. }
            | Condition::Is { column, .. } => drop(columns.insert(column.name.to_string())),
        }
    }
    columns
}

#[tokio::test]
async fn the_grammar_of_publishing_is_that_of_the_nodes() {
    let database = shop().await;
    let mut connection = database.connect().await;
    run(
        &mut connection,
        "create function pg_temp.attempted(policy text) returns text[] language plpgsql as $$
         begin
             return (select coalesce(array_agg(c.column_name), '{}') from rowcast.policy_conditions(policy) as c);
         exception when others then return null;
         end $$",
    )
    .await;
    let mut chance = StdRng::seed_from_u64(5);
    let policies: Vec<String> = (0..3_000).map(|_| somewhat(&mut chance)).collect();
    let read: Vec<Option<Vec<String>>> = sqlx::query_scalar(
        "select pg_temp.attempted(policy) from unnest($1::text[]) with ordinality as p (policy, place) order by place",
    )
    .bind(&policies)
    .fetch_all(&mut connection)
    .await
    .expect("answers");
    let mut accepted = 0;
    for (policy, in_sql) in policies.iter().zip(read) {
        let in_sql = in_sql.filter(|columns| !columns.is_empty()).map(BTreeSet::from_iter);
        let in_node = ChannelRequest::parse_policy(policy).ok().map(|conditions| columns_of(&conditions));
        accepted += usize::from(in_sql.is_some());
        // Braces that are no claim are refused where they are published, and deny where they are filled.
        if in_sql.is_none() && policy.contains('{') && in_node.is_some() {
            continue;
        }
        assert_eq!(in_sql, in_node, "{policy}");
    }
    println!("{} policies, {accepted} of them right", policies.len());
    assert!(accepted > 500 && accepted < 2_500);
}

#[tokio::test]
async fn claims_fill_a_policy_or_close_it() {
    let database = shop().await;
    publish(&database, "tenant_id=eq.{app.tenant}&or=(region.in.{regions},is_open.is.true)").await;
    let mut asker = Asker::open(&database.url, "orders").await;
    let claims = |tenant: Value, regions: Value| json!({"app": {"tenant": tenant}, "regions": regions});
    for (tenant, regions, condition) in [
        (json!(1), json!(["r1"]), "tenant_id = 1 and (region = 'r1' or is_open)"),
        (json!("2"), json!(["r1", "r2", "r1"]), "tenant_id = 2 and (region in ('r1', 'r2') or is_open)"),
        (json!(3), json!(["r0,r1", ")", "'", "{regions}"]), "tenant_id = 3 and is_open"),
        (json!(9_007_199_254_740_993_i64), json!(["r1"]), "false"),
    ] {
        expect(&mut asker, claims(tenant, regions), condition).await;
    }
    for wrong in [
        json!({}),
        claims(Value::Null, json!(["r1"])),
        claims(json!({"id": 1}), json!(["r1"])),
        claims(json!([1]), json!(["r1"])),
        claims(json!("one"), json!(["r1"])),
        claims(json!("1 or true"), json!(["r1"])),
        claims(json!("1,2"), json!(["r1"])),
        claims(json!(1.5), json!(["r1"])),
        claims(json!(1e20), json!(["r1"])),
        claims(json!(99_999_999_999_999_999_999_f64), json!(["r1"])),
        claims(json!("1\u{0}"), json!(["r1"])),
        claims(json!(1), json!([])),
        claims(json!(1), json!("r1")),
        claims(json!(1), json!({"r1": true})),
        claims(json!(1), json!(["r1", null])),
        claims(json!(1), json!([["r1"]])),
        claims(json!(1), Value::Null),
        json!({"app.tenants": 1, "regions": ["r1"]}),
        json!({"app": {"tenant": 1}}),
    ] {
        expect_denied(&mut asker, wrong).await;
    }
    // A name with dots in it goes before a path.
    let both = json!({"app.tenant": 1, "app": {"tenant": 2}, "regions": ["r1"]});
    expect(&mut asker, both, "tenant_id = 1 and (region = 'r1' or is_open)").await;

    let publication = Publication { ..(*asker.publication).clone() };
    let known = |_: &_| Some(Ok("1".into()));
    assert!(
        resolve(&Identity::Anonymous, &publication, &RlsSettings::default(), known).is_err(),
        "without a token nothing is filled"
    );
    let publication = Publication { policy: Policy::Authenticated, ..publication };
    assert!(resolve(&Identity::Anonymous, &publication, &RlsSettings::default(), known).is_err());
    let anybody = Identity::Proven(std::sync::Arc::default());
    assert_eq!(resolve(&anybody, &publication, &RlsSettings::default(), known), Ok(Ok(ResolvedPolicy::Authenticated)));
    let publication = Publication { policy: Policy::Rls, ..publication };
    assert!(resolve(&anybody, &publication, &RlsSettings::default(), known).is_err());
}

#[tokio::test]
async fn a_claim_is_data_whatever_it_holds() {
    let database = shop().await;
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let mut channels = BTreeSet::new();
    for (policy, condition) in [
        ("name=eq.{name}", "name = X"),
        ("or=(name.eq.{name},name.eq.{name})", "name = X"),
        ("name=in.({name},{name})", "name = X"),
        ("name=in.{names}", "name = X"),
        ("not.and=(name.not.in.{names})", "name = X"),
        ("name=like.{name}", "name = X"),
        ("and=(name.like.{name})", "name = X"),
        ("name=ilike.{name}", "lower(name) = lower(X)"),
        ("path=like.{name}/*", "starts_with(path, X || '/')"),
        ("path=eq.{name}/x", "path = X || '/x'"),
        ("name=eq.\"{name}\"", "name = '{name}'"),
    ] {
        publish(&database, policy).await;
        let mut asker = Asker::open(&database.url, "orders").await;
        for name in NAMES.iter().chain(&["' or '1'='1", "{name}", "x\\*", "\"a\",\"b", "a.b", "a\n"]) {
            let claims = json!({"name": name, "names": [name]});
            expect(&mut asker, claims.clone(), &condition.replace('X', &literal(name))).await;
            let policy = asker.policy(&claims).await.expect("a policy");
            channels.insert(serde_json::to_string(&(&asker.publication.feed, &policy)).expect("JSON"));
        }
    }
    assert!(channels.len() > 200, "different claims are different channels: {}", channels.len());
}

#[tokio::test]
async fn columns_that_only_the_policy_needs_are_read_and_hidden() {
    let database = shop().await;
    database
        .run(
            "select rowcast.publish('orders', policy => 'tenant_id=eq.{t}&or=(region.eq.{r},name.eq.x)',
                                    columns => '{path,id,name}')",
        )
        .await;
    let mut asker = Asker::open(&database.url, "orders").await;
    let columns: Vec<(String, bool)> =
        asker.publication.schema.columns.iter().map(|column| (column.name.to_string(), column.hidden)).collect();
    let expected = [("path", false), ("id", false), ("name", false), ("tenant_id", true), ("region", true)];
    assert_eq!(columns, expected.map(|(name, hidden)| (name.to_owned(), hidden)));
    assert_eq!(asker.publication.schema.key, [1]);
    assert_eq!(asker.publication.casts.len(), columns.len());
    expect(&mut asker, json!({"t": 1, "r": "r1"}), "tenant_id = 1 and (region = 'r1' or name = 'x')").await;
    for (query, at) in [
        ("tenant_id=eq.1", 7),
        ("or=(id.eq.1,region.is.null)", 19),
        ("select=tenant_id", 14),
        ("order=region", 13),
        ("order=tenant_id&limit=1", 13),
    ] {
        let refusal = asker.query(&format!("orders?{query}")).await.expect_err(query);
        assert_eq!((refusal.code, refusal.at), (ErrorCode::BadQuery, Some(at)), "{query}");
        assert!(refusal.message.contains("there is no column"), "as if it were not there: {refusal}");
    }
    // A value of a column that the policy needs is never left out, however large.
    let before = asker.publication.feed.clone();
    database
        .run(
            "update orders set region = repeat('x', 1100000), path = repeat('x', 1100000) where id = 1;
             select rowcast.publish('orders', policy => 'region=eq.{r}', columns => '{id,path}')",
        )
        .await;
    let asker = Asker::open(&database.url, "orders").await;
    assert_ne!(asker.publication.feed, before);
    let row = &asker.rows.iter().find(|(key, _)| key == "[1]").expect("a row").1;
    assert_eq!((row.value(1), row.value(2).len(), row.value(3)), ("null", 1_100_002, r#"{"path":1100000}"#));

    // Renamed, the column is not there for the policy: closed, and not open to all.
    database.run("alter table orders rename region to area").await;
    let mut asker = Asker::open(&database.url, "orders").await;
    assert_eq!(asker.publication.schema.columns.len(), 2);
    expect_denied(&mut asker, json!({"r": "r1"})).await;
}
