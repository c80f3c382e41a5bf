//! The old process's side of a restart: it starts the new one, watches it, and leaves the sockets to it; or ends it, and
//! goes on.

use std::ffi::CString;
use std::fmt::Write as _;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{self, Path};
use std::process::{self, ExitStatus};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::contain::contain;
use crate::error::{Error, Result};
use crate::events::LogLevel;
use crate::handover::{Channel, Hello, Message};
use crate::holdings::Holdings;
use crate::inherited::{self, Spare};
use crate::origin::text;
use crate::stats::StatKind;
use crate::sys::SignalMask;
use crate::sys::spawn::{Child, Spawn, spawn};
use crate::threads;

use super::errors::Errors;
use super::pid_file::PidFile;
use super::{Attempt, Coordinator, Handed, Party, Restart, Restarted, State, Turn, notify};

/// How often the new process is asked whether it is there.
const PING_INTERVAL: Duration = Duration::from_millis(250);
/// How many questions may be without an answer. It comes when each thread that drives connections has got on.
const MOST_UNANSWERED: u64 = 16;
/// How long the last answer before the hand-over may take, and how long either process may take to leave the sockets.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a process that was killed may take to end. It takes longer only if the kernel is in trouble.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the service manager may take to note which process is the main one.
const BARRIER_TIMEOUT: Duration = Duration::from_secs(5);
/// What it means if there is no answer.
const HANGS: &str = "it is suspended, or a thread that drives connections is blocked";
/// How many of the new process's notes are kept for the error of the restart.
const MOST_NOTES: usize = 4;

/// Whether a restart can work here.
pub(super) fn can_restart() -> Result<()> {
    let unsupported = |why: &str| Err(Error::Unsupported(why.into()));
    if process::id() == 1 {
        return unsupported(
            "this is the first process of its container, whose end ends the container: replace the container (with \
             lame_duck, so that its clients go elsewhere), or let an init process run the program",
        );
    }
    let origin = inherited::origin();
    let is_main = origin.var("SYSTEMD_EXEC_PID");
    let is_main = is_main.is_some_and(|pid| pid.to_str() == Some(&process::id().to_string()));
    if is_main && origin.var("NOTIFY_SOCKET").is_none() {
        return unsupported(
            "systemd takes the end of this process for the end of the service: set Type=notify and NotifyAccess=main",
        );
    }
    Ok(())
}

/// The restart's thread.
pub(super) fn run(turn: Turn, asker: Arc<dyn Party>, restart: Restart, mask: SignalMask) {
    let began = Instant::now();
    asker.stat(StatKind::Sum, "restart", 1.0);
    let mut successor = None;
    let attempt = Arc::clone(&turn.attempt);
    let permitted = ask(&restart, mask);
    let begins = attempt.begins();
    if begins {
        // A refusal, too, is the answer to a reload.
        turn.coordinator.tell_reloading(&asker);
    }
    let result = permitted.and_then(|()| try_it(&turn, &attempt, &asker, &restart, &mut successor));
    let result = match result {
        Ok(pid) => {
            let took = began.elapsed();
            // Whoever reads that it has taken over may restart it at once.
            if let Some(successor) = &mut successor {
                successor.takes_over();
                successor.errors.leave();
            }
            asker.stat(StatKind::Time, "restart.time", took.as_secs_f64());
            let text = format!("restart: handed over to PID {pid} after {took:.1?}");
            asker.log(LogLevel::Info, text);
            Ok(Restarted { pid, took })
        }
        Err(why) => {
            asker.stat(StatKind::Sum, "restart.failed", 1.0);
            asker.log(LogLevel::Error, format!("restart failed: {why}"));
            if begins {
                turn.coordinator.tell_failed(&why, &asker);
            }
            Err(Error::RestartFailed(why))
        }
    };
    // The servers' stop does not wait for the host's code, which may itself wait for the stop.
    attempt.settle();
    if result.is_ok() {
        // Who reads that, and connects, comes to the new process.
        turn.coordinator.wait_until_left();
    }
    // What the host has given is dropped here, so that a caller who waits may rely on it. This thread lives longer.
    with_host_signals(mask, || {
        if let Some(on_end) = &restart.on_end {
            on_end(&result);
        }
        drop(restart);
    });
    // It may be the last that holds the server.
    drop(asker);
    turn.end(result);
    if let Some(mut successor) = successor {
        successor.reap();
    }
}

/// Runs the host's code. `None` if it panics.
fn with_host_signals<T>(mask: SignalMask, f: impl FnOnce() -> T) -> Option<T> {
    let ours = mask.set();
    let result = contain(f);
    ours.set();
    result
}

/// Asks the host whether the restart may begin.
fn ask(restart: &Restart, mask: SignalMask) -> Result<(), String> {
    let Some(before) = &restart.before else {
        return Ok(());
    };
    let answer = with_host_signals(mask, || before());
    let panicked = || Err("the check before it panicked".into());
    answer
        .unwrap_or_else(panicked)
        .map_err(|why| format!("refused: {why}"))
}

/// Returns the new process. `left`: a process that lives, and must be reaped.
fn try_it<'a>(
    turn: &Turn,
    attempt: &'a Attempt,
    asker: &Arc<dyn Party>,
    restart: &Restart,
    left: &mut Option<Successor<'a>>,
) -> Result<u32, String> {
    if attempt.is_cancelled() {
        return Err("a server of this process stops".into());
    }
    let served = turn.coordinator.lock().served;
    let handed = turn
        .coordinator
        .handed()
        .map_err(|error| format!("{error:#}"))?;
    let mut successor = Successor::start(turn.coordinator, attempt, restart, &handed)?;
    let pid = successor.child.pid();
    asker.log(LogLevel::Info, format!("restart: started PID {pid}"));
    let result = successor.prove(restart, asker).and_then(|dropped| {
        let kept = handed.into_iter().enumerate();
        let kept = kept.filter(|(place, _)| !dropped.contains(place));
        let handed: Vec<_> = kept.map(|(_, handed)| handed).collect();
        // What cannot be taken back comes later.
        turn.coordinator.lock().check(served)?;
        successor.becomes_main(turn.coordinator, asker)?;
        turn.coordinator
            .commit(attempt, &successor, &handed, served)
    });
    match result {
        Ok(()) => {
            *left = Some(successor);
            Ok(pid)
        }
        Err(failure) => {
            let (why, lives) = successor.give_up(&failure, asker);
            successor.put_pid_file_back(asker);
            if lives {
                *left = Some(successor);
            }
            Err(why)
        }
    }
}

/// Why the new process does not take over.
enum Failure {
    /// It has ended.
    Ended,
    /// It does not answer.
    Hangs(String),
    /// It has said so.
    Says(String),
    /// Something here has failed.
    Ours(String),
    /// A stop of this process was asked for.
    Cancelled,
}

impl State {
    /// The new process has the sockets of as many servers as this process had at the beginning.
    fn check(&self, served: u64) -> Result<(), Failure> {
        if self.served == served {
            return Ok(());
        }
        let why = "another server was started here, of whose sockets it does not know";
        Err(Failure::Ours(why.into()))
    }
}

impl Coordinator {
    /// The sockets of all servers, and what else was passed on to this process.
    fn handed(&self) -> Result<Vec<Handed>> {
        let state = self.lock();
        let mut handed = Vec::new();
        for party in &state.parties {
            handed.append(&mut party.sockets()?);
        }
        // Two sockets may have been asked for by the same text.
        handed.sort_by_key(|handed| handed.order);
        let spares = inherited::known().map_or_else(Vec::new, inherited::Sockets::spares);
        let spare = |spare: Spare| Handed {
            order: u64::MAX,
            copy: spare.copy,
            name: spare.name,
            passed: spare.passed,
            tenure: None,
        };
        handed.extend(spares.into_iter().map(spare));
        Ok(handed)
    }

    /// Waits until the servers have left their sockets. It takes long only if the host blocks their threads.
    fn wait_until_left(&self) {
        let is_there = |state: &mut State| state.parties.iter().any(|party| party.is_stopping());
        drop(
            self.left
                .wait_timeout_while(self.lock(), ANSWER_TIMEOUT, is_there),
        );
    }

    /// The last step: the sockets are the new process's, and the servers of this one stop.
    fn commit(
        &self,
        attempt: &Attempt,
        successor: &Successor<'_>,
        handed: &[Handed],
        served: u64,
    ) -> Result<(), Failure> {
        let mut state = self.lock();
        state.check(served)?;
        let is_stopping = state.parties.iter().any(|party| party.is_stopping());
        if is_stopping || attempt.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        let pid = successor.child.pid();
        if let Err(error) = successor.channel.send(&Message::Go) {
            return Err(Failure::Hangs(format!(
                "does not take the sockets: {error}"
            )));
        }
        for tenure in handed.iter().filter_map(|handed| handed.tenure.as_ref()) {
            tenure.lend();
        }
        state.successor = Some(pid);
        state.watchdog = None;
        for party in &state.parties {
            party.leave(Some(pid));
        }
        Ok(())
    }
}

/// The new process, as this one sees it.
struct Successor<'a> {
    attempt: &'a Attempt,
    child: Child,
    channel: Channel,
    errors: Errors,
    notes: Vec<String>,
    /// Why it is not ready yet, if it has said so.
    waits: Option<String>,
    /// What shows what it holds.
    holds: Option<OwnedFd>,
    /// The number of the last question that it has answered, and of the last one.
    answered: u64,
    asked: u64,
    /// Since when it is ready.
    ready: Option<Instant>,
    pid_file: Option<PidFile>,
    /// The file has its number.
    has_pid_file: bool,
}

/// What the new process brings.
enum News {
    Said(Message),
    Nothing,
}

impl<'a> Successor<'a> {
    fn start(
        coordinator: &Coordinator,
        attempt: &'a Attempt,
        restart: &Restart,
        handed: &[Handed],
    ) -> Result<Self, String> {
        let origin = inherited::origin();
        let program = restart.program.as_ref().or(origin.program.as_ref());
        let program = program
            .ok_or("the file of this program is not known, or was removed: set `program`")?;
        let dir = restart.dir.as_ref().or(origin.dir.as_ref());
        let dir = dir.ok_or(
            "the directory in which this program was started was removed: set `directory`",
        )?;
        let args = restart.args.as_ref().unwrap_or(&origin.args);
        let names: Vec<_> = handed.iter().map(|handed| handed.name).collect();
        let env = origin.env(restart.env.as_deref(), &names);
        let (channel, theirs) =
            Channel::pair().map_err(|error| format!("making a socket pair: {error}"))?;
        let hello = coordinator.hello(restart, handed);
        let (errors, stderr) = if restart.plain_stderr {
            (Errors::default(), None)
        } else {
            let (errors, pipe) =
                Errors::to_ours().map_err(|error| format!("making a pipe: {error}"))?;
            (errors, Some(pipe))
        };
        channel
            .send_with(&Message::Hello(hello), &errors.ends())
            .map_err(|error| format!("telling the new process of the sockets: {error}"))?;
        let copies: Result<Vec<OwnedFd>, _> = handed
            .iter()
            .map(|handed| handed.copy.try_clone())
            .chain([Ok(theirs)])
            .collect();
        let what = Prepared {
            program: text(program.as_os_str().as_bytes()),
            args: args.iter().map(|arg| text(arg.as_bytes())).collect(),
            dir: text(dir.as_os_str().as_bytes()),
            fds: copies.map_err(|error| format!("copying a socket: {error}"))?,
            stderr,
            keep_fds: restart.keep_fds,
            dir_hint: match restart.dir {
                Some(_) => "",
                None => "; set `directory` to start it elsewhere",
            },
        };
        let shown = program.display().to_string();
        let child = what.spawn(env, restart.ready_timeout, &shown)?;
        attempt.pid.store(child.pid(), Ordering::Relaxed);
        Ok(Self {
            attempt,
            child,
            channel,
            errors,
            notes: Vec::new(),
            waits: None,
            holds: None,
            answered: 0,
            asked: 0,
            ready: None,
            pid_file: None,
            has_pid_file: false,
        })
    }

    /// Until the new process may take over. Returns which sockets it has dropped.
    fn prove(&mut self, restart: &Restart, asker: &Arc<dyn Party>) -> Result<Vec<usize>, Failure> {
        let started = Instant::now();
        let ready_until = threads::deadline(restart.ready_timeout);
        let dropped = loop {
            match self.wait(ready_until)? {
                News::Said(Message::Ready(dropped)) => break dropped,
                News::Said(_) => {}
                News::Nothing if Instant::now() < ready_until => {}
                News::Nothing => {
                    let mut how = format!("was not ready after {:?}", restart.ready_timeout);
                    if let Some(why) = &self.waits {
                        let _ = write!(how, ": {why}");
                    }
                    return Err(Failure::Hangs(how));
                }
            }
        };
        let (pid, after) = (self.child.pid(), started.elapsed());
        if let Some(path) = &restart.pid_file {
            let prepared = PidFile::prepare(path, pid);
            self.pid_file = Some(prepared.map_err(|error| cannot_write(path, &error))?);
        }
        let text = format!("restart: PID {pid} is ready after {after:.1?}");
        asker.log(LogLevel::Info, text);
        self.ready = Some(Instant::now());
        self.attempt.enter_probation();
        self.say(&Message::Accept)?;
        let probation_until = threads::deadline(restart.probation);
        let mut ask_at = Instant::now();
        while Instant::now() < probation_until {
            if Instant::now() >= ask_at {
                if self.asked - self.answered >= MOST_UNANSWERED {
                    let time = PING_INTERVAL * u32::try_from(MOST_UNANSWERED).unwrap_or(1);
                    let how = format!("has not answered for {time:?}: {HANGS}");
                    return Err(Failure::Hangs(how));
                }
                self.ask()?;
                // Not so many at once, if this process was suspended: the other needs time for each.
                ask_at = Instant::now() + PING_INTERVAL;
            }
            self.wait(ask_at.min(probation_until))?;
        }
        // It must be there now, not only a second ago.
        self.ask()?;
        let answer_until = Instant::now() + ANSWER_TIMEOUT;
        while self.answered < self.asked {
            if Instant::now() >= answer_until {
                let how = format!("does not answer any more: {HANGS}");
                return Err(Failure::Hangs(how));
            }
            self.wait(answer_until)?;
        }
        Ok(dropped)
    }

    /// Tells the world outside that this is the program's process from now on.
    fn becomes_main(
        &mut self,
        coordinator: &Coordinator,
        asker: &Arc<dyn Party>,
    ) -> Result<(), Failure> {
        if let Some(file) = &self.pid_file {
            let replaced = file.replace();
            replaced.map_err(|error| cannot_write(file.path(), &error))?;
            self.has_pid_file = true;
        }
        let Some(mut barrier) = coordinator.tell_main(self.child.pid(), asker) else {
            return Ok(());
        };
        let until = Instant::now() + BARRIER_TIMEOUT;
        // The manager closes the other end.
        while barrier.read(&mut [0]).is_err() && Instant::now() < until {
            self.wait_with(Some(barrier.as_fd()), until)?;
        }
        Ok(())
    }

    /// The restart has failed, and the file must have this process's number.
    fn put_pid_file_back(&mut self, asker: &Arc<dyn Party>) {
        let Some(file) = self.pid_file.take().filter(|_| self.has_pid_file) else {
            return;
        };
        let path = file.path();
        let restored = PidFile::prepare(path, process::id()).and_then(|file| file.replace());
        if let Err(error) = restored {
            let text = format!("restart: putting {} back: {error}", path.display());
            asker.log(LogLevel::Error, text);
        }
    }

    fn ask(&mut self) -> Result<(), Failure> {
        self.asked += 1;
        self.say(&Message::Ping(self.asked))
    }

    fn say(&mut self, message: &Message) -> Result<(), Failure> {
        self.channel.send(message).map_err(|error| {
            if self.ends_soon() {
                Failure::Ended
            } else {
                Failure::Hangs(format!("does not listen: {error}"))
            }
        })
    }

    /// What comes next, at most until then. Copies the errors of the new process meanwhile.
    fn wait(&mut self, until: Instant) -> Result<News, Failure> {
        self.wait_with(None, until)
    }

    /// Like [`Successor::wait`], or until this can be read.
    fn wait_with(&mut self, also: Option<BorrowedFd<'_>>, until: Instant) -> Result<News, Failure> {
        if self.attempt.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        let wake = self.attempt.wake.as_fd();
        let all = [self.channel.as_fd(), self.child.pidfd(), wake];
        let all: Vec<_> = all.into_iter().chain(also).collect();
        let left = until.saturating_duration_since(Instant::now());
        self.errors.poll_with(&all, left);
        loop {
            match self.channel.receive() {
                // Two may overtake each other.
                Ok(Some((Message::Pong(number), _))) => self.answered = self.answered.max(number),
                Ok(Some((Message::Holds, mut shown))) => self.holds = shown.pop(),
                Ok(Some((Message::Note(note), _))) => {
                    self.notes.push(note);
                    if self.notes.len() > MOST_NOTES {
                        self.notes.remove(0);
                    }
                }
                Ok(Some((Message::Waits(why), _))) => self.waits = Some(why),
                Ok(Some((Message::Failed(why), _))) => return Err(Failure::Says(why)),
                Ok(Some((message, _))) => return Ok(News::Said(message)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(Failure::Hangs(format!("cannot be understood: {error}")));
                }
                // Its end follows, mostly.
                Ok(None) | Err(_) if self.ends_soon() => return Err(Failure::Ended),
                Ok(None) | Err(_) => {
                    let why = "has closed the connection to this process";
                    return Err(Failure::Hangs(why.into()));
                }
            }
        }
        if self.child.has_ended() {
            return Err(Failure::Ended);
        }
        Ok(News::Nothing)
    }

    fn ends_soon(&mut self) -> bool {
        self.ends_within(ANSWER_TIMEOUT)
    }

    fn ends_within(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while !self.child.has_ended() && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            self.errors.poll_with(&[self.child.pidfd()], left);
        }
        self.child.has_ended()
    }

    /// Ends the new process. Returns what has happened, and whether the process drains by itself.
    fn give_up(&mut self, failure: &Failure, asker: &Arc<dyn Party>) -> (String, bool) {
        let pid = self.child.pid();
        let mut text = format!("PID {pid} ");
        // It may work on requests. If it hangs, there is no use in asking it.
        let may_leave = !matches!(failure, Failure::Ended | Failure::Hangs(_));
        if may_leave && self.ready.is_some() && self.leaves() {
            match failure {
                Failure::Says(why) => drop(write!(text, "says: {why}")),
                Failure::Ours(why) => drop(write!(text, "was told to stop, because {why}")),
                _ => text.push_str("was told to stop, because a server of this process stops"),
            }
            return (text, true);
        }
        let had_ended = self.child.has_ended();
        if !had_ended {
            self.child.kill();
            self.ends_within(KILL_TIMEOUT);
        }
        // One that cannot be killed, because a filter of system calls does not allow it, is left to its end. It must not
        // take over when this process ends.
        let lives = !self.child.has_ended();
        if lives {
            let _ = self.channel.send(&Message::Stop);
        }
        let status = if lives { None } else { self.child.wait() };
        let status = status.filter(|_| had_ended);
        self.errors.read_all();
        match failure {
            Failure::Ended => text.push_str(&ended(status)),
            Failure::Hangs(how) => text.push_str(how),
            Failure::Says(why) => {
                let _ = write!(text, "says: {why}");
            }
            Failure::Ours(why) => {
                let _ = write!(text, "was killed, because {why}");
            }
            Failure::Cancelled => {
                text.push_str("was killed, because a server of this process stops");
            }
        }
        match self.ready {
            None if matches!(failure, Failure::Ended) => text.push_str(" before it was ready"),
            None => {}
            Some(ready) => {
                let _ = write!(text, ", {:.1?} after it was ready; ", ready.elapsed());
                let held = self
                    .holds
                    .as_ref()
                    .map(|shown| Holdings::read(shown.as_fd()));
                if let Some(Ok(Holdings { conns, requests })) = held {
                    let _ = write!(text, "it held {requests} requests on {conns} connections");
                    asker.stat(StatKind::Sum, "restart.lost", conns as f64);
                } else {
                    text.push_str("it did not show what it held");
                }
            }
        }
        if !self.notes.is_empty() {
            let _ = write!(text, "; it has said: {}", self.notes.join("; "));
        }
        let errors = self.errors.kept();
        if !errors.trim().is_empty() {
            let _ = write!(text, "; its errors: {}", errors.trim());
        }
        (text, lives)
    }

    /// Tells the new process to leave the sockets. Returns whether it has.
    fn leaves(&mut self) -> bool {
        if self.channel.send(&Message::Stop).is_err() {
            return false;
        }
        let until = Instant::now() + ANSWER_TIMEOUT;
        loop {
            // What it has said before its end counts.
            let is_over = self.child.has_ended() || Instant::now() >= until;
            match self.channel.receive() {
                Ok(Some((Message::Left, _))) => return true,
                Ok(Some(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !is_over => {
                    let left = until.saturating_duration_since(Instant::now());
                    let watched = [self.channel.as_fd(), self.child.pidfd()];
                    self.errors.poll_with(&watched, left);
                }
                Ok(None) | Err(_) => return false,
            }
        }
    }

    /// Waits until the new process has taken over: then it ends the talk, and can be restarted itself.
    fn takes_over(&mut self) {
        let until = Instant::now() + ANSWER_TIMEOUT;
        while !self.child.has_ended() && Instant::now() < until {
            match self.channel.receive() {
                Ok(Some(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let left = until.saturating_duration_since(Instant::now());
                    let watched = [self.channel.as_fd(), self.child.pidfd()];
                    self.errors.poll_with(&watched, left);
                }
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Waits for the end of the new process, so that it does not stay a zombie. Copies its errors, if it has failed.
    fn reap(&mut self) {
        const FOR_EVER: Duration = Duration::from_secs(24 * 60 * 60);
        while !self.child.has_ended() {
            self.errors.poll_with(&[self.child.pidfd()], FOR_EVER);
        }
        self.child.wait();
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::Ours(format!("{} cannot be written: {error}", path.display()))
}

/// How a process has ended.
fn ended(status: Option<ExitStatus>) -> String {
    match status {
        None => "has ended".into(),
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("has exited with status {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "has ended".into(),
        },
    }
}

impl Coordinator {
    fn hello(&self, restart: &Restart, handed: &[Handed]) -> Hello {
        let state = self.lock();
        let pids = state.predecessors.iter().map(|(pid, _)| *pid);
        Hello {
            generation: state.generation + 1,
            predecessors: [process::id()].into_iter().chain(pids).collect(),
            drop_unclaimed: restart.drop_unclaimed,
            // The new process may have another directory.
            pid_file: restart
                .pid_file
                .as_ref()
                .map(|path| path::absolute(path).unwrap_or_else(|_| path.clone())),
            sockets: handed.iter().map(|handed| handed.passed.clone()).collect(),
        }
    }
}

/// What is to be started, in a form that can go to another thread.
struct Prepared {
    program: CString,
    args: Vec<CString>,
    dir: CString,
    fds: Vec<OwnedFd>,
    stderr: Option<OwnedFd>,
    keep_fds: bool,
    /// What to do if there is no such directory.
    dir_hint: &'static str,
}

impl Prepared {
    /// Starts the program. That takes long only if its file system does not answer: then the thread that tries it is
    /// left behind, and ends the process if it comes into being.
    fn spawn(
        self,
        env: crate::sys::spawn::Env,
        timeout: Duration,
        shown: &str,
    ) -> Result<Child, String> {
        let (give, given) = mpsc::channel();
        let dir_hint = self.dir_hint;
        let spawns = move || {
            let fds: Vec<BorrowedFd<'_>> = self.fds.iter().map(AsFd::as_fd).collect();
            let child = spawn(Spawn {
                program: &self.program,
                args: &self.args,
                env,
                dir: Some(&self.dir),
                fds: &fds,
                stderr: self.stderr.as_ref().map(AsFd::as_fd),
                keep_fds: self.keep_fds,
                sibling: notify::is_managers_child(),
            });
            if let Err(mpsc::SendError(Ok(child))) = give.send(child) {
                child.kill();
                child.wait();
            }
        };
        threads::apart("httpdown-spawn", spawns).map_err(|error| format!("{error:#}"))?;
        match given.recv_timeout(timeout) {
            Ok(Ok(child)) => Ok(child),
            Ok(Err(why)) => {
                let hint = if why.dir.is_some() { dir_hint } else { "" };
                Err(format!("{shown} was not started: {why}{hint}"))
            }
            Err(_) => Err(format!("{shown} was not started after {timeout:?}")),
        }
    }
}
