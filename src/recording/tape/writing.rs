//! The task that writes a tape: frames while it runs, then the packing and the summary beside it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::super::disk::spares;
use super::super::format::Records;
use super::super::frames::{Plain, Sealer, Sink, Writer};
use super::super::pack::pack;
use super::super::summary::{SessionEnd, SessionStatus, Summary};
use super::super::tapes::write_beside;
use super::{Deck, INTERVAL, Reach};

/// What is written next: a frame for each of the records.
pub(super) struct Batch {
    pub(super) records: Vec<Records>,
    /// How far the tape is with them.
    pub(super) reach: Reach,
    /// It is the last.
    pub(super) end: Option<(SessionEnd, Timestamp)>,
}

/// Writes frames until the tape ends, then the summary. While one frame is synced the next is sealed; no more than one is
/// unsynced in the file, or a power failure could leave a hole before a whole frame.
pub(super) async fn write(deck: Arc<Deck>, writer: Writer) {
    let (mut sealer, sink) = writer.split();
    let sink = Arc::new(Mutex::new(sink));
    loop {
        deck.wake.notified().await;
        // A little patience makes one sync of many messages. A full buffer or the end cuts it short.
        drop(tokio::time::timeout(INTERVAL, deck.now.notified()).await);
        let Batch { records, reach, end } = deck.batch();
        let any = records.iter().any(|records| records.count > 0);
        let last = end.is_some();
        if any {
            let (back, sealed) = oneshot::channel();
            let job = Job { deck: Arc::clone(&deck), sink: Arc::clone(&sink), records, reach, last };
            tokio::task::spawn_blocking(move || job.run(sealer, back));
            match sealed.await {
                Ok(back) => sealer = back,
                // It could not seal, or panicked: the tape has failed, and ends there.
                Err(_) => {
                    let end = end.or_else(|| deck.lock().end.clone());
                    let digest = whole_frames(&sink).await;
                    return finish(&deck, digest, (end, deck.failure())).await;
                }
            }
        }
        if last {
            deck.synced(reach.records).await;
        }
        let failure = deck.failure();
        if failure.is_some() || last {
            let digest = match failure {
                None => packed(&deck, &sink).await,
                Some(_) => locked(&sink).digest(),
            };
            return finish(&deck, digest, (end, failure)).await;
        }
    }
}

/// What becomes of a batch, on a thread that may wait for the disk.
struct Job {
    deck: Arc<Deck>,
    sink: Arc<Mutex<Sink>>,
    records: Vec<Records>,
    reach: Reach,
    last: bool,
}

impl Job {
    /// Seals it, hands the sealer back as soon as the frame before is synced, and writes and syncs.
    fn run(self, mut sealer: Sealer, back: oneshot::Sender<Sealer>) {
        let deck = Arc::clone(&self.deck);
        let _unheard = Unheard(&deck);
        let sealed = self.seal(&mut sealer);
        let mut sink = locked(&self.sink);
        if deck.failure().is_some() {
            drop(back.send(sealer));
            return;
        }
        let written = match sealed {
            // Whoever waits for it learns of the failure from the deck.
            Ok(frames) => {
                drop(back.send(sealer));
                frames.iter().try_for_each(|frame| sink.put(frame))
            }
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => deck.settle(self.reach),
            Err(error) => {
                // The digest then covers the file as it is; if even this fails, verification will say so.
                if let Err(error) = sink.cut_back() {
                    tracing::error!(%error, "tape.cut_back_failed");
                }
                deck.fail(&error.to_string());
            }
        }
    }

    fn seal(&self, sealer: &mut Sealer) -> io::Result<Vec<Vec<u8>>> {
        spares(self.deck.files.reserve.as_ref())?;
        let frames = self.records.len();
        let each = self.records.iter().enumerate();
        each.map(|(at, records)| sealer.seal(&Plain { records, last: self.last && at + 1 == frames }))
            .collect()
    }
}

/// Tells the tape of a panic: whoever waits for its disk must not wait for ever.
struct Unheard<'a>(&'a Deck);

impl Drop for Unheard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("its writer panicked");
        }
    }
}

fn locked(sink: &Mutex<Sink>) -> MutexGuard<'_, Sink> {
    sink.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cuts the tape back to its whole frames, and says what they add up to. It is not read again: a full disk ends all
/// running tapes at once, and they would not fit in memory together.
async fn whole_frames(sink: &Arc<Mutex<Sink>>) -> String {
    let behind = Arc::clone(sink);
    let cut = tokio::task::spawn_blocking(move || locked(&behind).cut_back()).await;
    // If even this fails the digest does not fit the file, and verification will say so.
    if let Err(error) = cut.map_err(io::Error::other).flatten() {
        tracing::error!(%error, "tape.cut_back_failed");
    }
    locked(sink).digest()
}

/// Packs the tape that has ended; if that fails, it stays as it is. Returns its digest.
async fn packed(deck: &Arc<Deck>, sink: &Mutex<Sink>) -> String {
    let (digest, length) = {
        let sink = locked(sink);
        (sink.digest(), sink.length())
    };
    let deck = Arc::clone(deck);
    match tokio::task::spawn_blocking(move || pack(&deck.header, &deck.files, length)).await {
        Ok(Ok(Some(digest))) => digest,
        Ok(Ok(None)) => digest,
        Ok(Err(error)) => {
            tracing::warn!(%error, "tape.not_packed");
            digest
        }
        Err(error) => {
            tracing::error!(%error, "tape.not_packed");
            digest
        }
    }
}

/// Waits for the end if the tape failed before it, and writes the summary. A tape that failed has no end: its session
/// counts as killed, however it ended, or verification would take it for one whose end was cut off.
async fn finish(
    deck: &Deck,
    digest: String,
    (end, failure): (Option<(SessionEnd, Timestamp)>, Option<String>),
) {
    let (mut end, at) = loop {
        match end.clone().or_else(|| deck.lock().end.clone()) {
            Some(end) => break end,
            None => deck.wake.notified().await,
        }
    };
    if let Some(why) = failure
        && end.status != SessionStatus::Killed
    {
        let reason = Some(format!("recording failed: {why}"));
        end = SessionEnd { status: SessionStatus::Killed, reason };
    }
    let mut summary = {
        let state = deck.lock();
        let summary = Summary::of(deck.header.clone(), state.ledger.summaries());
        Summary { lasted_ms: Some(state.lasted.max(state.latest)), ..summary }
    };
    summary.ended_at = Some(at);
    summary.status = end.status;
    summary.reason = end.reason;
    summary.digest = Some(digest);
    let mut written = written_beside(deck, &summary).await;
    deck.ended.send_replace(Some(summary.clone()));
    // On a full disk the summary waits here for room, and is told from memory; if the daemon ends first, it is made again
    // at the next start, from the tape.
    while !written {
        tokio::time::sleep(INTERVAL).await;
        written = written_beside(deck, &summary).await;
    }
}

async fn written_beside(deck: &Deck, summary: &Summary) -> bool {
    let (summary, file) = (summary.clone(), deck.files.summary.clone());
    match tokio::task::spawn_blocking(move || write_beside(&file, &summary)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(%error, "tape.summary_waits");
            false
        }
        Err(error) => {
            tracing::error!(%error, "tape.summary_failed");
            true
        }
    }
}
