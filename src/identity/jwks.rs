//! An issuer's keys, from a URL or a file that the operator named, and fresh.
//!
//! ```text
//!  token with an unknown kid ──▶ wanted ──▶ task: not before the pause ──▶ fetch ──▶ renew ──▶ all who wait look again
//!                                             ▲ every five minutes besides
//! ```
//!
//! One task fetches, so that a thousand tokens with ids nobody knows are one question; between two there is a pause,
//! whatever clients send. A fetch that fails changes nothing: the keys of before stay. A redirect is not followed, and
//! no token has a say in where is looked.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use tokio::io::AsyncReadExt;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use url::Url;

use super::keys::{Key, KeySet, Listed};
use super::token::TokenError;
use crate::metrics;

/// How often the keys are read without being asked for.
const REFRESH_EVERY: Duration = Duration::from_secs(300);

/// After one look for an unknown key, the next begins no sooner than this.
const PAUSE: Duration = Duration::from_secs(3);

/// How long an issuer may take to answer.
const FETCH_MAX: Duration = Duration::from_secs(5);

/// How long a token with an unknown key waits for the look that may find it.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// No set of keys is larger.
const SET_BYTES_MAX: usize = 1 << 20;

/// Where a JWK set is.
#[derive(Clone, PartialEq, Eq)]
pub enum JwksSource {
    /// By http or https.
    Url(Url),
    File(PathBuf),
}

/// Why a JWK set could not be read.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    #[error("{}", describe(.0))]
    Http(#[from] reqwest::Error),
    #[error("the answer was {0}")]
    Status(u16),
    #[error("there was no answer in {FETCH_MAX:?}")]
    Late,
    #[error("it is larger than 1 MiB")]
    Large,
    #[error("it is not UTF-8")]
    Encoding,
    #[error("it cannot be read: {0}")]
    File(#[from] std::io::Error),
    #[error(transparent)]
    Set(#[from] super::keys::BadKey),
}

/// The keys as they are known.
#[derive(Clone, Debug)]
struct Known {
    keys: KeySet,
    /// When the last look began.
    looked_at: Instant,
    /// Whether it found a set.
    found: bool,
}

/// The keys, for whoever verifies.
#[derive(Clone, Debug)]
pub struct JwksKeys {
    known: watch::Receiver<Known>,
    wanted: Arc<Notify>,
}

/// What keeps them fresh.
pub struct JwksTask {
    fetcher: Fetcher,
    known: watch::Sender<Known>,
    wanted: Arc<Notify>,
}

struct Fetcher {
    source: JwksSource,
    client: reqwest::Client,
}

impl JwksTask {
    /// Reads the set for the first time: a node that knows no key would refuse everybody.
    ///
    /// # Errors
    /// It cannot be read, or there is no key in it that we can use.
    pub async fn begin(source: JwksSource) -> Result<(Self, JwksKeys), JwksError> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("rowcast/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let fetcher = Fetcher { source, client };
        let now = Instant::now();
        let mut keys = KeySet::default();
        keys.renew(fetcher.fetch().await?, now);
        let (sender, known) = watch::channel(Known { keys, looked_at: now, found: true });
        let wanted = Arc::new(Notify::new());
        Ok((Self { fetcher, known: sender, wanted: Arc::clone(&wanted) }, JwksKeys { known, wanted }))
    }

    /// Keeps the keys fresh for ever.
    pub async fn run(self) {
        loop {
            // Wake-ups: somebody has met an unknown key; it is time again.
            let looked_at = self.known.borrow().looked_at;
            tokio::select! {
                () = self.wanted.notified() => tokio::time::sleep_until(looked_at + PAUSE).await,
                () = tokio::time::sleep_until(looked_at + REFRESH_EVERY) => {}
            }
            // Who asked until now is answered by this look.
            let _ = self.wanted.notified().now_or_never();
            let began = Instant::now();
            let fetched = self.fetcher.fetch().await;
            metrics::jwks_fetched(fetched.is_ok());
            if let Err(error) = &fetched {
                tracing::warn!(source = %self.fetcher.source, %error, "the issuer's keys cannot be read; those of before stay");
            }
            self.known.send_modify(|known| {
                known.looked_at = began;
                known.found = fetched.is_ok();
                if let Ok(listed) = fetched {
                    known.keys.renew(listed, began);
                }
            });
        }
    }
}

impl JwksKeys {
    /// The keys that may have signed a token which names this id, or none. Asks the issuer if there is none.
    ///
    /// # Errors
    /// `Refused`: the issuer does not know it either. `Unavailable`: the issuer could not be asked.
    pub async fn candidates(&self, id: Option<&str>) -> Result<Vec<Arc<Key>>, TokenError> {
        let found = self.known.borrow().keys.candidates(id);
        if !found.is_empty() {
            return Ok(found);
        }
        let asked = Instant::now();
        self.wanted.notify_one();
        let mut known = self.known.clone();
        // A look that has begun before may have missed it.
        let looked = tokio::time::timeout(LOOK_MAX, known.wait_for(|known| known.looked_at >= asked)).await;
        let Ok(Ok(known)) = looked else { return Err(TokenError::Unavailable) };
        let found = known.keys.candidates(id);
        match (found.is_empty(), known.found) {
            (false, _) => Ok(found),
            (true, true) => Err(TokenError::Refused("its key is not known")),
            (true, false) => Err(TokenError::Unavailable),
        }
    }
}

impl Fetcher {
    async fn fetch(&self) -> Result<Listed, JwksError> {
        let fetched = tokio::time::timeout(FETCH_MAX, async {
            match &self.source {
                JwksSource::Url(url) => self.download(url).await,
                JwksSource::File(path) => {
                    let mut bytes = Vec::new();
                    let file = tokio::fs::File::open(path).await?;
                    file.take(SET_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).await?;
                    Ok(bytes)
                }
            }
        });
        let bytes = fetched.await.map_err(|_| JwksError::Late)??;
        if bytes.len() > SET_BYTES_MAX {
            return Err(JwksError::Large);
        }
        Ok(std::str::from_utf8(&bytes).map_err(|_| JwksError::Encoding)?.parse()?)
    }

    async fn download(&self, url: &Url) -> Result<Vec<u8>, JwksError> {
        let response = self.client.get(url.clone()).send().await?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(JwksError::Status(response.status().as_u16()));
        }
        let mut bytes = Vec::new();
        let mut body = response.bytes_stream();
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece?);
            if bytes.len() > SET_BYTES_MAX {
                return Err(JwksError::Large);
            }
        }
        Ok(bytes)
    }
}

impl fmt::Display for JwksSource {
    /// Without what may be a secret in a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => {
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                write!(f, "{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
            }
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Debug for JwksSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The innermost cause: the layers above it repeat the URL.
fn describe(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
