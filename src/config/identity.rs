//! How clients prove who they are: the key that tokens are verified with, what tokens have to say, and whether clients
//! without one are served.
//!
//! Keys are read here, when the command line is: a file that is not there or a text that is no key is a wrong value, and
//! refused by its variable's name. Of the three sources of keys at most one is set.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use url::Url;

use super::secret::JwtSecret;
use super::time;
use crate::identity::jwks::JwksSource;
use crate::identity::keys::Key;

/// See the module.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Identity")]
pub struct IdentityConfig {
    /// Verifies tokens that are signed with HS256; at least 32 bytes
    #[arg(
        long,
        env = "ROWCAST_JWT_SECRET",
        hide_env_values = true,
        value_name = "SECRET",
        conflicts_with_all = ["jwt_public_key", "jwks_url"]
    )]
    pub jwt_secret: Option<JwtSecret>,

    /// Verifies tokens by a public key, as PEM or in a file: RSA (RS256), P-256 (ES256), P-384 (ES384), Ed25519 (EdDSA)
    #[arg(
        long,
        env = "ROWCAST_JWT_PUBLIC_KEY",
        hide_env_values = true,
        value_name = "PEM",
        value_parser = public_key,
        conflicts_with = "jwks_url"
    )]
    pub jwt_public_key: Option<Key>,

    /// Verifies tokens by an issuer's JWK set: its URL, or a file
    #[arg(long, env = "ROWCAST_JWKS_URL", hide_env_values = true, value_name = "URL")]
    pub jwks_url: Option<JwksSource>,

    /// What `iss` of a token has to be. Without it: anything
    #[arg(long, env = "ROWCAST_JWT_ISSUER", value_name = "ISSUER", value_parser = not_empty)]
    pub jwt_issuer: Option<String>,

    /// What `aud` of a token has to name. Without it: anything
    #[arg(long, env = "ROWCAST_JWT_AUDIENCE", value_name = "AUDIENCE", value_parser = not_empty)]
    pub jwt_audience: Option<String>,

    /// A cookie that may hold the token, for pages of this origin or a listed one
    #[arg(long, env = "ROWCAST_COOKIE", value_name = "NAME", value_parser = cookie_name)]
    pub cookie: Option<String>,

    /// Whether clients without a token are served what is public
    #[arg(long, env = "ROWCAST_ANONYMOUS", value_name = "SWITCH", default_value = "on")]
    pub anonymous: Switch,

    /// Where anonymity is off: how long a connection may take to come with its token
    #[arg(long, env = "ROWCAST_AUTH_TIMEOUT", value_name = "TIME", value_parser = time, default_value = "10s")]
    pub auth_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

impl IdentityConfig {
    /// Whether tokens can be verified at all.
    pub fn has_key(&self) -> bool {
        self.jwt_secret.is_some() || self.jwt_public_key.is_some() || self.jwks_url.is_some()
    }

    /// Settings that ask for tokens, where there is nothing to verify them with, would shut everybody out.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<(), String> {
        if self.has_key() {
            return Ok(());
        }
        let asks = [
            ("ROWCAST_JWT_ISSUER", self.jwt_issuer.is_some()),
            ("ROWCAST_JWT_AUDIENCE", self.jwt_audience.is_some()),
            ("ROWCAST_COOKIE", self.cookie.is_some()),
            ("ROWCAST_ANONYMOUS=off", self.anonymous == Switch::Off),
        ];
        match asks.iter().find(|(_, asks)| *asks) {
            Some((name, _)) => Err(format!(
                "{name} needs a key for tokens: ROWCAST_JWT_SECRET, ROWCAST_JWT_PUBLIC_KEY or ROWCAST_JWKS_URL"
            )),
            None => Ok(()),
        }
    }
}

/// A PEM text, or the path of a file that has one.
fn public_key(text: &str) -> Result<Key, String> {
    let read = if text.contains("-----BEGIN") {
        // Where a variable cannot hold line breaks, people write `\n`.
        text.replace("\\n", "\n")
    } else {
        std::fs::read_to_string(text).map_err(|error| format!("expected PEM, or the path of a file: {error}"))?
    };
    Key::pem(&read).map_err(|error| error.to_string())
}

impl FromStr for JwksSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected https://…, http://… or the path of a file";
        let url = Url::parse(text).ok().filter(|_| text.contains("://"));
        match url {
            Some(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Self::Url(url)),
            Some(url) if url.scheme() == "file" => url.to_file_path().map(Self::File).map_err(|()| EXPECTED.into()),
            Some(_) => Err(EXPECTED.into()),
            None => match std::fs::metadata(text) {
                Ok(file) if file.is_file() => Ok(Self::File(PathBuf::from(text))),
                Ok(_) => Err(format!("{EXPECTED}; this is no file")),
                Err(error) => Err(format!("{EXPECTED} ({error})")),
            },
        }
    }
}

fn not_empty(text: &str) -> Result<String, String> {
    match text {
        "" => Err("expected a text".into()),
        text => Ok(text.to_owned()),
    }
}

/// RFC 6265: a token of RFC 2616.
fn cookie_name(text: &str) -> Result<String, String> {
    let may_stand = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    match !text.is_empty() && text.bytes().all(may_stand) {
        true => Ok(text.to_owned()),
        false => Err("expected a cookie's name, such as session".into()),
    }
}
