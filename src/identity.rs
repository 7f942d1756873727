//! Who a client is, and what a publication's policy becomes for it.
//!
//! Today there is one identity, the anonymous one, and one policy that opens, `public`. The seam is in place: every
//! channel is resolved through [`resolve`], and its result is part of the channel and of every cache key.

use std::fmt;

use crate::protocol::{ErrorCode, Refusal};
use crate::publication::{Policy, Publication};

/// A client's proved identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// Without a token: may open `public`.
    #[default]
    Anonymous,
}

/// A policy with an identity's claims filled in. Two identities share a channel exactly when these are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ResolvedPolicy {
    /// Every row.
    Public,
}

impl fmt::Display for ResolvedPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Public => f.write_str("public"),
        }
    }
}

/// What an identity may see of a publication.
///
/// # Errors
/// `forbidden`, with nothing about the publication in it.
pub fn resolve(identity: &Identity, publication: &Publication) -> Result<ResolvedPolicy, Refusal> {
    match (&publication.policy, identity) {
        (Policy::Public, _) => Ok(ResolvedPolicy::Public),
        (Policy::Closed(_), Identity::Anonymous) => {
            Err(Refusal::new(ErrorCode::Forbidden, "this publication is not open to you"))
        }
    }
}
