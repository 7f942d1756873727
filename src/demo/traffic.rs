//! The demo's writers: customers who order, a warehouse that packs, prices that change; at a steady rate.
//!
//! They are ordinary database users and know nothing of Rowcast. The rate is in `shop.settings` and read every second, so
//! that it can be changed while they work. When Postgres goes away they wait for it and go on; what they did not get
//! done meanwhile they do not make up for.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgPoolOptions, PgQueryResult};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::config::DatabaseUrl;

/// Enough to keep several transactions open at the same time, as a real shop would.
const WRITERS: u32 = 8;

/// After a failure; the pool connects anew.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(500);

/// Behind by more than this, a writer starts counting afresh.
const BACKLOG_MAX: Duration = Duration::from_secs(1);

/// Writers at work. Dropping it stops them.
pub struct Traffic {
    tasks: JoinSet<()>,
}

impl Traffic {
    /// Starts to write to the shop in a database.
    pub fn start(database_url: &DatabaseUrl) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(WRITERS + 1)
            .acquire_timeout(Duration::from_secs(3))
            .connect_lazy_with(database_url.options().application_name("shop"));
        let (rate_sender, rate) = watch::channel(0.0);
        let mut tasks = JoinSet::new();
        tasks.spawn(follow_rate(pool.clone(), rate_sender));
        for number in 0..WRITERS {
            tasks.spawn(write(pool.clone(), rate.clone(), number));
        }
        Self { tasks }
    }

    /// Stops them, and waits until they have.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Something that happens in a shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    PlaceOrder,
    AdvanceOrder,
    CancelOrder,
    RemoveOldOrders,
    ChangePrice,
    Restock,
}

impl Deed {
    /// How often, of a hundred. An order takes three steps to be shipped and is removed some time after that: so
    /// balanced, the number of orders stays about the same.
    const OFTEN: [(Deed, u32); 6] = [
        (Deed::PlaceOrder, 20),
        (Deed::AdvanceOrder, 52),
        (Deed::CancelOrder, 3),
        (Deed::RemoveOldOrders, 7),
        (Deed::ChangePrice, 12),
        (Deed::Restock, 6),
    ];

    fn at_random() -> Self {
        Self::at(rand::random_range(0..100))
    }

    fn at(mut number: u32) -> Self {
        for (deed, often) in Self::OFTEN {
            if number < often {
                return deed;
            }
            number -= often;
        }
        Self::AdvanceOrder
    }

    /// One statement, one transaction.
    fn statement(self) -> &'static str {
        match self {
            Self::PlaceOrder => {
                "with sold as (
                     update shop.products set stock = stock - $2 where id = $1 and stock >= $2 returning id, price
                 )
                 insert into shop.orders (customer_id, product_id, quantity, total)
                 select 1 + ($3 % (select count(*) from shop.customers))::int, id, $2, price * $2 from sold"
            }
            Self::AdvanceOrder => {
                "update shop.orders set updated_at = now(), status = case status
                     when 'open' then 'paid' when 'paid' then 'packed' else 'shipped' end
                 where id = (
                     select id from shop.orders
                     where status in ('open', 'paid', 'packed') and id >= (
                         select min(id) + $3 % (max(id) - min(id) + 1) from shop.orders)
                     order by id limit 1 for update skip locked)"
            }
            Self::CancelOrder => {
                "update shop.orders set updated_at = now(), status = 'cancelled'
                 where id = (
                     select id from shop.orders where status in ('open', 'paid', 'packed')
                     order by id desc offset $3 % 20 limit 1 for update skip locked)"
            }
            Self::RemoveOldOrders => {
                "delete from shop.orders where id in (
                     select id from shop.orders where status in ('shipped', 'cancelled')
                     order by id limit (select greatest(1, least(8, count(*) - 1700)) from shop.orders)
                     for update skip locked)"
            }
            Self::ChangePrice => {
                "update shop.products set price = greatest(1, round(price * (0.9 + ($3 % 21) / 100.0), 2)) where id = $1"
            }
            Self::Restock => "update shop.products set stock = least(500, stock + 10 * $2) where id = $1",
        }
    }

    async fn do_it(self, pool: &PgPool) -> Result<PgQueryResult, sqlx::Error> {
        let product = rand::random_range(1..=120i32);
        let quantity = rand::random_range(1..=4i32);
        let number = rand::random_range(0..1_000_000i32);
        // Every statement is given the same three numbers, with their types, and takes those it wants.
        sqlx::query(self.statement()).bind(product).bind(quantity).bind(number).execute(pool).await
    }
}

/// Reads the rate every second, and says when it has changed.
async fn follow_rate(pool: PgPool, sender: watch::Sender<f64>) {
    let mut is_failing = false;
    loop {
        match sqlx::query_scalar::<_, f64>("select rate from shop.settings").fetch_one(&pool).await {
            Ok(rate) => {
                if is_failing {
                    tracing::info!("the shop's database is back");
                }
                is_failing = false;
                sender.send_if_modified(|known| std::mem::replace(known, rate) != rate);
            }
            Err(error) => {
                if !is_failing {
                    tracing::warn!(%error, "the shop's database does not answer; writing goes on when it does");
                }
                is_failing = true;
            }
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// One writer: its share of the rate, evenly, begun at a moment of its own.
async fn write(pool: PgPool, mut rate: watch::Receiver<f64>, number: u32) {
    let mut due = Instant::now();
    let mut begun = false;
    loop {
        let rate_now = *rate.borrow_and_update();
        if rate_now <= 0.0 {
            if rate.changed().await.is_err() {
                return;
            }
            due = Instant::now();
            continue;
        }
        let interval = Duration::from_secs_f64((f64::from(WRITERS) / rate_now).min(3_600.0));
        if !begun {
            due = Instant::now() + interval * number / WRITERS;
            begun = true;
        }
        // Wake-ups: the next deed is due; the rate is another one.
        tokio::select! {
            () = sleep_until(due) => {}
            changed = rate.changed() => {
                if changed.is_err() {
                    return;
                }
                begun = false;
                continue;
            }
        }
        due += interval;
        if let Err(error) = Deed::at_random().do_it(&pool).await {
            tracing::debug!(%error, "a write of the shop failed");
            sleep(PAUSE_AFTER_FAILURE).await;
        }
        if due + BACKLOG_MAX < Instant::now() {
            due = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection, PgConnection};

    use super::*;
    use crate::demo::instance::{Postgres, PostgresOptions};

    #[test]
    fn deeds_add_up_to_a_hundred() {
        assert_eq!(Deed::OFTEN.iter().map(|(_, often)| often).sum::<u32>(), 100);
        assert_eq!((Deed::at(0), Deed::at(19), Deed::at(20)), (Deed::PlaceOrder, Deed::PlaceOrder, Deed::AdvanceOrder));
        assert_eq!(Deed::at(99), Deed::Restock);
    }

    #[tokio::test]
    async fn every_deed_changes_something() {
        let postgres = Postgres::launch(PostgresOptions::for_tests("shop")).await.expect("a Postgres");
        let mut connection = PgConnection::connect_with(&postgres.url().options()).await.expect("a connection");
        sqlx::raw_sql(include_str!("shop.sql")).execute(&mut connection).await.expect("the shop");
        let pool = PgPool::connect_with(postgres.url().options()).await.expect("a pool");
        for (deed, _) in Deed::OFTEN {
            for _ in 0..20 {
                let result = deed.do_it(&pool).await.unwrap_or_else(|error| panic!("{deed:?}: {error}"));
                assert!(result.rows_affected() >= 1, "{deed:?}");
            }
        }
    }

    #[tokio::test]
    async fn writing_goes_on_after_a_restart_at_the_rate_of_the_settings() {
        let mut postgres = Postgres::launch(PostgresOptions::for_tests("shop")).await.expect("a Postgres");
        let mut connection = PgConnection::connect_with(&postgres.url().options()).await.expect("a connection");
        sqlx::raw_sql(include_str!("shop.sql")).execute(&mut connection).await.expect("the shop");
        sqlx::raw_sql("insert into shop.settings values (true, 100)").execute(&mut connection).await.expect("a rate");
        let traffic = Traffic::start(&postgres.url());
        wait_for_a_write(&postgres).await;
        postgres.restart_immediate().await.expect("a restart");
        wait_for_a_write(&postgres).await;
        traffic.stop().await;
    }

    async fn wait_for_a_write(postgres: &Postgres) {
        let mut connection = PgConnection::connect_with(&postgres.url().options()).await.expect("a connection");
        let began: String = sqlx::query_scalar("select now()::text").fetch_one(&mut connection).await.expect("a time");
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let newer: bool =
                sqlx::query_scalar("select exists (select from shop.orders where updated_at > $1::text::timestamptz)")
                    .bind(&began)
                    .fetch_one(&mut connection)
                    .await
                    .expect("an answer");
            if newer {
                return;
            }
            assert!(Instant::now() < deadline, "nothing was written");
            sleep(Duration::from_millis(50)).await;
        }
    }
}
