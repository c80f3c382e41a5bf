//! A server under test: started, signalled, waited for.

use std::fs;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Child;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::process::{self, Process};
use crate::restart::How;
use crate::stream::Place;
use crate::tally;

/// What to run, and how to stop and restart it.
#[derive(Clone, Debug)]
pub(crate) struct ServerSpec {
    pub(crate) name: String,
    /// For the shell, with placeholders.
    pub(crate) command: String,
    pub(crate) signal: Signal,
    pub(crate) restart: How,
}

impl ServerSpec {
    /// Whether the server lets us choose its IP address, and not just its port.
    pub(crate) fn takes_ip(&self) -> bool {
        self.command.contains("{addr}") || self.command.contains("{ip}")
    }

    /// Whether it listens on a Unix socket.
    pub(crate) fn takes_path(&self) -> bool {
        self.command.contains("{unix}")
    }

    /// The command for a certain address.
    pub(crate) fn command(&self, place: &Place) -> Command {
        shell(&self.command, place)
    }
}

/// A command line for the shell, with a certain address in its places.
pub(crate) fn shell(line: &str, place: &Place) -> Command {
    let line = match place {
        Place::Ip(addr) => line
            .replace("{addr}", &addr.to_string())
            .replace("{ip}", &addr.ip().to_string())
            .replace("{port}", &addr.port().to_string()),
        Place::Unix(path) => line.replace("{unix}", &path.to_string_lossy()),
    };
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &line]);
    command
}

/// A running server. Dropped, it is killed, with what it has started.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// What the child and its successors are in.
    group: Option<Pid>,
    /// The main process, once the server has been restarted by a new one.
    pub(crate) successor: Option<Process>,
    /// One that should have taken over, but did not.
    pub(crate) pretender: Option<Process>,
    /// How many main processes there have been.
    pub(crate) processes: usize,
    /// The numbers of processes that the output tells.
    pub(crate) told: UnboundedReceiver<Pid>,
    stdout: JoinHandle<Said>,
    stderr: JoinHandle<Said>,
}

/// How a server ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None` if another process has waited for it.
    pub(crate) status: Option<ExitStatus>,
    /// The ledgers in its output.
    pub(crate) ledgers: Vec<Map<String, Value>>,
}

impl Server {
    pub(crate) fn start(mut command: Command) -> io::Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: a key pressed at the terminal is ours alone, and what does not end is killed whole.
            .process_group(0);
        let mut child = tokio::process::Command::from(command).spawn()?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let (tell, told) = unbounded_channel();
        let stdout = tokio::spawn(listen(child.stdout.take(), tell.clone()));
        let stderr = tokio::spawn(listen(child.stderr.take(), tell));
        Ok(Self {
            child,
            group,
            successor: None,
            pretender: None,
            processes: 1,
            told,
            stdout,
            stderr,
        })
    }

    /// Whether the main process has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        match &self.successor {
            None => !matches!(self.child.try_wait(), Ok(None)),
            Some(successor) => successor.has_ended(),
        }
    }

    /// Whether the main process lives. One that goes into the background tells its number before.
    pub(crate) async fn lives(&mut self) -> bool {
        if !self.has_ended() {
            return true;
        }
        if let (None, Some(first)) = (&self.successor, self.group) {
            let told = timeout(LAST_WORDS, other(&mut self.told, first)).await;
            self.successor = told.ok().flatten();
            return self.successor.is_some();
        }
        false
    }

    /// Waits until the main process has ended. The status is `None` if another process has waited for it.
    pub(crate) async fn gone(&mut self) -> Option<ExitStatus> {
        match &self.successor {
            None => self.child.wait().await.ok(),
            Some(successor) => successor.ended().await,
        }
    }

    /// Why it did not start, in its own words.
    pub(crate) async fn complaint(mut self) -> String {
        self.kill();
        let said = timeout(LAST_WORDS, &mut self.stderr).await;
        said.ok().and_then(Result::ok).unwrap_or_default().last()
    }

    /// The number of the main process.
    pub(crate) fn pid(&self) -> Option<Pid> {
        match &self.successor {
            None => self.group.map(|pid| beyond_the_shell(pid).unwrap_or(pid)),
            Some(successor) => Some(successor.pid),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match &self.successor {
            None => Ok(kill_process(
                self.pid().ok_or(io::ErrorKind::NotFound)?,
                signal,
            )?),
            Some(successor) => successor.signal(signal),
        }
    }

    /// Waits for the end; `None` if it does not come in time. Then the server is to be dropped.
    pub(crate) async fn end(&mut self, limit: Duration) -> Option<Ended> {
        let status = timeout(limit, self.gone()).await.ok()?;
        let said = timeout(LAST_WORDS, &mut self.stdout).await;
        let said = said.ok().and_then(Result::ok).unwrap_or_default();
        Some(Ended {
            status,
            ledgers: said.ledgers,
        })
    }

    /// Kills it, with what it has started.
    fn kill(&self) {
        if let Some(successor) = &self.successor {
            let _ = successor.signal(Signal::KILL);
        }
        if let Some(group) = self.group {
            process::kill_group(group);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The server, if the shell that was given the command line is still there and waits for it. A shell mostly becomes the
/// command, but not behind a `cd x &&`.
fn beyond_the_shell(pid: Pid) -> Option<Pid> {
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    let arguments = fs::read(format!("{proc}/cmdline")).ok()?;
    if !arguments.starts_with(b"/bin/sh\0-c\0") {
        return None;
    }
    let children = fs::read_to_string(format!("{proc}/task/{}/children", pid.as_raw_nonzero()));
    let children = children.ok()?;
    let mut children = children.split_whitespace();
    let (only, None) = (children.next()?, children.next()) else {
        return None;
    };
    Pid::from_raw(only.parse().ok()?)
}

/// How long output may take to arrive when its process has ended: others may still hold the pipe.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What is kept of an output.
#[derive(Debug, Default)]
pub(crate) struct Said {
    last: Option<String>,
    /// The lines that are ledgers.
    ledgers: Vec<Map<String, Value>>,
}

impl Said {
    /// The last words.
    pub(crate) fn last(self) -> String {
        self.last.unwrap_or_else(|| "it said nothing".into())
    }
}

/// Reads to the end, so that the writer is never held up by its output. Tells the numbers of processes as they come.
pub(crate) async fn listen(
    output: Option<impl AsyncRead + Unpin>,
    tell: UnboundedSender<Pid>,
) -> Said {
    let mut said = Said::default();
    let Some(output) = output else { return said };
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        for pid in pids(&line) {
            // If nobody wants to know, the output must still be read.
            let _ = tell.send(pid);
        }
        said.ledgers.extend(tally::ledger(&line));
        said.last = Some(line);
    }
    said
}

/// The numbers of processes in a line: "serving on 127.0.0.1:80 with pid 17", "[PID: 17]".
fn pids(line: &str) -> impl Iterator<Item = Pid> {
    let mut words = line
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .peekable();
    std::iter::from_fn(move || {
        loop {
            let word = words.next()?;
            let number = words.peek().and_then(|next| next.parse().ok());
            if let (true, Some(number)) = (word.eq_ignore_ascii_case("pid"), number)
                && let Some(pid) = Pid::from_raw(number)
            {
                return Some(pid);
            }
        }
    })
}

/// The first process of which is told, and that is not this one. `None` if nothing more is told.
pub(crate) async fn other(told: &mut UnboundedReceiver<Pid>, than: Pid) -> Option<Process> {
    loop {
        let pid = told.recv().await?;
        if let Some(process) = (pid != than).then(|| Process::ours(pid)).flatten() {
            return Some(process);
        }
    }
}

/// A signal by its name, with or without SIG.
pub(crate) fn signal_named(name: &str) -> Option<Signal> {
    let name = name.to_ascii_uppercase();
    Some(match name.strip_prefix("SIG").unwrap_or(&name) {
        "TERM" => Signal::TERM,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "HUP" => Signal::HUP,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "WINCH" => Signal::WINCH,
        "KILL" => Signal::KILL,
        _ => return None,
    })
}

/// An exit status in few words; `None` for success.
pub(crate) fn describe(status: ExitStatus) -> Option<String> {
    if let Some(signal) = status.signal() {
        return Some(format!("died of signal {signal}"));
    }
    status
        .code()
        .filter(|&code| code != 0)
        .map(|code| format!("exit status {code}"))
}
