//! The pages that live inside the binary: the demo page, the client `rowcast.js` and its types; and the answer to
//! every other path.

use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use rust_embed::RustEmbed;

use super::problem::Problem;
use super::rows::names_etag;
use crate::version::base36;

/// Everything under `static/`; a debug build reads it from there at every request.
#[derive(RustEmbed)]
#[folder = "static/"]
struct Assets;

/// Serves an embedded file, `index.html` for the root.
pub async fn asset(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let path = match uri.path().trim_start_matches('/') {
        "" => "index.html",
        path => path,
    };
    let Some(file) = Assets::get(path) else {
        return Problem::of(StatusCode::NOT_FOUND, "there is nothing here").into_response();
    };
    if method != Method::GET && method != Method::HEAD {
        let problem = Problem::of(StatusCode::METHOD_NOT_ALLOWED, "not with this method");
        return ([(header::ALLOW, "GET,HEAD")], problem).into_response();
    }
    let etag = format!("\"{}\"", base36(xxhash_rust::xxh3::xxh3_64(&file.data)));
    let headers_out = [
        (header::CONTENT_TYPE, content_type(path)),
        // Asked again each time, answered with 304: a new release is seen at the next load.
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // A page of another origin may load the client: it is the same for everybody. Whether that page may connect is
        // another question, and asked of the websocket.
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ETAG, &etag),
    ];
    if names_etag(&headers, &etag) {
        return (StatusCode::NOT_MODIFIED, headers_out).into_response();
    }
    (headers_out, file.data).into_response()
}

/// By the name's ending; browsers refuse modules of a wrong type.
fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, ending)| ending) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("json" | "map") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("ico") => "image/x-icon",
        Some("woff2") => "font/woff2",
        // Type declarations and notes are for people.
        Some("ts" | "md" | "txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_have_the_type_that_browsers_insist_on() {
        assert_eq!(content_type("rowcast.js"), "text/javascript; charset=utf-8");
        assert_eq!(content_type("rowcast.d.ts"), "text/plain; charset=utf-8");
        assert_eq!(content_type("index.html"), "text/html; charset=utf-8");
        assert_eq!(content_type("LICENSE"), "application/octet-stream");
    }

    #[tokio::test]
    async fn every_embedded_file_is_served_and_then_not_modified() {
        for path in Assets::iter() {
            let get = |headers| asset(Method::GET, format!("/{path}").parse().expect("a path"), headers);
            let response = get(HeaderMap::new()).await;
            assert_eq!(response.status(), StatusCode::OK, "{path}");
            assert_eq!(response.headers()["cache-control"], "no-cache", "{path}");
            // Browsers load modules of another origin only so.
            assert_eq!(response.headers()["access-control-allow-origin"], "*", "{path}");
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, response.headers()[header::ETAG].clone());
            assert_eq!(get(headers).await.status(), StatusCode::NOT_MODIFIED, "{path}");
        }
    }
}
