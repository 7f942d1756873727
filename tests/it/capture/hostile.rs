//! Capture functions run with their owner's rights and without a search_path of their own: nothing that a writer puts
//! into his may run in them.

use sqlx::PgConnection;

use crate::harness::postgres::{PrivatePostgres, run};

/// A schema with a twin of every function and operator of Postgres that can have one, and of the names that capture
/// functions use. A twin counts that it was called, which no rollback undoes.
const TWINS: &str = r#"
    create schema evil;
    create sequence evil.calls;
    do $do$
    declare
        twin record;
        body constant text := 'begin perform pg_catalog.nextval(''evil.calls''::pg_catalog.regclass); return%s; end';
        polymorphic constant regtype[] := array['anyelement', 'anyarray', 'anynonarray', 'anycompatible', 'anycompatiblearray']::regtype[];
    begin
        for twin in
            select p.oid::regprocedure, p.proname, p.proretset, pg_get_function_result(p.oid) as result,
                   pg_get_function_identity_arguments(p.oid) as arguments
            from pg_proc as p
            where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f' and p.provariadic = 0 and p.proargmodes is null
              and not exists (
                  select from unnest(p.proargtypes::oid[] || p.prorettype) as a (type) join pg_type as t on t.oid = a.type
                  where t.typtype = 'p' and t.oid <> all (polymorphic))
        loop
            execute format('create function evil.%I(%s) returns %s language plpgsql as %L', twin.proname, twin.arguments,
                           twin.result, format(body, case when twin.proretset then '' else ' null' end));
        end loop;
        for twin in
            select o.oid, o.oprname, o.oprleft::regtype as l, o.oprright::regtype as r, o.oprresult::regtype as result
            from pg_operator as o
            where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprkind = 'b' and not exists (
                select from pg_type as t where t.oid in (o.oprleft, o.oprright, o.oprresult)
                and t.typtype = 'p' and t.oid <> all (polymorphic))
        loop
            execute format('create function evil.twin_%s(%s, %s) returns %s language plpgsql as %L', twin.oid, twin.l, twin.r,
                           twin.result, format(body, ' null'));
            execute format('create operator evil.%s (leftarg = %s, rightarg = %s, function = evil.twin_%s)', twin.oprname,
                           twin.l, twin.r, twin.oid);
        end loop;
        -- What takes anything cannot have a twin, but calls of it can.
        for twin in select * from (values ('text, int, text'), ('text, bigint, text'), ('text, text, text')) as a (arguments) loop
            execute format('create function evil.concat(%s) returns text language plpgsql as %L', twin.arguments,
                           format(body, ' null'));
        end loop;
    end $do$;
    create domain evil.text as pg_catalog.text check (pg_catalog.nextval('evil.calls'::pg_catalog.regclass) is not null);
    create domain evil.int8 as pg_catalog.int8 check (pg_catalog.nextval('evil.calls'::pg_catalog.regclass) is not null);
    create table evil.changes_0 (publication int, keys pg_catalog.text);
    create table evil.new_rows (id int);
    create table evil.old_rows (id int);
    grant usage on schema evil to public;
"#;

/// Statements that name no function, and operators only with their schema.
const WRITES: &str = "
    insert into public.T values (1, 1), (2, 2); update public.T set v = 5;
    update public.T set id = 3 where id operator(pg_catalog.=) 2; delete from public.T where id operator(pg_catalog.=) 1;
    insert into public.T select i, i from pg_catalog.generate_series(1001, 4000) as i;
    update public.T set v = 6; delete from public.T; truncate public.T
";

#[tokio::test]
async fn nothing_in_the_writers_search_path_runs_in_a_capture_function() {
    let postgres = PrivatePostgres::start().await;
    let mut writer = postgres.connect().await;
    run(
        &mut writer,
        "create table a (id int primary key, v int);
         create table p (id int, v int, primary key (id)) partition by range (id);
         create table p1 partition of p for values from (0) to (9999);
         select rowcast.publish('a', 'public'), rowcast.publish('p', 'public')",
    )
    .await;
    run(&mut writer, TWINS).await;
    let mut leader = postgres.connect().await;
    for awake in [true, false] {
        let lock = if awake { "pg_advisory_lock" } else { "pg_advisory_unlock" };
        run(&mut leader, &format!("select {lock}(1919907683, 2)")).await;
        for table in ["a", "p"] {
            // A session of its own: what is planned first counts.
            let mut writer = postgres.connect().await;
            run(&mut writer, "create temp table new_rows (id int); set search_path = evil, public, pg_catalog").await;
            for statement in WRITES.replace('T', table).split(';') {
                run(&mut writer, statement).await;
            }
        }
    }
    assert!(!is_called(&mut leader).await, "something of the writer's ran with the owner's rights");
    let logged: i64 = sqlx::query_scalar(
        "select count(distinct (c.publication, k)) from rowcast.changed_keys('0', '{}', \
         array(select id from rowcast.publications)) as c, unnest(string_to_array(c.keys, E'\\n')) as k",
    )
    .fetch_one(&mut leader)
    .await
    .expect("a count");
    assert_eq!(logged, 2 * 3_003, "every key of both tables, and the writers were captured");
    run(&mut writer, "set search_path = evil, public, pg_catalog; select 1 = 1").await;
    assert!(is_called(&mut leader).await, "a twin that is called is noticed");
}

async fn is_called(connection: &mut PgConnection) -> bool {
    sqlx::query_scalar("select is_called from evil.calls").fetch_one(connection).await.expect("a sequence")
}
