//! Asking: a page's question as a command of `admin`, its answer as JSON. Who may ask, and that a look at a tape is in the
//! trail before its first byte, is decided there and nowhere else.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use futures_util::stream;
use serde::de::DeserializeOwned;
use serde_json::Value;
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

/// The beginning of an answer that is a long list.
pub(super) struct First {
    pub(super) items: Vec<Value>,
    /// There was more.
    pub(super) more: bool,
    /// What went wrong after the first of them.
    pub(super) fault: Option<Fault>,
}

/// The first `most` items of an answer that has one on each line, as far as they are `bytes` together; the rest is not made.
pub(super) async fn first(answer: Answer, (most, bytes): (usize, usize)) -> Result<First, Fault> {
    let (mut answer, mut items, mut read) = (answer, Vec::new(), 0);
    let mut line = Vec::new();
    while let Some(piece) = answer.next().await {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(part);
            if read + line.len() > bytes || items.len() >= most && item(&line).is_some() {
                return Ok(First { items, more: true, fault: None });
            }
            if part.ends_with(b"\n") {
                read += line.len();
                items.extend(item(&std::mem::take(&mut line)));
            }
        }
    }
    let (_, fault) = answer.ended().await;
    match fault {
        Some(fault) if items.is_empty() => Err(fault),
        fault => Ok(First { items, more: false, fault }),
    }
}

/// What stands on a line of a list, between its brackets and commas.
fn item(line: &[u8]) -> Option<Value> {
    let text = line.trim_ascii();
    let text = text.strip_prefix(b",").unwrap_or(text);
    serde_json::from_slice(text).ok().filter(Value::is_object)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(pieces: &[&str], code: u8) -> Answer {
        let (to, from) = mpsc::channel(pieces.len() + 2);
        for piece in pieces {
            to.try_send(Chunk::Out(piece.as_bytes().to_vec())).unwrap();
        }
        if code != 0 {
            to.try_send(Chunk::Err(b"keyward: it breaks off\n".to_vec())).unwrap();
        }
        Answer { from, code: tokio::spawn(async move { code }), said: Vec::new() }
    }

    #[tokio::test]
    async fn of_a_long_list_the_beginning_is_taken_and_no_more() {
        let pieces = ["[\n{\"n\":1}\n,{\"n\"", ":2}\n,{\"n\":3}\n", "]\n"];
        for (bounds, count, more) in [
            ((3, 999), 3, false),
            ((2, 999), 2, true),
            ((9, 999), 3, false),
            ((9, 15), 1, true),
            ((9, 3), 0, true),
        ] {
            let found = first(answer(&pieces, 0), bounds).await.unwrap();
            assert_eq!((found.items.len(), found.more), (count, more), "{bounds:?}");
            assert!(found.items.iter().zip(1..).all(|(item, n)| item["n"] == n));
        }
        assert!(first(answer(&["[]\n"], 0), (9, 99)).await.unwrap().items.is_empty());
    }

    #[tokio::test]
    async fn what_broke_off_is_said_with_what_there_was_and_alone_it_is_the_answer() {
        let found = first(answer(&["[\n{\"n\":1}\n"], 10), (9, 99)).await.unwrap();
        assert_eq!((found.items.len(), found.fault.unwrap().code), (1, 10));
        assert_eq!(first(answer(&[], 10), (9, 99)).await.err().unwrap().code, 10);
    }
}
