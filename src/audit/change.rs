//! A change and its event: the event stands first (docs/adr/0006). The one place that keeps the two in this order.

use std::fmt::Display;

use jiff::Timestamp;

use super::{AuditError, Event, Trail};

impl Trail {
    /// Tells of a change that gives something, then makes it. Without the event there is no change; a change that fails
    /// is followed by [`Event::ChangeFailed`]. A crash in between leaves an event without its change, never a change
    /// without its event; so does dropping the future.
    ///
    /// # Errors
    /// The trail's: nothing was changed. Or the change's own.
    pub async fn ahead_of<T, E: Display + From<AuditError>>(
        &self,
        events: Vec<Event>,
        now: Timestamp,
        change: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let told = self.tell(events, now).await?;
        let changed = change.await;
        // What the change says matters to whoever asked for it, also where the trail refuses to hear of it.
        if let Err(error) = &changed
            && let Err(refused) = self.take_back(told, error, now).await
        {
            tracing::error!(error = %refused, "audit.append_failed");
        }
        changed
    }

    /// Tells of a change that takes something away, then makes it. What is taken away is taken away also when the trail
    /// refuses: a full disk must not keep a stolen key alive. The second half says what the trail refused.
    ///
    /// # Errors
    /// The change's own.
    pub async fn beside<T, E: Display>(
        &self,
        events: Vec<Event>,
        now: Timestamp,
        change: impl Future<Output = Result<T, E>>,
    ) -> Result<(T, Option<AuditError>), E> {
        let told = self.tell(events, now).await;
        let changed = change.await;
        let refused = match (&changed, told) {
            (_, Err(refused)) => Some(refused),
            (Err(error), Ok(told)) => self.take_back(told, error, now).await.err(),
            (Ok(_), Ok(_)) => None,
        };
        if let (Err(_), Some(error)) = (&changed, &refused) {
            tracing::error!(%error, "audit.append_failed");
        }
        changed.map(|done| (done, refused))
    }

    async fn tell(&self, events: Vec<Event>, now: Timestamp) -> Result<Option<Told>, AuditError> {
        let mut told: Option<Told> = None;
        for event in events {
            let name = event.name();
            let seq = self.append(event, now).await?.seq;
            let told = told.get_or_insert_with(|| Told { first: seq, names: Vec::new() });
            told.names.push(name);
        }
        Ok(told)
    }

    async fn take_back(
        &self,
        told: Option<Told>,
        error: &impl Display,
        now: Timestamp,
    ) -> Result<(), AuditError> {
        let Some(Told { first, names }) = told else { return Ok(()) };
        let event = Event::ChangeFailed { change: first, what: names.join(" "), reason: error.to_string() };
        self.append(event, now).await.map(drop)
    }
}

/// What the trail has heard of a change.
struct Told {
    first: u64,
    names: Vec<&'static str>,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use keystore::Vault;
    use keystore::backend::Memory;
    use keystore::seal::MasterKey;
    use keystore::signing::Signers;

    use super::*;
    use crate::audit::Filter;

    async fn trail(dir: &tempfile::TempDir) -> Trail {
        let vault = Vault::new(Arc::new(Memory::default()), MasterKey::generate().unwrap());
        Trail::open(dir.path(), Signers::create(&vault).await.unwrap().audit).unwrap()
    }

    fn told(trail: &Trail) -> Vec<String> {
        let events = trail.query(&Filter::default()).unwrap();
        events.iter().map(|e| e["event"].as_str().unwrap().to_owned()).collect()
    }

    fn added() -> Vec<Event> {
        vec![Event::UserAdded { user: "alice".to_owned(), by: "root".to_owned(), roles: Vec::new() }]
    }

    fn revoked() -> Vec<Event> {
        let (user, key) = ("alice".to_owned(), "SHA256:x".to_owned());
        vec![Event::SshKeyRevoked { user, key, by: "root".to_owned(), reason: "lost".to_owned() }]
    }

    #[tokio::test]
    async fn an_event_is_durable_before_its_change_begins() {
        let dir = tempfile::tempdir().unwrap();
        let trail = trail(&dir).await;
        let change = async { Ok::<_, AuditError>(told(&trail)) };
        assert_eq!(trail.ahead_of(added(), Timestamp::UNIX_EPOCH, change).await.unwrap(), ["user_added"]);
        let change = async { Ok::<_, AuditError>(told(&trail).len()) };
        assert_eq!(trail.beside(revoked(), Timestamp::UNIX_EPOCH, change).await.unwrap().0, 2);
    }

    #[tokio::test]
    async fn a_change_that_never_ends_has_its_event_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let trail = trail(&dir).await;
        let change = std::future::pending::<Result<(), AuditError>>();
        let change = trail.ahead_of(added(), Timestamp::UNIX_EPOCH, change);
        assert!(tokio::time::timeout(Duration::from_millis(300), change).await.is_err());
        assert_eq!(told(&trail), ["user_added"]);
    }

    #[tokio::test]
    async fn a_change_that_fails_is_taken_back_in_the_trail() {
        let dir = tempfile::tempdir().unwrap();
        let trail = trail(&dir).await;
        let failed = || AuditError::Interrupted("no store".to_owned());
        let change = async { Err::<(), _>(failed()) };
        assert!(trail.ahead_of(added(), Timestamp::UNIX_EPOCH, change).await.is_err());
        let change = async { Err::<(), _>(failed()) };
        assert!(trail.beside(revoked(), Timestamp::UNIX_EPOCH, change).await.is_err());
        assert_eq!(told(&trail), ["user_added", "change_failed", "ssh_key_revoked", "change_failed"]);
        let events = trail.query(&Filter::default()).unwrap();
        assert_eq!((&events[3]["change"], &events[3]["what"]), (&3.into(), &"ssh_key_revoked".into()));
        assert!(events[1]["reason"].as_str().unwrap().contains("no store"));
    }

    #[tokio::test]
    async fn what_the_change_says_is_heard_where_the_trail_refuses_too() {
        let dir = tempfile::tempdir().unwrap();
        let trail = trail(&dir).await;
        let change = async {
            trail.refuses.store(true, Ordering::Relaxed);
            Err::<(), _>(AuditError::Interrupted("no such store".to_owned()))
        };
        let told = trail.ahead_of(added(), Timestamp::UNIX_EPOCH, change).await.unwrap_err();
        assert!(told.to_string().contains("no such store"), "{told}");
    }

    #[tokio::test]
    async fn a_trail_that_refuses_lets_nothing_be_given_and_everything_be_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let trail = trail(&dir).await;
        trail.refuses.store(true, Ordering::Relaxed);
        let made = std::cell::Cell::new(0);
        let change = async {
            made.set(made.get() + 1);
            Ok::<_, AuditError>(())
        };
        assert!(trail.ahead_of(added(), Timestamp::UNIX_EPOCH, change).await.is_err());
        assert_eq!(made.get(), 0);
        let change = async {
            made.set(made.get() + 1);
            Ok::<_, AuditError>(())
        };
        let (_, refused) = trail.beside(revoked(), Timestamp::UNIX_EPOCH, change).await.unwrap();
        assert!(made.get() == 1 && refused.is_some());
    }
}
