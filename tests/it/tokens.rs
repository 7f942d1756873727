//! Which tokens a node takes: with every kind of key, forged in every way, and while an issuer's keys change.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::harness::database::Database;
use crate::harness::node::Node;
use crate::harness::tokens::{Issuer, SECRET, Signer, WITH_SECRET, now};
use crate::harness::within;

/// A database with `items`, open to whoever has a token.
async fn database() -> Database {
    let database = Database::with_items(2, 6).await;
    database.run("select rowcast.publish('items', policy => 'authenticated')").await;
    database
}

/// Reads `items` as the bearer of a token: the status, the challenge, the body.
async fn read(node: &Node, token: &str) -> (u16, String, Value) {
    let request = reqwest::Client::new().get(node.url("/v1/rows/items")).bearer_auth(token);
    let response = within("an answer", request.send()).await.expect("an answer");
    let status = response.status().as_u16();
    let challenge = response.headers().get("www-authenticate").map(|value| value.to_str().expect("text").to_owned());
    let body = within("a body", response.text()).await.expect("a body");
    assert!(!body.contains(token) || token.is_empty(), "the token is not repeated: {body}");
    (status, challenge.unwrap_or_default(), serde_json::from_str(&body).expect("JSON"))
}

async fn takes(node: &Node, token: &str) {
    let (status, _, body) = read(node, token).await;
    assert_eq!((status, body["rows"].as_array().map(Vec::len)), (200, Some(2)), "{body}");
}

/// The token is refused, for a reason that contains these words.
async fn refuses(node: &Node, token: &str, why: &str) {
    let (status, challenge, body) = read(node, token).await;
    assert_eq!((status, &*challenge), (401, r#"Bearer error="invalid_token""#), "{why}: {body}");
    assert_eq!(body["code"], "bad_token", "{body}");
    assert!(body["detail"].as_str().is_some_and(|detail| detail.contains(why)), "{why}: {body}");
}

fn encoded(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_and_odd_tokens_are_refused_and_nothing_of_them_is_said() {
    let database = database().await;
    let strict = [WITH_SECRET, ("ROWCAST_JWT_ISSUER", "https://issuer.example"), ("ROWCAST_JWT_AUDIENCE", "rows")];
    let node = Node::start_with(&database.url, None, &strict).await;
    let signer = Signer::secret(SECRET);
    let with = |more: Value| {
        let mut claims = json!({"sub":"u1","iss":"https://issuer.example","aud":"rows","exp":now() + 60});
        for (name, value) in more.as_object().expect("an object") {
            claims[name] = value.clone();
        }
        claims
    };
    takes(&node, &signer.sign(&with(json!({})))).await;
    takes(&node, &signer.sign(&with(json!({"aud":["other","rows"],"nbf":now() - 1})))).await;
    takes(&node, &signer.sign_as(Some("any"), &with(json!({})))).await;

    for (claims, why) in [
        (json!({"exp":now() - 1}), "expired"),
        (json!({"exp":0}), "expired"),
        (json!({"exp":(now() + 60).to_string()}), "exp"),
        (json!({"exp":null}), "exp"),
        (json!({"nbf":now() + 60}), "not good yet"),
        (json!({"iss":"https://issuer.example/"}), "issuer"),
        (json!({"iss":["https://issuer.example"]}), "issuer"),
        (json!({"aud":"row"}), "audience"),
        (json!({"aud":[]}), "audience"),
        (json!({"sub":7}), "sub"),
    ] {
        refuses(&node, &signer.sign(&with(claims)), why).await;
    }
    let mut nobodys = with(json!({}));
    nobodys.as_object_mut().expect("an object").remove("iss");
    refuses(&node, &signer.sign(&nobodys), "issuer").await;

    // Others' keys, other algorithms, none at all, and what is not a token.
    let good = signer.sign(&with(json!({})));
    let (head, signature) = good.rsplit_once('.').expect("three parts");
    let claims = head.split_once('.').expect("two parts").1;
    refuses(&node, &Signer::secret(&SECRET.replace('s', "S")).sign(&with(json!({}))), "signature").await;
    for (header, why) in [
        (r#"{"alg":"none"}"#, "algorithm"),
        (r#"{"alg":"None","typ":"JWT"}"#, "algorithm"),
        (r#"{"alg":"HS512"}"#, "algorithm"),
        (r#"{"alg":"hs256"}"#, "algorithm"),
        (r#"{"alg":"HS256","alg":"none"}"#, "header"),
        (r#"{"alg":["HS256"]}"#, "header"),
        (r#"{"alg":"HS256","crit":["exp"]}"#, "header"),
        (r#"{"typ":"JWT"}"#, "header"),
        ("7", "header"),
    ] {
        for signature in ["", signature] {
            refuses(&node, &format!("{}.{claims}.{signature}", encoded(header)), why).await;
        }
    }
    let hs512 = jsonwebtoken::encode(
        &Header::new(Algorithm::HS512),
        &with(json!({})),
        &EncodingKey::from_secret(SECRET.as_bytes()),
    );
    refuses(&node, &hs512.expect("a token"), "algorithm").await;
    refuses(&node, head, "JWT").await;
    refuses(&node, &format!("{good}.{signature}"), "JWT").await;
    refuses(&node, &format!("{head}.{}", &signature[1..]), "signature").await;
    refuses(&node, &format!("{head}.{signature}="), "signature").await;
    refuses(&node, &signer.sign(&with(json!({"filler":"x".repeat(8_000)}))), "8 KiB").await;
    // What a name that stands twice would mean depends on who reads.
    let twice = format!(r#"{{"iss":"https://issuer.example","aud":"rows","exp":1,"exp":{}}}"#, now() + 60);
    let message = format!("{}.{}", encoded(r#"{"alg":"HS256"}"#), encoded(&twice));
    let signed = jsonwebtoken::crypto::sign(message.as_bytes(), &signer.key, Algorithm::HS256).expect("a signature");
    refuses(&node, &format!("{message}.{signed}"), "claims").await;
    takes(&node, &good).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_key_verifies_its_own_algorithm_and_is_never_taken_for_a_secret() {
    let database = database().await;
    let directory = tempfile::tempdir().expect("a directory");
    let claims = json!({"sub":"u1","exp":now() + 60});
    for signer in [Signer::ed(), Signer::ec(), Signer::rsa()] {
        let path = directory.path().join("public.pem");
        std::fs::write(&path, &signer.public).expect("a file");
        let path = path.to_str().expect("text").to_owned();
        // As PEM, as PEM on one line, and as a file.
        for value in [signer.public.clone(), signer.public.replace('\n', "\\n"), path] {
            let node = Node::start_with(&database.url, None, &[("ROWCAST_JWT_PUBLIC_KEY", &value)]).await;
            takes(&node, &signer.sign(&claims)).await;
            let other = match signer.algorithm {
                Algorithm::EdDSA => Signer::ed(),
                _ => Signer::ec(),
            };
            let why = if other.algorithm == signer.algorithm { "signature" } else { "algorithm" };
            refuses(&node, &other.sign(&claims), why).await;
            // The public key, which everybody has, as the secret of an HMAC.
            for secret in [signer.public.as_str(), signer.public.trim_end()] {
                refuses(&node, &Signer::secret(secret).sign(&claims), "algorithm").await;
            }
            let none = format!("{}.{}.", encoded(r#"{"alg":"none"}"#), encoded(&claims.to_string()));
            refuses(&node, &none, "algorithm").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuers_keys_rotate_without_a_restart_and_unknown_keys_do_not_make_a_flood() {
    let database = database().await;
    let (first, second, stranger) = (Signer::ed(), Signer::ec(), Signer::ed());
    let issuer = Issuer::start(&[first.jwk("one")]).await;
    let node = Node::start_with(&database.url, None, &[("ROWCAST_JWKS_URL", &issuer.url())]).await;
    let claims = json!({"sub":"u1","exp":now() + 60});
    takes(&node, &first.sign_as(Some("one"), &claims)).await;
    takes(&node, &first.sign(&claims)).await;
    assert_eq!(issuer.asked(), 1);
    // Another's key under a known id; and what a token says of where its key is.
    refuses(&node, &stranger.sign_as(Some("one"), &claims), "signature").await;
    let elsewhere = Issuer::start(&[stranger.jwk("two")]).await;
    let mut header = Header::new(stranger.algorithm);
    (header.jku, header.x5u, header.kid) = (Some(elsewhere.url()), Some(elsewhere.url()), Some("one".into()));
    header.jwk = serde_json::from_value(stranger.jwk("one")).ok();
    refuses(&node, &jsonwebtoken::encode(&header, &claims, &stranger.key).expect("a token"), "signature").await;
    assert_eq!((issuer.asked(), elsewhere.asked()), (1, 0));

    // The issuer changes its key: the new one is found by the first token, and the old one goes on to hold.
    issuer.lists(&[second.jwk("two")]);
    takes(&node, &second.sign_as(Some("two"), &claims)).await;
    takes(&node, &first.sign_as(Some("one"), &claims)).await;
    assert_eq!(issuer.asked(), 2);

    // Ids that nobody knows: many tokens, one question.
    let unknown: Vec<String> = (0..20).map(|n| stranger.sign_as(Some(&format!("x{n}")), &claims)).collect();
    futures_util::future::join_all(unknown.iter().map(|token| refuses(&node, token, "key is not known"))).await;
    assert_eq!(issuer.asked(), 3);

    // The issuer is away: what is known holds, and of the rest nobody can tell.
    issuer.fails();
    takes(&node, &second.sign_as(Some("two"), &claims)).await;
    let (status, _, body) = read(&node, &stranger.sign_as(Some("y"), &claims)).await;
    assert_eq!((status, &body["code"]), (503, &json!("unavailable")), "{body}");
    takes(&node, &second.sign_as(Some("two"), &claims)).await;
    takes(&node, &first.sign_as(Some("one"), &claims)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_of_keys_may_be_a_file() {
    let database = database().await;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("keys.json");
    let (one, two) = (Signer::ed(), Signer::ec());
    let write = |keys: Value| std::fs::write(&path, json!({"keys":keys}).to_string()).expect("a file");
    write(json!([one.jwk("one")]));
    let node = Node::start_with(&database.url, None, &[("ROWCAST_JWKS_URL", path.to_str().expect("text"))]).await;
    let claims = json!({"sub":"u1","exp":now() + 60});
    takes(&node, &one.sign_as(Some("one"), &claims)).await;
    write(json!([two.jwk("two")]));
    takes(&node, &two.sign_as(Some("two"), &claims)).await;
    takes(&node, &one.sign_as(Some("one"), &claims)).await;
}
