//! What a service manager is told, by the protocol of systemd (`sd_notify(3)`): one datagram for each change, to the
//! socket that `NOTIFY_SOCKET` names.

use std::ffi::OsStr;
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::parent_id;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};

use crate::events::LogLevel;
use crate::inherited;
use crate::sys;
use crate::threads;

use super::{Coordinator, Party, Service, State, Succession};

/// How long a restart's thread waits for room in the manager's queue. Other threads do not wait.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it looks for room.
const PAUSE: Duration = Duration::from_millis(10);
/// By how much a stop asks for more time, and how often.
const EXTENSION: Duration = Duration::from_secs(10);
const EXTEND_EVERY: Duration = Duration::from_secs(5);
/// How much of a status the manager gets, in characters.
const LONGEST: usize = 400;

/// The host speaks with the manager itself.
static IS_SILENT: AtomicBool = AtomicBool::new(false);

/// Leaves it to the program to talk with systemd (`sd_notify(3)`): nothing is sent to `NOTIFY_SOCKET`, neither of
/// starts and stops nor of restarts. A program that uses `sd_notify` itself calls this first, before its first server
/// is started, in each process. Any thread may call it.
///
/// ```
/// httpdown::no_notify();
/// ```
pub fn no_notify() {
    IS_SILENT.store(true, Ordering::Relaxed);
}

/// Whether a program that this one starts should be a child of our parent, because that is the manager. Then the
/// manager learns of its end at once, and not only when this process has ended, too.
pub(super) fn is_managers_child() -> bool {
    let origin = inherited::origin();
    let manager = origin.var("MANAGERPID").and_then(OsStr::to_str);
    let (parent, manager) = (parent_id(), manager.and_then(|pid| pid.parse().ok()));
    origin.var("NOTIFY_SOCKET").is_some() && (parent == 1 || Some(parent) == manager)
}

/// The service manager.
#[derive(Debug)]
pub(super) struct Manager {
    /// Our socket, and the manager's address.
    way: Result<(OwnedFd, UnixAddr), String>,
    has_complained: AtomicBool,
}

impl Manager {
    /// The manager of this process, if it has one that wants to be told.
    pub(super) fn of_this_process() -> Option<Self> {
        let address = inherited::origin().var("NOTIFY_SOCKET")?;
        Some(Self {
            way: way_to(address),
            has_complained: AtomicBool::new(false),
        })
    }

    /// Sends a datagram, and a descriptor with it. Blocks for at most `patience`, while the manager's queue is full.
    /// The first failure is logged.
    fn send(
        &self,
        text: &str,
        fd: Option<BorrowedFd<'_>>,
        patience: Duration,
        log: Option<&Arc<dyn Party>>,
    ) {
        if IS_SILENT.load(Ordering::Relaxed) {
            return;
        }
        let sent = self.try_to_send(text, fd, patience);
        if let (Err(why), Some(log)) = (sent, log)
            && !self.has_complained.swap(true, Ordering::Relaxed)
        {
            let text = format!("the service manager was not told ({}): {why}", line(text));
            log.log(LogLevel::Error, text);
        }
    }

    fn try_to_send(
        &self,
        text: &str,
        fd: Option<BorrowedFd<'_>>,
        patience: Duration,
    ) -> Result<(), String> {
        let (socket, address) = self.way.as_ref().map_err(String::clone)?;
        let until = Instant::now() + patience;
        let fds = fd.map(|fd| [fd.as_raw_fd()]);
        let rights = fds.as_ref().map(|fds| ControlMessage::ScmRights(fds));
        let bytes = [io::IoSlice::new(text.as_bytes())];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        loop {
            let to = socket.as_raw_fd();
            match sendmsg(to, &bytes, rights.as_slice(), flags, Some(address)) {
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::EAGAIN) if Instant::now() < until => thread::sleep(PAUSE),
                Err(error) => return Err(io::Error::from(error).to_string()),
            }
        }
    }
}

fn way_to(address: &OsStr) -> Result<(OwnedFd, UnixAddr), String> {
    let named = address.as_bytes();
    let address = match named {
        [b'/', ..] => UnixAddr::new(named),
        [b'@', name @ ..] => UnixAddr::new_abstract(name),
        _ => {
            return Err(format!(
                "NOTIFY_SOCKET={} is not supported",
                address.display()
            ));
        }
    };
    let socket = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    );
    let failed = |error: nix::Error| io::Error::from(error).to_string();
    Ok((socket.map_err(failed)?, address.map_err(failed)?))
}

/// A text as the value of one line. It may have the words of another process in it, and those must not become keys.
fn line(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(plain).take(LONGEST).collect()
}

fn reloading() -> String {
    let now = sys::uptime().as_micros();
    format!("RELOADING=1\nMONOTONIC_USEC={now}")
}

fn failed(why: &str) -> String {
    format!("READY=1\nSTATUS=restart failed: {}", line(why))
}

/// What a restart tells the manager, on the restart's thread.
impl Coordinator {
    fn insist(&self, text: &str, log: Option<&Arc<dyn Party>>) {
        if let Some(manager) = &self.manager {
            manager.send(text, None, PATIENCE, log);
        }
    }

    /// A restart begins. The manager waits for the end that is told, whatever it is.
    pub(super) fn tell_reloading(&self, log: &Arc<dyn Party>) {
        self.insist(&reloading(), Some(log));
    }

    /// This process goes on.
    pub(super) fn tell_failed(&self, why: &str, log: &Arc<dyn Party>) {
        self.insist(&failed(why), Some(log));
    }

    /// Another process is the main one from now on. Returns a pipe that ends when the manager has taken note of that.
    pub(super) fn tell_main(&self, pid: u32, log: &Arc<dyn Party>) -> Option<PipeReader> {
        let manager = self.manager.as_ref()?;
        if IS_SILENT.load(Ordering::Relaxed) {
            return None;
        }
        self.insist(&format!("MAINPID={pid}"), Some(log));
        let (reads, writes) = io::pipe().ok()?;
        manager.send("BARRIER=1", Some(writes.as_fd()), PATIENCE, Some(log));
        sys::ensure_nonblocking(reads.as_fd());
        Some(reads)
    }

    /// This process has taken over.
    pub(super) fn tell_taken_over(&'static self, status: &str) {
        let text = format!("READY=1\nSTATUS={}", line(status));
        self.insist(&text, self.parties().first());
        self.keep_watchdog(&mut self.lock());
    }
}

/// What other threads tell. Nothing of it blocks.
impl Coordinator {
    fn tell(&self, text: &str, log: Option<&Arc<dyn Party>>) {
        if let Some(manager) = &self.manager {
            manager.send(text, None, Duration::ZERO, log);
        }
    }

    /// A restart is refused before it begins.
    pub(super) fn tell_refused(&self, why: &str, log: &Arc<dyn Party>) {
        self.tell(&reloading(), Some(log));
        self.tell(&failed(why), Some(log));
    }

    /// The host says that its servers are the service, and that all of them serve.
    pub(super) fn announce(&'static self) {
        let mut state = self.lock();
        if state.service != Service::Unannounced {
            return;
        }
        state.service = Service::Announced;
        // A successor is ready when it takes over.
        if inherited::predecessor().is_none() && state.successor.is_none() {
            self.tell("READY=1", state.parties.first());
        }
        self.keep_watchdog(&mut state);
    }

    /// The stop of this server has begun. With that of the last one, the service ends, if this process is the service.
    /// Called on the server's control thread.
    pub(super) fn tell_stop(&'static self, stopping: &Arc<dyn Party>) {
        if self.manager.is_none() {
            return;
        }
        let mut state = self.lock();
        let mut parties = state.parties.iter();
        let is_last = parties.all(|party| Arc::ptr_eq(party, stopping) || party.is_stopping());
        if is_last && state.is_main() {
            state.service = Service::Ending;
            state.watchdog = None;
            self.tell("STOPPING=1", Some(stopping));
        }
        drop(state);
        // The task ends with the control thread's runtime, so with the stop. The manager's time is real time.
        let log = Arc::clone(stopping);
        tokio::spawn(async move {
            let extend = format!("EXTEND_TIMEOUT_USEC={}", EXTENSION.as_micros());
            loop {
                if self.lock().service == Service::Ending {
                    self.tell(&extend, Some(&log));
                }
                tokio::time::sleep(EXTEND_EVERY).await;
            }
        });
    }

    /// From now on the manager is told that this process gets on, if it wants that.
    fn keep_watchdog(&'static self, state: &mut State) {
        let Some(interval) = watchdog_interval().filter(|_| self.manager.is_some()) else {
            return;
        };
        if !state.is_main() || state.watchdog.is_some() || IS_SILENT.load(Ordering::Relaxed) {
            return;
        }
        let (life, ended) = mpsc::channel();
        let keeps = move || {
            loop {
                self.wait_for_threads();
                let state = self.lock();
                // It is not told by two processes.
                if state.watchdog.is_some() {
                    self.tell("WATCHDOG=1", state.parties.first());
                }
                drop(state);
                match ended.recv_timeout(interval / 2) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => return,
                }
            }
        };
        match threads::apart("httpdown-watchdog", keeps) {
            Ok(_) => state.watchdog = Some(life),
            Err(error) => {
                if let Some(party) = state.parties.first() {
                    let text = format!("the service manager's watchdog: {error:#}");
                    party.log(LogLevel::Error, text);
                }
            }
        }
    }

    /// Waits until each thread that drives connections has done something that it was given to do: all of them get on.
    fn wait_for_threads(&self) {
        let (given, done) = mpsc::channel::<()>();
        let given: Arc<dyn Send + Sync> = Arc::new(given);
        self.ask_threads(&given);
        drop(given);
        // Each thread drops its copy, and does not use it.
        let _ = done.recv();
    }
}

impl State {
    /// Whether this process's servers are the service, and not those of another process.
    fn is_main(&self) -> bool {
        let has_taken_over = match inherited::predecessor() {
            Some(_) => self.has_met && matches!(self.succession, Succession::Done),
            None => true,
        };
        let is_service = self.service == Service::Announced;
        is_service && has_taken_over && self.successor.is_none()
    }
}

/// How often the manager wants to hear of this process, at least.
fn watchdog_interval() -> Option<Duration> {
    let number = |name| inherited::origin().var(name)?.to_str()?.parse::<u64>().ok();
    let is_for_us = match inherited::origin().var("WATCHDOG_PID") {
        Some(_) => number("WATCHDOG_PID") == Some(process::id().into()),
        None => true,
    };
    let micros = number("WATCHDOG_USEC").filter(|micros| *micros > 0)?;
    is_for_us.then(|| Duration::from_micros(micros))
}
