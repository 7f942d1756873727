//! What fires no trigger is noticed, and what is locked holds up nobody else.

use std::time::{Duration, Instant};

use super::mirror::Mirror;
use crate::harness::postgres::{PrivatePostgres, attempt, run};

const PARTED: &str = "create table p (id int primary key, v int) partition by range (id);
                      create table p1 partition of p for values from (0) to (100);
                      create table p2 (id int primary key, v int); insert into p2 select generate_series(100, 120);
                      create table a (id int primary key, v int); create table b (id int primary key, v int);
                      select rowcast.publish('p', 'public'), rowcast.publish('a', 'public'), rowcast.publish('b', 'public')";

#[tokio::test]
async fn attaching_and_detaching_a_partition_is_noticed() {
    let postgres = PrivatePostgres::start().await;
    postgres.run(PARTED).await;
    let mut mirror = Mirror::new(&postgres).await;
    postgres.run("alter table p attach partition p2 for values from (100) to (200)").await;
    assert!(mirror.step().await);
    assert_eq!(mirror.take_markers("p"), ["definition"]);
    assert_eq!(mirror.rows("p").expect("rows").len(), 21);
    postgres.run("insert into p2 values (150); delete from p where id < 110").await;
    assert!(mirror.step().await);
    assert_eq!(mirror.take_markers("p"), Vec::<&str>::new());
    postgres.run("truncate p2").await;
    assert!(mirror.step().await);
    assert_eq!(mirror.rows("p").expect("rows").len(), 0);
    postgres.run("alter table p detach partition p2").await;
    assert!(mirror.step().await);
    postgres.run("insert into p2 values (1)").await;
    mirror.step().await;
}

#[tokio::test]
async fn a_disabled_trigger_is_noticed_and_so_is_a_rewrite() {
    let postgres = PrivatePostgres::start().await;
    postgres.run(PARTED).await;
    let mut mirror = Mirror::new(&postgres).await;
    for table in ["a", "p1"] {
        let name = if table == "a" { "a" } else { "p" };
        postgres.run(&format!("alter table {table} disable trigger all")).await;
        assert!(mirror.step().await);
        assert_eq!(mirror.take_markers(name), ["definition"]);
        assert_eq!(mirror.reader.described().expect("a catalogue").not_intact.len(), 1);
        postgres.run(&format!("insert into {table} values (1); alter table {table} enable trigger all")).await;
        assert!(mirror.step().await);
        assert_eq!(mirror.take_markers(name), ["definition"]);
        assert_eq!(mirror.rows(name).expect("rows").len(), 1);
        assert_eq!(mirror.reader.described().expect("a catalogue").not_intact.len(), 0);
    }
    postgres.run("alter table a add column t float default random()").await;
    assert!(mirror.step().await);
    assert_eq!(mirror.take_markers("a"), ["definition"]);
}

#[tokio::test]
async fn a_locked_table_gets_a_marker_and_the_others_go_on() {
    let postgres = PrivatePostgres::start().await;
    postgres.run(PARTED).await;
    let mut mirror = Mirror::new(&postgres).await;
    let mut migration = postgres.connect().await;
    postgres.run("insert into a values (1); insert into b values (1)").await;
    run(&mut migration, "begin; lock table a in access exclusive mode").await;
    let started = Instant::now();
    assert!(mirror.step().await);
    let took = started.elapsed();
    assert!(took > Duration::from_millis(90) && took < Duration::from_secs(2), "{took:?}");
    assert_eq!(mirror.take_markers("a"), ["locked"]);
    assert_eq!(mirror.rows("b").expect("rows").len(), 1);
    postgres.run("insert into b values (2)").await;
    let started = Instant::now();
    assert!(mirror.step().await);
    assert!(started.elapsed() < Duration::from_millis(90), "nobody waits for a again");
    assert_eq!(mirror.rows("b").expect("rows").len(), 2);
    run(&mut migration, "update a set v = 2; commit").await;
    assert!(mirror.step().await);
    assert_eq!(mirror.rows("a").expect("rows")["[1]"], "[1, 2]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_never_deadlocks_with_us() {
    let postgres = PrivatePostgres::start().await;
    postgres.run(PARTED).await;
    let mut mirror = Mirror::new(&postgres).await;
    let mut writer = postgres.connect().await;
    let mut migration = postgres.connect().await;
    let load = tokio::spawn(async move {
        for number in 0..400 {
            // One transaction each: together they would lock in an order of their own.
            run(&mut writer, &format!("insert into a values ({number})")).await;
            run(&mut writer, &format!("insert into b values ({number})")).await;
        }
    });
    let migrations = tokio::spawn(async move {
        run(&mut migration, "set deadlock_timeout = '10ms'").await;
        for (first, second) in [("a", "b"), ("b", "a")].repeat(40) {
            // Each statement by itself, so that a cut can begin between the two.
            run(&mut migration, "begin").await;
            run(&mut migration, &format!("alter table {first} alter v set default 1")).await;
            tokio::task::yield_now().await;
            if let Err(error) = attempt(&mut migration, &format!("alter table {second} alter v set default 1")).await {
                panic!("the migration failed because of us: {error}");
            }
            run(&mut migration, "commit").await;
        }
    });
    while !load.is_finished() || !migrations.is_finished() {
        if !mirror.step().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    load.await.expect("writers that are not disturbed");
    migrations.await.expect("migrations that are not disturbed");
    while mirror.step().await {}
    assert_eq!(mirror.rows("a").expect("rows").len(), 400);
}
