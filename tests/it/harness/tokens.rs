//! Tokens as issuers mint them, and as others forge them; and an issuer that lists its keys over HTTP.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What the nodes of tests verify HS256 tokens with.
pub const SECRET: &str = "the secret of the tests, of more than thirty-two bytes";

/// The variable that tells a node so.
pub const WITH_SECRET: (&str, &str) = ("ROWCAST_JWT_SECRET", SECRET);

/// A key that signs.
#[derive(Clone)]
pub struct Signer {
    pub algorithm: Algorithm,
    pub key: EncodingKey,
    /// The public key as PEM; empty for a secret.
    pub public: String,
}

impl Signer {
    pub fn secret(secret: &str) -> Self {
        let key = EncodingKey::from_secret(secret.as_bytes());
        Self { algorithm: Algorithm::HS256, key, public: String::new() }
    }

    pub fn ed() -> Self {
        use ed25519_dalek::pkcs8::{EncodePrivateKey, EncodePublicKey};
        let key = ed25519_dalek::SigningKey::from_bytes(&rand::random());
        Self {
            algorithm: Algorithm::EdDSA,
            key: EncodingKey::from_ed_der(key.to_pkcs8_der().expect("DER").as_bytes()),
            public: key.verifying_key().to_public_key_pem(Default::default()).expect("PEM"),
        }
    }

    pub fn ec() -> Self {
        use p256::pkcs8::{EncodePrivateKey, EncodePublicKey};
        let key = p256::SecretKey::random(&mut rsa::rand_core::OsRng);
        Self {
            algorithm: Algorithm::ES256,
            key: EncodingKey::from_ec_der(key.to_pkcs8_der().expect("DER").as_bytes()),
            public: key.public_key().to_public_key_pem(Default::default()).expect("PEM"),
        }
    }

    pub fn rsa() -> Self {
        use rsa::pkcs1::EncodeRsaPrivateKey;
        use rsa::pkcs8::EncodePublicKey;
        let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).expect("a key");
        Self {
            algorithm: Algorithm::RS256,
            key: EncodingKey::from_rsa_der(key.to_pkcs1_der().expect("DER").as_bytes()),
            public: key.to_public_key().to_public_key_pem(Default::default()).expect("PEM"),
        }
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(None, claims)
    }

    /// The same, with the id of its key.
    pub fn sign_as(&self, key_id: Option<&str>, claims: &Value) -> String {
        let header = Header { kid: key_id.map(str::to_owned), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.key).expect("a token")
    }

    /// The public key as a set lists it.
    pub fn jwk(&self, key_id: &str) -> Value {
        let pem = self.public.as_bytes();
        let key = match self.algorithm {
            Algorithm::EdDSA => DecodingKey::from_ed_pem(pem),
            Algorithm::ES256 => DecodingKey::from_ec_pem(pem),
            _ => DecodingKey::from_rsa_pem(pem),
        };
        let mut jwk = Jwk::from_decoding_key(&key.expect("a public key"), Some(self.algorithm)).expect("a JWK");
        jwk.common.key_id = Some(key_id.to_owned());
        serde_json::to_value(jwk).expect("JSON")
    }
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs()
}

/// A token of somebody, good for a while, with further claims.
pub fn token(sub: &str, ttl_seconds: u64, more: &Value) -> String {
    let mut claims = json!({ "sub": sub, "iat": now(), "exp": now() + ttl_seconds });
    for (name, value) in more.as_object().into_iter().flatten() {
        claims[name] = value.clone();
    }
    Signer::secret(SECRET).sign(&claims)
}

/// An issuer's page of keys, over HTTP; what it answers can be changed.
pub struct Issuer {
    pub address: SocketAddr,
    answer: Arc<Mutex<(StatusCode, String)>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    pub async fn start(keys: &[Value]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let answer = Arc::new(Mutex::new((StatusCode::OK, set(keys))));
        let asked = Arc::new(AtomicUsize::new(0));
        let (answers, count) = (Arc::clone(&answer), Arc::clone(&asked));
        let keys = move || async move {
            count.fetch_add(1, Ordering::Relaxed);
            answers.lock().expect("an answer").clone()
        };
        let router = Router::new().route("/keys", get(keys));
        tokio::spawn(async move { axum::serve(listener, router).await.expect("a server") });
        Self { address, answer, asked }
    }

    pub fn url(&self) -> String {
        format!("http://{}/keys", self.address)
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    pub fn lists(&self, keys: &[Value]) {
        *self.answer.lock().expect("an answer") = (StatusCode::OK, set(keys));
    }

    pub fn fails(&self) {
        *self.answer.lock().expect("an answer") = (StatusCode::BAD_GATEWAY, "no".into());
    }
}

fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}
