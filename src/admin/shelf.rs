//! Where recordings are read: on a running bastion, whose trail hears of each look, or on a copy of its files, where there is
//! no trail to hear.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use keystore::UserName;
use serde_json::json;

use super::kinds::Kinds;
use super::sessions::deleted;
use super::{Caller, Fault, Offset, Output, SessionFilter, Sessions, When, gaps, replay, search, sessions};
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

    /// The same of one session; if some of it is gone, because it is being deleted, when and why.
    pub(super) async fn reading_of<T: Send + 'static>(
        self,
        id: SessionId,
        read: impl FnOnce(&Tapes) -> Result<T, TapeError> + Send + 'static,
    ) -> Result<T, Fault> {
        let (read, whole) = self.reading(move |tapes| Ok((read(tapes), tapes.lies_whole(id)))).await?;
        match (&read, self.house) {
            (Err(error), Some(house)) if error.is_tampering() && !whole => {
                let told = deleted(house, id).await?.map(Fault::not_found);
                told.map_or_else(|| read.map_err(Fault::from), Err)
            }
            _ => Ok(read?),
        }
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

    /// Writes the ids that `command` names out in full, where only their beginning was typed.
    pub(super) async fn spell_out(self, command: &mut Sessions) -> Result<(), Fault> {
        let mut named = command.ids_mut();
        if named.iter().all(|id| id.parse::<SessionId>().is_ok()) {
            return Ok(());
        }
        let known = self.reading(Tapes::ids_known).await?;
        for id in &mut named {
            **id = sessions::spelled_out(id, known.iter().copied())?;
        }
        Ok(())
    }

    /// The trail, where there is one, hears of it, or nothing is shown.
    pub(super) async fn hears(self, event: Event) -> Result<(), Fault> {
        let Some(house) = self.house else { return Ok(()) };
        house.trail.append(event, Timestamp::now()).await.map(drop).map_err(|e| Fault::error(e.to_string()))
    }
}

/// Reads recordings in a copy of a state directory. What else there is to ask takes a daemon.
///
/// # Errors
/// As the command's own.
pub async fn offline(tapes: Tapes, command: Sessions, out: &mut Output) -> Result<(), Fault> {
    let tapes = Arc::new(tapes);
    let shelf = Shelf { tapes: &tapes, house: None };
    let caller = &Caller::Operator { uid: rustix::process::getuid().as_raw() };
    let ago = |when: When| when.ago(Timestamp::now());
    let mut command = command;
    shelf.spell_out(&mut command).await?;
    match command {
        Sessions::List { user, since, only, part, .. } => {
            let found = shelf.among((user.as_ref(), since.map(ago)), &only).await?;
            if part.count {
                return out.either(&json!({ "count": found.len() }), found.len().to_string()).await;
            }
            let shown = sessions::listed(part.of(&found), &Kinds::default(), out.width());
            out.either(&part.of(&found), shown).await
        }
        Sessions::Show { id, .. } => {
            let summary = shelf.summary(sessions::parsed(&id)?).await?;
            out.either(&summary, sessions::described(&summary, out.width())).await
        }
        Sessions::Gaps { user, since, only, .. } => {
            answerable(&only)?;
            let (mut found, unreadable) = gaps::read(shelf, (user.as_ref(), since.map(ago)), out).await?;
            found.retain(|summary| super::finds::wanted(summary, &only));
            gaps::tell(found, unreadable, out).await
        }
        Sessions::Play { id, speed, from: Offset(from), .. } => {
            replay::play((shelf, caller, &id), speed, from, out).await
        }
        Sessions::Transcript { id, commands, .. } => {
            replay::transcript((shelf, caller, &id), commands, out).await
        }
        Sessions::Export { id, format, .. } => replay::export((shelf, caller, &id), format, out).await,
        Sessions::Search { pattern, regex, user, since, only, .. } => {
            let sought = search::pattern(&pattern, regex)?;
            let among = shelf.among((user.as_ref(), since.map(ago)), &only).await?;
            search::search((shelf, caller), among, &pattern, sought, out).await
        }
        _ => Err(Fault::usage("this is asked of a running bastion; leave --state out")),
    }
}

impl Shelf<'_> {
    /// The sessions of a copy that are meant.
    async fn among(
        self,
        (user, since): (Option<&UserName>, Option<Timestamp>),
        only: &SessionFilter,
    ) -> Result<Vec<Summary>, Fault> {
        answerable(only)?;
        let mut among = self.reading(Tapes::list).await?;
        among.retain(|summary| user.is_none_or(|user| summary.header.user == user.as_str()));
        among.retain(|summary| since.is_none_or(|since| summary.header.started_at >= since));
        among.retain(|summary| super::finds::wanted(summary, only));
        Ok(among)
    }
}

/// Labels are in the store, and paths in the trail: whoever has only the tapes is told so, and not shown too few.
fn answerable(only: &SessionFilter) -> Result<(), Fault> {
    if only.label.is_none() && only.path.is_none() {
        return Ok(());
    }
    let says = "--label and --path are asked of a running bastion; of a copy ask with --instance, or: sessions search PATH";
    Err(Fault::usage(says))
}

/// The tapes of a copy, opened with `identity`, or what is wrong with that.
///
/// # Errors
/// [`Fault`]: there are none, or the identity is none.
pub fn copied(state: &Path, identity: Option<&Path>) -> Result<Tapes, Fault> {
    let dir = state.join("tapes");
    if !dir.is_dir() {
        return Err(Fault::not_found(format!("{} holds no recordings{}", dir.display(), meant(state))));
    }
    let keys = identity.map_or_else(|| Ok(TapeKeys::none()), TapeKeys::load)?;
    Ok(Tapes::inspect(&dir, keys))
}

/// What to say beside `--state DIR` where DIR is the folder around the one that was meant.
pub fn meant(state: &Path) -> String {
    let inside = state.join("state");
    if inside.is_dir() { format!("; did you mean --state {}?", inside.display()) } else { String::new() }
}

/// The id of the session in `tapes` that `text` means, which may be its beginning.
///
/// # Errors
/// [`Fault`]: several begin so, or there is none.
pub fn session_meant(tapes: &Tapes, text: &str) -> Result<SessionId, Fault> {
    let known = tapes.ids_known()?;
    sessions::parsed(&sessions::spelled_out(text, known.iter().copied())?)
}
