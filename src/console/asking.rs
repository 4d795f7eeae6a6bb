//! Asking: a page's question as a command of `admin`, its answer as JSON. Who may ask, and that a look at a tape is in the
//! trail before its first byte, is decided there and nowhere else.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use futures_util::stream;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::door::Auditor;
use crate::admin::{self, Fault, Output};
use crate::session::{Chunk, House};

/// An answer that is being given.
pub(super) struct Answer {
    from: mpsc::Receiver<Chunk>,
    code: JoinHandle<u8>,
    /// The notes beside it, and last the fault, if there was one.
    said: Vec<String>,
}

/// An answer that was given.
pub(super) struct Whole<T> {
    pub(super) value: T,
    /// What was said beside it.
    pub(super) says: String,
    /// What went wrong after it was given.
    pub(super) fault: Option<Fault>,
}

/// Says `words` for the auditor. The command runs to its end by itself, or until its answer is dropped.
///
/// # Errors
/// Exit code 2 if `words` are no command.
pub(super) fn say(house: &Arc<House>, auditor: &Auditor, words: &[String]) -> Result<Answer, Fault> {
    let command = admin::said(words)?;
    let (to, from) = mpsc::channel(16);
    let (house, caller) = (Arc::clone(house), auditor.caller.clone());
    let code = tokio::spawn(async move {
        let mut out = Output::new(to, true, None);
        admin::execute(&house, &caller, command, &mut out).await
    });
    Ok(Answer { from, code, said: Vec::new() })
}

/// Whether the auditor may say `words`, as far as that depends on who they are.
pub(super) fn may(house: &House, auditor: &Auditor, words: &[String]) -> bool {
    let command = admin::said(words);
    command.is_ok_and(|c| admin::permitted(&auditor.caller, &c, admin::Viewers::of(house)).is_ok())
}

/// The whole answer, parsed.
pub(super) async fn whole<T: DeserializeOwned>(answer: Answer) -> Result<Whole<T>, Fault> {
    let mut answer = answer;
    let mut json = Vec::new();
    while let Some(piece) = answer.next().await {
        if json.len() + piece.len() > LONGEST {
            return Err(Fault::error("the answer is too long for a page; narrow the question"));
        }
        json.extend_from_slice(&piece);
    }
    let (says, fault) = answer.ended().await;
    match serde_json::from_slice(&json) {
        Ok(value) => Ok(Whole { value, says, fault }),
        Err(error) => Err(fault.unwrap_or_else(|| Fault::error(error.to_string()))),
    }
}

/// The JSON answer to `words`.
pub(super) async fn ask<T: DeserializeOwned>(
    house: &Arc<House>,
    auditor: &Auditor,
    words: &[&str],
) -> Result<T, Fault> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let Whole { value, fault, .. } = whole(say(house, auditor, &words)?).await?;
    fault.map_or(Ok(value), Err)
}

impl Answer {
    /// The next piece; none at the end.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            match self.from.recv().await? {
                Chunk::Out(bytes) => return Some(bytes.into()),
                Chunk::Err(bytes) => self.said.push(String::from_utf8_lossy(&bytes).trim().to_owned()),
            }
        }
    }

    /// What went wrong, once the answer has ended.
    pub(super) async fn fault(self) -> Option<Fault> {
        self.ended().await.1
    }

    /// What was said beside the answer, and what went wrong.
    async fn ended(self) -> (String, Option<Fault>) {
        let (code, mut said) = (self.code.await.unwrap_or(1), self.said);
        let fault = (code != 0).then(|| said.pop().unwrap_or_default());
        let fault = fault.map(|says| says.strip_prefix("keyward: ").map_or(says.clone(), str::to_owned));
        (said.join("\n"), fault.map(|says| Fault { code, says }))
    }

    /// The answer as a body, once its first piece is there: until then it may still be refused.
    pub(super) async fn pour(mut self) -> Result<Body, Fault> {
        let Some(first) = self.next().await else {
            return match self.fault().await {
                Some(fault) => Err(fault),
                None => Ok(Body::empty()),
            };
        };
        let pieces = stream::unfold((Some(first), Some(self)), |(first, answer)| async move {
            let mut answer = answer?;
            if let Some(first) = first {
                return Some((Ok(first), (None, Some(answer))));
            }
            match answer.next().await {
                Some(piece) => Some((Ok(piece), (None, Some(answer)))),
                // A tape that breaks in the middle must not look whole: the connection breaks too.
                None => {
                    answer.fault().await.map(|fault| (Err(std::io::Error::other(fault.says)), (None, None)))
                }
            }
        });
        Ok(Body::from_stream(pieces))
    }
}

/// The longest answer that is shown as one page, in bytes.
const LONGEST: usize = 64 << 20;
