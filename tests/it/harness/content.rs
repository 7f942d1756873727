//! What a publication contains, boiled down to a number: made in the same way from a table in Postgres and from the rows
//! that a client holds, so that the two can be compared at every version.

use std::fmt;

use rowcast::cli::client::{Client, Handle};
use rowcast::entry::Row;
use rowcast::publication::Publication;
use sqlx::{AssertSqlSafe, PgConnection};
use xxhash_rust::xxh3::Xxh3;

/// Rows with their keys, columns and the exact text of every value; the order of the rows does not count.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Content {
    pub rows: usize,
    hash: u64,
}

impl Content {
    /// A published table, in the transaction of `connection`.
    pub async fn of_table(connection: &mut PgConnection, publication: &Publication) -> Self {
        let columns: Vec<&str> = publication.schema.columns.iter().map(|column| &*column.name).collect();
        Self::of_query(connection, publication, &columns, "").await
    }

    /// These columns of the rows that `clause` (`where …`, over `r`) finds in a published table.
    pub async fn of_query(
        connection: &mut PgConnection,
        publication: &Publication,
        columns: &[&str],
        clause: &str,
    ) -> Self {
        let Publication { key_sql, row_sql, relation, schema, .. } = publication;
        let sql = format!("select {key_sql}, {row_sql} from {relation} as r {clause}");
        let rows: Vec<(String, String)> =
            sqlx::query_as(AssertSqlSafe(sql)).persistent(false).fetch_all(connection).await.expect("rows");
        let mut by_name: Vec<(&str, usize)> = schema.columns.iter().map(|column| &*column.name).zip(0..).collect();
        by_name.retain(|(name, _)| columns.contains(name));
        by_name.sort_unstable();
        let mut content = Self::default();
        for (key, row) in rows {
            let row = Row::parse(&row).expect("a row");
            content.add(&key, by_name.iter().map(|&(name, index)| (name, row.value(index))));
        }
        content
    }

    /// A published table as it is now.
    pub async fn of_publication(connection: &mut PgConnection, name: &str) -> Self {
        let publication = rowcast::capture::catalogue::describe_one(connection, name).await.expect("a description");
        Self::of_table(connection, &publication.expect("a publication")).await
    }

    /// The rows of a client.
    pub fn of_client(client: &Client, handle: Handle) -> Self {
        let mut content = Self::default();
        for (key, row) in client.rows(handle).into_iter().flatten() {
            content.add(key.as_str(), row.columns().map(|name| (name, row.value(name).expect("its own column"))));
        }
        content
    }

    fn add<'a>(&mut self, key: &str, columns: impl Iterator<Item = (&'a str, &'a str)>) {
        let mut hash = Xxh3::new();
        hash.update(key.as_bytes());
        for (name, value) in columns {
            for part in ["\0", name, "\0", value] {
                hash.update(part.as_bytes());
            }
        }
        self.rows += 1;
        self.hash = self.hash.wrapping_add(hash.digest());
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows #{:08x}", self.rows, self.hash >> 32)
    }
}
