//! What is wrong with a command line, said so that it can be put right: the flag, its variable, and what was expected.
//!
//! clap names only the flag; whoever set an environment variable looks for that name. And clap repeats the value, which
//! may hold a password: here the value of an address or a key is not repeated.

use std::fmt::Write;
use std::io::IsTerminal;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command};

/// A message for the terminal, and the exit code that goes with it.
#[derive(Debug)]
pub struct UsageError {
    message: String,
    /// 0 for `--help` and `--version`, 2 for what was wrong.
    pub code: u8,
}

impl UsageError {
    pub(super) fn new(error: &clap::Error, root: &Command) -> Self {
        let message = match error.kind() {
            ErrorKind::ValueValidation | ErrorKind::InvalidValue => wrong_value(error, root),
            ErrorKind::MissingRequiredArgument => missing(error, root),
            ErrorKind::ArgumentConflict => conflict(error, root),
            _ => None,
        };
        let message = message.unwrap_or_else(|| {
            let text = error.render();
            let coloured =
                if error.use_stderr() { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
            if coloured { text.ansi().to_string() } else { text.to_string() }
        });
        Self { message, code: u8::try_from(error.exit_code()).unwrap_or(2) }
    }

    /// Prints help to standard output and errors to standard error.
    pub fn print(&self) {
        use std::io::Write as _;
        // A reader that has gone away does not want to know.
        let _ = match self.code {
            0 => std::io::stdout().write_all(self.message.as_bytes()),
            _ => std::io::stderr().write_all(self.message.as_bytes()),
        };
    }
}

fn wrong_value(error: &clap::Error, root: &Command) -> Option<String> {
    let shown = text_of(error, ContextKind::InvalidArg)?;
    let argument = find(root, &shown)?;
    let value = text_of(error, ContextKind::InvalidValue).unwrap_or_default();
    let mut message = String::from("error: ");
    match value.as_str() {
        "" => write!(message, "{} is empty", names(argument)),
        _ if argument.is_hide_env_values_set() => write!(message, "{} is wrong", names(argument)),
        value => write!(message, "{} cannot be `{value}`", names(argument)),
    }
    .ok()?;
    if let Some(reason) = std::error::Error::source(error) {
        write!(message, ": {reason}").ok()?;
    } else if let Some(ContextValue::Strings(values)) = error.get(ContextKind::ValidValue) {
        write!(message, ": expected {}", values.join(" or ")).ok()?;
    }
    message.push('\n');
    Some(message)
}

fn conflict(error: &clap::Error, root: &Command) -> Option<String> {
    let argument = find(root, &text_of(error, ContextKind::InvalidArg)?)?;
    let other = find(root, &text_of(error, ContextKind::PriorArg)?)?;
    Some(format!("error: {} and {} exclude each other\n", names(argument), names(other)))
}

fn missing(error: &clap::Error, root: &Command) -> Option<String> {
    let Some(ContextValue::Strings(shown)) = error.get(ContextKind::InvalidArg) else { return None };
    let mut message = String::new();
    for shown in shown {
        let argument = find(root, shown)?;
        writeln!(message, "error: {} is needed", names(argument)).ok()?;
        if let Some(help) = argument.get_help() {
            writeln!(message, "  {help}").ok()?;
        }
        if argument.get_id() == "database_url" {
            message.push_str("  such as postgres://user:password@localhost/database; `rowcast demo` needs none\n");
        }
    }
    message.push_str("For all flags: rowcast help\n");
    Some(message)
}

/// The argument that clap shows as `--listen <ADDRESS>` or `<CHANNEL>`.
fn find<'a>(command: &'a Command, shown: &str) -> Option<&'a Arg> {
    let own = command.get_arguments().find(|argument| shown_as(argument) == first_word(shown));
    own.or_else(|| command.get_subcommands().find_map(|command| find(command, shown)))
}

fn shown_as(argument: &Arg) -> String {
    match argument.get_long() {
        Some(long) => format!("--{long}"),
        None => format!("<{}>", argument.get_value_names().and_then(|names| names.first()).map_or("", |name| name)),
    }
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

/// `DATABASE_URL (--database-url)`, or the flag alone.
fn names(argument: &Arg) -> String {
    match argument.get_env() {
        Some(variable) => format!("{} ({})", variable.to_string_lossy(), shown_as(argument)),
        None => shown_as(argument),
    }
}

fn text_of(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Cli;

    fn message(arguments: &[&str]) -> String {
        let arguments = std::iter::once("rowcast").chain(arguments.iter().copied()).map(Into::into);
        let error = Cli::parse(arguments).expect_err("a usage error");
        assert_eq!(error.code, 2);
        error.message
    }

    #[test]
    fn a_wrong_value_is_named_with_its_variable() {
        let text = message(&["serve", "--database-url", "postgres://db/shop", "--listen", "8080"]);
        assert!(
            text.starts_with("error: ROWCAST_LISTEN (--listen) cannot be `8080`: expected an IP address"),
            "{text}"
        );
        let text = message(&["serve", "--database-url", "postgres://db/shop", "--drain-wait", ""]);
        assert!(text.starts_with("error: ROWCAST_DRAIN_WAIT (--drain-wait) is empty: expected a duration"), "{text}");
        let text = message(&["publications", "--database-url", "postgres://db/shop", "--log-format", "xml"]);
        assert!(text.contains("ROWCAST_LOG_FORMAT (--log-format) cannot be `xml`: expected text or json"), "{text}");
    }

    #[test]
    fn a_wrong_address_is_not_repeated() {
        let text = message(&["serve", "--database-url", "mysql://ann:geheim@db/shop"]);
        assert!(text.starts_with("error: DATABASE_URL (--database-url) is wrong: expected postgres://"), "{text}");
        assert!(!text.contains("geheim"), "{text}");
    }

    #[test]
    fn keys_exclude_each_other_and_are_not_repeated() {
        let serve = ["serve", "--database-url", "postgres://db/shop"];
        let secret = "a secret of more than thirty-two bytes";
        let text =
            message(&[&serve[..], &["--jwt-secret", secret, "--jwks-url", "https://issuer.example/keys"]].concat());
        assert!(text.contains("ROWCAST_JWT_SECRET (--jwt-secret)"), "{text}");
        assert!(text.contains("ROWCAST_JWKS_URL (--jwks-url)") && text.contains("exclude each other"), "{text}");
        assert!(!text.contains("thirty-two") && !text.contains("issuer.example"), "{text}");
        let text = message(&[&serve[..], &["--jwt-secret", "geheim"]].concat());
        assert!(text.starts_with("error: ROWCAST_JWT_SECRET (--jwt-secret) is wrong: expected at least 32"), "{text}");
        assert!(!text.contains("geheim"), "{text}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let text = message(&["watch"]);
        assert!(text.starts_with("error: <CHANNEL> is needed"), "{text}");
    }
}
