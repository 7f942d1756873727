//! `migrate`, `publish`, `unpublish`, `publications`: thin doors to the SQL interface, which anybody may use instead.

use std::io::{self, Write};

use anyhow::Context;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::Database;
use super::table::{Heading, Table, cell};
use crate::app;
use crate::config::DatabaseUrl;

/// What `rowcast publish` was asked for; what is absent is left to the defaults of `rowcast.publish`.
#[derive(clap::Args, Clone, Debug)]
pub struct Publish {
    /// The table or view, with its schema unless it is in the search path
    #[arg(value_name = "RELATION", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub relation: String,

    /// Who may see which rows. Today only `public` opens; `authenticated`, `rls` and filters such as
    /// `tenant_id=eq.{tenant_id}` are taken down, and keep everybody out
    #[arg(long, value_name = "POLICY")]
    pub policy: String,

    /// What clients call it. Without it: the relation's name without its schema
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// The columns clients see, comma-separated; `*` also those added later. Without it: the columns of today
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    pub columns: Option<Vec<String>>,

    /// Columns that identify a row, comma-separated. Without it: the primary key; a view needs one
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    pub key: Option<Vec<String>>,

    /// A statement that changes more rows than this is told as "look again" instead of row by row
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub bulk_rows: Option<i32>,

    /// A view is run at most this often
    #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(i32).range(0..))]
    pub refresh_ms: Option<i32>,

    /// What a view or a policy reads besides what Postgres knows of, comma-separated
    #[arg(long, value_name = "RELATIONS", value_delimiter = ',')]
    pub depends_on: Option<Vec<String>>,

    #[command(flatten)]
    pub database: Database,
}

#[derive(clap::Args, Clone, Debug)]
pub struct Unpublish {
    /// The publication's name
    #[arg(value_name = "NAME")]
    pub name: String,

    #[command(flatten)]
    pub database: Database,
}

pub(super) async fn migrate(database_url: &DatabaseUrl) -> anyhow::Result<()> {
    app::migrate(database_url).await.context("installing the rowcast schema")?;
    writeln!(io::stdout(), "The rowcast schema is up to date in {database_url}.")?;
    Ok(())
}

pub(super) async fn publish(publish: &Publish) -> anyhow::Result<()> {
    let mut connection = connect(&publish.database.database_url).await?;
    let (statement, values) = publish.call();
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for value in values {
        query = match value {
            Value::Text(text) => query.bind(text),
            Value::Texts(texts) => query.bind(texts),
            Value::Number(number) => query.bind(number),
        };
    }
    query.execute(&mut connection).await.with_context(|| format!("cannot publish {}", publish.relation))?;
    let published: Option<String> = sqlx::query_scalar(
        "select to_json(p)::text from rowcast.publications p
         where name = coalesce($1, (select relname::text from pg_class where oid = $2::text::regclass))",
    )
    .bind(publish.name.as_deref())
    .bind(&publish.relation)
    .fetch_optional(&mut connection)
    .await?;
    connection.close().await?;
    let published = published.context("it was published, but is gone again")?;
    let published: Listed = serde_json::from_str(&published).context("reading rowcast.publications")?;
    let next = match published.policy.as_str() {
        "public" => format!("Follow it: rowcast watch {}", published.name),
        _ => "This version opens the policy `public` only: until a later one, clients are told `forbidden`.".to_owned(),
    };
    writeln!(
        io::stdout(),
        "Published {} as `{}` (key {}; columns {}; policy {}).\n{next}",
        cell(&published.relation),
        published.name,
        published.key.join(", "),
        published.columns_text(),
        cell(&published.policy),
    )?;
    Ok(())
}

pub(super) async fn unpublish(unpublish: &Unpublish) -> anyhow::Result<()> {
    let mut connection = connect(&unpublish.database.database_url).await?;
    sqlx::query("select rowcast.unpublish($1)")
        .bind(&unpublish.name)
        .execute(&mut connection)
        .await
        .with_context(|| format!("cannot unpublish {}", unpublish.name))?;
    connection.close().await?;
    writeln!(io::stdout(), "Unpublished `{}`.", cell(&unpublish.name))?;
    Ok(())
}

pub(super) async fn list(database_url: &DatabaseUrl, json: bool) -> anyhow::Result<()> {
    let mut connection = connect(database_url).await?;
    let rows: Vec<String> = sqlx::query_scalar("select to_json(p)::text from rowcast.publications p order by name")
        .fetch_all(&mut connection)
        .await
        .context("cannot list publications")?;
    connection.close().await?;
    let mut out = io::stdout().lock();
    if json {
        for row in rows {
            writeln!(out, "{row}")?;
        }
        return Ok(());
    }
    let listed: Vec<Listed> = rows
        .iter()
        .map(|row| serde_json::from_str(row))
        .collect::<Result<_, _>>()
        .context("reading rowcast.publications")?;
    if listed.is_empty() {
        writeln!(out, "Nothing is published yet. To begin: rowcast publish public.orders --policy public")?;
        return Ok(());
    }
    let cells: Vec<Vec<String>> = listed.iter().map(Listed::cells).collect();
    let headings = ["name", "relation", "policy", "key", "columns"];
    let headings = headings.map(|name| Heading { name: name.into(), right: false });
    let table = Table::new(headings.into(), &cells);
    writeln!(out, "{}", table.head())?;
    for row in cells {
        writeln!(out, "{}", table.line(&row))?;
    }
    Ok(())
}

async fn connect(database_url: &DatabaseUrl) -> anyhow::Result<PgConnection> {
    let options = database_url.options().application_name("rowcast-cli");
    PgConnection::connect_with(&options).await.with_context(|| format!("connecting to {database_url}"))
}

/// A value to bind.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Text(String),
    Texts(Vec<String>),
    Number(i32),
}

impl Publish {
    /// The call of `rowcast.publish` with exactly the arguments that were given, and the values to bind.
    fn call(&self) -> (String, Vec<Value>) {
        let list = |list: &Option<Vec<String>>| list.clone().map(|names| Value::Texts(trimmed(names)));
        let named = [
            ("policy", "", Some(Value::Text(self.policy.clone()))),
            ("name", "", self.name.clone().map(Value::Text)),
            ("columns", "", list(&self.columns)),
            ("key", "", list(&self.key)),
            ("bulk_rows", "", self.bulk_rows.map(Value::Number)),
            ("refresh_ms", "", self.refresh_ms.map(Value::Number)),
            ("depends_on", "::text[]::regclass[]", list(&self.depends_on)),
        ];
        let mut values = vec![Value::Text(self.relation.clone())];
        let mut arguments = vec!["$1::text::regclass".to_owned()];
        for (name, cast, value) in named {
            if let Some(value) = value {
                values.push(value);
                arguments.push(format!("{name} => ${}{cast}", values.len()));
            }
        }
        (format!("select rowcast.publish({})", arguments.join(", ")), values)
    }
}

fn trimmed(names: Vec<String>) -> Vec<String> {
    names.into_iter().map(|name| name.trim().to_owned()).collect()
}

/// A row of `rowcast.publications`, as far as people want to see it.
#[derive(serde::Deserialize)]
struct Listed {
    name: String,
    relation: String,
    policy: String,
    key: Vec<String>,
    /// `None`: all, also those added later.
    columns: Option<Vec<String>>,
}

impl Listed {
    fn columns_text(&self) -> String {
        self.columns.as_ref().map_or_else(|| "*".to_owned(), |columns| columns.join(", "))
    }

    fn cells(&self) -> Vec<String> {
        [&self.name, &self.relation, &self.policy, &self.key.join(", "), &self.columns_text()]
            .map(|text| cell(text))
            .into()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        publish: Publish,
    }

    fn call(flags: &[&str]) -> (String, Vec<Value>) {
        let all = ["publish", "--database-url", "postgres://db/shop"].iter().chain(flags);
        Only::parse_from(all).publish.call()
    }

    #[test]
    fn what_is_not_given_is_left_to_postgres() {
        let (statement, values) = call(&["shop.orders", "--policy", "public"]);
        assert_eq!(statement, "select rowcast.publish($1::text::regclass, policy => $2)");
        assert_eq!(values, [Value::Text("shop.orders".into()), Value::Text("public".into())]);
    }

    #[test]
    fn every_argument_is_bound_and_none_spliced() {
        let (statement, values) = call(&[
            "a'b",
            "--policy",
            "x=eq.{x}",
            "--name",
            "n",
            "--columns",
            "id, b",
            "--key",
            "id",
            "--bulk-rows",
            "5",
            "--refresh-ms",
            "6",
            "--depends-on",
            "s.t,u",
        ]);
        assert_eq!(
            statement,
            "select rowcast.publish($1::text::regclass, policy => $2, name => $3, columns => $4, key => $5, \
             bulk_rows => $6, refresh_ms => $7, depends_on => $8::text[]::regclass[])"
        );
        assert_eq!(values[0], Value::Text("a'b".into()));
        assert_eq!(values[3], Value::Texts(vec!["id".into(), "b".into()]));
        assert_eq!((&values[5], &values[6]), (&Value::Number(5), &Value::Number(6)));
        assert_eq!(values[7], Value::Texts(vec!["s.t".into(), "u".into()]));
    }
}
