//! Which web pages may talk to this node.
//!
//! A browser names the page in `Origin`; a websocket is not held back by CORS, so the server must look. A request
//! without `Origin` does not come from a page of another site and passes, unless it uses a cookie. Which token is good is
//! another matter: this file knows no identities.

use std::str::FromStr;

use axum::http::HeaderMap;
use axum::http::header::{HOST, ORIGIN};

/// The origins whose pages may connect, and read answers across origins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// Pages that were served under the same host and port as they connect to.
    #[default]
    Same,
    /// Exactly these, as `scheme://host[:port]` in lower case without a default port.
    Listed(Vec<String>),
    Any,
}

/// A text that is not a list of origins.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not an origin: expected `scheme://host` or `scheme://host:port`, without a path; or `*` alone")]
pub struct BadOrigin(String);

impl FromStr for AllowedOrigins {
    type Err = BadOrigin;

    /// Reads `https://a.example, https://b.example:8443`, or `*`. Nothing at all means the same origin.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let items: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
        match items[..] {
            [] => Ok(Self::Same),
            ["*"] => Ok(Self::Any),
            _ => items.into_iter().map(canonical).collect::<Result<_, _>>().map(Self::Listed),
        }
    }
}

impl AllowedOrigins {
    /// Whether a websocket request with these headers may become a session.
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(ORIGIN) else { return true };
        let Ok(origin) = origin.to_str() else { return false };
        match self {
            Self::Any => true,
            // `null` and other opaque origins can be listed nowhere.
            Self::Listed(listed) => canonical(origin).is_ok_and(|origin| listed.contains(&origin)),
            Self::Same => headers.get(HOST).and_then(|host| host.to_str().ok()).is_some_and(|host| {
                // The scheme is not compared: behind a proxy that ends TLS the node cannot know its own.
                canonical(origin).is_ok_and(|origin| {
                    let scheme = origin.split("://").next().unwrap_or_default();
                    canonical(&format!("{scheme}://{host}")).is_ok_and(|own| own == origin)
                })
            }),
        }
    }

    /// Whether a cookie that came with these headers was sent by a page which may use it: one that says where it is from,
    /// and is of this origin or a listed one. That anybody may read what is public (`*`) does not let every page act for
    /// whoever looks at it.
    pub fn admits_cookie(&self, headers: &HeaderMap) -> bool {
        let by = match self {
            Self::Any => &Self::Same,
            narrower => narrower,
        };
        headers.contains_key(ORIGIN) && by.admits(headers)
    }

    /// The page's origin, where a page of another origin may read the answer to a request with these headers.
    pub fn readable_by(&self, headers: &HeaderMap) -> Option<axum::http::HeaderValue> {
        let origin = headers.get(ORIGIN)?;
        (*self != Self::Same && self.admits(headers)).then(|| origin.clone())
    }
}

/// An origin as it is compared: lower case, without the scheme's default port.
fn canonical(text: &str) -> Result<String, BadOrigin> {
    let lower = text.to_ascii_lowercase();
    let bad = || BadOrigin(text.to_owned());
    let (scheme, authority) = lower.split_once("://").ok_or_else(bad)?;
    let scheme_fits = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let may_stand = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let port_fits = port.is_none_or(|port| port.parse::<u16>().is_ok());
    if !scheme_fits || host.is_empty() || !authority.bytes().all(may_stand) || !port_fits {
        return Err(bad());
    }
    let default_port = match scheme {
        "http" => Some("80"),
        "https" => Some("443"),
        _ => None,
    };
    Ok(match port {
        Some(port) if Some(port) != default_port => format!("{scheme}://{host}:{port}"),
        _ => format!("{scheme}://{host}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(origin: &str, host: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().expect("a header"));
        if !origin.is_empty() {
            headers.insert(ORIGIN, origin.parse().expect("a header"));
        }
        headers
    }

    #[test]
    fn by_default_a_page_talks_to_where_it_came_from() {
        let same = AllowedOrigins::default();
        for (origin, host) in [
            ("", "app.example"),
            ("https://app.example", "app.example"),
            ("https://app.example", "app.example:443"),
            ("http://APP.example:80", "app.example"),
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://[::1]:8080", "[::1]:8080"),
            ("http://[::1]", "[::1]"),
        ] {
            assert!(same.admits(&headers(origin, host)), "{origin} to {host}");
        }
        for (origin, host) in [
            ("https://evil.example", "app.example"),
            ("https://app.example:8443", "app.example"),
            ("https://app.example.evil.example", "app.example"),
            ("null", "app.example"),
            ("file://", "app.example"),
            ("https://app.example/path", "app.example"),
        ] {
            assert!(!same.admits(&headers(origin, host)), "{origin} to {host}");
        }
        assert_eq!(same.readable_by(&headers("https://app.example", "app.example")), None);
    }

    #[test]
    fn a_list_replaces_the_default() {
        let listed: AllowedOrigins = " https://a.example:443,http://localhost:5173 ".parse().expect("origins");
        assert!(listed.admits(&headers("https://a.example", "api.example")));
        assert!(listed.admits(&headers("http://localhost:5173", "api.example")));
        assert!(listed.admits(&headers("", "api.example")));
        assert!(!listed.admits(&headers("https://api.example", "api.example")));
        assert!(!listed.admits(&headers("null", "api.example")));
        assert!(listed.readable_by(&headers("https://a.example", "api.example")).is_some());
        assert_eq!(listed.readable_by(&headers("https://b.example", "api.example")), None);
    }

    #[test]
    fn a_cookie_is_taken_only_from_a_page_that_may_act_for_its_reader() {
        let listed: AllowedOrigins = "https://a.example".parse().expect("origins");
        let own = headers("https://app.example", "app.example");
        let other = headers("https://a.example", "app.example");
        let none = headers("", "app.example");
        for (allowed, headers, may) in [
            (&AllowedOrigins::Same, &own, true),
            (&AllowedOrigins::Same, &other, false),
            (&AllowedOrigins::Same, &none, false),
            (&AllowedOrigins::Any, &own, true),
            (&AllowedOrigins::Any, &other, false),
            (&listed, &other, true),
            (&listed, &own, false),
            (&listed, &none, false),
        ] {
            assert_eq!(allowed.admits_cookie(headers), may, "{allowed:?} {headers:?}");
        }
    }

    #[test]
    fn a_wrong_list_is_refused_by_name() {
        assert_eq!("".parse(), Ok(AllowedOrigins::Same));
        assert_eq!("*".parse(), Ok(AllowedOrigins::Any));
        for text in
            ["a.example", "https://a.example/", "https://", "*, https://a.example", "https://a:b", "https://a:99999"]
        {
            assert!(text.parse::<AllowedOrigins>().is_err(), "{text}");
        }
    }
}
