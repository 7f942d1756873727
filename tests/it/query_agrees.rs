//! Filters and orders agree with Postgres: every operator on every type, with the values that go wrong.
//!
//! Each filter is asked in three ways of the same rows: in memory; by the SQL that snapshot queries use; and by SQL written
//! here by hand from its parts, with literals in it. The three have to name the same rows.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rowcast::order::RowOrder;
use rowcast::protocol::ErrorCode;
use rowcast::query::{Query, order_by};
use sqlx::{AssertSqlSafe, Row as _};

use crate::harness::asker::Asker;
use crate::harness::database::Database;

/// A column, what its type can be asked, and values for it.
struct Kind {
    column: &'static str,
    declared: &'static str,
    /// What a literal is cast to in the hand-written SQL.
    cast: &'static str,
    asks: Asks,
    values: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    Order,
    Text,
    Bool,
    Enum,
    Json,
    /// Only whether it is null.
    Null,
}

const TEXTS: &[&str] = &[
    "", " ", "a", "A", "a ", "ab", "aB", "b", "Z", "z", "é", "É", "e\u{301}", "ß", "İ", "ı", "K", "😀", "%", "_", "\\",
    "a%b", "a_b", "a\\b", "\"", "\"q\"", "a,b", "(x)", "{x}", "'", "';drop", "\t", "\n", "\u{1}", "\u{7f}", "null",
    "100%", "aaab", "abab", "x.y:z", "*",
];

const KINDS: &[Kind] = &[
    Kind {
        column: "b",
        declared: "bool",
        cast: "bool",
        asks: Asks::Bool,
        values: &["true", "false", "t", "off", " YES "],
    },
    Kind {
        column: "i2",
        declared: "int2",
        cast: "int2",
        asks: Asks::Order,
        values: &["-32768", "-1", "0", " 7 ", "007", "32767"],
    },
    Kind {
        column: "i4",
        declared: "int4",
        cast: "int4",
        asks: Asks::Order,
        values: &["-2147483648", "-10", "-9", "0", "-0", "9", "10", "2147483647"],
    },
    Kind {
        column: "i8",
        declared: "int8",
        cast: "int8",
        asks: Asks::Order,
        values: &[
            "-9223372036854775808",
            "-1",
            "0",
            "9",
            "10",
            "9007199254740992",
            "9007199254740993",
            "9223372036854775807",
        ],
    },
    Kind { column: "o", declared: "oid", cast: "oid", asks: Asks::Order, values: &["0", "9", "10", "4294967295"] },
    Kind {
        column: "n",
        declared: "numeric",
        cast: "numeric",
        asks: Asks::Order,
        values: &[
            "0",
            "0.00",
            "-0.0",
            "1",
            "1.0",
            "1.000",
            "-1",
            "-1.50",
            "-1.5",
            "0.1",
            "0.10",
            ".1",
            "1e30",
            "1e-30",
            "-1e-30",
            "2",
            "10",
            "9.99",
            "123456789012345678901234567890.123",
            "123456789012345678901234567890.124",
            "99999999999999999999999999999999999999999999999999",
            "NaN",
            "Infinity",
            "-Infinity",
            "inf",
        ],
    },
    Kind {
        column: "n2",
        declared: "numeric(10,2)",
        cast: "numeric",
        asks: Asks::Order,
        values: &["0", "1.005", "1.01", "1.00", "-3.14", "99999999.99"],
    },
    Kind {
        column: "f4",
        declared: "float4",
        cast: "float4",
        asks: Asks::Order,
        values: &[
            "0",
            "-0",
            "0.1",
            "1.5",
            "1e-7",
            "16777216",
            "16777217",
            "16777218",
            "3.4028235e38",
            "1e-45",
            "-1e-45",
            "NaN",
            "Infinity",
            "-Infinity",
        ],
    },
    Kind {
        column: "f8",
        declared: "float8",
        cast: "float8",
        asks: Asks::Order,
        values: &[
            "0",
            "-0",
            "0.1",
            "0.30000000000000004",
            "0.3",
            "1e308",
            "5e-324",
            "-5e-324",
            "1e20",
            "123456789.123456789",
            "9007199254740993",
            "NaN",
            "Infinity",
            "-Infinity",
        ],
    },
    Kind { column: "t", declared: "text", cast: "text", asks: Asks::Text, values: TEXTS },
    Kind { column: "ti", declared: "text collate \"en-x-icu\"", cast: "text", asks: Asks::Text, values: TEXTS },
    Kind { column: "tn", declared: "text collate folded", cast: "text", asks: Asks::Text, values: TEXTS },
    Kind { column: "v", declared: "varchar(9)", cast: "varchar", asks: Asks::Text, values: TEXTS },
    Kind { column: "na", declared: "name", cast: "name", asks: Asks::Text, values: TEXTS },
    Kind { column: "c", declared: "char(6)", cast: "bpchar", asks: Asks::Text, values: TEXTS },
    Kind { column: "ci", declared: "char(6) collate folded", cast: "bpchar", asks: Asks::Text, values: TEXTS },
    Kind {
        column: "u",
        declared: "uuid",
        cast: "uuid",
        asks: Asks::Order,
        values: &[
            "00000000-0000-0000-0000-000000000000",
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12",
            "{ffffffffffffffffffffffffffffffff}",
            "9fffffff-ffff-ffff-ffff-ffffffffffff",
        ],
    },
    Kind {
        column: "d",
        declared: "date",
        cast: "date",
        asks: Asks::Order,
        values: &[
            "2020-02-29",
            "2020-03-01",
            "0001-01-01",
            "0001-12-31 BC",
            "4713-01-01 BC",
            "0044-03-15 BC",
            "10000-01-01",
            "9999-12-31",
            "5874897-12-31",
            "infinity",
            "-infinity",
            "epoch",
            "20200229",
            "Feb 29 2020",
        ],
    },
    Kind {
        column: "ts",
        declared: "timestamp",
        cast: "timestamp",
        asks: Asks::Order,
        values: &[
            "2020-02-29 12:00",
            "2020-02-29 12:00:00.000001",
            "2020-02-29 12:00:00.1",
            "2020-02-29 12:00:00.10",
            "infinity",
            "-infinity",
            "0044-03-15 01:02:03.5 BC",
            "0044-03-15 01:02:03.6 BC",
            "4713-01-01 BC",
            "294276-12-31 23:59:59.999999",
            "10000-01-01",
            "1970-01-01",
            "1969-12-31 23:59:59.999999",
            "2020-02-28 24:00",
        ],
    },
    Kind {
        column: "tz",
        declared: "timestamptz",
        cast: "timestamptz",
        asks: Asks::Order,
        values: &[
            "2020-01-01 00:00:00+00",
            "2020-01-01 01:00:00+01",
            "2019-12-31 18:30:00-05:30",
            "2020-01-01 00:00:00.000001Z",
            "2020-07-01 12:00 America/New_York",
            "2020-07-01 16:00",
            "infinity",
            "-infinity",
            "0044-03-15 01:02:03+00 BC",
            "0001-01-01 00:00:00-12",
            "294276-12-31 23:59:59.999999+00",
            "12020-01-01",
        ],
    },
    Kind {
        column: "ti0",
        declared: "time",
        cast: "time",
        asks: Asks::Order,
        values: &["00:00", "24:00", "12:34:56.789", "12:34:56.78", "23:59:59.999999", "1:2:3", "allballs", "04:05 PM"],
    },
    Kind {
        column: "tiz",
        declared: "timetz",
        cast: "timetz",
        asks: Asks::Order,
        values: &[
            "12:00+00",
            "14:00+02",
            "07:00-05",
            "12:00",
            "17:30:00.5+05:30",
            "12:00:00.5+00",
            "24:00-15",
            "00:00+15:59:59",
            "12:00:01-05:30:15",
        ],
    },
    Kind {
        column: "iv",
        declared: "interval",
        cast: "interval",
        asks: Asks::Order,
        values: &[
            "0",
            "1 mon",
            "30 days",
            "720 hours",
            "1 year",
            "360 days",
            "365 days",
            "1 day",
            "24:00",
            "-0.5 s",
            "-1 day 24:00:00",
            "1 mon -30 days",
            "-178000000 years",
            "178000000 years",
            "1 mon 1.5 days 00:00:00.000001",
            "00:00:00.000001",
            "-1y2mon -3d -4:05:06.007",
            "P1Y2M10DT2H30M",
        ],
    },
    Kind {
        column: "by",
        declared: "bytea",
        cast: "bytea",
        asks: Asks::Order,
        values: &["", "\\x", "\\x00", "\\x00FF", "\\xff", "\\xA0", "abc", "\\x616263", "\\\\x", "a\\000b"],
    },
    Kind {
        column: "e",
        declared: "mood",
        cast: "mood",
        asks: Asks::Enum,
        values: &["so", "la", "a,b", "it's \"odd\"", "Ü"],
    },
    Kind { column: "ed", declared: "mood_domain", cast: "mood", asks: Asks::Enum, values: &["so", "la", "a,b"] },
    Kind { column: "id4", declared: "int_domain", cast: "int4", asks: Asks::Order, values: &["1", "2", "3"] },
    Kind { column: "td", declared: "text_domain", cast: "text", asks: Asks::Text, values: TEXTS },
    Kind {
        column: "j",
        declared: "jsonb",
        cast: "jsonb",
        asks: Asks::Json,
        values: &[
            "1",
            "1.0",
            "1.00",
            "\"1\"",
            "[1]",
            "[1.0]",
            "[]",
            "{}",
            "[[]]",
            "{\"a\": 1, \"b\": [1.50, null]}",
            "{\"b\":[1.5,null],\"a\":1.0}",
            "true",
            "false",
            "\"a\\u0001\\\"\"",
            "1e2",
            "100",
            "100.00",
            "-0",
            "0.0",
            "\"é\"",
            "{\"a\":{\"a\":{\"a\":\"] 1.0\"}}}",
        ],
    },
    Kind { column: "js", declared: "int4[]", cast: "int4[]", asks: Asks::Null, values: &["{}", "{1,null}", "{null}"] },
    Kind { column: "co", declared: "pair", cast: "pair", asks: Asks::Null, values: &["(,)", "(1,)", "(1,x)"] },
    Kind { column: "ip", declared: "inet", cast: "inet", asks: Asks::Null, values: &["10.0.0.1", "::1"] },
];

const ROWS: usize = 200;
const FILTERS: usize = 800;

/// A filter as a channel text and as SQL.
#[derive(Clone)]
struct Asked {
    text: String,
    sql: String,
}

/// A table with all of these columns, and rows of chance.
async fn table() -> Asker {
    let database = Database::create().await;
    database
        .run(
            "create type mood as enum ('so', 'la', 'a,b', 'it''s \"odd\"', 'Ü'); create domain mood_domain as mood;
             create domain int_domain as int4 check (value > 0); create domain text_domain as text;
             create type pair as (x int, y text);
             create collation folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        )
        .await;
    let columns: Vec<String> = KINDS.iter().map(|kind| format!("{} {}", kind.column, kind.declared)).collect();
    database.run(&format!("create table t (id int4 primary key, {})", columns.join(", "))).await;
    let mut chance = StdRng::seed_from_u64(7);
    let mut inserts = String::new();
    for id in 0..ROWS {
        let values: Vec<String> = KINDS
            .iter()
            .map(|kind| match chance.random_ratio(1, 8) {
                true => "null".to_owned(),
                // Each value stands in some row.
                false if id < kind.values.len() => literal(kind, kind.values[id]),
                false => literal(kind, kind.values.choose(&mut chance).expect("values")),
            })
            .collect();
        inserts.push_str(&format!("insert into t values ({id}, {});", values.join(", ")));
    }
    database.run(&inserts).await;
    database.run("select rowcast.publish('t', policy => 'public')").await;
    Asker::open(&database.url, "t").await
}

/// Which rows each of these conditions holds for.
async fn by_hand(asker: &Asker, conditions: &[String]) -> Vec<BTreeSet<String>> {
    let mut found = vec![BTreeSet::new(); conditions.len()];
    for (batch, conditions) in conditions.chunks(100).enumerate() {
        let columns: Vec<String> = conditions.iter().map(|condition| format!("({condition}) is true")).collect();
        let sql = format!("set local search_path = public; select id, {} from public.t", columns.join(", "));
        let mut connection = asker.pool.acquire().await.expect("a connection");
        let rows = sqlx::raw_sql(AssertSqlSafe(sql.clone()))
            .fetch_all(&mut *connection)
            .await
            .unwrap_or_else(|error| panic!("{error}\n{sql}"));
        for row in rows {
            for place in 0..conditions.len() {
                if row.get(place + 1) {
                    found[batch * 100 + place].insert(format!("[{}]", row.get::<i32, _>(0)));
                }
            }
        }
    }
    found
}

fn quoted(text: &str) -> String {
    format!("e'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn literal(kind: &Kind, text: &str) -> String {
    format!("{}::{}", quoted(text), kind.cast)
}

/// As a part of a channel text: what is not a letter or a digit is percent-encoded.
fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// A value as it stands within parentheses.
fn in_quotes(text: &str) -> String {
    encoded(&format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// A condition on one column, as it stands within parentheses.
fn condition(kind: &Kind, chance: &mut StdRng, may_negate: bool) -> Asked {
    // Postgres has no operators for a domain over an enum.
    let column = if kind.declared == "mood_domain" { "ed::mood" } else { kind.column };
    let value = |chance: &mut StdRng| *kind.values.choose(chance).expect("values");
    let collated = if kind.asks == Asks::Text { format!("{column} collate \"C\"") } else { column.to_owned() };
    let choice = match kind.asks {
        Asks::Order => chance.random_range(0..9),
        Asks::Text => chance.random_range(0..13),
        Asks::Bool => chance.random_range(0..12),
        Asks::Enum => [0, 1, 6, 7, 8][chance.random_range(0..5)],
        Asks::Json => [0, 6][chance.random_range(0..2)],
        Asks::Null => 8,
    };
    let (text, sql) = match choice {
        0..6 => {
            let (word, sign) =
                [("eq", "="), ("neq", "<>"), ("lt", "<"), ("lte", "<="), ("gt", ">"), ("gte", ">=")][choice];
            let value = value(chance);
            (format!("{word}.{}", in_quotes(value)), format!("{collated} {sign} {}", literal(kind, value)))
        }
        6 | 7 => {
            let values: Vec<&str> = (0..chance.random_range(1..5)).map(|_| value(chance)).collect();
            let texts: Vec<String> = values.iter().map(|value| in_quotes(value)).collect();
            let literals: Vec<String> = values.iter().map(|value| literal(kind, value)).collect();
            (format!("in.({})", texts.join(",")), format!("{collated} in ({})", literals.join(", ")))
        }
        8 => ("is.null".to_owned(), format!("{column} is not distinct from null")),
        _ if kind.asks == Asks::Bool => {
            let word = ["true", "false", "unknown"][choice - 9];
            (format!("is.{word}"), format!("{column} is {word}"))
        }
        _ => {
            let pattern = pattern(value(chance), chance);
            let written = starred(&pattern, chance);
            let word = if choice % 2 == 1 { "like" } else { "ilike" };
            (format!("{word}.{}", in_quotes(&written)), format!("{collated} {word} {}", quoted(&pattern)))
        }
    };
    if may_negate && kind.asks != Asks::Json && chance.random_ratio(1, 4) {
        return Asked { text: format!("{}.not.{text}", kind.column), sql: format!("not ({sql})") };
    }
    Asked { text: format!("{}.{text}", kind.column), sql }
}

/// A pattern in Postgres' syntax made of a text: parts left out, wildcards put in, all else protected or not.
fn pattern(text: &str, chance: &mut StdRng) -> String {
    let mut pattern = String::new();
    for character in text.chars() {
        match chance.random_range(0..6) {
            0 => pattern.push('%'),
            1 => pattern.push('_'),
            2 => {}
            _ if "%_\\*".contains(character) || chance.random_ratio(1, 8) => pattern.extend(['\\', character]),
            _ => pattern.push(character),
        }
    }
    if chance.random_ratio(1, 3) {
        pattern.push('%');
    }
    pattern
}

/// The pattern with stars for some of its `%`.
fn starred(pattern: &str, chance: &mut StdRng) -> String {
    let mut written = String::new();
    let mut rest = pattern.chars();
    while let Some(character) = rest.next() {
        match character {
            '\\' => written.extend([character].into_iter().chain(rest.next())),
            '%' if chance.random() => written.push('*'),
            other => written.push(other),
        }
    }
    written
}

/// Conditions within each other.
fn tree(chance: &mut StdRng, depth: usize, may_negate: bool) -> Asked {
    if depth == 0 || chance.random_ratio(1, 3) {
        let kinds: Vec<&Kind> = KINDS.iter().filter(|kind| may_negate || kind.asks != Asks::Json).collect();
        return condition(kinds.choose(chance).expect("kinds"), chance, may_negate);
    }
    let is_negated = chance.random_ratio(1, 3);
    let word = if chance.random() { "and" } else { "or" };
    // jsonb is refused below a negation.
    let parts: Vec<Asked> =
        (0..chance.random_range(1..4)).map(|_| tree(chance, depth - 1, may_negate && !is_negated)).collect();
    let texts: Vec<&str> = parts.iter().map(|part| &*part.text).collect();
    let conditions: Vec<String> = parts.iter().map(|part| format!("({})", part.sql)).collect();
    let sql = conditions.join(&format!(" {word} "));
    let text = format!("{word}({})", texts.join(","));
    if is_negated {
        return Asked { text: format!("not.{text}"), sql: format!("not ({sql})") };
    }
    Asked { text, sql }
}

#[tokio::test]
async fn filters_name_the_same_rows_in_memory_and_in_postgres() {
    let mut asker = table().await;
    let mut chance = StdRng::seed_from_u64(11);
    let mut asked: Vec<Asked> = Vec::new();
    for kind in KINDS {
        // Every comparison with every value, once.
        if matches!(kind.asks, Asks::Order | Asks::Text) {
            for value in kind.values {
                let (word, sign) = [("eq", "="), ("neq", "<>"), ("lt", "<"), ("gte", ">=")][chance.random_range(0..4)];
                let collated = if kind.asks == Asks::Text { " collate \"C\"" } else { "" };
                asked.push(Asked {
                    text: format!("and=({}.{word}.{})", kind.column, in_quotes(value)),
                    sql: format!("{}{collated} {sign} {}", kind.column, literal(kind, value)),
                });
            }
        }
        for _ in 0..12 {
            let Asked { text, sql } = condition(kind, &mut chance, true);
            asked.push(Asked { text: format!("or=({text})"), sql });
        }
    }
    while asked.len() < FILTERS {
        let Asked { text, sql } = tree(&mut chance, 3, true);
        asked.push(Asked { text: format!("and=({text})"), sql });
    }
    let conditions: Vec<String> = asked.iter().map(|asked| asked.sql.clone()).collect();
    let by_hand = by_hand(&asker, &conditions).await;
    let (mut pairs, mut held) = (0, 0);
    let mut different = BTreeSet::new();
    for (Asked { text, sql }, expected) in asked.iter().zip(by_hand) {
        let query = asker.query(&format!("t?{text}")).await.unwrap_or_else(|refusal| panic!("{text}: {refusal:?}"));
        let in_memory = asker.in_memory(&query.filter);
        assert_eq!(in_memory, expected, "in memory: {text}\n{sql}\n{:?}", query.filter);
        assert_eq!(asker.by_filter(&query.filter).await, expected, "in SQL: {text}\n{sql}\n{:?}", query.filter);
        // What an index of channels looks up is in every row that is held.
        for (column, values) in query.filter.pinned(&asker.publication.schema) {
            for (_, row) in asker.rows.iter().filter(|(id, _)| expected.contains(id)) {
                assert!(values.iter().any(|value| **value == *row.value(column)), "{text}: {row:?}");
            }
        }
        pairs += asker.rows.len();
        held += expected.len();
        different.insert(query.filter);
    }
    println!(
        "{pairs} pairs of a row and a filter, {held} of them held, {} filters of which {} differ, 0 disagreements",
        asked.len(),
        different.len()
    );
    assert!(pairs >= 100_000 && held > pairs / 20 && held < pairs * 19 / 20);
}

#[tokio::test]
async fn rows_are_sorted_as_postgres_sorts_them() {
    let mut asker = table().await;
    let mut orders = 0;
    let mut chance = StdRng::seed_from_u64(3);
    let sortable: Vec<&Kind> =
        KINDS.iter().filter(|kind| matches!(kind.asks, Asks::Order | Asks::Text | Asks::Bool)).collect();
    for kind in &sortable {
        for direction in ["", ".asc", ".desc", ".nullsfirst", ".desc.nullslast"] {
            let second = sortable.choose(&mut chance).expect("a second");
            let text = format!("t?order={}{direction},{}&limit=9", kind.column, second.column);
            let query = asker.query(&text).await.unwrap_or_else(|refusal| panic!("{text}: {refusal:?}"));
            let collate = |kind: &Kind| if kind.asks == Asks::Text { " collate \"C\"" } else { "" };
            let by_hand = format!(
                "{}{} {}, {}{}, id",
                kind.column,
                collate(kind),
                direction.replace('.', " ").replace("nulls", "nulls "),
                second.column,
                collate(second)
            );
            let sorted = async |order: &str| -> Vec<String> {
                let sql = format!("select json_build_array(id)::text from public.t as r order by {order}");
                sqlx::query_scalar(AssertSqlSafe(sql.clone()))
                    .fetch_all(&asker.pool)
                    .await
                    .unwrap_or_else(|error| panic!("{error}\n{sql}"))
            };
            let expected = sorted(&by_hand).await;
            let by_query = sorted(&order_by(&query.order, &asker.publication).expect("an order")).await;
            assert_eq!(by_query, expected, "in SQL: {text}");
            let order = RowOrder::new(&query.order, &asker.publication.schema);
            let mut keyed: Vec<_> =
                asker.rows.iter().map(|(id, row)| (order.key(|column| Some(row.value(column))), id.clone())).collect();
            keyed.sort_by(|(a, _), (b, _)| order.compare(a, b));
            assert_eq!(keyed.into_iter().map(|(_, id)| id).collect::<Vec<_>>(), expected, "in memory: {text}");
            orders += 1;
        }
    }
    println!("{orders} orders of {ROWS} rows, 0 disagreements");
    assert!(orders > 100);
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_by_its_place() {
    let mut asker = table().await;
    for (query, at, message) in [
        ("nope=eq.1", 2, "no column `nope`"),
        ("i4=eq.x", 8, "invalid input syntax for type integer"),
        ("i4=eq.2147483648", 8, "out of range"),
        ("i2=in.(1,99999,2)", 11, "out of range"),
        ("i8=gt.1.5", 8, "invalid input syntax"),
        ("i4=eq.1;drop table t", 8, "invalid input syntax"),
        ("n=eq.1e200000", 7, "overflow"),
        ("n=eq.1e100000", 7, "too long"),
        ("f4=eq.1e39", 8, "out of range"),
        ("b=eq.maybe", 7, "invalid input syntax for type boolean"),
        ("u=eq.1", 7, "invalid input syntax for type uuid"),
        ("d=eq.2020-02-30", 7, "out of range"),
        ("d=lt.today", 7, "`today` would mean something else later"),
        ("tz=gte.NOW", 9, "`now` would mean"),
        ("or=(i4.eq.1,ts.eq.Tomorrow)", 20, "`tomorrow` would mean"),
        ("e=eq.happy", 7, "invalid input value for enum"),
        ("e=gt.so", 2, "columns of type mood have no order here"),
        ("e=like.s*", 2, "match no pattern"),
        ("i4=like.1*", 2, "match no pattern"),
        ("t=like.a%5C", 9, "a pattern cannot end"),
        ("i4=is.true", 2, "are not true or false"),
        ("j=eq.{", 7, "invalid input syntax for type json"),
        ("j=eq.null", 7, "cannot be compared with here"),
        ("j=neq.1", 2, "what is equal"),
        ("j=not.eq.1", 2, "what is equal"),
        ("not.or=(i4.eq.1,j.in.(1,2))", 18, "what is equal"),
        ("j=is.null", 2, "look the same"),
        ("j=gt.1", 2, "have no order"),
        ("js=eq.{1}", 2, "columns of type int4[] cannot be compared"),
        ("co=eq.(1,x)", 2, "columns of type pair cannot be compared"),
        ("ip=eq.10.0.0.1", 2, "columns of type inet cannot be compared"),
        ("select=id,nope", 12, "no column `nope`"),
        ("order=nope", 8, "no column `nope`"),
        ("order=e", 8, "cannot be sorted by `e`"),
        ("order=id,j", 11, "cannot be sorted by `j`"),
        ("by=eq.%5Cxzz", 8, "invalid hexadecimal"),
    ] {
        let refusal = asker.query(&format!("t?{query}")).await.expect_err(query);
        assert_eq!((refusal.code, refusal.at), (ErrorCode::BadQuery, Some(at)), "{query}: {}", refusal.message);
        assert!(refusal.message.contains(message), "{query}: {}", refusal.message);
    }
    // SQL in every name and every literal is a name and a literal.
    let evil = "\"; drop table t; select '";
    for text in [
        format!("t?{}=eq.1", encoded(evil)),
        format!("t?select={}", in_quotes(evil)),
        format!("t?order={}", in_quotes(evil)),
        format!("t?or=({}.eq.1)", in_quotes(evil)),
        format!("t?i4=eq.{}", encoded(evil)),
    ] {
        assert_eq!(asker.query(&text).await.expect_err(&text).code, ErrorCode::BadQuery, "{text}");
    }
    for column in ["t", "v", "c", "tn"] {
        for operator in ["eq", "like", "gt"] {
            let query = asker.query(&format!("t?{column}={operator}.{}", in_quotes(evil))).await.expect("a text");
            let found = asker.by_filter(&query.filter).await;
            assert_eq!(found, asker.in_memory(&query.filter), "{column} {operator}");
        }
    }
    assert_eq!(by_hand(&asker, &["true".into()]).await[0].len(), ROWS);
}

#[tokio::test]
async fn equal_queries_are_equal_values() {
    let mut asker = table().await;
    for equal in [
        &["i4=eq.7", "i4=eq.+007", "i4=in.(7)", "or=(i4.eq.7)", "and=(and(i4.eq.7,i4.eq.7))", "i4=not.neq.7"][..],
        &["n=eq.1", "n=eq.1.00", "n=in.(1.0,1)"],
        &["c=eq.a", "c=eq.%22a++%22"],
        &["i4=in.(1,2)", "i4=in.(2,1,2)", "or=(i4.eq.2,i4.eq.1)", "or=(i4.in.(1),or(i4.eq.2,i4.eq.1))"],
        &["i4=not.in.(1,2)", "i4=neq.1&i4=neq.2", "not.or=(i4.eq.1,i4.eq.2)", "not.and=(i4.in.(1,2))"],
        &["i4=lt.1&t=eq.x", "t=eq.x&i4=not.gte.1", "not.or=(i4.gte.1,t.neq.x)"],
        &["b=is.null", "b=is.unknown"],
        &["t=like.a*", "t=like.a%25", "t=like.a**"],
        &["select=t,i4", "select=i4,id,t,t"],
        &["", "order=id", "order=id.asc.nullsfirst", "order=id,i4"],
        &["limit=5", "order=id&limit=5", "limit=5&order=id.nullsfirst,t"],
        &["order=i4.desc,id", "order=i4.desc.nullsfirst", "order=i4.desc,i4.asc"],
    ] {
        let first = asker.query(&format!("t?{}", equal[0])).await.expect("a query");
        for text in &equal[1..] {
            assert_eq!(asker.query(&format!("t?{text}")).await.expect(text), first, "{text}");
        }
    }
    let all: String = KINDS.iter().map(|kind| format!(",{}", kind.column)).collect();
    let named = asker.query(&format!("t?select=id{all}")).await.expect("all columns");
    assert_ne!(named, Query::default(), "more may join later");
}

#[tokio::test]
async fn what_is_too_large_to_be_sent_is_told_alike_in_memory_and_in_postgres() {
    let database = Database::create().await;
    database
        .run(
            "create table t (id int primary key, body text, raw bytea, padded char(1048600), data jsonb);
             insert into t values
                 (0, null, null, null, null), (1, 'a', 'a', 'a', '1'),
                 (2, repeat('a', 1048576), repeat('a', 1048576)::bytea, null, to_jsonb(repeat('a', 1048574))),
                 (3, repeat('a', 1048577), repeat('a', 1048577)::bytea, null, to_jsonb(repeat('a', 1048575))),
                 (4, repeat('é', 524289), null, null, to_jsonb(repeat('\"', 600000)));
             select rowcast.publish('t', policy => 'public')",
        )
        .await;
    let mut asker = Asker::open(&database.url, "t").await;
    let mut cut = 0;
    for (query, expected) in [
        ("body=is.null", &["[0]"][..]),
        ("body=not.is.null", &["[1]", "[2]", "[3]", "[4]"]),
        ("body=eq.a", &["[1]"]),
        ("body=neq.a", &["[2]", "[3]", "[4]"]),
        ("body=not.in.(a,b)", &["[2]", "[3]", "[4]"]),
        ("body=gt.a", &["[2]"]),
        ("body=lte.z", &["[1]", "[2]"]),
        ("body=like.*a", &["[1]", "[2]"]),
        ("body=not.like.b*", &["[1]", "[2]"]),
        ("not.or=(body.like.b*,body.lt.a)", &["[1]", "[2]"]),
        ("raw=is.null", &["[0]", "[4]"]),
        ("raw=neq.a", &["[2]", "[3]"]),
        ("raw=gt.a", &["[2]"]),
        ("padded=eq.a", &[]),
        ("padded=neq.b", &[]),
        ("padded=is.null", &["[0]", "[2]", "[3]", "[4]"]),
        ("data=in.(1.0,2)", &["[1]"]),
    ] {
        let filter = asker.query(&format!("t?{query}")).await.expect(query).filter;
        let expected: BTreeSet<String> = expected.iter().map(|key| (*key).to_owned()).collect();
        assert_eq!(asker.in_memory(&filter), expected, "in memory: {query}");
        assert_eq!(asker.by_filter(&filter).await, expected, "in SQL: {query}");
        cut += asker.rows.iter().filter(|(_, row)| row.len() > asker.publication.schema.columns.len()).count();
    }
    assert!(cut > 0, "rows without their large values");
    for query in ["order=body&limit=9", "order=raw.desc&limit=9", "order=padded.nullsfirst,body.desc&limit=9"] {
        let query = asker.query(&format!("t?{query}")).await.expect(query);
        let sql = order_by(&query.order, &asker.publication).expect("an order");
        let sql = format!("select json_build_array(id)::text from public.t as r order by {sql}");
        let expected: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&asker.pool).await.expect("rows");
        let order = RowOrder::new(&query.order, &asker.publication.schema);
        let mut keyed: Vec<_> =
            asker.rows.iter().map(|(key, row)| (order.key(|column| Some(row.value(column))), key.clone())).collect();
        keyed.sort_by(|(a, _), (b, _)| order.compare(a, b));
        assert_eq!(keyed.into_iter().map(|(_, key)| key).collect::<Vec<_>>(), expected);
    }
}
