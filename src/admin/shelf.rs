//! Where recordings are read: on a running bastion, whose trail hears of each look, or on a copy of its files, where there is
//! no trail to hear.

use std::sync::Arc;

use jiff::Timestamp;

use super::sessions::deleted;
use super::{Caller, Fault, Offset, Output, Sessions, replay, search};
use crate::audit::Event;
use crate::recording::{SessionId, Summary, TapeError, TapeKeys, Tapes};
use crate::session::House;

/// Some tapes, and the house whose they are.
#[derive(Clone, Copy)]
pub(super) struct Shelf<'a> {
    tapes: &'a Arc<Tapes>,
    house: Option<&'a House>,
}

impl<'a> From<&'a House> for Shelf<'a> {
    fn from(house: &'a House) -> Self {
        Self { tapes: &house.tapes, house: Some(house) }
    }
}

impl Shelf<'_> {
    /// Runs `read` on the tapes where blocking is allowed.
    pub(super) async fn reading<T: Send + 'static>(
        self,
        read: impl FnOnce(&Tapes) -> Result<T, TapeError> + Send + 'static,
    ) -> Result<T, Fault> {
        let tapes = Arc::clone(self.tapes);
        let done = tokio::task::spawn_blocking(move || read(&tapes)).await;
        done.map_err(|e| Fault::error(e.to_string()))?.map_err(Fault::from)
    }

    /// One session; of one that was deleted, when and why.
    pub(super) async fn summary(self, id: SessionId) -> Result<Summary, Fault> {
        match self.reading(move |tapes| Ok(tapes.summary(id))).await? {
            Err(TapeError::Missing(_)) => {
                let told = match self.house {
                    Some(house) => deleted(house, id).await?,
                    None => None,
                };
                Err(told.map_or_else(|| TapeError::Missing(id).into(), Fault::not_found))
            }
            found => Ok(found?),
        }
    }

    /// The trail, where there is one, hears of it, or nothing is shown.
    pub(super) async fn hears(self, event: Event) -> Result<(), Fault> {
        let Some(house) = self.house else { return Ok(()) };
        house.trail.append(event, Timestamp::now()).await.map(drop).map_err(|e| Fault::error(e.to_string()))
    }
}

/// Reads recordings in a copy of a state directory, with the auditors' identity. What else there is to ask takes a daemon.
///
/// # Errors
/// As the command's own.
pub async fn offline(tapes: Tapes, command: Sessions, out: &mut Output) -> Result<(), Fault> {
    let tapes = Arc::new(tapes);
    let shelf = Shelf { tapes: &tapes, house: None };
    let caller = &Caller::Operator { uid: rustix::process::getuid().as_raw() };
    match command {
        Sessions::Play { id, speed, from: Offset(from), .. } => {
            replay::play((shelf, caller, &id), speed, from, out).await
        }
        Sessions::Transcript { id, .. } => replay::transcript((shelf, caller, &id), out).await,
        Sessions::Export { id, format, .. } => replay::export((shelf, caller, &id), format, out).await,
        Sessions::Search { pattern, regex, only, .. } => {
            let sought = search::pattern(&pattern, regex)?;
            let mut among = shelf.reading(Tapes::list).await?;
            among.retain(|summary| super::finds::wanted(summary, &only));
            search::search((shelf, caller), among, &pattern, sought, out).await
        }
        _ => Err(Fault::usage("this is asked of a running bastion; leave --state out")),
    }
}

/// The tapes of a copy, or what is wrong with the identity.
///
/// # Errors
/// [`Fault`]: there are none, or the identity is none.
pub fn copied(state: &std::path::Path, identity: &std::path::Path) -> Result<Tapes, Fault> {
    let dir = state.join("tapes");
    if !dir.is_dir() {
        return Err(Fault::not_found(format!("{} holds no recordings", dir.display())));
    }
    Ok(Tapes::inspect(&dir, TapeKeys::load(identity)?))
}
