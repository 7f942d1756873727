//! Who a session's client is, and for how long.
//!
//! ```text
//!            good token                     good token (refresh)
//!  nobody ─────────────▶ proven until exp ◀─────────────────────┐
//!    │                        │ │   bad token: an error, the old one holds
//!    │ bad token: 4501, 4401  │ └───── a minute before: `expiring` ─────┘
//!    │ none in time: 4408     └── exp: 4401 · revoked: 4401
//! ```
//!
//! A token comes with the request, as a subprotocol or in a cookie, or as `auth`. A cookie is sent along by browsers,
//! whatever is in it, and must not keep out who has a better token: one that is refused waits a little while for the
//! first message, and if that is `auth` it does not count.
//!
//! A session may stand still in a write when its client's time is over; therefore the end is watched from outside of
//! it, by [`until_invalid`].

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Session;
use super::end::End;
use crate::identity::Identity;
use crate::identity::revocation::Revocations;
use crate::identity::token::{TokenError, Verifier};
use crate::protocol::{self, CloseReason, ErrorCode, Refusal};

/// A client is told so long before its token expires, or when half of a short life is left.
const EXPIRING_BEFORE: Duration = Duration::from_secs(60);

/// How long a cookie that is refused waits for the first message: a page that has a token sends it at once.
const COOKIE_PATIENCE: Duration = Duration::from_secs(3);

/// The clock on the wall is looked at this often: it goes on while the machine sleeps, and may be set right.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What a client has to prove.
#[derive(Clone, Debug)]
pub struct Admission {
    /// `None`: nobody can prove anything.
    pub verifier: Option<Arc<Verifier>>,
    /// Whether those without a token are served what is public.
    pub anonymous: bool,
    /// How long a client may take to come with its token.
    pub auth_max: Duration,
}

impl Default for Admission {
    /// No tokens: everybody is anonymous.
    fn default() -> Self {
        Self { verifier: None, anonymous: true, auth_max: Duration::from_secs(10) }
    }
}

impl Admission {
    /// Asks whether an identity holds, and was not taken back since.
    pub fn still_proven(&self, identity: Identity) -> impl Fn() -> bool + Send + 'static {
        let revocations = self.verifier.as_ref().map(|verifier| verifier.revocations());
        move || match &identity {
            Identity::Anonymous => true,
            Identity::Proven(claims) => {
                let is_revoked = revocations.as_ref().is_some_and(|revoked| revoked.borrow().revokes(claims));
                !is_revoked && claims.left() != Some(Duration::ZERO)
            }
        }
    }
}

/// What came with the request; not to be printed.
#[derive(Clone, PartialEq, Eq)]
pub enum Offer {
    Nothing,
    /// The subprotocol `bearer.<token>`.
    Subprotocol(String),
    Cookie(String),
    /// A cookie, and nothing that says which page sent it.
    CookieFromNowhere,
}

/// A session's part of it.
pub(super) struct Auth {
    admission: Admission,
    /// Watched by [`until_invalid`].
    identity: watch::Sender<Identity>,
    /// Set by a token with an end, unset when the client was told.
    expiring_at: Option<Instant>,
    /// Until the first token was taken: when patience ends, and how. Unset for good when anonymity is all right.
    deadline: Option<(Instant, CloseReason)>,
    /// The cookie that came with the request is no good: the first message decides.
    refused_cookie: Option<CloseReason>,
}

impl Auth {
    pub(super) fn new(admission: Admission, now: Instant) -> Self {
        let deadline = (!admission.anonymous).then_some((now + admission.auth_max, CloseReason::NoAuthInTime));
        Self {
            admission,
            identity: watch::Sender::new(Identity::Anonymous),
            expiring_at: None,
            deadline,
            refused_cookie: None,
        }
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity.borrow().clone()
    }

    /// For [`until_invalid`]; `None` where there are no tokens.
    pub(super) fn watch(&self) -> Option<Watch> {
        let verifier = self.admission.verifier.as_ref()?;
        Some(Watch { identity: self.identity.subscribe(), revocations: verifier.revocations() })
    }

    /// Whether this client may ask for channels: nobody may where anonymity is off.
    pub(super) fn may_subscribe(&self) -> bool {
        self.admission.anonymous || *self.identity.borrow() != Identity::Anonymous
    }

    /// When something is due next.
    pub(super) fn due(&self) -> Option<Instant> {
        let deadline = self.deadline.map(|(at, _)| at);
        self.expiring_at.into_iter().chain(deadline).min()
    }

    /// The first message was another than `auth`.
    pub(super) fn settle_cookie(&mut self) -> Result<(), End> {
        self.refused_cookie.map_or(Ok(()), |reason| Err(End::Closed(reason)))
    }

    fn refuse_cookie(&mut self, reason: CloseReason, now: Instant) {
        self.refused_cookie = Some(reason);
        self.deadline = Some((now + COOKIE_PATIENCE, reason));
    }

    /// Takes an identity that was just proved; the frame that says so.
    fn admit(&mut self, identity: Identity, now: Instant) -> protocol::Frame {
        let Identity::Proven(claims) = &identity else { return protocol::authenticated(None, None) };
        let left = claims.left();
        // A life beyond what the clock can count does not end while anybody looks.
        self.expiring_at = left.and_then(|left| now.checked_add(left - EXPIRING_BEFORE.min(left / 2)));
        self.deadline = None;
        self.refused_cookie = None;
        let told = protocol::authenticated(claims.subject(), left);
        self.identity.send_replace(identity);
        told
    }
}

impl Session<'_> {
    /// Looks at what came with the request.
    pub(super) async fn take_offer(&mut self, offer: Offer) -> Result<(), End> {
        match offer {
            Offer::Nothing => Ok(()),
            Offer::CookieFromNowhere => {
                self.auth.refuse_cookie(CloseReason::OriginRefused, Instant::now());
                Ok(())
            }
            Offer::Subprotocol(token) => self.authenticate(&token).await,
            Offer::Cookie(token) => match self.authenticate(&token).await {
                Err(End::Closed(reason)) => {
                    self.auth.refuse_cookie(reason, Instant::now());
                    Ok(())
                }
                other => other,
            },
        }
    }

    /// Takes a token: the first, or another to go on with.
    pub(super) async fn authenticate(&mut self, token: &str) -> Result<(), End> {
        let Some(verifier) = self.auth.admission.verifier.clone() else {
            let refusal = Refusal::new(ErrorCode::BadToken, "this server has no token verification configured");
            return self.reply(protocol::error(None, &refusal)).await;
        };
        match verifier.verify(token).await {
            Ok(claims) => {
                let identity = Identity::Proven(claims);
                let told = self.auth.admit(identity.clone(), Instant::now());
                Ok(self.hub.reidentify(self.id, identity, told).await?)
            }
            Err(error) if self.auth.identity() != Identity::Anonymous => {
                let refusal = Refusal::new(ErrorCode::BadToken, error.to_string());
                self.reply(protocol::error(None, &refusal)).await
            }
            Err(error) => {
                tracing::debug!(%error, "a token was refused");
                let refusal = Refusal::new(ErrorCode::BadToken, error.to_string());
                self.reply(protocol::error(None, &refusal)).await?;
                Err(End::Closed(reason_of(error)))
            }
        }
    }

    /// Does what is due of it.
    pub(super) async fn tick_auth(&mut self, now: Instant) -> Result<(), End> {
        if let Some((at, reason)) = self.auth.deadline
            && at <= now
        {
            return Err(End::Closed(reason));
        }
        if self.auth.expiring_at.is_some_and(|at| at <= now) {
            self.auth.expiring_at = None;
            let left = match &*self.auth.identity.borrow() {
                Identity::Proven(claims) => claims.left(),
                Identity::Anonymous => None,
            };
            if let Some(left) = left {
                return self.reply(protocol::expiring(left)).await;
            }
        }
        Ok(())
    }
}

/// What [`until_invalid`] looks at.
pub(super) struct Watch {
    identity: watch::Receiver<Identity>,
    revocations: watch::Receiver<Revocations>,
}

/// Waits until the identity's time is over, or it is taken back. Never without tokens.
pub(super) async fn until_invalid(watch: Option<Watch>) -> CloseReason {
    let Some(Watch { mut identity, mut revocations }) = watch else { return std::future::pending().await };
    loop {
        let now_is = identity.borrow_and_update().clone();
        if revocations.borrow_and_update().revokes_identity(&now_is) {
            return CloseReason::TokenRevoked;
        }
        let left = match &now_is {
            Identity::Proven(claims) => claims.left(),
            Identity::Anonymous => None,
        };
        if left == Some(Duration::ZERO) {
            return CloseReason::TokenExpired;
        }
        let expired = async {
            match left {
                Some(left) => tokio::time::sleep(left.min(LOOK_EVERY)).await,
                None => std::future::pending().await,
            }
        };
        // Wake-ups: another token was taken; something was revoked; it may have expired. A sender that has gone says
        // nothing more: the session or the node ends.
        tokio::select! {
            Ok(()) = identity.changed() => {}
            Ok(()) = revocations.changed() => {}
            () = expired => {}
        }
    }
}

/// How a connection ends whose first token does not do. With another token it may be let in where that can help.
fn reason_of(error: TokenError) -> CloseReason {
    match error {
        TokenError::Refused(_) => CloseReason::TokenRefused,
        TokenError::Expired => CloseReason::TokenExpired,
        TokenError::Revoked => CloseReason::TokenRevoked,
        TokenError::Unavailable => CloseReason::Overloaded,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::identity::Claims;

    fn proven(seconds: i64) -> Identity {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_secs();
        let all = json!({"sub":"u1"}).as_object().expect("an object").clone();
        Identity::Proven(Arc::new(Claims { all, expires: Some(now as i64 + seconds) }))
    }

    #[test]
    fn a_client_is_told_a_minute_before_or_when_half_of_a_short_life_is_left() {
        let now = Instant::now();
        for (life, told_after) in [(3_600, 3_540), (120, 60), (100, 50), (4, 2)] {
            let mut auth = Auth::new(Admission::default(), now);
            auth.admit(proven(life), now);
            let after = auth.due().expect("a moment") - now;
            // The life began a part of a second ago.
            let expected = Duration::from_secs(told_after);
            assert!(after <= expected && after + Duration::from_secs(1) > expected, "{life}: {after:?}");
        }
        let mut auth = Auth::new(Admission::default(), now);
        auth.admit(proven(i64::MAX / 2), now);
        assert!(auth.due().is_none_or(|at| at > now + Duration::from_secs(3_600)));
    }

    #[test]
    fn patience_ends_with_the_first_token() {
        let now = Instant::now();
        let strict = Admission { anonymous: false, ..Admission::default() };
        let mut auth = Auth::new(strict, now);
        assert_eq!(auth.due(), Some(now + Duration::from_secs(10)));
        assert!(!auth.may_subscribe());
        auth.admit(proven(3_600), now);
        assert!(auth.due().is_some_and(|at| at > now + Duration::from_secs(10)));
        assert!(auth.may_subscribe());
    }
}
