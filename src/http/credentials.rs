//! Where a request keeps its token: `Authorization`, a subprotocol, a cookie; never the address, which ends up in logs.
//!
//! Nothing is verified here, and nothing is ever sent back.

use std::sync::Arc;

use axum::http::header::{AUTHORIZATION, COOKIE, SEC_WEBSOCKET_PROTOCOL};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::EdgeSettings;
use super::problem::Problem;
use crate::identity::Identity;
use crate::identity::token::{TokenError, Verifier};
use crate::protocol::{ErrorCode, Refusal};
use crate::session::auth::Offer;

/// What a subprotocol with a token begins with.
const BEARER: &str = "bearer.";

/// Says how a page and the server it asks are related; a page cannot set it.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What a websocket request brings.
pub fn offer(headers: &HeaderMap, settings: &EdgeSettings) -> Offer {
    let mut offered = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    if let Some(token) = offered.find_map(|offered| offered.trim().strip_prefix(BEARER)) {
        return Offer::Subprotocol(token.to_owned());
    }
    match settings.cookie.as_deref().and_then(|name| cookie(headers, name)) {
        None => Offer::Nothing,
        Some(token) if settings.allowed_origins.admits_cookie(headers) => Offer::Cookie(token),
        Some(_) => Offer::CookieFromNowhere,
    }
}

/// Whom a read is for.
///
/// # Errors
/// 401: the token does not do, or there has to be one. 503: nobody can tell now.
pub async fn identify(headers: &HeaderMap, settings: &EdgeSettings) -> Result<Identity, Unauthorized> {
    let admission = &settings.admission;
    let Some(token) = token(headers, settings) else {
        return match admission.anonymous {
            true => Ok(Identity::Anonymous),
            false => Err(Unauthorized::Missing),
        };
    };
    match &admission.verifier {
        Some(verifier) => verify(verifier, &token).await,
        None => Err(Unauthorized::Bad("this server has no token verification configured".into())),
    }
}

async fn verify(verifier: &Arc<Verifier>, token: &str) -> Result<Identity, Unauthorized> {
    match verifier.verify(token).await {
        Ok(claims) => Ok(Identity::Proven(claims)),
        Err(TokenError::Unavailable) => Err(Unauthorized::Unavailable),
        Err(error) => Err(Unauthorized::Bad(error.to_string())),
    }
}

/// A request's token. A browser does not name the origin when a page reads from its own; that it is its own, it says by
/// `Sec-Fetch-Site`. A cookie that no page of ours sent is left alone: such a request is anonymous.
fn token(headers: &HeaderMap, settings: &EdgeSettings) -> Option<String> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, token) = value.trim().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
    });
    bearer.or_else(|| {
        let own = headers.get(SEC_FETCH_SITE).is_some_and(|site| site == "same-origin");
        let may = settings.allowed_origins.admits_cookie(headers) || (own && !headers.contains_key(header::ORIGIN));
        may.then(|| cookie(headers, settings.cookie.as_deref()?)).flatten()
    })
}

/// The value of a cookie; an empty one is none.
fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(found, _)| *found == name)?;
    let value = value.trim_matches('"');
    (!value.is_empty()).then(|| value.to_owned())
}

/// Why a request is not answered for whoever sent it.
#[derive(Debug)]
pub enum Unauthorized {
    Missing,
    Bad(String),
    Unavailable,
}

impl IntoResponse for Unauthorized {
    fn into_response(self) -> Response {
        // RFC 6750, 3: a request without a token is told no error.
        let (challenge, refusal) = match self {
            Self::Unavailable => {
                return Problem::from(Refusal::unavailable("the token cannot be verified now")).into_response();
            }
            Self::Missing => ("Bearer", Refusal::new(ErrorCode::BadToken, "this server serves nobody without a token")),
            Self::Bad(message) => (r#"Bearer error="invalid_token""#, Refusal::new(ErrorCode::BadToken, message)),
        };
        let mut response = Problem::from(refusal).into_response();
        debug_assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> EdgeSettings {
        EdgeSettings { cookie: Some("session".into()), ..EdgeSettings::default() }
    }

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_websocket_brings_its_token_as_a_subprotocol_before_a_cookie() {
        let own = [("host", "a.example"), ("origin", "https://a.example")];
        let with = |more: &[(&'static str, &'static str)]| offer(&headers(&[&own[..], more].concat()), &settings());
        let cookie = ("cookie", "x=1; session=a.b.c; y=2");
        assert!(with(&[]) == Offer::Nothing);
        assert!(with(&[cookie]) == Offer::Cookie("a.b.c".into()));
        let both = [cookie, ("sec-websocket-protocol", "rowcast.v1, bearer.d.e.f")];
        assert!(with(&both) == Offer::Subprotocol("d.e.f".into()));
        assert!(with(&[("cookie", "mysession=a; session=")]) == Offer::Nothing);
        let nowhere = headers(&[("host", "a.example"), cookie]);
        assert!(offer(&nowhere, &settings()) == Offer::CookieFromNowhere);
        assert!(offer(&nowhere, &EdgeSettings::default()) == Offer::Nothing);
    }

    #[test]
    fn a_read_brings_its_token_in_a_header_before_a_cookie_of_its_own_page() {
        let cookie = ("cookie", "session=a.b.c");
        let read = |of: &[(&'static str, &'static str)]| token(&headers(of), &settings());
        assert_eq!(read(&[("authorization", "bearer d.e.f"), cookie]).as_deref(), Some("d.e.f"));
        assert_eq!(read(&[("authorization", "Basic abc")]), None);
        assert_eq!(read(&[cookie]), None);
        assert_eq!(read(&[cookie, ("sec-fetch-site", "same-origin")]).as_deref(), Some("a.b.c"));
        assert_eq!(read(&[cookie, ("sec-fetch-site", "cross-site")]), None);
        let foreign =
            [cookie, ("host", "a.example"), ("origin", "https://b.example"), ("sec-fetch-site", "same-origin")];
        assert_eq!(read(&foreign), None);
        let own = [cookie, ("host", "a.example"), ("origin", "https://a.example")];
        assert_eq!(read(&own).as_deref(), Some("a.b.c"));
    }
}
