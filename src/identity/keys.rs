//! The keys that tokens are verified with, each with the one algorithm it is good for.
//!
//! Which algorithm a signature is checked by is decided here, by the key, when it is loaded; what a token says of itself
//! only has to agree. So `alg: none`, and a public key taken for an HMAC secret, are not refused somewhere: there is
//! nothing that could do them. A key comes from the operator only: a secret, a public key as PEM, or a JWK set
//! ([`super::jwks`] fetches it). Nothing here looks at `jku`, `x5u` or a key inside of a token.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use tokio::time::Instant;

/// RFC 7518, 3.2: an HS256 key is at least as long as the hash. A shorter one can be guessed from any token.
const SECRET_BYTES_MIN: usize = 32;

/// RFC 7518, 3.3.
const RSA_BYTES_MIN: usize = 2048 / 8;

/// Larger ones are not verified by the library below us.
const RSA_BYTES_MAX: usize = 4096 / 8;

/// What PKCS#1 has around the modulus.
const PKCS1_BYTES: usize = 32;

/// A set with more keys is cut off: each may cost a look for a token that names none.
const SET_KEYS_MAX: usize = 64;

/// How long a key stays good after the set has ceased to list it: tokens that it signed may be on their way still, and
/// one answer that lacks a key must not lock everybody out.
const KEPT: Duration = Duration::from_secs(600);

/// A key, and what it is good for.
#[derive(Clone)]
pub struct Key {
    algorithm: Algorithm,
    key: DecodingKey,
}

/// A text that is not a key we can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadKey(&'static str);

impl Key {
    /// A secret that signs and verifies with HS256.
    ///
    /// # Errors
    /// It is shorter than 32 bytes.
    pub fn secret(secret: &[u8]) -> Result<Self, BadKey> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(BadKey("expected at least 32 bytes"));
        }
        Ok(Self { algorithm: Algorithm::HS256, key: DecodingKey::from_secret(secret) })
    }

    /// A public key: RSA (for RS256), P-256 (ES256), P-384 (ES384) or Ed25519 (EdDSA).
    ///
    /// # Errors
    /// It is no PEM, or of another kind; a private key too: it does not belong here.
    pub fn pem(pem: &str) -> Result<Self, BadKey> {
        let label = pem.split("-----").nth(1).map(|label| label.trim().trim_start_matches("BEGIN ").to_owned());
        match label.as_deref() {
            Some("PUBLIC KEY" | "RSA PUBLIC KEY") => {}
            Some("CERTIFICATE") => return Err(BadKey("expected a public key, and this is a certificate")),
            Some(label) if label.ends_with("PRIVATE KEY") => {
                return Err(BadKey("expected a public key, and this is a private one"));
            }
            _ => return Err(BadKey("expected a public key as PEM, or the path of a file with one")),
        }
        let bytes = pem.as_bytes();
        let (algorithm, key) = if let Ok(key) = DecodingKey::from_rsa_pem(bytes) {
            (Algorithm::RS256, key)
        } else if let Ok(key) = DecodingKey::from_ed_pem(bytes) {
            (Algorithm::EdDSA, key)
        } else {
            let key = DecodingKey::from_ec_pem(bytes).map_err(|_| BadKey("expected an RSA, EC or Ed25519 key"))?;
            let length = key.try_get_as_bytes().map_or(0, <[u8]>::len);
            // An uncompressed point: a byte, x and y.
            (if length == 1 + 2 * 48 { Algorithm::ES384 } else { Algorithm::ES256 }, key)
        };
        Self { algorithm, key }.checked()
    }

    /// A key of a JWK set; `None` for one that is not for verifying signatures, or of a kind that we do not know.
    fn jwk(jwk: &Jwk) -> Option<Self> {
        let is_for_signatures =
            !matches!(&jwk.common.public_key_use, Some(purpose) if *purpose != PublicKeyUse::Signature);
        let verifies = jwk.common.key_operations.as_ref().is_none_or(|may| may.contains(&KeyOperations::Verify));
        if !is_for_signatures || !verifies {
            return None;
        }
        // A secret in a set that others can read would be none: `oct` is not taken.
        let (usual, possible) = match &jwk.algorithm {
            AlgorithmParameters::RSA(parameters) => {
                // Three quarters of the base64 text.
                if !(RSA_BYTES_MIN..=RSA_BYTES_MAX + 1).contains(&(parameters.n.len() * 3 / 4)) {
                    return None;
                }
                let all = [
                    Algorithm::RS256,
                    Algorithm::RS384,
                    Algorithm::RS512,
                    Algorithm::PS256,
                    Algorithm::PS384,
                    Algorithm::PS512,
                ];
                (Algorithm::RS256, all.to_vec())
            }
            AlgorithmParameters::EllipticCurve(parameters) => match parameters.curve {
                EllipticCurve::P256 => (Algorithm::ES256, vec![Algorithm::ES256]),
                EllipticCurve::P384 => (Algorithm::ES384, vec![Algorithm::ES384]),
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(parameters) if parameters.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, vec![Algorithm::EdDSA])
            }
            _ => return None,
        };
        let algorithm = match jwk.common.key_algorithm {
            None => usual,
            Some(named) => possible.into_iter().find(|algorithm| KeyAlgorithm::from(*algorithm) == named)?,
        };
        Self { algorithm, key: DecodingKey::from_jwk(jwk).ok()? }.checked().ok()
    }

    /// Checks that the key can be used at all, so that a wrong one is found at the start and not by the first token.
    fn checked(self) -> Result<Self, BadKey> {
        let bytes = self.key.try_get_as_bytes().map_or(&[][..], |bytes| bytes);
        if self.algorithm == Algorithm::EdDSA && bytes.len() != 32 {
            return Err(BadKey("expected an Ed25519 key of 32 bytes"));
        }
        // A PKCS#1 key; of a set's keys we have seen the modulus already.
        let is_pkcs1 = self.algorithm == Algorithm::RS256 && !bytes.is_empty();
        if is_pkcs1 && !(RSA_BYTES_MIN..=RSA_BYTES_MAX + PKCS1_BYTES).contains(&bytes.len()) {
            return Err(BadKey("expected an RSA key of 2048 to 4096 bits"));
        }
        crypto::verify("", b"", &self.key, self.algorithm).map_err(|_| BadKey("this key cannot be used"))?;
        Ok(self)
    }

    /// The name of the key's algorithm, as `alg` has it.
    pub fn algorithm(&self) -> String {
        KeyAlgorithm::from(self.algorithm).to_string()
    }

    /// Whether the last part of a token signs the two before it.
    pub fn signed(&self, signature: &str, message: &str) -> bool {
        crypto::verify(signature, message.as_bytes(), &self.key, self.algorithm).unwrap_or(false)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.algorithm)
    }
}

/// The keys of an issuer, by the ids it gave them; over a rotation those of before too.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    keys: Vec<SetKey>,
}

#[derive(Clone, Debug)]
struct SetKey {
    id: Option<String>,
    key: Arc<Key>,
    /// When the issuer listed it last.
    listed_at: Instant,
}

/// What an issuer lists.
#[derive(Clone, Debug)]
pub struct Listed(Vec<(Option<String>, Arc<Key>)>);

impl FromStr for Listed {
    type Err = BadKey;

    /// Reads a JWK set (RFC 7517, 5). Keys that we cannot use are left out.
    fn from_str(text: &str) -> Result<Self, BadKey> {
        // One key that cannot be read must not take the others with it.
        #[derive(serde::Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_str(text).map_err(|_| BadKey("expected a JWK set: {\"keys\":[…]}"))?;
        let keys: Vec<_> = set
            .keys
            .into_iter()
            .filter_map(|key| serde_json::from_value::<Jwk>(key).ok())
            .filter_map(|jwk| Some((jwk.common.key_id.clone(), Arc::new(Key::jwk(&jwk)?))))
            .take(SET_KEYS_MAX)
            .collect();
        if keys.is_empty() {
            return Err(BadKey("there is no key in it that verifies RS, PS, ES or EdDSA signatures"));
        }
        Ok(Self(keys))
    }
}

impl KeySet {
    /// Takes what the issuer lists now. A key it lists no more stays for [`KEPT`], unless another has taken its id.
    pub fn renew(&mut self, listed: Listed, now: Instant) {
        self.keys.retain(|old| {
            let is_replaced = listed.0.iter().any(|(id, _)| *id == old.id);
            !is_replaced && now.duration_since(old.listed_at) < KEPT
        });
        self.keys.extend(listed.0.into_iter().map(|(id, key)| SetKey { id, key, listed_at: now }));
    }

    /// The keys that may have signed a token which names this id, or none.
    pub fn candidates(&self, id: Option<&str>) -> Vec<Arc<Key>> {
        let fits = |key: &&SetKey| id.is_none() || key.id.is_none() || key.id.as_deref() == id;
        self.keys.iter().filter(fits).map(|key| Arc::clone(&key.key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8037, A.2: an Ed25519 key; and the P-256 key of RFC 7517, A.1.
    const ED: &str = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;
    const EC: &str = r#"{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM""#;

    fn listed(keys: &[String]) -> Result<Listed, BadKey> {
        format!(r#"{{"keys":[{}]}}"#, keys.join(",")).parse()
    }

    fn key(of: &str, more: &str) -> String {
        format!("{of}{more}}}")
    }

    #[test]
    fn a_key_has_one_algorithm_and_a_foreign_one_is_not_taken() {
        let algorithm = |text: String| listed(&[text]).map(|Listed(keys)| keys[0].1.algorithm());
        assert_eq!(algorithm(key(ED, "")), Ok("EdDSA".into()));
        assert_eq!(algorithm(key(EC, "")), Ok("ES256".into()));
        assert_eq!(algorithm(key(EC, r#","alg":"ES256","use":"sig","key_ops":["verify"]"#)), Ok("ES256".into()));
        for wrong in [
            key(EC, r#","alg":"HS256""#),
            key(EC, r#","alg":"RS256""#),
            key(EC, r#","alg":"none""#),
            key(EC, r#","use":"enc""#),
            key(EC, r#","key_ops":["sign"]"#),
            key(ED, r#","alg":"ES256""#),
            r#"{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}"#.into(),
            r#"{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4","e":"AQAB"}"#.into(),
            r#"{"kty":"OKP","crv":"Ed25519","x":"AAAA"}"#.into(),
            r#"{"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA"}"#.into(),
            "7".into(),
        ] {
            assert!(listed(std::slice::from_ref(&wrong)).is_err(), "{wrong}");
            assert_eq!(listed(&[wrong, key(ED, "")]).map(|Listed(keys)| keys.len()), Ok(1));
        }
        for text in ["", "{}", "[]", r#"{"keys":[]}"#, r#"{"keys":7}"#] {
            assert!(text.parse::<Listed>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_outlives_its_listing_for_the_rotation_and_not_longer() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let (one, two) = (key(ED, r#","kid":"one""#), key(EC, r#","kid":"two""#));
        let mut set = KeySet::default();
        set.renew(listed(std::slice::from_ref(&one)).expect("a key"), at(0));
        assert_eq!(set.candidates(Some("one")).len(), 1);
        assert_eq!(set.candidates(None).len(), 1);
        assert!(set.candidates(Some("two")).is_empty());
        set.renew(listed(std::slice::from_ref(&two)).expect("a key"), at(300));
        assert_eq!((set.candidates(Some("one")).len(), set.candidates(Some("two")).len()), (1, 1));
        set.renew(listed(std::slice::from_ref(&two)).expect("a key"), at(600));
        assert!(set.candidates(Some("one")).is_empty());
        assert_eq!(set.candidates(Some("two")).len(), 1);
        // Another key under the same id replaces it at once.
        set.renew(listed(&[key(ED, r#","kid":"two""#)]).expect("a key"), at(601));
        let found = set.candidates(Some("two"));
        assert_eq!((found.len(), found[0].algorithm()), (1, "EdDSA".into()));
    }

    #[test]
    fn a_secret_is_long_and_what_is_no_public_key_is_refused() {
        assert!(Key::secret(b"short").is_err());
        assert_eq!(Key::secret(&[7; 32]).expect("a key").algorithm(), "HS256");
        for text in [
            "",
            "keys/public.pem",
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        ] {
            assert!(Key::pem(text).is_err(), "{text}");
        }
    }
}
