//! Worker threads that read, hash and clone files for every layer of an import at once.
//!
//! The queue holds jobs in the order in which they were pushed; each job answers through a [`Promise`].
//! Workers never wait for anything but the queue, so whoever waits for an answer gets one: from the
//! job, or, if the job panicked, [`Lost`]. What is in flight is bounded by those who push (see
//! `layer`), not here.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};

/// A queue of jobs, shared by those who push and those who work.
pub(crate) struct Queue<J> {
    state: Mutex<State<J>>,
    changed: Condvar,
}

struct State<J> {
    jobs: VecDeque<J>,
    closed: bool,
}

impl<J> Queue<J> {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Adds a job at the end.
    pub(crate) fn push(&self, job: J) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.jobs.push_back(job);
        drop(state);
        self.changed.notify_one();
    }

    /// Runs `work` on job after job until the queue is closed and empty.
    pub(crate) fn serve(&self, mut work: impl FnMut(J)) {
        while let Some(job) = self.wait() {
            // A panic drops the job and its promise; who waits for it learns that, and the other jobs
            // still get done.
            let _ = catch_unwind(AssertUnwindSafe(|| work(job)));
        }
    }

    fn wait(&self) -> Option<J> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the workers go once the queue is empty, when the value returned is dropped.
    pub(crate) fn close_on_drop(&self) -> CloseOnDrop<'_, J> {
        CloseOnDrop(self)
    }
}

/// Closes its queue when dropped, also when its owner panics.
pub(crate) struct CloseOnDrop<'a, J>(&'a Queue<J>);

impl<J> Drop for CloseOnDrop<'_, J> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        drop(state);
        self.0.changed.notify_all();
    }
}

/// The job that owed an answer is gone: it panicked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lost;

/// The end of a one-shot channel that a job holds.
pub(crate) struct Promise<T>(SyncSender<T>);

/// The end of a one-shot channel that waits for a job's answer.
pub(crate) struct Answer<T>(Receiver<T>);

/// A promise and the answer to it.
pub(crate) fn promise<T>() -> (Promise<T>, Answer<T>) {
    let (sender, receiver) = sync_channel(1);
    (Promise(sender), Answer(receiver))
}

impl<T> Promise<T> {
    /// Gives the answer. Nobody may be waiting any more; that is fine.
    pub(crate) fn keep(self, value: T) {
        let _ = self.0.send(value);
    }
}

impl<T> Answer<T> {
    /// Waits for the answer.
    pub(crate) fn wait(self) -> Result<T, Lost> {
        self.0.recv().map_err(|_| Lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_is_done_and_the_workers_leave_when_the_queue_closes() {
        let queue = Queue::new();
        let sum: u64 = std::thread::scope(|scope| {
            for _ in 0..3 {
                scope
                    .spawn(|| queue.serve(|(n, promise): (u64, Promise<u64>)| promise.keep(n * n)));
            }
            let _close = queue.close_on_drop();
            let answers: Vec<_> = (0..100)
                .map(|n| {
                    let (promise, answer) = promise();
                    queue.push((n, promise));
                    answer
                })
                .collect();
            answers.into_iter().map(|a| a.wait().unwrap()).sum()
        });
        assert_eq!(sum, 328_350);
    }

    #[test]
    fn a_job_that_panics_is_reported_and_the_next_one_is_done() {
        let queue = Queue::new();
        let (lost, kept) = std::thread::scope(|scope| {
            scope.spawn(|| {
                queue.serve(|promise: Option<Promise<u8>>| {
                    promise.expect("the job that panics").keep(7);
                });
            });
            let _close = queue.close_on_drop();
            let (dropped, lost) = promise::<u8>();
            drop(dropped);
            queue.push(None);
            let (promise, kept) = promise();
            queue.push(Some(promise));
            (lost.wait(), kept.wait())
        });
        assert_eq!(lost, Err(Lost));
        assert_eq!(kept, Ok(7));
    }
}
