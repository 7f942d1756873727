//! `rowcast token`: tokens for development, signed with the secret that the server verifies them with.
//!
//! In production an issuer mints them: who can run this needs no permission from anybody.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Map, Value};

use crate::config::{JwtSecret, units};
use crate::identity::token::TOKEN_BYTES_MAX;
use crate::version::base36;

/// Mint a token for development.
#[derive(clap::Args, Clone, Debug)]
pub struct Token {
    /// The secret that the server verifies tokens with
    #[arg(long = "jwt-secret", env = "ROWCAST_JWT_SECRET", hide_env_values = true, value_name = "SECRET")]
    jwt_secret: JwtSecret,

    /// Whose token it is
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    sub: Option<String>,

    /// A claim: `tenant_id=7`, `regions=["eu","us"]`. What is not JSON is a text
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim)]
    claims: Vec<(String, Value)>,

    /// How long it is good; 0: until its connection ends
    #[arg(long, value_name = "TIME", value_parser = units::duration, default_value = "1h")]
    ttl: Duration,

    /// Its `iss`
    #[arg(long, env = "ROWCAST_JWT_ISSUER", value_name = "ISSUER")]
    issuer: Option<String>,

    /// Its `aud`
    #[arg(long, env = "ROWCAST_JWT_AUDIENCE", value_name = "AUDIENCE")]
    audience: Option<String>,
}

/// Prints a token, and nothing else.
pub(super) fn mint(wanted: &Token) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    let key = EncodingKey::from_secret(wanted.jwt_secret.expose());
    let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(wanted, now), &key)?;
    anyhow::ensure!(token.len() <= TOKEN_BYTES_MAX, "the token would be longer than servers take (8 KiB)");
    Ok(writeln!(io::stdout(), "{token}")?)
}

/// What the token says. What was asked for by name comes last, and wins.
fn claims(wanted: &Token, now: Duration) -> Map<String, Value> {
    let mut claims = Map::new();
    let texts = [("sub", &wanted.sub), ("iss", &wanted.issuer), ("aud", &wanted.audience)];
    claims.extend(texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::from(text.clone()?)))));
    claims.insert("iat".into(), now.as_secs().into());
    // So that this one can be revoked: `rowcast.revoke_session`.
    claims.insert("jti".into(), base36(rand::random()).into());
    if wanted.ttl > Duration::ZERO {
        // A part of a second counts: a token of `500ms` must not be one that has expired.
        let end = now.saturating_add(wanted.ttl);
        claims.insert("exp".into(), end.as_secs().saturating_add(u64::from(end.subsec_nanos() > 0)).into());
    }
    claims.extend(wanted.claims.iter().cloned());
    claims
}

/// `name=value`: JSON where it is JSON, a text otherwise.
fn claim(text: &str) -> Result<(String, Value), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
        }
        _ => Err("expected name=value, such as tenant_id=7".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        token: Token,
    }

    fn wanted(flags: &[&str]) -> Token {
        let secret = ["rowcast", "--jwt-secret", "a secret of more than thirty-two bytes"];
        Only::try_parse_from(secret.iter().chain(flags)).unwrap_or_else(|error| panic!("{error}")).token
    }

    #[test]
    fn claims_are_json_or_text_and_what_is_named_wins() {
        let all = [
            "--sub",
            "u1",
            "--claim",
            "tenant_id=7",
            "--claim",
            "regions=[\"eu\"]",
            "--claim",
            "name=a=b",
            "--ttl",
            "90s",
        ];
        let mut said = claims(&wanted(&all), Duration::from_secs(1_000));
        assert!(said.remove("jti").is_some_and(|id| id.is_string()));
        let expected = json!({"sub":"u1","iat":1000,"exp":1090,"tenant_id":7,"regions":["eu"],"name":"a=b"});
        assert_eq!(Value::Object(said), expected);
        let said = claims(&wanted(&["--claim", "iat=5", "--claim", "jti=\"t\"", "--ttl", "0"]), Duration::from_secs(9));
        assert_eq!(Value::Object(said), json!({"iat":5,"jti":"t"}));
        assert!(claim("=7").is_err() && claim("x").is_err());
    }

    #[test]
    fn the_secret_is_never_printed() {
        let text = format!("{:?}", wanted(&[]));
        assert!(!text.contains("thirty-two"), "{text}");
    }
}
