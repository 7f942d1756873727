//! The sending end of a subscription's queue: bounded, and honest when it was full.

use tokio::sync::mpsc;

use super::Push;

/// Fills a subscription's queue without ever waiting for its reader.
///
/// From the first push that found the queue full on, everything is dropped, until its owner has waited for room
/// ([`Outbox::room`]) and said [`Push::Lost`] in it: so `Lost` stands exactly where pushes are missing.
pub(super) struct Outbox {
    pushes: mpsc::Sender<Push>,
    lost: bool,
}

impl Outbox {
    pub fn new(pushes: mpsc::Sender<Push>) -> Self {
        Self { pushes, lost: false }
    }

    pub fn push(&mut self, push: Push) {
        if !self.lost && matches!(self.pushes.try_send(push), Err(mpsc::error::TrySendError::Full(_))) {
            self.lost = true;
        }
    }

    /// Pushes are missing from here on.
    pub fn lose(&mut self) {
        self.lost = true;
    }

    /// Whether [`Push::Lost`] is due.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Says [`Push::Lost`] in the room that was waited for, if it is still due.
    pub fn recover(&mut self, room: mpsc::OwnedPermit<Push>) {
        if self.lost {
            room.send(Push::Lost);
            self.lost = false;
        }
    }

    /// A sender to wait for room, or for the reader's end, with.
    pub fn sender(&self) -> mpsc::Sender<Push> {
        self.pushes.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Beat;
    use crate::version::{Cut, Epoch, Version};

    fn beat(version: u64) -> Push {
        let snapshot = "1:1:".parse().expect("a snapshot");
        Push::Beat(Beat {
            base: Version(0),
            cut: Cut { epoch: Epoch::new("e"), version: Version(version), snapshot, as_of: 0 },
            polled_at: 0,
            touched: Vec::new(),
            catalogue: String::new(),
            stale: Vec::new(),
        })
    }

    #[tokio::test]
    async fn lost_stands_where_pushes_are_missing() {
        let (sender, mut queue) = mpsc::channel(2);
        let mut outbox = Outbox::new(sender);
        for version in 1..=4 {
            outbox.push(beat(version));
        }
        assert!(outbox.is_lost());
        assert!(matches!(queue.recv().await, Some(Push::Beat(beat)) if beat.cut.version == Version(1)));
        outbox.push(beat(5));
        let room = outbox.sender().reserve_owned().await.expect("room");
        outbox.recover(room);
        assert!(matches!(queue.recv().await, Some(Push::Beat(beat)) if beat.cut.version == Version(2)));
        outbox.push(beat(6));
        assert!(matches!(queue.recv().await, Some(Push::Lost)));
        assert!(matches!(queue.recv().await, Some(Push::Beat(beat)) if beat.cut.version == Version(6)));
    }
}
