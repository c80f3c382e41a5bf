//! Processes that lossmeter has not started itself, but a server has: its successors, and what it leaves behind.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, getpid, kill_process,
    kill_process_group, pidfd_open, pidfd_send_signal, set_child_subreaper, waitid,
};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// A process, known by a pidfd: its number may be another's one day. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    fd: AsyncFd<OwnedFd>,
}

impl Process {
    /// The process with this number, if it lives and comes from us: `None` if not.
    pub(crate) fn ours(pid: Pid) -> Option<Self> {
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let fd = sys::watch(fd).ok()?;
        // The process may have ended between the look at its ancestors and the pidfd, but not the other way round.
        (descends_from_us(pid) && !has_ended(&fd)).then_some(Self { pid, fd })
    }

    pub(crate) fn has_ended(&self) -> bool {
        has_ended(&self.fd)
    }

    /// Waits for its end. The status is `None` if another process has waited for it.
    pub(crate) async fn ended(&self) -> Option<ExitStatus> {
        // An error would be one of epoll, which takes this descriptor.
        let _ = self.fd.readable().await;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::PidFd(self.fd.as_fd()), options).ok()??;
        raw_status(&status).map(ExitStatus::from_raw)
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.fd, signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.signal(Signal::KILL);
    }
}

/// A pidfd is readable from the end of its process on.
fn has_ended(fd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// As `wait` gives it.
fn raw_status(status: &WaitIdStatus) -> Option<i32> {
    let exited = status.exit_status().map(|code| code << 8);
    exited.or_else(|| status.terminating_signal())
}

/// Whether one of its ancestors is this process.
fn descends_from_us(mut pid: Pid) -> bool {
    while let Some(parent) = parent(pid) {
        if parent == getpid() {
            return true;
        }
        pid = parent;
    }
    false
}

fn parent(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name, in parentheses, may contain anything.
    let (_, behind) = stat.rsplit_once(')')?;
    Pid::from_raw(behind.split_whitespace().nth(1)?.parse().ok()?)
}

/// From now on, processes whose parent has ended become children of this one: successors do.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Kills a group, and waits for those of its processes that are our children, or become it by this.
pub(crate) fn kill_group(group: Pid) {
    let children = || waitid(WaitId::Pgid(Some(group)), WaitIdOptions::EXITED);
    // Without a child of ours in it, the group may be another's.
    if await_ended(&WaitId::Pgid(Some(group))) {
        let _ = kill_process_group(group, Signal::KILL);
        while children().is_ok() {}
    }
}

/// Kills what is left of servers: processes that have left their groups.
pub(crate) fn kill_survivors() {
    while await_ended(&WaitId::All) {
        for child in children() {
            let _ = kill_process(child, Signal::KILL);
        }
        let _ = waitid(WaitId::All, WaitIdOptions::EXITED);
    }
}

/// Waits for the children that have ended. Whether there are others.
fn await_ended(which: &WaitId<'_>) -> bool {
    loop {
        match waitid(which.clone(), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// The children of all threads of this process.
fn children() -> Vec<Pid> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten();
    let lists = tasks
        .flatten()
        .flat_map(|task| fs::read_to_string(task.path().join("children")));
    let pid = |number: &str| Pid::from_raw(number.parse().ok()?);
    lists
        .flat_map(|list| list.split_whitespace().filter_map(pid).collect::<Vec<_>>())
        .collect()
}
