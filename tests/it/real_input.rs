//! Real input: the tables that `pgbench -i` makes, published as they are, under `pgbench` itself.
//!
//! `pgbench_accounts` has exactly as many rows as a channel may have. The servers are those that the machine has:
//! PostgreSQL 15 and Redis 7.0 on Debian 12.

use std::time::{Duration, Instant};

use rowcast::demo::instance::Postgres;
use tokio::process::Command;

use crate::harness::content::Content;
use crate::harness::dash::Dash;
use crate::harness::world::{World, attempt, run};

const TABLES: [&str; 4] = ["pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"];

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_the_pgbench_tables_end_equal_to_them() {
    let world = World::start("select").await;
    pgbench(&world.postgres, &["-i", "-s", "1", "-q"]).await;
    let mut connection = world.connect().await;
    let versions: String =
        sqlx::query_scalar("select current_setting('server_version')").fetch_one(&mut connection).await.expect("one");
    println!("PostgreSQL {versions}, {}", redis_version(&world).await);
    // No primary key: refused with what to do about it.
    let error = attempt(&mut connection, "select rowcast.publish('pgbench_history', 'public')").await;
    let error = error.expect_err("a table without a key").to_string();
    assert!(error.contains("pgbench_history has no primary key"), "{error}");
    run(&mut connection, "alter table pgbench_history add column id bigserial primary key").await;
    for table in TABLES {
        run(&mut connection, &format!("select rowcast.publish('{table}', 'public')")).await;
    }

    let node = world.node().await;
    node.ready().await;
    let started = Instant::now();
    let mut dashes = Vec::new();
    for table in TABLES {
        let (dash, handles) = Dash::open(node.address, &[table]).await;
        dashes.push((table, dash, handles[0]));
    }
    for (table, dash, handle) in &mut dashes {
        dash.complete().await;
        let expected = Content::of_publication(&mut connection, table).await;
        assert_eq!(Content::of_client(&dash.client, *handle), expected, "{table}");
    }
    println!("the first rows of all four tables after {:?}", started.elapsed());

    // Each dashboard reads all the while; it stops when its table has arrived, which the others need not wait for.
    let (done, finished) = tokio::sync::watch::channel(None::<[Content; 4]>);
    let mut watching = Vec::new();
    for (index, (table, mut dash, handle)) in dashes.into_iter().enumerate() {
        let mut finished = finished.clone();
        watching.push(tokio::spawn(async move {
            let mut settled = None;
            loop {
                tokio::select! {
                    frame = dash.next() => assert!(frame.is_some(), "{table}: the connection ended"),
                    _ = finished.changed(), if settled.is_none() => {
                        settled = finished.borrow().map(|contents| (contents[index], Instant::now()));
                    }
                }
                let Some((expected, since)) = settled else { continue };
                let have = Content::of_client(&dash.client, handle);
                if have == expected {
                    return (table, have, dash.seen, since.elapsed());
                }
                assert!(since.elapsed() < Duration::from_secs(20), "{table}: {have:?} instead of {expected:?}");
            }
        }));
    }
    let report = pgbench(&world.postgres, &["-c", "8", "-j", "2", "-T", "20"]).await;
    let transactions =
        report.lines().find(|line| line.starts_with("number of transactions actually")).unwrap_or_default();
    let mut contents = [Content::default(); 4];
    for (content, table) in contents.iter_mut().zip(TABLES) {
        *content = Content::of_publication(&mut connection, table).await;
    }
    done.send(Some(contents)).expect("dashboards");
    for watching in watching {
        let (table, content, seen, after) = watching.await.expect("a dashboard without complaints");
        println!("{table}: {content:?}, {} changes, equal {after:?} after the end", seen.changes);
        assert!(seen.changes > 0 && seen.gaps == 0 && seen.resets == 0, "{table}: {seen:?}");
    }
    println!("{transactions}; {} cuts", node.metric("rowcast_cuts_total").await);
}

/// Runs pgbench against the world's database; what it reports.
async fn pgbench(postgres: &Postgres, arguments: &[&str]) -> String {
    let output = Command::new(postgres.program("pgbench"))
        .args(arguments)
        .args(["-h", "127.0.0.1", "-U", "postgres", "-p", &postgres.port().to_string(), "shop"])
        .kill_on_drop(true)
        .output()
        .await
        .expect("pgbench is installed with PostgreSQL");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn redis_version(world: &World) -> String {
    let client = redis::Client::open(world.redis.url().expose()).expect("an address");
    let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
    let info: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await.expect("its versions");
    info.lines().find(|line| line.starts_with("redis_version:")).unwrap_or_default().to_owned()
}
