//! The task that writes a tape: frames while it runs, then the packing and the summary beside it.

use std::sync::Arc;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::super::disk::spares;
use super::super::format::Records;
use super::super::frames::{Plain, Writer};
use super::super::pack::pack;
use super::super::summary::{SessionEnd, SessionStatus, Summary};
use super::super::tapes::write_beside;
use super::{Deck, INTERVAL};

/// What is written next: a frame for each of the records.
pub(super) struct Batch {
    pub(super) records: Vec<Records>,
    /// It is the last.
    pub(super) end: Option<(SessionEnd, Timestamp)>,
}

/// Writes frames until the tape ends, then the summary.
pub(super) async fn write(deck: Arc<Deck>, mut writer: Writer) {
    loop {
        deck.wake.notified().await;
        // A little patience makes one sync of many messages. A full buffer or the end cuts it short.
        drop(tokio::time::timeout(INTERVAL, deck.now.notified()).await);
        let Batch { records, end } = deck.batch();
        let count: u64 = records.iter().map(|records| records.count).sum();
        if count == 0 {
            continue;
        }
        let last = end.is_some();
        let reserve = deck.files().reserve.clone();
        let written = tokio::task::spawn_blocking(move || {
            let frames = records.len();
            let each = records.iter().enumerate();
            let mut each = each.map(|(at, records)| Plain { records, last: last && at + 1 == frames });
            let written =
                spares(reserve.as_ref()).and_then(|()| each.try_for_each(|plain| writer.frame(&plain)));
            if written.is_err() {
                // The digest then covers the file as it is; if even this fails, verification will say so.
                if let Err(error) = writer.cut_back() {
                    tracing::error!(%error, "tape.cut_back_failed");
                }
            }
            (writer, written)
        });
        let failure = match written.await {
            Ok((back, written)) => {
                writer = back;
                written.err().map(|e| e.to_string())
            }
            // It panicked, and the writer went with it: the tape ends there, whoever seals it must not wait for ever.
            Err(lost) => {
                let why = lost.to_string();
                deck.fail(&why);
                let digest = found(&deck).await;
                return finish(&deck, digest, (end, Some(why))).await;
            }
        };
        match &failure {
            None => {
                deck.lock().in_flight = 0;
                deck.room.notify_waiters();
                deck.synced.send_modify(|synced| *synced += count);
            }
            Some(why) => deck.fail(why),
        }
        if failure.is_some() || last {
            let whole = failure.is_none();
            let digest = if whole { packed(&deck, &writer).await } else { writer.digest() };
            return finish(&deck, digest, (end, failure)).await;
        }
    }
}

/// The digest of the tape as it lies there; of nothing if it cannot be read, and verification will say so.
async fn found(deck: &Arc<Deck>) -> String {
    let file = deck.files.tape.clone();
    let read = tokio::task::spawn_blocking(move || std::fs::read(file)).await;
    let bytes = read.map_err(std::io::Error::other).flatten().unwrap_or_default();
    HEXLOWER.encode(&Sha256::digest(bytes))
}

/// Packs the tape that has ended; if that fails, it stays as it is. Returns its digest.
async fn packed(deck: &Arc<Deck>, writer: &Writer) -> String {
    let (digest, length) = (writer.digest(), writer.length());
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
    let mut summary = Summary::of(deck.header.clone(), deck.lock().ledger.summaries());
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
