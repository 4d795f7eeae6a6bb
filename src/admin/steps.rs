//! Long reading in short steps: each is done where blocking is allowed, and while whoever asked takes their time none is
//! under way. So a reader that stands still holds memory for one frame, and no thread.

use super::Fault;
use crate::recording::TapeError;

type Work<T> = Box<dyn FnMut() -> Result<Option<T>, TapeError> + Send>;

/// What a piece of work makes, one step at a time.
pub(super) struct Steps<T>(Option<Work<T>>);

impl<T: Send + 'static> Steps<T> {
    /// `work` is asked until it makes nothing more, or fails.
    pub(super) fn of(work: impl FnMut() -> Result<Option<T>, TapeError> + Send + 'static) -> Self {
        Self(Some(Box::new(work)))
    }

    /// The next step; none after the last. Cancelled in the middle, it has ended.
    pub(super) async fn next(&mut self) -> Result<Option<T>, Fault> {
        let Some(mut work) = self.0.take() else { return Ok(None) };
        let done = tokio::task::spawn_blocking(move || {
            let made = work();
            (work, made)
        });
        let (work, made) = done.await.map_err(|e| Fault::error(e.to_string()))?;
        let made = made?;
        if made.is_some() {
            self.0 = Some(work);
        }
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_that_stand_still_hold_no_thread() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut readers: Vec<Steps<u32>> = (0..100).map(|n| Steps::of(move || Ok(Some(n)))).collect();
            for reader in &mut readers {
                reader.next().await.unwrap();
            }
            // All hundred are in the middle, and the one thread is free.
            assert_eq!(tokio::task::spawn_blocking(|| 7).await.unwrap(), 7);
            for (n, reader) in readers.iter_mut().enumerate() {
                assert_eq!(reader.next().await.unwrap(), Some(n as u32));
            }
        });
    }

    #[tokio::test]
    async fn after_a_fault_there_is_nothing_more() {
        let mut steps: Steps<u32> = Steps::of(|| Err(TapeError::NoIdentity));
        assert!(steps.next().await.is_err());
        assert_eq!(steps.next().await.unwrap(), None);
    }
}
