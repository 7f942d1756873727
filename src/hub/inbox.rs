//! What lies between the hub and a session: a bounded queue of deliveries, and the way back when it was too short.
//!
//! The hub never waits for a session. It raises the `owed` flag before it fills the queue's last place, and with every
//! batch of frozen rows; a session that has written everything and finds the flag tells the hub, which then hands it what
//! changed since. The flag is raised *before* the last place is taken, so the session cannot have passed it already.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;

use super::pages::Pages;
use super::{Command, INBOX_DELIVERIES, SessionId};
use crate::protocol::Frame;

/// Frames for one session, in order.
#[derive(Debug)]
pub struct Delivery {
    items: VecDeque<Item>,
    as_of: Option<i64>,
}

/// A frame, or frames still to be encoded.
#[derive(Clone, Debug)]
pub(super) enum Item {
    Frame(Frame),
    Pages { pages: Arc<Pages>, next: usize },
}

impl Item {
    pub(super) fn pages(pages: Arc<Pages>) -> Self {
        Self::Pages { pages, next: 0 }
    }
}

impl Delivery {
    pub(super) fn new(items: impl IntoIterator<Item = Item>, as_of: Option<i64>) -> Self {
        Self { items: items.into_iter().collect(), as_of }
    }

    /// The next frame to write; `None` when the delivery is complete. Large snapshots are encoded as they are asked for,
    /// so it is right to wait for the socket between two frames.
    pub fn next_frame(&mut self) -> Option<Frame> {
        loop {
            match self.items.front_mut()? {
                Item::Frame(_) => {
                    let Some(Item::Frame(frame)) = self.items.pop_front() else { return None };
                    return Some(frame);
                }
                Item::Pages { pages, next } => match pages.page(*next) {
                    Some(frame) => {
                        *next += 1;
                        return Some(frame);
                    }
                    None => {
                        self.items.pop_front();
                    }
                },
            }
        }
    }

    /// For live changes: the moment of their cut, in milliseconds since 1970 of the database's clock.
    pub fn as_of(&self) -> Option<i64> {
        self.as_of
    }
}

/// A session's end of the queue.
#[derive(Debug)]
pub struct Inbox {
    session: SessionId,
    deliveries: mpsc::Receiver<Delivery>,
    owed: Arc<AtomicBool>,
    commands: mpsc::Sender<Command>,
}

impl Inbox {
    /// The next delivery; `None` when the hub has stopped. Cancel-safe.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.deliveries.recv().await
    }

    /// The next delivery, if one is waiting.
    pub fn try_next(&mut self) -> Option<Delivery> {
        self.deliveries.try_recv().ok()
    }

    /// To be called whenever everything taken has been written and flushed and nothing is waiting: the hub may owe the
    /// session what it could not queue.
    pub async fn drained(&mut self) {
        if self.owed.swap(false, Ordering::AcqRel) {
            // A stopped hub owes nothing; `next` will tell.
            let _ = self.commands.send(Command::Drained(self.session)).await;
        }
    }
}

/// The hub's end of the queue.
#[derive(Debug)]
pub(super) struct Outbox {
    deliveries: mpsc::Sender<Delivery>,
    owed: Arc<AtomicBool>,
}

impl Outbox {
    /// Whether a delivery can be queued now. Only the hub queues, so the answer stays true until it does.
    pub(super) fn has_room(&self) -> bool {
        self.deliveries.capacity() > 0
    }

    /// Queues a delivery. False: there was no room; the session will say when there is.
    pub(super) fn send(&self, delivery: Delivery) -> bool {
        if self.deliveries.capacity() <= 1 {
            self.owed.store(true, Ordering::Release);
        }
        self.deliveries.try_send(delivery).is_ok()
    }

    /// Asks the session to tell when it has written everything up to here.
    pub(super) fn ask(&self) {
        self.owed.store(true, Ordering::Release);
    }
}

/// Both ends of a session's queue.
pub(super) fn inbox(session: SessionId, commands: mpsc::Sender<Command>) -> (Outbox, Inbox) {
    let (sender, deliveries) = mpsc::channel(INBOX_DELIVERIES);
    let owed = Arc::new(AtomicBool::new(false));
    (Outbox { deliveries: sender, owed: owed.clone() }, Inbox { session, deliveries, owed, commands })
}
