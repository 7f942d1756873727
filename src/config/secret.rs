//! Addresses that may hold a password, secrets and tokens, as types that never print them.
//!
//! `Debug` and `Display` give the address with `***` in the password's place, fit for logs and messages. Whoever has to
//! connect asks for the secret by name.

use std::fmt;
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;
use url::Url;

use crate::identity::keys::Key;

/// Where Postgres is: `postgres://user:password@host:port/database`.
#[derive(Clone)]
pub struct DatabaseUrl {
    options: PgConnectOptions,
    text: String,
    printable: String,
}

impl DatabaseUrl {
    /// What sqlx connects with. Its own `Debug` prints the password: do not log it.
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// The address with its password, for a child process or the demo's own throw-away database.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected postgres://user:password@host:port/database";
        if text.is_empty() {
            return Err(EXPECTED.into());
        }
        let url = Url::parse(text).map_err(|error| format!("{EXPECTED} ({error})"))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(EXPECTED.into());
        }
        let options = text.parse().map_err(|error: sqlx::Error| match error {
            sqlx::Error::Configuration(reason) => reason.to_string(),
            other => other.to_string(),
        })?;
        Ok(Self { options, text: text.to_owned(), printable: printable(url) })
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.printable)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.printable)
    }
}

/// Where Redis is: `redis://user:password@host:port/database`, or `unix:///path/to/socket`.
#[derive(Clone)]
pub struct RedisUrl {
    text: String,
    printable: String,
}

impl RedisUrl {
    /// The address with its password, for the client.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl FromStr for RedisUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected redis://user:password@host:port";
        if text.is_empty() {
            return Err(EXPECTED.into());
        }
        let url = Url::parse(text).map_err(|error| format!("{EXPECTED} ({error})"))?;
        redis::Client::open(text).map_err(|error| match error.detail() {
            Some(detail) => format!("{EXPECTED} ({detail})"),
            None => format!("{EXPECTED} ({error})"),
        })?;
        Ok(Self { text: text.to_owned(), printable: printable(url) })
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.printable)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.printable)
    }
}

/// What HS256 tokens are signed and verified with.
#[derive(Clone)]
pub struct JwtSecret(String);

impl JwtSecret {
    /// The secret itself.
    pub fn expose(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl FromStr for JwtSecret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Key::secret(text.as_bytes()).map_err(|error| error.to_string())?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for JwtSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A client's token.
#[derive(Clone)]
pub struct BearerToken(String);

impl BearerToken {
    /// The token itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for BearerToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "" => Err("expected a token, such as `rowcast token` prints".into()),
            token => Ok(Self(token.to_owned())),
        }
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// An address without what must not be seen. Parameters go altogether: `?password=` and `?pass=` are among them.
fn printable(mut url: Url) -> String {
    if url.password().is_some() {
        // Cannot fail where a password has been.
        let _ = url.set_password(Some("***"));
    }
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_printed() {
        for text in [
            "postgres://ann:geheim@db.example:5433/shop",
            "postgresql://ann@db.example/shop?password=geheim",
            "postgres://ann:ge%3Aheim@db.example/shop",
        ] {
            let url: DatabaseUrl = text.parse().expect("a URL");
            assert!(!format!("{url} {url:?}").contains("heim"), "{url}");
            assert_eq!(url.expose(), text);
        }
        let url: RedisUrl = "redis://:geheim@cache:6379/2".parse().expect("a URL");
        assert_eq!(url.to_string(), "redis://:***@cache:6379/2");
    }

    #[test]
    fn what_is_not_an_address_is_refused_without_repeating_it() {
        for text in ["", "db.example", "mysql://ann:geheim@db/shop", "postgres://ann:geheim@db:port/shop"] {
            let error = text.parse::<DatabaseUrl>().expect_err(text);
            assert!(!error.contains("geheim"), "{error}");
        }
        for text in ["", "cache:6379", "http://:geheim@cache", "redis://:geheim@cache/first"] {
            let error = text.parse::<RedisUrl>().expect_err(text);
            assert!(!error.contains("geheim"), "{error}");
        }
    }
}
