//! Errors as the terminal shows them: what was being done, why it failed, and what Postgres adds to it.

use std::fmt::Write;

use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;

/// The text of an error: its causes, and of a Postgres error the detail and the hint.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = String::from("error: ");
    let mut last = String::new();
    let mut details = String::new();
    for cause in error.chain() {
        let postgres = postgres_error(cause);
        let said = match (postgres, cause.downcast_ref::<sqlx::Error>()) {
            (Some(postgres), _) => postgres.message().to_owned(),
            (None, Some(sqlx::Error::Io(_))) => "cannot reach Postgres".to_owned(),
            (None, Some(sqlx::Error::PoolTimedOut)) => "Postgres did not answer in time".to_owned(),
            (None, _) => cause.to_string(),
        };
        // Many errors repeat their cause.
        if last.is_empty() || !last.contains(&said) {
            let separator = if last.is_empty() { "" } else { ": " };
            let _ = write!(text, "{separator}{said}");
            last = said;
        }
        if let Some(postgres) = postgres {
            for (name, more) in [("detail", postgres.detail()), ("hint", hint_for(postgres).or(postgres.hint()))] {
                if let Some(more) = more {
                    let _ = write!(details, "\n  {name}: {more}");
                }
            }
            break;
        }
    }
    text + &details
}

/// What Postgres said, if an error is that it said something.
fn postgres_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a PgDatabaseError> {
    let database = match (error.downcast_ref::<sqlx::Error>(), error.downcast_ref::<MigrateError>()) {
        (Some(error), _) => error.as_database_error(),
        (_, Some(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _))) => error.as_database_error(),
        _ => None,
    };
    database?.try_downcast_ref::<PgDatabaseError>()
}

/// What Postgres cannot know: that its complaint means that Rowcast is not installed.
fn hint_for(error: &PgDatabaseError) -> Option<&'static str> {
    let undefined = matches!(error.code(), "3F000" | "42883" | "42P01");
    let ours = error.message().contains("\"rowcast\"") || error.message().contains("rowcast.");
    (undefined && ours).then_some("Rowcast is not installed in this database, or too old: run `rowcast migrate`.")
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn causes_are_said_once() {
        let error = anyhow::anyhow!("no route to host").context("connecting to cache:6379");
        assert_eq!(describe(&error), "error: connecting to cache:6379: no route to host");
        let error = Err::<(), _>(std::io::Error::other("disk full")).context("writing: disk full").unwrap_err();
        assert_eq!(describe(&error), "error: writing: disk full");
    }
}
