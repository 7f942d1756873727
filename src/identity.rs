//! Who a client is, and what a publication's policy becomes for it.
//!
//! Every channel is resolved through [`resolve`], and its result is part of the channel and of every cache key: the cache
//! key is the permission. Today `public` and `rls` open, and everything else refuses.

use std::sync::Arc;

use serde::Serialize;

use crate::entry::seen::Sight;
use crate::protocol::{ErrorCode, Refusal};
use crate::publication::{Policy, Publication};
use crate::query::Filter;

pub mod rls;

pub use rls::{Onlooker, RlsIdentity, RlsSettings};

/// A client's proved identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// Without a token: may open `public`.
    #[default]
    Anonymous,
    /// By a token that was verified.
    Proven(Arc<Claims>),
}

/// What a verified token says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// All of its claims, as they were signed.
    pub all: serde_json::Map<String, serde_json::Value>,
    /// `exp`, in seconds since 1970. A token without one is good until its connection ends.
    pub expires: Option<i64>,
}

impl Claims {
    /// `sub`, if it is a text.
    pub fn subject(&self) -> Option<&str> {
        self.text("sub")
    }

    /// `jti`, if it is a text.
    pub fn token_id(&self) -> Option<&str> {
        self.text("jti")
    }

    fn text(&self, claim: &str) -> Option<&str> {
        self.all.get(claim).and_then(serde_json::Value::as_str)
    }
}

/// A policy with an identity's claims filled in. Two identities share a channel exactly when these are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ResolvedPolicy {
    /// Every row, for everybody.
    Public,
    /// Every row, for whoever has a token.
    Authenticated,
    /// The rows that a filter holds for.
    Filter(Filter),
    /// The rows that Postgres' row security shows to an identity.
    Rls(Arc<RlsIdentity>),
}

impl ResolvedPolicy {
    /// Through whose eyes a channel of this policy looks.
    pub fn sight(&self) -> Sight {
        match self {
            Self::Rls(identity) => Sight::Of(identity.hash_text()),
            Self::Public | Self::Authenticated | Self::Filter(_) => Sight::All,
        }
    }
}

/// What an identity may see of a publication.
///
/// # Errors
/// `forbidden`, with nothing about the publication in it.
pub fn resolve(identity: &Identity, publication: &Publication, rls: &RlsSettings) -> Result<ResolvedPolicy, Refusal> {
    match &publication.policy {
        Policy::Public => Ok(ResolvedPolicy::Public),
        Policy::Rls => rls::resolve(identity, &publication.feed, rls).map(ResolvedPolicy::Rls),
        Policy::Authenticated | Policy::Filter(_) => {
            Err(Refusal::new(ErrorCode::Forbidden, "this publication is not open to you"))
        }
    }
}
