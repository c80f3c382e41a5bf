//! A server under test: started, signalled, waited for.

use std::fs;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::stream::Place;

/// What to run, and how to stop it.
#[derive(Clone, Debug)]
pub(crate) struct ServerSpec {
    pub(crate) name: String,
    /// For the shell, with placeholders.
    pub(crate) command: String,
    pub(crate) signal: Signal,
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
        let line = match place {
            Place::Ip(addr) => self
                .command
                .replace("{addr}", &addr.to_string())
                .replace("{ip}", &addr.ip().to_string())
                .replace("{port}", &addr.port().to_string()),
            Place::Unix(path) => self.command.replace("{unix}", &path.to_string_lossy()),
        };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &line]);
        command
    }
}

/// A running server. Dropped, it is killed, with what it has started.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    group: Option<Pid>,
    stdout: JoinHandle<Vec<String>>,
    stderr: JoinHandle<Vec<String>>,
}

/// How a server ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// The last line of its output that is a JSON object.
    pub(crate) report: Option<Map<String, Value>>,
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
        let stdout = tokio::spawn(last_lines(child.stdout.take()));
        let stderr = tokio::spawn(last_lines(child.stderr.take()));
        Ok(Self {
            child,
            group,
            stdout,
            stderr,
        })
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn gone(&mut self) {
        let _ = self.child.wait().await;
    }

    /// Why it did not start, in its own words.
    pub(crate) async fn complaint(mut self) -> String {
        self.kill();
        let lines = timeout(LAST_WORDS, &mut self.stderr).await;
        let lines = lines.ok().and_then(Result::ok).unwrap_or_default();
        lines
            .last()
            .cloned()
            .unwrap_or_else(|| "it said nothing".into())
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = self.group.ok_or(io::ErrorKind::NotFound)?;
        Ok(kill_process(beyond_the_shell(pid).unwrap_or(pid), signal)?)
    }

    /// Waits for the end; `None` if it does not come in time. Then the server is to be dropped.
    pub(crate) async fn end(&mut self, limit: Duration) -> Option<Ended> {
        let status = timeout(limit, self.child.wait()).await.ok()?.ok()?;
        let lines = timeout(LAST_WORDS, &mut self.stdout).await;
        let lines = lines.ok().and_then(Result::ok).unwrap_or_default();
        let objects = lines.iter().rev().map(|line| serde_json::from_str(line));
        let report = objects.flatten().next();
        Some(Ended { status, report })
    }

    fn kill(&self) {
        // A process that has been waited for has no number any more that would be ours.
        if let (Some(_), Some(group)) = (self.child.id(), self.group) {
            let _ = kill_process_group(group, Signal::KILL);
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

/// Reads to the end, so that the server is never held up by its output.
async fn last_lines(output: Option<impl AsyncRead + Unpin>) -> Vec<String> {
    let mut last = Vec::new();
    if let Some(output) = output {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if last.len() == 10 {
                last.remove(0);
            }
            last.push(line);
        }
    }
    last
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
