//! Errors over HTTP: `application/problem+json` (RFC 9457), with the protocol's own code beside the status.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::protocol::{ErrorCode, Refusal};

/// A refused request.
#[derive(Debug, Serialize)]
pub struct Problem {
    title: &'static str,
    status: u16,
    detail: String,
    /// As in `error` frames, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<ErrorCode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

impl Problem {
    /// A problem that the protocol has no code for.
    pub fn of(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            code: None,
            at: None,
            retry_after_ms: None,
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self {
            code: Some(refusal.code),
            at: refusal.at,
            retry_after_ms: refusal.retry_after_ms,
            ..Self::of(status_of(refusal.code), refusal.message)
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_string(&self).expect("a problem has text keys only");
        let headers = [(header::CONTENT_TYPE, "application/problem+json"), (header::CACHE_CONTROL, "no-store")];
        let mut response = (status, headers, body).into_response();
        if let Some(delay_ms) = self.retry_after_ms {
            // The header knows whole seconds only: the next one, so that nobody comes too early.
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(delay_ms.div_ceil(1_000)));
        }
        response
    }
}

fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::UnknownPublication => StatusCode::NOT_FOUND,
        ErrorCode::Forbidden => StatusCode::FORBIDDEN,
        ErrorCode::TooManyRows => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::BadToken => StatusCode::UNAUTHORIZED,
        ErrorCode::TooManySubscriptions => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::BadQuery
        | ErrorCode::DuplicateId
        | ErrorCode::UnknownOp
        | ErrorCode::UnknownId
        | ErrorCode::BadMessage => StatusCode::BAD_REQUEST,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    async fn read(response: Response) -> serde_json::Value {
        let body = axum::body::to_bytes(response.into_body(), 4096).await.expect("a body");
        serde_json::from_slice(&body).expect("JSON")
    }

    #[tokio::test]
    async fn a_refusal_keeps_its_code_and_place() {
        let refusal = Refusal { at: Some(7), ..Refusal::new(ErrorCode::BadQuery, "no `=`") };
        let response = Problem::from(refusal).into_response();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(
            read(response).await,
            json!({"title":"Bad Request","status":400,"detail":"no `=`","code":"bad_query","at":7})
        );
    }

    #[tokio::test]
    async fn unavailable_says_when_to_come_back() {
        let refusal = Refusal { retry_after_ms: Some(1_200), ..Refusal::unavailable("not yet") };
        let response = Problem::from(refusal).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(read(response).await["retry_after_ms"], 1_200);
    }
}
