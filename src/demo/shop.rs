//! The demo's shop: its tables and their first rows (`shop.sql`), published to everybody.

use anyhow::Context;
use sqlx::{Connection, PgConnection};

use crate::config::DatabaseUrl;

/// The tables that are published, under their own names.
const PUBLISHED: [&str; 3] = ["shop.customers", "shop.products", "shop.orders"];

/// Creates the shop in a database where Rowcast is installed, in one transaction.
///
/// # Errors
/// What Postgres says.
pub async fn create(database_url: &DatabaseUrl, rate: f64) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect_with(&database_url.options()).await?;
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql(include_str!("shop.sql")).execute(&mut *transaction).await.context("shop.sql")?;
    sqlx::query("insert into shop.settings (rate) values ($1)").bind(rate).execute(&mut *transaction).await?;
    transaction.commit().await?;
    // Published one by one: each takes a lock on its table, as it would in a database with other users.
    for relation in PUBLISHED {
        sqlx::query("select rowcast.publish($1::text::regclass, policy => 'public')")
            .bind(relation)
            .execute(&mut connection)
            .await
            .with_context(|| format!("publishing {relation}"))?;
    }
    connection.close().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::instance::{Postgres, PostgresOptions};

    #[tokio::test]
    async fn the_shop_is_small_and_the_same_every_time() {
        let postgres = Postgres::launch(PostgresOptions::for_tests("shop")).await.expect("a Postgres");
        let mut connection = PgConnection::connect_with(&postgres.url().options()).await.expect("a connection");
        sqlx::raw_sql(include_str!("shop.sql")).execute(&mut connection).await.expect("the shop");
        let (customers, products, orders, sum): (i64, i64, i64, String) = sqlx::query_as(
            "select (select count(*) from shop.customers), (select count(*) from shop.products), count(*),
                    sum(total)::text from shop.orders",
        )
        .fetch_one(&mut connection)
        .await
        .expect("a row");
        assert_eq!((customers, products, orders, sum.as_str()), (200, 120, 1700, "445790.25"));
    }
}
