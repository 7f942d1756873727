//! One websocket client: greets it, reads what it asks, writes what the hub has for it, and ends for a named reason.
//!
//! ```text
//!            subscribe, unsubscribe                    deliveries
//!  client ──────────────────────────▶ session ──▶ hub ─────────────▶ inbox ──▶ session ──▶ client
//!            auth, ping: answered here                                          one flush for all that waits
//! ```
//!
//! A session holds no rows and no queue of its own. While a write waits for the client, the inbox fills; when that is
//! full the hub keeps only a version for this client, and hands out what changed since once the session says
//! [`Inbox::drained`]. So a slow client costs what a version costs, and nobody waits for it.
//!
//! The socket is behind [`transport`]; which connections become sessions is decided in `http`.

pub mod auth;
pub mod drain;
mod end;
pub mod progress;
pub mod rate;
pub mod transport;

use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use self::auth::{Admission, Auth, Offer};
use self::drain::Drain;
pub use self::end::refuse;
use self::end::{Attached, End};
use self::rate::Rate;
use self::transport::{Received, Transport};
use crate::audit::Viewer;
use crate::hub::{Delivery, HubHandle, HubStopped, Inbox, SessionId};
use crate::metrics::SendFigures;
use crate::protocol::{self, BadMessage, ClientMessage, CloseReason, ErrorCode, Frame, Refusal};
use crate::query::ChannelRequest;

/// What goes out between two looks at the client: large enough for one write to be cheap, small enough for an
/// `unsubscribe` to be heard during a big snapshot.
const FLUSH_BYTES: usize = 256 * 1024;

/// At a restart, what the hub has left for the client gets this long.
const LAST_FLUSH_MAX: Duration = Duration::from_secs(1);

/// What a session allows its client.
#[derive(Clone, Debug)]
pub struct SessionSettings {
    /// A longer message closes the connection with 4429.
    pub message_bytes_max: usize,
    /// Told in `hello`; the hub refuses what goes beyond.
    pub subscriptions_max: usize,
    /// Messages that are read at once.
    pub messages_burst: u32,
    /// Messages that are read per second after that; more are read later.
    pub messages_per_second: u32,
    /// A websocket ping is sent this often.
    pub ping_every: Duration,
    /// After a ping, anything must have come from the client within this.
    pub ping_deadline: Duration,
    /// A write that does not move for this long closes the connection with 4409.
    pub stall_max: Duration,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self {
            message_bytes_max: 64 * 1024,
            subscriptions_max: 128,
            messages_burst: 256,
            messages_per_second: 50,
            ping_every: Duration::from_secs(25),
            ping_deadline: Duration::from_secs(10),
            stall_max: Duration::from_secs(30),
        }
    }
}

/// What a session needs of its node.
pub struct SessionContext {
    pub hub: HubHandle,
    pub settings: Arc<SessionSettings>,
    pub drain: Arc<Drain>,
    /// For `hello` and logs; unique among the nodes of a cluster.
    pub name: String,
    /// Where the client is.
    pub peer: IpAddr,
    pub admission: Admission,
    /// The token that came with the request.
    pub offer: Offer,
}

/// Serves a client until one of the two ends it.
pub async fn run(mut transport: Transport, context: SessionContext) {
    let drain = context.drain;
    let viewer = Viewer { session: Some(context.name.as_str().into()), peer: Some(context.peer) };
    let attached = tokio::select! {
        attached = context.hub.attach(viewer) => attached,
        () = drain.cut_off() => Err(HubStopped),
    };
    let Ok((id, inbox)) = attached else { return refuse(transport, CloseReason::GoingAway).await };
    let began = Instant::now();
    let attached = Attached::new(context.hub, id);
    let mut session = Session {
        transport: &mut transport,
        hub: attached.hub().clone(),
        id,
        inbox,
        auth: Auth::new(context.admission, began),
        rest: None,
        as_of: Vec::new(),
        figures: SendFigures::new(),
        rate: Rate::new(context.settings.messages_burst, context.settings.messages_per_second, began),
        // The first ping comes early or late by chance, so that clients which came together are not pinged together.
        ping_at: began + context.settings.ping_every.mul_f64(rand::random_range(0.5..=1.0)),
        answer_by: None,
        close_at: None,
        phase: drain.watch(),
        settings: context.settings,
        frames: 0,
        bytes: 0,
    };
    let greeting =
        protocol::hello(&context.name, session.settings.message_bytes_max, session.settings.subscriptions_max);
    let watch = session.auth.watch();
    let end = tokio::select! {
        end = session.serve(greeting, context.offer) => end,
        reason = auth::until_invalid(watch) => End::Closed(reason),
        () = drain.cut_off() => End::CutOff,
    };
    let (frames, bytes) = (session.frames, session.bytes);
    drop(session);

    // The hub forgets the client before the close, which may take a second.
    attached.detach(end);
    tracing::info!(
        session = context.name,
        reason = end.name(),
        frames,
        bytes,
        duration_ms = began.elapsed().as_millis() as u64,
        "session ended"
    );
    end.tell(transport).await;
}

struct Session<'a> {
    transport: &'a mut Transport,
    hub: HubHandle,
    id: SessionId,
    inbox: Inbox,
    auth: Auth,
    /// What did not fit in the last flush. Comes before everything in the inbox.
    rest: Option<Delivery>,
    /// The cuts of the deliveries in the flush under way.
    as_of: Vec<i64>,
    figures: SendFigures,
    rate: Rate,
    /// The next ping; moves on when one is sent.
    ping_at: Instant,
    /// Set by a ping, unset by whatever comes from the client.
    answer_by: Option<Instant>,
    /// Set once, when the node begins to close.
    close_at: Option<Instant>,
    phase: watch::Receiver<drain::Phase>,
    settings: Arc<SessionSettings>,
    frames: u64,
    bytes: u64,
}

/// What a session waits for.
enum Wake {
    Delivery(Option<Delivery>),
    Received(Received),
    /// The node closes; sessions spread their ends over this.
    Closing(Duration),
    /// The ping, its deadline, the end, or the next read is due.
    Timer,
}

impl Session<'_> {
    /// Runs until the session's end.
    async fn serve(&mut self, greeting: Frame, offer: Offer) -> End {
        if let Err(end) = self.reply(greeting).await {
            return end;
        }
        if let Err(end) = self.take_offer(offer).await {
            return end;
        }
        let mut timer = pin!(tokio::time::sleep_until(self.ping_at));
        loop {
            let wake = self.wait(timer.as_mut()).await;
            let woken_at = Instant::now();
            if let Err(end) = self.handle(wake).await {
                return end;
            }
            // The client's answer may have come while a slow write kept us from reading it.
            if let Some(answer_by) = self.answer_by.as_mut() {
                *answer_by += woken_at.elapsed();
            }
        }
    }

    async fn wait(&mut self, mut timer: Pin<&mut Sleep>) -> Wake {
        let now = Instant::now();
        let read_at = self.rate.ready_at(now);
        let may_read = read_at <= now;
        let mut due = self.answer_by.map_or(self.ping_at, |answer_by| answer_by.min(self.ping_at));
        due = self.close_at.map_or(due, |close_at| due.min(close_at));
        due = self.auth.due().map_or(due, |auth_at| due.min(auth_at));
        if !may_read {
            due = due.min(read_at);
        }
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        // Wake-ups: the hub has something (or something is left of it); the client says something, unless it spoke too
        // fast; the node closes; a time of ours has come. In no fixed order, so that none starves another.
        tokio::select! {
            delivery = next_delivery(&mut self.rest, &mut self.inbox) => Wake::Delivery(delivery),
            received = self.transport.recv(), if may_read => Wake::Received(received),
            spread = drain::closing(&mut self.phase), if self.close_at.is_none() => Wake::Closing(spread),
            () = timer => Wake::Timer,
        }
    }

    async fn handle(&mut self, wake: Wake) -> Result<(), End> {
        match wake {
            Wake::Delivery(Some(delivery)) => self.write(delivery).await,
            Wake::Delivery(None) => Err(End::Closed(CloseReason::GoingAway)),
            Wake::Received(received) => {
                self.rate.take(Instant::now());
                self.answer_by = None;
                self.read(received).await
            }
            Wake::Closing(spread) => {
                self.close_at = Some(Instant::now() + spread.mul_f64(rand::random_range(0.0..=1.0)));
                Ok(())
            }
            Wake::Timer => self.tick(Instant::now()).await,
        }
    }

    /// Writes a delivery and whatever else waits, up to [`FLUSH_BYTES`], in one flush.
    async fn write(&mut self, first: Delivery) -> Result<(), End> {
        let (mut frames, mut bytes) = (0, 0);
        let mut delivery = Some(first);
        while bytes < FLUSH_BYTES
            && let Some(current) = delivery.as_mut()
        {
            match current.next_frame() {
                Some(frame) => {
                    frames += 1;
                    bytes += frame.len();
                    self.transport.feed(frame).await?;
                }
                None => {
                    self.as_of.extend(current.as_of());
                    delivery = self.inbox.try_next();
                }
            }
        }
        self.transport.flush().await?;
        self.count(frames, bytes);
        for as_of in self.as_of.drain(..) {
            self.figures.sent(as_of);
        }
        self.rest = delivery.or_else(|| self.inbox.try_next());
        if self.rest.is_none() {
            self.inbox.drained().await;
        }
        Ok(())
    }

    /// Writes one frame of the session's own.
    async fn reply(&mut self, frame: Frame) -> Result<(), End> {
        let bytes = frame.len();
        self.transport.feed(frame).await?;
        self.transport.flush().await?;
        self.count(1, bytes);
        Ok(())
    }

    fn count(&mut self, frames: u64, bytes: usize) {
        self.figures.flushed(frames, bytes as u64);
        self.frames += frames;
        self.bytes += bytes as u64;
    }

    async fn read(&mut self, received: Received) -> Result<(), End> {
        match received {
            Received::Text(text) => match ClientMessage::parse(&text) {
                Ok(message) => self.obey(message).await,
                Err(bad) => self.reply(refusal_of(bad)?).await,
            },
            Received::Alive => Ok(()),
            Received::Binary | Received::Malformed => Err(End::Closed(CloseReason::ProtocolError)),
            Received::TooLong => Err(End::Closed(CloseReason::LimitExceeded)),
            Received::Closed => Err(End::Client),
            Received::Lost => Err(End::Lost),
        }
    }

    async fn obey(&mut self, message: ClientMessage) -> Result<(), End> {
        if !matches!(message, ClientMessage::Auth { .. }) {
            self.auth.settle_cookie()?;
        }
        match message {
            ClientMessage::Subscribe { id, channel, resume } => {
                let request = match self.auth.may_subscribe() {
                    true => ChannelRequest::parse(&channel),
                    false => Err(Refusal::new(ErrorCode::Forbidden, "this server serves nobody without a token")),
                };
                Ok(self.hub.subscribe(self.id, id, request, self.auth.identity(), resume).await?)
            }
            ClientMessage::Unsubscribe { id } => Ok(self.hub.unsubscribe(self.id, id).await?),
            ClientMessage::Ping => self.reply(protocol::pong()).await,
            ClientMessage::Auth { token } => self.authenticate(&token).await,
        }
    }

    /// Does what is due.
    async fn tick(&mut self, now: Instant) -> Result<(), End> {
        if self.close_at.is_some_and(|close_at| close_at <= now) {
            self.write_rest().await;
            return Err(End::Closed(CloseReason::Restart));
        }
        if self.answer_by.is_some_and(|answer_by| answer_by <= now) {
            return Err(End::Silent);
        }
        self.tick_auth(now).await?;
        if self.ping_at <= now {
            self.ping_at = now + self.settings.ping_every;
            self.transport.ping().await?;
            self.answer_by.get_or_insert(Instant::now() + self.settings.ping_deadline);
        }
        Ok(())
    }

    /// Hands out what the inbox still has, if that is quick: the client then resumes from further on.
    async fn write_rest(&mut self) {
        let last = async {
            while let Some(delivery) = self.rest.take().or_else(|| self.inbox.try_next()) {
                self.write(delivery).await?;
            }
            Ok::<(), End>(())
        };
        let _ = tokio::time::timeout(LAST_FLUSH_MAX, last).await;
    }
}

/// What is left of the last delivery, else the next one. Cancel-safe.
async fn next_delivery(rest: &mut Option<Delivery>, inbox: &mut Inbox) -> Option<Delivery> {
    match rest.take() {
        Some(delivery) => Some(delivery),
        None => inbox.next().await,
    }
}

/// The frame that answers what could not be read; what is not even JSON ends the session. No id is named: an `error`
/// with an id ends that subscription, and a bad message must not.
fn refusal_of(bad: BadMessage) -> Result<Frame, End> {
    let refusal = match bad {
        BadMessage::NotJson(_) => return Err(End::Closed(CloseReason::ProtocolError)),
        BadMessage::UnknownOp(_) => Refusal::new(ErrorCode::UnknownOp, bad.to_string()),
        BadMessage::Form { id: Some(id), message } => {
            Refusal::new(ErrorCode::BadMessage, format!("{message} (id {id})"))
        }
        BadMessage::Form { id: None, message } => Refusal::new(ErrorCode::BadMessage, message),
    };
    Ok(protocol::error(None, &refusal))
}
