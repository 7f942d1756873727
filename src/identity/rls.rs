//! What row security gets to know of an identity: a role of the database, and the claims that are declared for it.
//!
//! Both are part of the channel, so of every cache key: what a policy can look at is what two identities have in common
//! that share an entry. A claim that is not declared is absent, and a policy that asks for it hides the row.

use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::identity::Identity;
use crate::protocol::{ErrorCode, Refusal};
use crate::publication::FeedKey;
use crate::version::base36;

/// An identity as row security sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RlsIdentity {
    /// The database role, of the allowed ones.
    pub role: String,
    /// `request.jwt.claims`: the declared claims as JSON text, sorted by name.
    pub claims: String,
}

impl RlsIdentity {
    /// What entries call it: 128 bits of SHA-256, since clients choose a part of what goes in.
    pub fn hash_text(&self) -> Arc<str> {
        let text = serde_json::to_string(self).expect("two texts are always JSON");
        let hash = Sha256::digest(text.as_bytes());
        let half =
            |from: usize| base36(hash[from..from + 8].iter().fold(0, |number, &byte| (number << 8) | u64::from(byte)));
        format!("{}-{}", half(0), half(8)).into()
    }
}

/// An identity with a live channel on a feed: what nodes register in the store, and the leader looks at the feed for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Onlooker {
    pub feed: FeedKey,
    pub identity: Arc<RlsIdentity>,
}

impl Onlooker {
    /// As the store keeps it.
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("texts are always JSON")
    }

    /// What [`Self::text`] wrote.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

/// Where a claim stands: a name, or names one inside the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPath(Vec<String>);

/// A text that names no claim.
#[derive(Debug, thiserror::Error)]
#[error("expected the names of claims, comma-separated, nested ones with dots: sub,role,app_metadata.tenant")]
pub struct BadClaimPath;

impl FromStr for ClaimPath {
    type Err = BadClaimPath;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names: Vec<String> = text.split('.').map(|name| name.trim().to_owned()).collect();
        if names.iter().any(String::is_empty) { Err(BadClaimPath) } else { Ok(Self(names)) }
    }
}

impl ClaimPath {
    /// The path to the claim as these claims have it: a claim whose name has dots in it stands at the top.
    fn find<'a>(&'a self, claims: &'a Map<String, Value>) -> Option<(Vec<String>, &'a Value)> {
        let whole = self.0.join(".");
        if let Some(value) = claims.get(&whole) {
            return Some((vec![whole], value));
        }
        let (last, parents) = self.0.split_last()?;
        let mut within = claims;
        for name in parents {
            within = within.get(name)?.as_object()?;
        }
        Some((self.0.clone(), within.get(last)?))
    }
}

/// How identities become roles and claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RlsSettings {
    /// The claim that names the role.
    pub role_claim: ClaimPath,
    /// Roles that a token may name.
    pub roles: Vec<String>,
    /// The role of those without a token; `None`: they may not open what row security decides about.
    pub anonymous_role: Option<String>,
    /// The claims that policies are told.
    pub claims: Vec<ClaimPath>,
}

impl Default for RlsSettings {
    fn default() -> Self {
        let path = |name: &str| ClaimPath(vec![name.to_owned()]);
        Self {
            role_claim: path("role"),
            roles: Vec::new(),
            anonymous_role: None,
            claims: vec![path("sub"), path("role")],
        }
    }
}

/// Why an identity has no role; for the operator's log, as the client learns nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoRole {
    Anonymous,
    Missing,
    NotAllowed,
    NoneAllowed,
}

impl NoRole {
    fn why(self) -> &'static str {
        match self {
            Self::Anonymous => "no token, and ROWCAST_RLS_ANON_ROLE is not set",
            Self::Missing => "the token has no text in the claim that ROWCAST_RLS_ROLE_CLAIM names",
            Self::NotAllowed => "the token's role is not one of ROWCAST_RLS_ROLES",
            Self::NoneAllowed => "ROWCAST_RLS_ROLES is not set: no role is allowed",
        }
    }
}

/// What row security is told of an identity.
///
/// # Errors
/// `forbidden`: it has no role, or one that is not allowed.
pub fn resolve(identity: &Identity, feed: &FeedKey, settings: &RlsSettings) -> Result<Arc<RlsIdentity>, Refusal> {
    match role_and_claims(identity, settings) {
        Ok(resolved) => Ok(Arc::new(resolved)),
        Err(no_role) => {
            tracing::info!(publication = %feed.name, why = no_role.why(), "row security has no role for this identity");
            Err(Refusal::new(ErrorCode::Forbidden, "this publication is not open to you"))
        }
    }
}

fn role_and_claims(identity: &Identity, settings: &RlsSettings) -> Result<RlsIdentity, NoRole> {
    let Identity::Proven(proven) = identity else {
        let role = settings.anonymous_role.clone().ok_or(NoRole::Anonymous)?;
        // As PostgREST has it: the role is the only claim of who has none.
        let declared = settings.claims.contains(&settings.role_claim);
        let mut claims = Map::new();
        if declared {
            insert(&mut claims, &settings.role_claim.0, Value::String(role.clone()));
        }
        return Ok(RlsIdentity { role, claims: canonical(&Value::Object(claims)) });
    };
    if settings.roles.is_empty() {
        return Err(NoRole::NoneAllowed);
    }
    let role = settings.role_claim.find(&proven.all).and_then(|(_, value)| value.as_str()).ok_or(NoRole::Missing)?;
    if !settings.roles.iter().any(|allowed| allowed == role) {
        return Err(NoRole::NotAllowed);
    }
    let mut claims = Map::new();
    for path in &settings.claims {
        if let Some((names, value)) = path.find(&proven.all) {
            insert(&mut claims, &names, value.clone());
        }
    }
    Ok(RlsIdentity { role: role.to_owned(), claims: canonical(&Value::Object(claims)) })
}

/// Puts a value at its path, beside what is there.
fn insert(claims: &mut Map<String, Value>, path: &[String], value: Value) {
    match path {
        [] => {}
        [name] => drop(claims.insert(name.clone(), value)),
        [name, rest @ ..] => {
            let inner = claims.entry(name.clone()).or_insert_with(|| Value::Object(Map::new()));
            // Declared whole as well: then it is all there.
            if let Value::Object(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// JSON text with the names of every object sorted, whatever order the token has them in.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(object) => {
            let mut members: Vec<(&String, &Value)> = object.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            let members: Vec<String> = members
                .into_iter()
                .map(|(name, value)| format!("{}:{}", Value::from(name.as_str()), canonical(value)))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(canonical).collect();
            format!("[{}]", items.join(","))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::identity::Claims;

    fn proven(claims: Value) -> Identity {
        let Value::Object(all) = claims else { panic!("an object") };
        Identity::Proven(Arc::new(Claims { all, expires: None }))
    }

    fn settings(claims: &[&str]) -> RlsSettings {
        RlsSettings {
            roles: vec!["app".into(), "staff".into()],
            claims: claims.iter().map(|path| path.parse().expect("a path")).collect(),
            ..RlsSettings::default()
        }
    }

    fn resolved(identity: &Identity, settings: &RlsSettings) -> Result<(String, String), NoRole> {
        role_and_claims(identity, settings).map(|resolved| (resolved.role, resolved.claims))
    }

    #[test]
    fn only_declared_claims_are_told_sorted_by_name() {
        let token = proven(json!({
            "sub": "u1", "role": "app", "exp": 5, "email": "secret",
            "app_metadata": {"tenant": 7, "plan": {"z": 1, "a": [2, {"d": 1, "c": null}]}, "other": true},
            "https://x.example/team": "red",
        }));
        let (role, claims) = resolved(
            &token,
            &settings(&["sub", "app_metadata.tenant", "app_metadata.plan", "https://x.example/team", "missing.deep"]),
        )
        .expect("a role");
        assert_eq!(role, "app");
        assert_eq!(
            claims,
            r#"{"app_metadata":{"plan":{"a":[2,{"c":null,"d":1}],"z":1},"tenant":7},"https://x.example/team":"red","sub":"u1"}"#
        );
    }

    #[test]
    fn equal_claims_are_one_identity_and_others_are_not() {
        let hash = |claims: Value| role_and_claims(&proven(claims), &settings(&["sub"])).expect("a role").hash_text();
        assert_eq!(
            hash(json!({"sub": "a", "role": "app", "jti": 1})),
            hash(json!({"jti": 2, "role": "app", "sub": "a"}))
        );
        let different = [
            hash(json!({"sub": "a", "role": "app"})),
            hash(json!({"sub": "b", "role": "app"})),
            hash(json!({"sub": "a", "role": "staff"})),
            hash(json!({"sub": 1, "role": "app"})),
            hash(json!({"sub": "1", "role": "app"})),
            hash(json!({"role": "app"})),
        ];
        assert_eq!(different.iter().collect::<std::collections::HashSet<_>>().len(), different.len());
    }

    #[test]
    fn a_role_has_to_be_named_and_allowed() {
        let app = proven(json!({"role": "app"}));
        assert_eq!(resolved(&app, &RlsSettings::default()), Err(NoRole::NoneAllowed));
        for (claims, why) in [
            (json!({}), NoRole::Missing),
            (json!({"role": 1}), NoRole::Missing),
            (json!({"role": ["app"]}), NoRole::Missing),
            (json!({"role": "postgres"}), NoRole::NotAllowed),
            (json!({"role": "App"}), NoRole::NotAllowed),
            (json!({"role": "app "}), NoRole::NotAllowed),
        ] {
            assert_eq!(resolved(&proven(claims.clone()), &settings(&["sub"])), Err(why), "{claims}");
        }
        let nested = RlsSettings { role_claim: "realm.role".parse().expect("a path"), ..settings(&["sub"]) };
        assert!(resolved(&proven(json!({"realm": {"role": "staff"}, "sub": "x"})), &nested).is_ok());
    }

    #[test]
    fn who_has_no_token_has_the_anonymous_role_or_none() {
        assert_eq!(resolved(&Identity::Anonymous, &settings(&["sub", "role"])), Err(NoRole::Anonymous));
        let open = RlsSettings { anonymous_role: Some("anon".into()), ..settings(&["sub", "role"]) };
        let expected = ("anon".to_owned(), r#"{"role":"anon"}"#.to_owned());
        assert_eq!(resolved(&Identity::Anonymous, &open), Ok(expected));
        // A token does not fall back to it, nor may it name it.
        assert_eq!(resolved(&proven(json!({"sub": "x"})), &open), Err(NoRole::Missing));
        assert_eq!(resolved(&proven(json!({"role": "anon"})), &open), Err(NoRole::NotAllowed));
    }

    #[test]
    fn an_onlooker_comes_back_from_the_store_as_it_went() {
        let identity = Arc::new(RlsIdentity { role: "a\"b".into(), claims: r#"{"sub":"x"}"#.into() });
        let onlooker = Onlooker { feed: FeedKey { name: "notes".into(), generation: 7 }, identity };
        assert_eq!(Onlooker::parse(&onlooker.text()).expect("its own text"), onlooker);
    }
}
