//! The new process's side of a restart: it says when it is ready, answers, and takes over; or leaves again.

use std::io;
use std::os::fd::AsFd;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, Result};
use crate::events::LogLevel;
use crate::handover::Message;
use crate::holdings;
use crate::inherited::{self, Predecessor, Sockets};
use crate::stats::StatKind;
use crate::sys::EventFd;
use crate::threads;

use super::canary::Canary;
use super::errors::Errors;
use super::pid_file::PidFile;
use super::{Coordinator, Party, Standing, Succession, has_ended, living};

/// Wakes the thread that talks with the predecessor.
#[derive(Debug)]
pub(super) struct Call {
    wake: EventFd,
    /// The host has said that all its servers serve.
    is_ready: AtomicBool,
}

impl Call {
    fn new() -> io::Result<Self> {
        Ok(Self {
            wake: EventFd::new()?,
            is_ready: AtomicBool::new(false),
        })
    }

    pub(super) fn wake(&self) {
        self.wake.set();
    }
}

impl Coordinator {
    /// A server of this process serves. With the first one, the talk with the predecessor begins.
    pub(super) fn succeed_to(
        &'static self,
        predecessor: &'static Predecessor,
        party: &Arc<dyn Party>,
    ) {
        let mut state = self.lock();
        if state.standing == Standing::Leaves {
            drop(state);
            party.leave(None);
            return;
        }
        if let Succession::Under(call) = &state.succession {
            call.wake();
        }
        if state.has_met {
            return;
        }
        state.has_met = true;
        state.generation = predecessor.generation;
        state.predecessors = living(&predecessor.pids);
        // Without it, the predecessor does not know what is lost if this process dies; that is no reason to fail.
        if let Ok(shown) = holdings::show() {
            let _ = predecessor
                .channel
                .send_with(&Message::Holds, &[shown.as_fd()]);
        }
        let begun = Call::new()
            .map_err(|error| Error::io("eventfd", error))
            .and_then(|call| {
                let call = Arc::new(call);
                let talk = Talk {
                    coordinator: self,
                    predecessor,
                    call: Arc::clone(&call),
                };
                threads::apart("httpdown-restart", move || talk.run())?;
                Ok(call)
            });
        match begun {
            Ok(call) => state.succession = Succession::Under(call),
            Err(error) => {
                drop(state);
                let failed = Message::Failed(format!("{error:#}"));
                let _ = predecessor.channel.send(&failed);
                party.log(LogLevel::Error, format!("restart: {error:#}"));
            }
        }
    }

    /// The host says that all its servers serve.
    pub(super) fn say_ready(&self, predecessor: &Predecessor) -> Result<()> {
        let succession = self.lock().succession.clone();
        if let Succession::Under(call) = succession {
            let unserved = unserved();
            if !unserved.is_empty() && !predecessor.drops_unclaimed {
                let unserved = unserved.join(", ");
                return Err(predecessor.fail(format!("nobody listens on {unserved}")));
            }
            call.is_ready.store(true, Ordering::Release);
            call.wake();
        }
        Ok(())
    }

    pub(super) fn parties(&self) -> Vec<Arc<dyn Party>> {
        self.lock().parties.clone()
    }
}

fn unserved() -> Vec<String> {
    inherited::known().map_or_else(Vec::new, Sockets::unserved)
}

/// Whether a server will not serve its sockets much longer.
fn is_leaving(party: &Arc<dyn Party>) -> bool {
    party.is_stopping() && party.borrows()
}

/// Answers a question when it is dropped, which the last of the threads does that were asked.
struct Pong {
    predecessor: &'static Predecessor,
    number: u64,
}

impl Drop for Pong {
    fn drop(&mut self) {
        let pong = Message::Pong(self.number);
        let _ = self.predecessor.channel.send(&pong);
    }
}

/// The talk with the predecessor.
struct Talk {
    coordinator: &'static Coordinator,
    predecessor: &'static Predecessor,
    call: Arc<Call>,
}

/// How far the talk has come.
#[derive(Default)]
struct Progress {
    readiness: Readiness,
    /// The sockets that were dropped.
    dropped: Vec<usize>,
    /// What was said to be missing last.
    missing: Vec<String>,
    /// It was said that this process has failed.
    has_failed: bool,
    /// The predecessor says no more.
    is_silent: bool,
}

#[derive(Default)]
enum Readiness {
    /// Sockets are not served.
    #[default]
    Missing,
    /// The servers' canaries have not come back.
    Asking(Vec<Canary>),
    /// It was said that all is ready, or that it never will be.
    Said,
}

impl Talk {
    /// Until this process has taken over, or has left.
    fn run(&self) {
        let mut progress = Progress::default();
        while !self.step(&mut progress) {}
        // What the predecessor has not read; and what those processes write that this one has started before it was
        // ready, and that have the pipe. Nearly always, there is none.
        if let Some(detour) = self.predecessor.take_detour() {
            Errors::by(detour).copy_all();
        }
    }

    /// Returns whether it is over.
    fn step(&self, progress: &mut Progress) -> bool {
        let Self {
            predecessor, call, ..
        } = self;
        let standing = self.coordinator.lock().standing;
        if standing == Standing::Starts {
            self.look_whether_ready(progress);
        }
        if standing == Standing::Withdraws && !progress.has_failed {
            progress.has_failed = true;
            let failed = Message::Failed("its servers stop".into());
            let _ = predecessor.channel.send(&failed);
        }
        if standing == Standing::Leaves && self.coordinator.lock().parties.is_empty() {
            self.coordinator.lock().succession = Succession::Over;
            let _ = predecessor.channel.send(&Message::Left);
            return true;
        }
        let Some(process) = &predecessor.process else {
            self.take_over(false);
            return true;
        };
        let mut watched = vec![
            PollFd::new(call.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(process.as_fd(), PollFlags::POLLIN),
        ];
        if let Readiness::Asking(canaries) = &progress.readiness {
            let canaries = canaries.iter().map(AsFd::as_fd);
            watched.extend(canaries.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        }
        if !progress.is_silent {
            let channel = predecessor.channel.as_fd();
            watched.push(PollFd::new(channel, PollFlags::POLLIN));
        }
        let _ = poll(&mut watched, PollTimeout::NONE);
        call.wake.clear();
        // What it has said before its end counts.
        while !progress.is_silent {
            match predecessor.channel.receive() {
                Ok(Some((Message::Go, _))) => {
                    self.take_over(true);
                    return true;
                }
                Ok(Some((message, _))) => self.hear(&message),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Ok(None) | Err(_) => progress.is_silent = true,
            }
        }
        if has_ended(process) {
            self.take_over(false);
            return true;
        }
        false
    }

    fn hear(&self, message: &Message) {
        match message {
            Message::Accept => {
                self.coordinator.permit.send_replace(true);
            }
            Message::Ping(number) => {
                let (predecessor, number) = (self.predecessor, *number);
                let pong: Arc<dyn Send + Sync> = Arc::new(Pong {
                    predecessor,
                    number,
                });
                self.coordinator.ask_threads(&pong);
            }
            Message::Stop => {
                let parties = {
                    let mut state = self.coordinator.lock();
                    // What starts from now on leaves at once, too.
                    state.standing = Standing::Leaves;
                    state.parties.clone()
                };
                for party in parties {
                    party.log(LogLevel::Warning, "restart: the predecessor goes on".into());
                    party.leave(None);
                }
            }
            _ => {}
        }
    }

    fn look_whether_ready(&self, progress: &mut Progress) {
        if let Readiness::Missing = progress.readiness {
            self.look_whether_served(progress);
        }
        let Readiness::Asking(canaries) = &mut progress.readiness else {
            return;
        };
        let mut failed = None;
        canaries.retain_mut(|canary| {
            let Some(end) = canary.look() else {
                return true;
            };
            failed = failed.take().or(end.err());
            false
        });
        if let Some(why) = failed {
            self.fail(why, progress);
        } else if canaries.is_empty() {
            self.say_ready(progress);
        }
    }

    fn fail(&self, why: String, progress: &mut Progress) {
        let _ = self.predecessor.channel.send(&Message::Failed(why));
        progress.readiness = Readiness::Said;
    }

    fn say_ready(&self, progress: &mut Progress) {
        let mut state = self.coordinator.lock();
        if state.parties.iter().any(is_leaving) {
            // Another server may take its place.
            progress.readiness = Readiness::Missing;
            return;
        }
        state.standing = Standing::IsReady;
        drop(state);
        self.predecessor.restore_stderr();
        let ready = Message::Ready(std::mem::take(&mut progress.dropped));
        let _ = self.predecessor.channel.send(&ready);
        progress.readiness = Readiness::Said;
    }

    fn look_whether_served(&self, progress: &mut Progress) {
        let predecessor = self.predecessor;
        let parties = self.coordinator.parties();
        let unserved = unserved();
        if parties.iter().any(is_leaving) {
            return;
        }
        if !unserved.is_empty() {
            let drops = predecessor.drops_unclaimed && self.call.is_ready.load(Ordering::Acquire);
            if !drops {
                if progress.missing != unserved {
                    let missing = unserved.join(", ");
                    let why = format!("nobody listens on {missing}");
                    let _ = predecessor.channel.send(&Message::Waits(why));
                    progress.missing = unserved;
                }
                return;
            }
            if let Some(party) = parties.first() {
                let (count, unserved) = (unserved.len(), unserved.join(", "));
                party.stat(StatKind::Sum, "restart.unclaimed", count as f64);
                let text = format!("restart: closed {unserved}, on which nobody listens");
                party.log(LogLevel::Warning, text);
            }
            let dropped = inherited::known().map_or_else(Vec::new, Sockets::drop_unserved);
            progress.dropped.extend(dropped);
        }
        let canaries = parties.iter().map(|party| Canary::release(&**party));
        match canaries.collect::<io::Result<Vec<_>>>() {
            Ok(canaries) => {
                let why = "the canary is not answered".into();
                let _ = predecessor.channel.send(&Message::Waits(why));
                let canaries = canaries.into_iter().flatten().collect();
                progress.readiness = Readiness::Asking(canaries);
            }
            Err(error) => self.fail(format!("the canary was not sent: {error}"), progress),
        }
    }

    /// The sockets are this process's. `was_handed_over`: the predecessor has said so; otherwise it has died.
    fn take_over(&self, was_handed_over: bool) {
        let Self {
            coordinator,
            predecessor,
            ..
        } = self;
        predecessor.restore_stderr();
        if let Some(sockets) = inherited::known() {
            sockets.succeed();
        }
        holdings::hide();
        coordinator.lock().succession = Succession::Done;
        coordinator.permit.send_replace(true);
        // The predecessor waits for that.
        predecessor.channel.end();
        if !was_handed_over {
            self.write_pid_file();
        }
        let pid = predecessor.pids.first().copied().unwrap_or(0);
        if let Some(party) = coordinator.parties().first() {
            if was_handed_over {
                party.log(LogLevel::Info, format!("restart: took over from PID {pid}"));
            } else {
                let text = format!("restart: PID {pid} has ended before it handed over");
                party.log(LogLevel::Warning, text);
            }
        }
        let generation = predecessor.generation;
        let status = format!("took over from PID {pid} (restart {generation})");
        coordinator.tell_taken_over(&status);
    }

    /// Does what the predecessor can do no more. It may have written the file already; then it stays as it is.
    fn write_pid_file(&self) {
        let Some(path) = &self.predecessor.pid_file else {
            return;
        };
        let written = PidFile::prepare(path, process::id()).and_then(|file| file.replace());
        if let (Err(error), Some(party)) = (written, self.coordinator.parties().first()) {
            let text = format!("restart: {} cannot be written: {error}", path.display());
            party.log(LogLevel::Error, text);
        }
    }
}
