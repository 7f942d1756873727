//! `docs/permissions.md` is true: its SQL runs, in order, and every row of its tables is what a client with those claims
//! sees.

use std::collections::BTreeSet;

use crate::harness::dash::Dash;
use crate::harness::tokens::{SECRET, Signer, WITH_SECRET, now};
use crate::harness::world::{World, attempt};

/// A piece of the document.
#[derive(Debug)]
enum Piece {
    Sql(String),
    /// What the SQL before is refused with.
    Error(String),
    /// Claims (`None`: no token), channel, and what is seen.
    Case(Option<serde_json::Value>, String, String),
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_of_the_permissions_document_is_true() {
    let pieces = read(include_str!("../../docs/permissions.md"));
    let world = World::start("").await;
    let node = world.node_with(&[WITH_SECRET, ("ROWCAST_RLS_ROLES", "member")]).await;
    node.ready().await;
    let mut connection = world.connect().await;
    let mut cases = 0;
    let mut pieces = pieces.into_iter().peekable();
    while let Some(piece) = pieces.next() {
        match piece {
            Piece::Sql(sql) => {
                let done = attempt(&mut connection, &sql).await;
                match pieces.next_if(|next| matches!(next, Piece::Error(_))) {
                    Some(Piece::Error(expected)) => {
                        let error = done.expect_err(&sql).to_string();
                        assert!(error.contains(expected.trim()), "{error}\nexpected: {expected}");
                    }
                    _ => done.unwrap_or_else(|error| panic!("{error}\n{sql}")),
                }
            }
            Piece::Error(_) => panic!("an error that follows no SQL"),
            Piece::Case(claims, channel, expected) => {
                cases += 1;
                let seen = see(node.address, claims.as_ref(), &channel).await;
                assert_eq!(seen, expected, "{claims:?} {channel}");
            }
        }
    }
    assert!(cases >= 25, "only {cases} cases were read");
}

/// The keys of the rows that a client sees, or the code of its refusal.
async fn see(address: std::net::SocketAddr, claims: Option<&serde_json::Value>, channel: &str) -> String {
    let mut dash = Dash::default();
    if let Some(claims) = claims {
        let mut claims = claims.clone();
        claims["exp"] = (now() + 600).into();
        dash.client.authenticate(Signer::secret(SECRET).sign(&claims).parse().expect("a token"));
    }
    let handle = dash.client.subscribe(channel);
    dash.connect(address).await;
    dash.until("rows or a refusal", |dash| dash.client.is_complete(handle) || !dash.seen.refused.is_empty()).await;
    if let Some(code) = dash.seen.refused.first() {
        return code.clone();
    }
    let keys: BTreeSet<u64> =
        dash.table(handle).keys().map(|key| key.trim_matches(['[', ']']).parse().expect("a whole number")).collect();
    keys.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

fn read(document: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        match line {
            "```sql" | "```error" => {
                let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
                let body = body.join("\n");
                pieces.push(if line == "```sql" { Piece::Sql(body) } else { Piece::Error(body) });
            }
            _ if line.starts_with("| `") => {
                let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
                let [claims, channel, seen] = cells[..] else { panic!("three cells: {line}") };
                let claims = claims.trim_matches('`');
                let claims = (claims != "none").then(|| serde_json::from_str(claims).expect("claims are JSON"));
                pieces.push(Piece::Case(claims, channel.trim_matches('`').to_owned(), seen.to_owned()));
            }
            _ => {}
        }
    }
    pieces
}
