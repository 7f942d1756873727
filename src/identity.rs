//! Who a client is, and what a publication's policy becomes for it.
//!
//! Every channel is resolved through [`resolve`], and its result is part of the channel and of every cache key: the cache
//! key is the permission. An identity is proved by a token: [`token`] verifies it with [`keys`], which [`jwks`] may fetch,
//! unless it was taken back ([`revocation`]).

pub mod jwks;
pub mod keys;
mod policy;
pub mod revocation;
pub mod rls;
mod strict;
pub mod token;

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::entry::seen::Sight;
use crate::query::Filter;

pub use policy::resolve;
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

/// What a verified token says. Its values are nobody's business but the client's: `Debug` does not print them.
#[derive(Clone, Default, PartialEq, Eq)]
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

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims").field("count", &self.all.len()).field("expires", &self.expires).finish()
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
