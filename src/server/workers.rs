//! Worker threads: a connection lives on one of them, with everything that is spawned for it.
//!
//! A recorded jump hands each packet through five tasks. On one thread they follow one another; work that is free to move
//! between threads wakes another core for each of them (docs/adr/0008).

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The threads that serve connections. Dropped unended, they are left to themselves.
pub(super) struct Workers {
    all: Vec<Worker>,
}

struct Worker {
    runtime: Handle,
    busy: Arc<AtomicUsize>,
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Workers {
    /// One for each core.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(super) fn start() -> io::Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        Ok(Self { all: (0..cores).map(Worker::start).collect::<io::Result<_>>()? })
    }

    /// Runs what `serve` makes to its end, on the worker with the fewest connections. `serve` is called there: what it opens
    /// belongs to that worker.
    pub(super) fn serve<F, S>(&self, serve: F)
    where
        F: FnOnce() -> S + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let Some(worker) = self.all.iter().min_by_key(|worker| worker.busy.load(Ordering::Relaxed)) else {
            return;
        };
        let place = Place::take(&worker.busy);
        worker.runtime.spawn(async move {
            let _place = place;
            serve().await;
        });
    }

    /// Ends the workers, and what still runs on them after `patience`. Blocks.
    pub(super) fn end(self) {
        let threads: Vec<_> =
            self.all.into_iter().map(|worker| (worker.end.send(()), worker.thread)).collect();
        for (told, thread) in threads {
            if told.is_err() || thread.join().is_err() {
                tracing::error!("worker.lost");
            }
        }
    }
}

impl Worker {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (handle, (end, ended)) = (runtime.handle().clone(), oneshot::channel::<()>());
        let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            // An end that was dropped is an end as well.
            drop(runtime.block_on(ended));
            runtime.shutdown_timeout(LAST_WRITES);
        })?;
        Ok(Self { runtime: handle, busy: Arc::default(), end, thread })
    }
}

/// A connection's place on its worker.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(busy: &Arc<AtomicUsize>) -> Self {
        busy.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(busy))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long writes to the disk that have begun may take at the end.
const LAST_WRITES: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn connections_are_spread_and_what_they_spawn_stays_with_them() {
        let workers = Workers { all: (0..2).map(Worker::start).collect::<io::Result<_>>().unwrap() };
        let (told, heard) = mpsc::channel();
        let (hold, held) = tokio::sync::watch::channel(());
        for _ in 0..4 {
            let (told, mut held) = (told.clone(), held.clone());
            workers.serve(move || async move {
                let here = std::thread::current().id();
                let there = tokio::spawn(async { std::thread::current().id() }).await.unwrap();
                told.send((here, there)).unwrap();
                held.changed().await.unwrap_err();
            });
        }
        let seen: Vec<_> = heard.iter().take(4).collect();
        assert!(seen.iter().all(|(here, there)| here == there));
        let first = seen.iter().filter(|(here, _)| *here == seen[0].0).count();
        assert_eq!(first, 2, "{seen:?}");
        drop(hold);
        workers.end();
    }
}
