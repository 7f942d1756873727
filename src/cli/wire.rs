//! A websocket to a Rowcast server, for terminals and tests: text frames out, text frames and a close code in.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use url::Url;

use crate::protocol::SUBPROTOCOL;

/// For the connection and the handshake together.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);

/// Closing codes from here to 4999 are final (DESIGN §6).
const FINAL_CODES_FROM: u16 = 4500;

/// The token has expired or was revoked. We have no other.
const TOKEN_EXPIRED: u16 = 4401;

/// An open connection.
pub(super) struct Wire {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The server said that coming back is useless.
    #[error("{0}")]
    Final(String),
    /// Anything that may be better next time.
    #[error("{message}")]
    Passing { message: String, retry_after: Option<Duration> },
}

impl Wire {
    /// Connects.
    ///
    /// # Errors
    /// Whatever may be better next time; a refused handshake too, since the server may only be starting.
    pub(super) async fn open(url: &Url) -> Result<Self, WireError> {
        match timeout(OPEN_PATIENCE, Self::handshake(url)).await {
            Ok(Ok(wire)) => Ok(wire),
            Ok(Err(error)) => Err(passing(format!("cannot connect to {url}: {}", describe(&error)))),
            Err(_) => Err(passing(format!("no answer from {url}"))),
        }
    }

    async fn handshake(url: &Url) -> Result<Self, tungstenite::Error> {
        let mut request = url.as_str().into_client_request()?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(SUBPROTOCOL));
        let (socket, _) = tokio_tungstenite::connect_async_with_config(request, None, true).await?;
        Ok(Self { socket })
    }

    pub(super) async fn send(&mut self, text: String) -> Result<(), WireError> {
        self.socket.send(Message::text(text)).await.map_err(|error| passing(describe(&error)))
    }

    /// The next text frame. Cancel-safe.
    pub(super) async fn receive(&mut self) -> Result<tungstenite::Utf8Bytes, WireError> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return Ok(text),
                Some(Ok(Message::Close(frame))) => {
                    let (code, reason) = match &frame {
                        Some(frame) => (frame.code, frame.reason.as_str()),
                        None => (CloseCode::Status, ""),
                    };
                    return Err(closed(code.into(), reason));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(passing(describe(&error))),
                None => return Err(passing("the connection was cut".to_owned())),
            }
        }
    }
}

/// Reads an address as people write it: without a path it is that of the websocket, and http is as good as ws.
///
/// # Errors
/// What was expected.
pub(super) fn parse_url(text: &str) -> Result<Url, String> {
    const EXPECTED: &str = "expected ws://host:port, such as ws://127.0.0.1:8080/v1/ws";
    let mut url = Url::parse(text).map_err(|error| format!("{EXPECTED} ({error})"))?;
    match url.scheme() {
        "ws" => {}
        "http" => url.set_scheme("ws").map_err(|()| EXPECTED)?,
        "wss" | "https" => {
            return Err("this program does not speak TLS: use ws:// to a server it can reach directly".into());
        }
        _ => return Err(EXPECTED.into()),
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(EXPECTED.into());
    }
    if url.path() == "/" {
        url.set_path("/v1/ws");
    }
    Ok(url)
}

fn closed(code: u16, reason: &str) -> WireError {
    #[derive(serde::Deserialize)]
    struct Reason {
        code: String,
        retry_after_ms: Option<u64>,
    }
    let reason: Option<Reason> = serde_json::from_str(reason).ok();
    let word = reason.as_ref().map(|reason| format!(" {}", reason.code)).unwrap_or_default();
    let message = format!("the server closed the connection ({code}{word})");
    if (FINAL_CODES_FROM..5000).contains(&code) || code == TOKEN_EXPIRED {
        return WireError::Final(message);
    }
    let retry_after = reason.and_then(|reason| reason.retry_after_ms).map(Duration::from_millis);
    WireError::Passing { message, retry_after }
}

fn passing(message: String) -> WireError {
    WireError::Passing { message, retry_after: None }
}

fn describe(error: &tungstenite::Error) -> String {
    match error {
        tungstenite::Error::Io(error) => error.to_string(),
        tungstenite::Error::Http(response) => {
            format!("the server answered {} instead of a websocket", response.status())
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for text in ["ws://localhost:8080", "http://localhost:8080/", "ws://localhost:8080/v1/ws"] {
            assert_eq!(parse_url(text).expect(text).as_str(), "ws://localhost:8080/v1/ws");
        }
        assert_eq!(parse_url("ws://proxy/rowcast/v1/ws").expect("a URL").path(), "/rowcast/v1/ws");
        for text in ["", "localhost:8080", "ftp://x", "wss://x", "ws://"] {
            assert!(parse_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn codes_from_4500_are_final() {
        assert!(matches!(closed(4500, ""), WireError::Final(_)));
        assert!(matches!(closed(4999, "x"), WireError::Final(_)));
        assert!(matches!(closed(4401, ""), WireError::Final(_)));
        let error = closed(1012, r#"{"code":"restart","retry_after_ms":250}"#);
        assert!(matches!(&error, WireError::Passing { retry_after: Some(delay), .. } if delay.as_millis() == 250));
        assert_eq!(error.to_string(), "the server closed the connection (1012 restart)");
        assert!(matches!(closed(4409, ""), WireError::Passing { .. }));
    }
}
