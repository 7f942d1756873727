//! What a publication's policy becomes for an identity.
//!
//! A filter policy has the syntax of a channel, with claims in braces: `tenant_id=eq.{tenant_id}`, `region=in.{regions}`,
//! `or=(owner.eq.{sub},path.like.{app.prefix}/*)`. It is read first and filled then, so that a claim is data whatever it
//! holds: quotes, commas and wildcards in it mean themselves. What cannot be filled denies: a claim that is missing, null,
//! of the wrong shape, or no value of the column's type. A refusal says nothing of the publication or of the claim.

use std::sync::Arc;

use serde_json::Value as Json;

use super::{Claims, Identity, ResolvedPolicy, RlsSettings, rls};
use crate::protocol::{ErrorCode, Refusal};
use crate::publication::{Policy, Publication};
use crate::query::{ChannelRequest, Condition, Literal, Scope, Value, like, resolve_filter};

/// Above this a number of a token has lost digits, and may be somebody else's.
const EXACT_BELOW: f64 = 9_007_199_254_740_992.0;

/// What an identity may see of a publication; `known` gives a literal's canonical value, as for
/// [`crate::query::resolve`]. `Ok(Err(…))`: these have to be cast first.
///
/// # Errors
/// `forbidden`, with nothing about the publication in it.
pub fn resolve(
    identity: &Identity,
    publication: &Publication,
    rls: &RlsSettings,
    known: impl Fn(&Literal) -> Option<Result<Arc<str>, String>>,
) -> Result<Result<ResolvedPolicy, Vec<Literal>>, Refusal> {
    match (&publication.policy, identity) {
        (Policy::Public, _) => Ok(Ok(ResolvedPolicy::Public)),
        (Policy::Authenticated, Identity::Proven(_)) => Ok(Ok(ResolvedPolicy::Authenticated)),
        (Policy::Filter(text), Identity::Proven(claims)) => {
            let template = ChannelRequest::parse_policy(text).map_err(|refusal| broken(publication, &refusal))?;
            let filled = template.iter().map(|condition| fill(condition, claims)).collect::<Option<Vec<_>>>();
            let filled = filled.ok_or_else(forbidden)?;
            // The message would name the claim's value.
            let resolved = resolve_filter(&filled, publication, Scope::All, known).map_err(|_| forbidden())?;
            Ok(resolved.map(ResolvedPolicy::Filter))
        }
        (Policy::Rls, identity) => rls::resolve(identity, &publication.feed, rls).map(ResolvedPolicy::Rls).map(Ok),
        (Policy::Authenticated | Policy::Filter(_), Identity::Anonymous) => Err(forbidden()),
    }
}

fn forbidden() -> Refusal {
    Refusal::new(ErrorCode::Forbidden, "this publication is not open to you")
}

/// Publishing checks policies, so that this one was written by another way.
fn broken(publication: &Publication, refusal: &Refusal) -> Refusal {
    tracing::error!(publication = %publication.feed, message = refusal.message, at = refusal.at, "a policy that cannot be read");
    forbidden()
}

/// The condition with its claims filled in; `None`: denied.
fn fill(condition: &Condition, claims: &Claims) -> Option<Condition> {
    let each = |conditions: &[Condition]| -> Option<Vec<Condition>> {
        conditions.iter().map(|condition| fill(condition, claims)).collect()
    };
    Some(match condition {
        Condition::All(all) => Condition::All(each(all)?),
        Condition::Any(any) => Condition::Any(each(any)?),
        Condition::Not(inner) => Condition::Not(Box::new(fill(inner, claims)?)),
        Condition::Compare { column, op, value } => {
            Condition::Compare { column: column.clone(), op: *op, value: filled(value, claims, str::to_owned)? }
        }
        Condition::In { column, values } => {
            let values = values.iter().map(|value| filled(value, claims, str::to_owned)).collect::<Option<_>>()?;
            Condition::In { column: column.clone(), values }
        }
        Condition::InClaim { column, claim } => {
            let path = claim.text.strip_prefix('{')?.strip_suffix('}')?;
            let Json::Array(items) = find(path, claims)? else { return None };
            let literal = |item: &Json| Some(Value { text: scalar(item)?.into(), ..claim.clone() });
            let values = items.iter().map(literal).collect::<Option<Vec<_>>>()?;
            // Nothing is in an empty list.
            (!values.is_empty()).then(|| Condition::In { column: column.clone(), values })?
        }
        Condition::Like { column, pattern, ignore_case } => Condition::Like {
            column: column.clone(),
            pattern: filled(pattern, claims, like::escape)?,
            ignore_case: *ignore_case,
        },
        Condition::Is { .. } => condition.clone(),
    })
}

/// A literal with its claims filled in, each made ready by `write`. Braces in quotes are braces.
fn filled(value: &Value, claims: &Claims, write: impl Fn(&str) -> String) -> Option<Value> {
    if value.is_quoted {
        return Some(value.clone());
    }
    let mut text = String::new();
    let mut rest = &*value.text;
    while let Some((before, after)) = rest.split_once('{') {
        let (path, after) = after.split_once('}')?;
        text.push_str(before);
        text.push_str(&write(&scalar(find(path, claims)?)?));
        rest = after;
    }
    text.push_str(rest);
    Some(Value { text: text.into(), ..value.clone() })
}

/// A claim by its name, or by a path of names with dots between. A name with dots in it, as in an address, goes first.
fn find<'a>(path: &str, claims: &'a Claims) -> Option<&'a Json> {
    if let Some(claim) = claims.all.get(path) {
        return Some(claim);
    }
    let (first, rest) = path.split_once('.')?;
    rest.split('.').try_fold(claims.all.get(first)?, |claim, name| claim.as_object()?.get(name))
}

/// The text of a claim that is a single value and came through without a loss.
fn scalar(claim: &Json) -> Option<String> {
    match claim {
        Json::String(text) if text.contains('\0') => None,
        Json::String(text) => Some(text.clone()),
        Json::Bool(truth) => Some(truth.to_string()),
        Json::Number(number) if number.is_f64() && number.as_f64().is_none_or(|number| number.abs() >= EXACT_BELOW) => {
            None
        }
        Json::Number(number) => Some(number.to_string()),
        Json::Null | Json::Array(_) | Json::Object(_) => None,
    }
}
