//! A live session for machines: `sessions watch ID --json`, asciicast v2 a line at a time, as it happens.

use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use super::render::plain;
use super::{Fault, Output};
use crate::recording::{Cast, CastEvent, SessionId, What, cast_line, picture};
use crate::session::House;

/// The header with the size of the screen, what draws it as it stands, then what comes. A terminal that comes later begins
/// with a header of its own. The last line says that the session ended.
///
/// The look is in the trail already.
pub(super) async fn follow(house: &House, id: SessionId, out: &mut Output) -> Result<(), Fault> {
    let (frames, before, mut live) = house.tapes.watch(id).await?;
    let stood = tokio::task::spawn_blocking(move || picture(frames, before)).await;
    let (mut cast, dump) = stood.map_err(|e| Fault::error(e.to_string()))??;
    out.line(header(&cast)).await?;
    if !dump.is_empty() {
        out.line(cast_line(&(0, 'o', dump))).await?;
    }
    loop {
        let record = tokio::select! {
            () = out.gone() => return Ok(()),
            record = live.recv() => record,
        };
        match record {
            Ok(record) if matches!(record.what, What::End(..)) => break,
            Ok(record) => {
                if cast.channel().is_none()
                    && let Some(terminal) = Cast::begins(&record)
                {
                    cast = terminal;
                    out.line(header(&cast)).await?;
                }
                if let Some(event) = cast.event(&record) {
                    out.line(cast_line(&readable(event))).await?;
                }
            }
            Err(RecvError::Lagged(missed)) => out.line(json!({ "missed": missed }).to_string()).await?,
            Err(RecvError::Closed) => break,
        }
    }
    out.line(json!({ "ended": id.to_string() }).to_string()).await
}

/// An event whose marker, which people read, commands nothing.
pub(super) fn readable((millis, code, text): CastEvent) -> CastEvent {
    (millis, code, if code == 'm' { plain(&text) } else { text })
}

fn header(cast: &Cast) -> String {
    json!({ "version": 2, "width": cast.cols, "height": cast.rows, "env": { "TERM": cast.term } }).to_string()
}
