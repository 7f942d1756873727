//! Tokens: from the text that a client sends to claims that somebody we trust has signed.
//!
//! A token is read strictly, in this order: its size and shape, its header, a key that fits, the signature, and only then
//! what it says. The signature is the library's work; the rest is ours, since the library is lenient where two readers
//! could differ (names that stand twice, an issuer in a list). An error says which check failed and never repeats a
//! part of the token, so that it may be logged and shown.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::Claims;
use super::jwks::JwksKeys;
use super::keys::Key;
use super::revocation::Revocations;
use super::strict;
use crate::metrics;

/// A longer token is not looked at.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// `nbf` may lie so far ahead: the issuer's clock is not ours. `exp` has none: there the difference only shortens a life.
const LEEWAY_SECONDS: f64 = 10.0;

/// Longer names could not be revoked, as Postgres does not take them into an index.
pub const NAME_BYTES_MAX: usize = 1_000;

/// Why a token does not let its bearer in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It will never do.
    #[error("the token is refused: {0}")]
    Refused(&'static str),
    /// Its time is over: another one is needed.
    #[error("the token has expired")]
    Expired,
    /// It was taken back: another one is needed.
    #[error("the token has been revoked")]
    Revoked,
    /// Nobody can tell now: the issuer's keys cannot be read.
    #[error("the token cannot be verified now")]
    Unavailable,
}

/// Where keys come from.
#[derive(Clone, Debug)]
pub enum Keys {
    /// One, which stays.
    Fixed(Arc<Key>),
    /// Those of an issuer, which change.
    Set(JwksKeys),
}

/// Decides whom tokens prove.
#[derive(Debug)]
pub struct Verifier {
    keys: Keys,
    issuer: Option<String>,
    audience: Option<String>,
    revocations: watch::Receiver<Revocations>,
}

impl Verifier {
    /// `issuer` and `audience`: what a token has to name, if anything.
    pub fn new(
        keys: Keys,
        issuer: Option<String>,
        audience: Option<String>,
        revocations: watch::Receiver<Revocations>,
    ) -> Self {
        Self { keys, issuer, audience, revocations }
    }

    /// What was revoked; it changes.
    pub fn revocations(&self) -> watch::Receiver<Revocations> {
        self.revocations.clone()
    }

    /// The claims of a token that is good now. Waits only where its key is not known and has to be asked for.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn verify(&self, token: &str) -> Result<Arc<Claims>, TokenError> {
        let verified = self.check(token).await;
        metrics::token(match &verified {
            Ok(_) => "accepted",
            Err(TokenError::Refused(_)) => "refused",
            Err(TokenError::Expired) => "expired",
            Err(TokenError::Revoked) => "revoked",
            Err(TokenError::Unavailable) => "unavailable",
        });
        verified
    }

    async fn check(&self, token: &str) -> Result<Arc<Claims>, TokenError> {
        let token = Parts::split(token)?;
        let header = token.header()?;
        let candidates = match &self.keys {
            Keys::Fixed(key) => vec![Arc::clone(key)],
            Keys::Set(set) => set.candidates(header.key_id.as_deref()).await?,
        };
        let claims = token.claims(&header, &candidates)?;
        let claims = self.judge(claims, now_seconds())?;
        if self.revocations.borrow().revokes(&claims) {
            return Err(TokenError::Revoked);
        }
        Ok(Arc::new(claims))
    }

    /// Looks at what was signed.
    fn judge(&self, claims: Map<String, Value>, now: f64) -> Result<Claims, TokenError> {
        let expires = time(&claims, "exp", "its exp is not a time in seconds")?;
        let begins = time(&claims, "nbf", "its nbf is not a time in seconds")?;
        time(&claims, "iat", "its iat is not a time in seconds")?;
        for (name, wrong) in [("sub", "its sub is not a short text"), ("jti", "its jti is not a short text")] {
            let fits = |value: &Value| value.as_str().is_some_and(|text| text.len() <= NAME_BYTES_MAX);
            if claims.get(name).is_some_and(|value| !fits(value)) {
                return Err(TokenError::Refused(wrong));
            }
        }
        if let Some(issuer) = &self.issuer
            && claims.get("iss").and_then(Value::as_str) != Some(issuer)
        {
            return Err(TokenError::Refused("it is not of the expected issuer"));
        }
        if let Some(audience) = &self.audience {
            let names = |value: &Value| value.as_str() == Some(audience);
            let named = match claims.get("aud") {
                Some(Value::Array(several)) => several.iter().any(names),
                one => one.is_some_and(names),
            };
            if !named {
                return Err(TokenError::Refused("it is not for the expected audience"));
            }
        }
        if begins.is_some_and(|begins| begins > now + LEEWAY_SECONDS) {
            return Err(TokenError::Refused("it is not good yet"));
        }
        if expires.is_some_and(|expires| expires <= now) {
            return Err(TokenError::Expired);
        }
        // Whole seconds, downwards: never good for longer than was signed.
        Ok(Claims { expires: expires.map(|expires| expires.floor() as i64), all: claims })
    }
}

impl Claims {
    /// How much longer they hold; `None`: until the connection ends.
    pub fn left(&self) -> Option<Duration> {
        let left = self.expires? as f64 - now_seconds();
        Some(Duration::try_from_secs_f64(left.max(0.0)).unwrap_or(Duration::MAX))
    }

    /// `iat`, in seconds since 1970.
    pub fn issued(&self) -> Option<f64> {
        self.all.get("iat").and_then(Value::as_f64)
    }
}

/// A token's three parts, still encoded.
struct Parts<'a> {
    header: &'a str,
    claims: &'a str,
    signature: &'a str,
    /// What is signed: the first two, as they stand.
    message: &'a str,
}

/// What we read of a header. What it says of where keys are is not among it.
struct Header {
    algorithm: String,
    key_id: Option<String>,
}

impl<'a> Parts<'a> {
    fn split(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Refused("it is longer than 8 KiB"));
        }
        let parts = token.rsplit_once('.').and_then(|(message, signature)| {
            let (header, claims) = message.split_once('.')?;
            (!claims.contains('.')).then_some(Self { header, claims, signature, message })
        });
        parts.ok_or(TokenError::Refused("it is not a signed JWT"))
    }

    fn header(&self) -> Result<Header, TokenError> {
        const WRONG: TokenError = TokenError::Refused("its header cannot be read");
        let header = object(self.header).ok_or(WRONG)?;
        // RFC 7515, 4.1.11: what must be understood, and is not.
        if header.contains_key("crit") {
            return Err(TokenError::Refused("its header asks for what this server does not know"));
        }
        let text = |name: &str| match header.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(WRONG),
        };
        Ok(Header { algorithm: text("alg")?.ok_or(WRONG)?, key_id: text("kid")? })
    }

    /// The claims, if one of the keys has signed them.
    fn claims(&self, header: &Header, keys: &[Arc<Key>]) -> Result<Map<String, Value>, TokenError> {
        let mut fitting = keys.iter().filter(|key| key.algorithm() == header.algorithm).peekable();
        if fitting.peek().is_none() {
            return Err(TokenError::Refused("its algorithm is not that of the key"));
        }
        if !fitting.any(|key| key.signed(self.signature, self.message)) {
            return Err(TokenError::Refused("its signature does not fit"));
        }
        object(self.claims).ok_or(TokenError::Refused("its claims cannot be read"))
    }
}

/// A JSON object from its encoded form.
fn object(part: &str) -> Option<Map<String, Value>> {
    strict::object(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// A claim in seconds since 1970, if it is there. A text is not taken for a number, and nothing is rounded up.
fn time(claims: &Map<String, Value>, name: &str, wrong: &'static str) -> Result<Option<f64>, TokenError> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_f64().filter(|at| *at >= 0.0).map(Some).ok_or(TokenError::Refused(wrong)),
    }
}

fn now_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: f64 = 1_790_000_000.5;

    fn verifier() -> Verifier {
        let key = Arc::new(Key::secret(&[7; 32]).expect("a key"));
        let (_, revocations) = watch::channel(Revocations::default());
        Verifier::new(Keys::Fixed(key), Some("me".into()), Some("rows".into()), revocations)
    }

    fn judged(claims: &Value) -> Result<Claims, TokenError> {
        let mut all = json!({"iss":"me","aud":"rows"}).as_object().expect("an object").clone();
        for (name, value) in claims.as_object().expect("an object") {
            all.insert(name.clone(), value.clone());
            if value.is_null() {
                all.remove(name);
            }
        }
        verifier().judge(all, NOW)
    }

    #[test]
    fn claims_that_are_right_are_taken() {
        for (claims, expires) in [
            (json!({}), None),
            (json!({"exp":1_790_000_001}), Some(1_790_000_001)),
            (json!({"exp":1_790_000_001.9}), Some(1_790_000_001)),
            (json!({"exp":u64::MAX}), Some(i64::MAX)),
            (json!({"nbf":1_790_000_005,"iat":1_790_000_900}), None),
            (json!({"aud":["other","rows"],"sub":"u1","jti":"t1"}), None),
        ] {
            assert_eq!(judged(&claims).expect("good claims").expires, expires, "{claims}");
        }
    }

    #[test]
    fn claims_that_are_wrong_are_refused() {
        assert_eq!(judged(&json!({"exp":1_790_000_000})), Err(TokenError::Expired));
        for claims in [
            json!({"exp":"1790000600"}),
            json!({"exp":[1_790_000_600]}),
            json!({"exp":-1}),
            json!({"exp":true}),
            json!({"nbf":1_790_000_020}),
            json!({"nbf":"0"}),
            json!({"iat":"0"}),
            json!({"iss":"you"}),
            json!({"iss":["me"]}),
            json!({"iss":null}),
            json!({"aud":"others"}),
            json!({"aud":["others"]}),
            json!({"aud":null}),
            json!({"aud":{"rows":true}}),
            json!({"sub":7}),
            json!({"sub":"x".repeat(1_001)}),
            json!({"jti":["t1"]}),
        ] {
            assert!(matches!(judged(&claims), Err(TokenError::Refused(_))), "{claims}");
        }
    }

    #[tokio::test]
    async fn what_is_not_a_signed_token_is_refused_before_its_claims_are_read() {
        for token in ["", ".", "..", "a.b.c", "....", "e30.e30.", "e30.e30", "eyJhbGciOiJub25lIn0.e30.", "ä.ö.ü"] {
            assert!(matches!(verifier().verify(token).await, Err(TokenError::Refused(_))), "{token}");
        }
        let long = format!("e30.{}.x", "a".repeat(TOKEN_BYTES_MAX));
        assert_eq!(verifier().verify(&long).await, Err(TokenError::Refused("it is longer than 8 KiB")));
    }
}
