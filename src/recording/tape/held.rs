//! What is held: messages that the tape has and the other side has not heard yet, because they are not on the disk.
//!
//! A relay that waited for the disk after each 64 KiB would spend its time waiting. So it reads on, and what comes is taken
//! and held; when the frame that has it is synced it may be passed on, in order. Nothing here decides when that is.

use std::collections::VecDeque;

use super::{Taken, Tape};
use crate::recording::{ChannelMessage, Direction, TapeError};

/// What one side of a channel said and the other has not heard yet; see [`Tape::held`].
pub struct Held<'a> {
    tape: &'a Tape,
    channel: u32,
    direction: Direction,
    waiting: VecDeque<(Taken, ChannelMessage)>,
    bytes: usize,
    /// The other side may say more.
    hears: bool,
}

/// What comes next.
pub enum Turn {
    /// This was said: take it, or leave it out.
    Heard(ChannelMessage),
    /// This may be passed on.
    Free(ChannelMessage),
    /// Nothing more is said, and all was passed on.
    Over,
}

impl<'a> Held<'a> {
    pub(super) fn new(tape: &'a Tape, channel: u32, direction: Direction) -> Self {
        Self { tape, channel, direction, waiting: VecDeque::new(), bytes: 0, hears: true }
    }

    /// What comes next: what `ear` hears, or what may be passed on. While something is held more is heard, as far as there
    /// is room. Cancel-safe if `ear` is.
    ///
    /// # Errors
    /// [`TapeError::Failed`]: what is held is not on the tape, and must not be passed on.
    pub async fn turn(
        &mut self,
        ear: impl Future<Output = Option<ChannelMessage>>,
    ) -> Result<Turn, TapeError> {
        let room = self.bytes < MOST_HELD && self.waiting.len() < MOST_MESSAGES;
        let at_once = self.waiting.front().is_some_and(|(taken, _)| taken.0.is_none());
        let (hears, holds) = (self.hears && room && !at_once, !self.waiting.is_empty());
        if !hears && !holds {
            return Ok(Turn::Over);
        }
        tokio::select! {
            biased;
            heard = ear, if hears => match heard {
                Some(message) => Ok(Turn::Heard(message)),
                None => self.rest().await,
            },
            freed = self.next(), if holds => Ok(Turn::Free(freed?)),
        }
    }

    /// Records what was heard; it comes back as [`Turn::Free`]. Waits as [`Tape::record`] does, but not for the disk unless
    /// the tape is full. Cancel-safe: a cancelled message was not taken.
    ///
    /// # Errors
    /// As [`Tape::record`].
    pub async fn take(&mut self, message: ChannelMessage) -> Result<(), TapeError> {
        let taken = self.tape.take(self.channel, self.direction, &message).await?;
        self.bytes += size(&message);
        self.waiting.push_back((taken, message));
        Ok(())
    }

    async fn rest(&mut self) -> Result<Turn, TapeError> {
        self.hears = false;
        if self.waiting.is_empty() {
            return Ok(Turn::Over);
        }
        Ok(Turn::Free(self.next().await?))
    }

    async fn next(&mut self) -> Result<ChannelMessage, TapeError> {
        let Some((taken, _)) = self.waiting.front() else { return std::future::pending().await };
        self.tape.free(taken).await?;
        let Some((_, message)) = self.waiting.pop_front() else { return std::future::pending().await };
        self.bytes -= size(&message);
        Ok(message)
    }
}

fn size(message: &ChannelMessage) -> usize {
    message.payload().map_or(0, |bytes| bytes.len())
}

/// Bytes of one direction of a channel that are held.
const MOST_HELD: usize = 1 << 20;
/// Messages held: those without payload weigh too.
const MOST_MESSAGES: usize = 1024;
