//! A restart of a server that runs.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::process::Child;
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::{Instant, timeout, timeout_at};

use crate::net::Net;
use crate::process::{self, Process};
use crate::server::{Server, describe, listen, other, shell, signal_named};
use crate::stream::Place;

/// How a server is restarted.
#[derive(Clone, Debug)]
pub(crate) enum How {
    /// By a signal to its main process. The successor tells its number.
    Signal(Signal),
    /// By a command for the shell, which ends when the restart is done. If it tells a number, that is the successor's;
    /// if not, the main process stays.
    Command(String),
}

impl How {
    /// What the command line says: the name of a signal, or a command.
    pub(crate) fn new(text: &str) -> Self {
        match signal_named(text) {
            Some(signal) => Self::Signal(signal),
            None => Self::Command(text.into()),
        }
    }
}

/// How long the last words of a command that has failed may take to arrive.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Restarts a server. The restart is done when the main process has ended, if it has a successor. Else it says why it
/// is not.
pub(crate) async fn restart(
    server: &mut Server,
    how: &How,
    place: &Place,
    net: &Net,
    deadline: Instant,
) -> Result<(), String> {
    let pid = server.pid().ok_or("has no number")?;
    // What it told before was about its past.
    while server.told.try_recv().is_ok() {}
    let told = match how {
        How::Signal(signal) => {
            let sent = server.signal(*signal);
            sent.map_err(|error| format!("cannot be signalled: {error}"))?;
            timeout_at(deadline, other(&mut server.told, pid))
                .await
                .map_err(|_| "no successor told its PID in time")?
                .ok_or("ended, and no successor told its PID")?
                .into()
        }
        How::Command(line) => {
            let line = line.replace("{pid}", &pid.as_raw_nonzero().to_string());
            let running = command(&line, place, net, pid);
            timeout_at(deadline, running)
                .await
                .map_err(|_| "the command did not end in time")??
        }
    };
    let Some(successor) = told else {
        return Ok(());
    };
    let gone = tokio::select! {
        gone = timeout_at(deadline, server.gone()) => match gone {
            Ok(_) => Ok(()),
            Err(_) => Err("the old process did not end in time".into()),
        },
        _ = successor.ended() => {
            Err(format!("successor {} ended", successor.pid.as_raw_nonzero()))
        }
    };
    if gone.is_ok() {
        server.successor = Some(successor);
        server.processes += 1;
    } else {
        // It may have clients, who are not to suffer from lossmeter.
        server.pretender = Some(successor);
    }
    gone
}

/// A command. Dropped before its end, it is killed, with what it has started.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            process::kill_group(group);
        }
    }
}

/// Runs a command to its end. The process of which it has told, if it has.
async fn command(
    line: &str,
    place: &Place,
    net: &Net,
    main: Pid,
) -> Result<Option<Process>, String> {
    let mut command = tokio::process::Command::from(shell(line, place));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let started = net.at_server(|| command.spawn());
    let started = started.and_then(|started| started);
    let mut running = Running(started.map_err(|error| format!("{line}: {error}"))?);
    let (tell, mut told) = unbounded_channel();
    let stdout = listen(running.0.stdout.take(), tell);
    let stderr = listen(running.0.stderr.take(), unbounded_channel().0);
    let (_, stderr) = (tokio::spawn(stdout), tokio::spawn(stderr));
    let status = running
        .0
        .wait()
        .await
        .map_err(|error| format!("{line}: {error}"))?;
    if let Some(failure) = describe(status) {
        let said = timeout(LAST_WORDS, stderr).await;
        let said = said.ok().and_then(Result::ok).unwrap_or_default();
        return Err(format!("{line}: {failure}: {}", said.last()));
    }
    Ok(other(&mut told, main).await)
}
