//! What docs/queries.md shows is so: every fenced example of it is run.

use std::path::Path;

use rowcast::protocol::ErrorCode;
use rowcast::query::order_by;
use sqlx::AssertSqlSafe;

use crate::harness::asker::Asker;
use crate::harness::database::Database;

/// The lines of every fenced block of a language.
fn blocks(document: &str, language: &str) -> Vec<Vec<String>> {
    let mut blocks = Vec::new();
    for part in document.split("\n```").collect::<Vec<_>>().chunks(2).filter_map(|pair| pair.get(1)) {
        let (first, lines) = part.split_once('\n').expect("lines");
        if first == language {
            blocks.push(lines.lines().map(str::to_owned).collect());
        }
    }
    blocks
}

/// Pairs of a channel and what is said of it.
fn pairs(document: &str, language: &str) -> Vec<(String, String)> {
    let lines: Vec<String> = blocks(document, language).concat();
    let said = |line: &String| line.strip_prefix("-- ").unwrap_or_else(|| panic!("not a comment: {line}")).to_owned();
    lines.chunks(2).map(|pair| (pair[0].clone(), said(&pair[1]))).collect()
}

#[tokio::test]
async fn every_example_of_the_document_is_true() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/queries.md");
    let document = std::fs::read_to_string(path).expect("the document");
    let database = Database::create().await;
    for block in blocks(&document, "sql") {
        database.run(&block.join("\n")).await;
    }
    let mut asker = Asker::open(&database.url, "orders").await;

    let examples = pairs(&document, "query");
    assert!(examples.len() > 35, "{}", examples.len());
    for (channel, said) in &examples {
        let query = asker.query(channel).await.unwrap_or_else(|refusal| panic!("{channel}: {refusal:?}"));
        if let Some(columns) = said.strip_prefix("select ") {
            let select = query.select.expect("columns").join(", ");
            assert_eq!(select, columns, "{channel}");
        } else if said.starts_with("order by ") {
            let sorted = async |order: &str| -> Vec<i32> {
                let sql = format!("select id from public.orders as r order by {order}");
                sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&asker.pool).await.expect("rows")
            };
            let order = order_by(&query.order, &asker.publication).expect("an order");
            let limit = query.limit.expect("a limit");
            let expected = sorted(said.trim_start_matches("order by ")).await;
            assert_eq!(sorted(&format!("{order} limit {limit}")).await, expected, "{channel}");
        } else {
            let sql = format!("select json_build_array(id)::text from public.orders where {said}");
            let expected = asker.keys(&sql.replace("mood =", "mood::text =")).await;
            assert_eq!(asker.in_memory(&query.filter), expected, "in memory: {channel}");
            assert_eq!(asker.by_filter(&query.filter).await, expected, "in SQL: {channel}");
        }
    }
    let (same, refused) = (blocks(&document, "same"), pairs(&document, "refused"));
    assert!(same.len() >= 3 && refused.len() > 14, "{} {}", same.len(), refused.len());
    for same in same {
        let first = asker.query(&same[0]).await.expect("a query");
        for channel in &same[1..] {
            assert_eq!(asker.query(channel).await.expect(channel), first, "{channel}");
        }
    }
    for (channel, said) in refused {
        let refusal = asker.query(&channel).await.expect_err(&channel);
        let (at, message) = said.split_once(": ").expect("a place and a message");
        assert_eq!(
            (refusal.code, refusal.at),
            (ErrorCode::BadQuery, at.parse().ok()),
            "{channel}: {}",
            refusal.message
        );
        assert!(refusal.message.contains(message), "{channel}: {}", refusal.message);
    }
}
