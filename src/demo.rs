//! `rowcast demo`: a node on a private Postgres and, if this machine has one, a private Redis, with a small shop in it
//! that is being written to. Nothing of it is left when it ends, unless it was asked to keep its data.

pub mod instance;
pub mod shop;
pub mod traffic;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::app::{self, App};
use crate::config::ServeConfig;
use instance::{Postgres, PostgresOptions, Redis, redis_program};
use traffic::Traffic;

/// What `rowcast demo` was asked for.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// `None`: port 8080 if it is free, else any.
    pub listen: Option<SocketAddr>,
    /// Writes per second.
    pub rate: f64,
    /// Whether the data directory stays.
    pub keep: bool,
    /// How this program was called, for commands to type: it is not in everybody's PATH.
    pub program: String,
}

/// Runs the demo until `stop`.
///
/// # Errors
/// What kept it from starting, or ended it.
pub async fn run(options: DemoOptions, stop: CancellationToken) -> anyhow::Result<()> {
    let stopped = stop.clone();
    let (keep, program) = (options.keep, options.program.clone());
    tokio::select! {
        // Dropping the servers stops them, also halfway through a start.
        () = stopped.cancelled() => Ok(()),
        started = start(&options) => {
            let (mut servers, app) = started?;
            println!("{}", banner(&servers, app.addr(), &options));
            let traffic = Traffic::start(&servers.postgres.url());
            let ended = app.run(stop).await;
            traffic.stop().await;
            if keep {
                servers.postgres.stop().await;
                println!("{}", how_to_start_again(&servers.postgres, &program));
            }
            ended
        }
    }
}

struct Servers {
    postgres: Postgres,
    /// `None`: no Redis on this machine; the store is in this process.
    redis: Option<Redis>,
}

async fn start(options: &DemoOptions) -> anyhow::Result<(Servers, App)> {
    eprintln!("Starting a private PostgreSQL{} …", if redis_program().is_some() { " and a private Redis" } else { "" });
    let postgres = async {
        let keep = options.keep;
        Postgres::launch(PostgresOptions { keep, ..PostgresOptions::for_demo("shop") }).await
    };
    let redis = async {
        match redis_program() {
            Some(_) => Redis::launch().await.map(Some),
            None => Ok(None),
        }
    };
    let (postgres, redis) = tokio::try_join!(postgres, redis)?;
    let database_url = postgres.url();
    app::migrate(&database_url).await?;
    shop::create(&database_url, options.rate).await.context("creating the shop")?;
    let mut config = ServeConfig::new(database_url);
    config.redis_url = redis.as_ref().map(Redis::url);
    // Nobody's dashboard hangs on this one: Ctrl-C ends it at once.
    config.drain_wait = Duration::ZERO;
    config.drain_spread = Duration::ZERO;
    let app = bind(config, options.listen).await?;
    Ok((Servers { postgres, redis }, app))
}

/// Binds the address asked for; where none was, one that is free.
async fn bind(mut config: ServeConfig, listen: Option<SocketAddr>) -> anyhow::Result<App> {
    if let Some(address) = listen {
        config.listen = address;
        return App::bind(config).await;
    }
    match App::bind(config.clone()).await {
        Err(error) if is_address_in_use(&error) => {
            config.listen = (Ipv4Addr::LOCALHOST, 0).into();
            App::bind(config).await
        }
        bound => bound,
    }
}

fn is_address_in_use(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind));
    kinds.into_iter().any(|kind| kind == std::io::ErrorKind::AddrInUse)
}

fn banner(servers: &Servers, addr: SocketAddr, options: &DemoOptions) -> String {
    let url = servers.postgres.url();
    let psql = format!("psql {}", url.expose());
    let store = match &servers.redis {
        Some(redis) => format!("a private Redis on port {}", redis.port()),
        None => "in this process (with redis-server installed, the demo would use it)".to_owned(),
    };
    let watch_url = if addr.port() == 8080 { String::new() } else { format!(" --url ws://{addr}/v1/ws") };
    let ending = if options.keep {
        "Ctrl-C stops everything; the data stays."
    } else {
        "Ctrl-C stops everything and leaves nothing behind."
    };
    format!(
        "
  The Rowcast demo is running. Open   http://{addr}

  database   PostgreSQL {version}: tables shop.orders, shop.products and shop.customers, published
  store      {store}
  writes     {rate} per second

  Change something in another terminal, and see it on the page:
    {psql} -c \"update shop.products set price = price / 2 where id = 1\"
    {psql} -c \"update shop.settings set rate = 200\"
  or follow a table here:
    {program} watch orders{watch_url}

  {ending}
",
        version = servers.postgres.version(),
        rate = options.rate,
        program = options.program,
    )
}

fn how_to_start_again(postgres: &Postgres, program: &str) -> String {
    let directory = postgres.directory().display();
    let pg_ctl = format!("{} -D {directory}/data -l {directory}/server.log", postgres.program("pg_ctl").display());
    let as_user = |command: &str| match postgres.runs_as() {
        Some(user) => format!("su {user} -s /bin/sh -c '{pg_ctl} {command}'"),
        None => format!("{pg_ctl} {command}"),
    };
    format!(
        "
  The data is in {directory}. To go on with it:
    {start}
    DATABASE_URL='{url}' {program} serve
  To be rid of it:
    {stop}; rm -r {directory}
",
        start = as_user("start"),
        stop = as_user("stop"),
        url = postgres.url().expose(),
    )
}
