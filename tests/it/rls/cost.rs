//! What row security costs: 200 identities, cuts of 100 keys.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row};

use crate::harness::database::Database;

const IDENTITIES: i32 = 200;
const KEYS: i32 = 100;
const ROUNDS: u32 = 20;
/// Postgres' own time for one identity and one changed key.
const PAIR_MAX: Duration = Duration::from_micros(5);

#[tokio::test]
async fn an_identity_and_a_changed_key_cost_at_most_five_microseconds() {
    let database = Database::create().await;
    database
        .run(
            "do $$ begin create role cost_app nologin; exception when others then null; end $$;
             create table notes (id numeric primary key, owner uuid not null, body text);
             insert into notes select i, md5((i % 200)::text)::uuid, 'note ' || i from generate_series(1, 100000) as i;
             alter table notes enable row level security;
             grant select on notes to cost_app;
             create function uid() returns uuid language sql stable as $$
                 select coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''),
                                 nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $$;
             create policy own on notes for select to cost_app using (owner = uid());
             select rowcast.publish('notes', policy => 'rls');
             analyze notes",
        )
        .await;
    let mut connection = database.connect().await;
    let id: i32 =
        sqlx::query_scalar("select id from rowcast.publications").fetch_one(&mut connection).await.expect("one");
    sqlx::query("select rowcast.prepare_sight($1)").bind(id).execute(&mut connection).await.expect("prepared");
    let rows = sqlx::query(
        "select tableoid::text, ctid::text, '[\"' || id || '\"]' from notes where id in (select i * 37 from generate_series(1, $1) as i)",
    )
    .bind(KEYS)
    .fetch_all(&mut connection)
    .await
    .expect("rows");
    let subjects: Vec<String> =
        sqlx::query_scalar("select md5(i::text)::uuid::text from generate_series(0, $1 - 1) as i")
            .bind(IDENTITIES)
            .fetch_all(&mut connection)
            .await
            .expect("subjects");
    let claims: Vec<String> =
        subjects.iter().map(|sub| json!({ "role": "cost_app", "sub": sub }).to_string()).collect();
    let backend: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut connection).await.expect("its number");
    // The first time plans; what a term costs is what follows.
    ask(&mut connection, id, &rows, &claims).await;
    let (before, began) = (processor_time(backend), Instant::now());
    for _ in 0..ROUNDS {
        ask(&mut connection, id, &rows, &claims).await;
    }
    let (took, elapsed) = (processor_time(backend) - before, began.elapsed());
    let pairs = ROUNDS * u32::try_from(IDENTITIES * KEYS).expect("a few");
    println!(
        "{IDENTITIES} identities, {KEYS} keys, {ROUNDS} times: {took:?} of Postgres' time in {elapsed:?}, {:?} for each \
         identity and key",
        took / pairs
    );
    assert!(took / pairs <= PAIR_MAX, "{took:?}");
}

/// Who sees which rows, as the leader asks in a cut.
async fn ask(connection: &mut PgConnection, id: i32, rows: &[PgRow], claims: &[String]) {
    let column = |index: usize| rows.iter().map(|row| row.get::<String, _>(index)).collect::<Vec<_>>();
    let mut transaction = connection.begin().await.expect("a transaction");
    let answers: Vec<(Option<Vec<i32>>, Option<String>)> =
        sqlx::query_as("select seen, problem from rowcast.see($1, $2::text[]::tid[], $3::text[]::oid[], $4, $5, $6)")
            .bind(id)
            .bind(column(1))
            .bind(column(0))
            .bind(column(2))
            .bind(vec!["cost_app"; claims.len()])
            .bind(claims)
            .fetch_all(&mut *transaction)
            .await
            .expect("an answer");
    transaction.rollback().await.expect("its end");
    assert!(answers.iter().all(|(_, problem)| problem.is_none()), "{answers:?}");
    let seen: usize = answers.iter().map(|(seen, _)| seen.as_ref().map_or(0, Vec::len)).sum();
    assert_eq!(seen, rows.len(), "each row is seen by its owner");
}

/// What a process has used of the processors: on a busy machine the time on the wall says more about the others.
fn processor_time(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let after_name = stat.rsplit_once(") ").expect("a name in parentheses").1;
    let ticks: u64 = after_name.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    // Linux tells it in hundredths of a second.
    Duration::from_millis(ticks * 10)
}
