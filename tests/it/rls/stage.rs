//! Notes with owners and teams, and roles that see some of them.

use std::sync::Arc;

use rowcast::identity::{Identity, RlsSettings};
use rowcast::store::Store;
use rowcast::store::redis::{DEFAULT_PREFIX, RedisStore};
use rowcast::store::{Retention, local::LocalStore};
use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::harness::dash::Table;
use crate::harness::seat::{Inside, proven};
use crate::harness::world::{World, run};

/// As Supabase has it, with its own schema and function.
pub const SCHEMA: &str = "
    create role app nologin;
    create role staff nologin;
    create schema auth;
    create function auth.sub() returns text language sql stable
        return current_setting('request.jwt.claims', true)::json ->> 'sub';
    grant usage on schema public, auth to app, staff;
    create table members (team int, sub text, primary key (team, sub));
    create table notes (id int primary key, owner text not null, team int, body text);
    alter table notes enable row level security;
    grant select on notes, members to app;
    grant select on notes to staff;
    create policy own on notes for select to app using (owner = (select auth.sub()));
    create policy team on notes for select to app using (
        exists (select from members as m where m.team = notes.team and m.sub = (select auth.sub())));
    create policy everything on notes for select to staff using (true);
    insert into members values (1, 'ann'), (2, 'bob');
    insert into notes select i, case i % 3 when 0 then 'ann' when 1 then 'bob' else 'eve' end, i % 4, 'note ' || i
    from generate_series(1, 24) as i;
    select rowcast.publish('notes', policy => 'rls');
";

/// The world with that in it.
pub struct Stage {
    pub world: World,
    pub connection: PgConnection,
    /// The store of nodes that stand alone.
    pub local: Arc<dyn Store>,
}

impl Stage {
    pub async fn set() -> Self {
        let world = World::start(SCHEMA).await;
        let connection = world.connect().await;
        Self { world, connection, local: Arc::new(LocalStore::new(Retention::default())) }
    }

    /// A node that stands alone, and leads.
    pub async fn node(&self) -> Inside {
        let mut node = Inside::start(&self.world.postgres.url(), self.local.clone(), settings());
        node.leads().await;
        node
    }

    /// A node of several.
    pub fn node_of_many(&self) -> Inside {
        Inside::start(&self.world.postgres.url(), self.shared_store(), settings())
    }

    pub fn shared_store(&self) -> Arc<dyn Store> {
        let address = self.world.redis.url();
        Arc::new(RedisStore::new(address.expose(), DEFAULT_PREFIX, Retention::default()).expect("a store"))
    }

    pub async fn run(&mut self, sql: &str) {
        run(&mut self.connection, sql).await;
    }

    /// What Postgres shows of the notes to a role with claims.
    pub async fn truth(&mut self, role: &str, sub: &str) -> Table {
        run(&mut self.connection, "begin").await;
        sqlx::query("select rowcast.become($1, $2)")
            .bind(role)
            .bind(json!({ "sub": sub }).to_string())
            .execute(&mut self.connection)
            .await
            .expect("a role");
        let sql = "select json_build_array(id)::text, jsonb_build_object('id', id, 'owner', owner, 'team', team, 'body', body)::text
                   from public.notes";
        let rows: Vec<(String, String)> =
            sqlx::query_as(AssertSqlSafe(sql)).persistent(false).fetch_all(&mut self.connection).await.expect("rows");
        run(&mut self.connection, "rollback").await;
        rows.into_iter()
            .map(|(key, row)| (key, serde_json::from_str::<serde_json::Value>(&row).expect("JSON").to_string()))
            .collect()
    }
}

pub fn settings() -> RlsSettings {
    RlsSettings { roles: vec!["app".into(), "staff".into(), "boss".into(), "owner".into()], ..RlsSettings::default() }
}

pub fn user(sub: &str) -> Identity {
    proven(json!({ "sub": sub, "role": "app", "exp": 1, "jti": rand::random::<u32>() }))
}

pub fn with_role(sub: &str, role: &str) -> Identity {
    proven(json!({ "sub": sub, "role": role }))
}
