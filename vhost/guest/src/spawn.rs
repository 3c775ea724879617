//! A guest with a thread of its own.
//!
//! The thread polls the guest and between polls runs closures that are handed to it, one after the other. A closure
//! may block (`ping`, `tcp_transfer`): it polls its guest itself while it waits.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::Error;
use crate::guest::Guest;

type Job = Box<dyn FnOnce(&mut Guest) + Send>;

/// Longest sleep of the guest's thread: what a closure waits at most before it runs.
const NAP: Duration = Duration::from_millis(2);

/// A guest that runs in its own thread.
pub struct GuestHandle {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<Guest>>,
}

impl Guest {
    /// Gives the guest a thread. With `reconnect` it connects again whenever its backend goes away.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn spawn(self, name: &str, reconnect: bool) -> Result<GuestHandle, Error> {
        let (jobs, queue) = channel();
        let thread = std::thread::Builder::new()
            .name(name.chars().take(15).collect())
            .spawn(move || run(self, &queue, reconnect))
            .map_err(|e| Error::io("spawn of a guest's thread", e))?;
        Ok(GuestHandle { jobs: Some(jobs), thread: Some(thread) })
    }
}

fn run(mut guest: Guest, queue: &Receiver<Job>, reconnect: bool) -> Guest {
    loop {
        match queue.recv_timeout(Duration::ZERO) {
            Ok(job) => job(&mut guest),
            Err(RecvTimeoutError::Disconnected) => return guest,
            Err(RecvTimeoutError::Timeout) => (),
        }
        if !guest.nic_ref().is_connected() {
            // No backend within the configured time is not the end: it is tried again in the next round.
            if reconnect && guest.nic().reconnect().is_ok() {
                continue;
            }
            std::thread::sleep(NAP);
            continue;
        }
        if guest.poll_or_wait(NAP).is_err() {
            std::thread::sleep(NAP);
        }
    }
}

impl GuestHandle {
    /// Runs `job` in the guest's thread and waits for its result.
    ///
    /// # Errors
    /// [`Error::Stack`] when the guest's thread has ended.
    pub fn call<T: Send + 'static>(&self, job: impl FnOnce(&mut Guest) -> T + Send + 'static) -> Result<T, Error> {
        self.start(job)?.recv().map_err(|_| gone())
    }

    /// Starts `job` in the guest's thread; the result comes through the receiver.
    ///
    /// # Errors
    /// [`Error::Stack`] when the guest's thread has ended.
    pub fn start<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Guest) -> T + Send + 'static,
    ) -> Result<Receiver<T>, Error> {
        let (result, receiver) = channel();
        let boxed: Job = Box::new(move |guest| {
            // Nobody may be waiting for the result any more.
            let _ = result.send(job(guest));
        });
        self.jobs.as_ref().ok_or_else(gone)?.send(boxed).map_err(|_| gone())?;
        Ok(receiver)
    }

    /// Ends the thread and gives the guest back; none if its thread panicked.
    pub fn stop(mut self) -> Option<Guest> {
        self.jobs = None;
        self.thread.take()?.join().ok()
    }
}

impl Drop for GuestHandle {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed by the thread itself.
            let _ = thread.join();
        }
    }
}

fn gone() -> Error {
    Error::Stack { what: "a job: the guest's thread has ended".into() }
}
