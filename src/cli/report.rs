//! Errors as the terminal shows them: what was being done, why it failed, and what Postgres adds to it.

use std::fmt::Write;

use sqlx::postgres::PgDatabaseError;

/// The text of an error: its causes, and of a Postgres error the detail and the hint.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = String::from("error: ");
    let mut last = String::new();
    for (index, cause) in error.chain().enumerate() {
        let said = match cause.downcast_ref::<sqlx::Error>() {
            Some(sqlx::Error::Database(_)) => continue,
            Some(sqlx::Error::Io(_)) => "cannot reach Postgres".to_owned(),
            Some(sqlx::Error::PoolTimedOut) => "Postgres did not answer in time".to_owned(),
            _ => match cause.downcast_ref::<PgDatabaseError>() {
                Some(postgres) => postgres.message().to_owned(),
                None => cause.to_string(),
            },
        };
        // Many errors repeat their cause.
        if index > 0 && !last.is_empty() && last.contains(&said) {
            continue;
        }
        if !last.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&said);
        last = said;
    }
    if let Some(postgres) = error.chain().find_map(|cause| cause.downcast_ref::<PgDatabaseError>()) {
        if let Some(detail) = postgres.detail() {
            let _ = write!(text, "\n  detail: {detail}");
        }
        if let Some(hint) = hint_for(postgres).or(postgres.hint()) {
            let _ = write!(text, "\n  hint: {hint}");
        }
    }
    text
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
