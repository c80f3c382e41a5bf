//! A running server, and what the kernel says of it.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustls::StreamOwned;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::client::PATIENCE;
use crate::tls::Tls;

/// A running server, with all its processes. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    group: Pid,
    pub(crate) addr: SocketAddr,
    /// From the start of the process to the first byte of an answer.
    pub(crate) start: Duration,
}

/// What a server has in memory, in KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    /// Not shared with any other process.
    pub(crate) private: u64,
}

impl Server {
    /// Starts it, on the CPUs on which the caller may run, and waits for its first answer.
    pub(crate) fn start(
        mut command: Command,
        addr: SocketAddr,
        tls: Option<&Tls>,
    ) -> io::Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // A group of its own: a key pressed at the terminal is ours alone, and all of it is killed.
            .process_group(0);
        let begin = Instant::now();
        let mut running = running();
        let child = command.spawn()?;
        let group = Pid::from_child(&child);
        running.push(group);
        drop(running);
        let mut server = Self {
            child,
            group,
            addr,
            start: Duration::ZERO,
        };
        server.wait_for_answer(begin, tls)?;
        server.start = begin.elapsed();
        Ok(server)
    }

    fn wait_for_answer(&mut self, begin: Instant, tls: Option<&Tls>) -> io::Result<()> {
        let socket = loop {
            match TcpStream::connect(self.addr) {
                Ok(socket) => break socket,
                Err(error) if begin.elapsed() > PATIENCE => return Err(error),
                Err(_) => {}
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("ended at its start: {status}")));
            }
            thread::sleep(Duration::from_micros(100));
        };
        socket.set_read_timeout(Some(PATIENCE))?;
        match tls {
            None => self.ask(socket),
            Some(tls) => self.ask(StreamOwned::new(tls.connection()?, socket)),
        }
    }

    fn ask(&self, mut stream: impl Read + Write) -> io::Result<()> {
        let addr = self.addr;
        write!(stream, "GET / HTTP/1.1\r\nHost: {addr}\r\n\r\n")?;
        if stream.read(&mut [0; 4096])? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Its processes: those of its group.
    fn processes(&self) -> io::Result<Vec<String>> {
        let group = self.group.as_raw_nonzero().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.starts_with(|c: char| c.is_ascii_digit()) {
                continue;
            }
            // Behind the name of the program, which may contain anything: state, parent, group.
            let stat = fs::read_to_string(format!("/proc/{name}/stat")).unwrap_or_default();
            let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
            if fields.split(' ').nth(2) == Some(&group) {
                found.push(name);
            }
        }
        Ok(found)
    }

    /// The sum of FIGURE over all threads of all processes; it gets the contents of FILE.
    fn sum(&self, file: &str, figure: impl Fn(&str) -> Option<u64>) -> io::Result<u64> {
        let mut sum = 0;
        for process in self.processes()? {
            for task in fs::read_dir(format!("/proc/{process}/task"))? {
                let path = task?.path().join(file);
                // A thread may end meanwhile.
                let text = fs::read_to_string(path).unwrap_or_default();
                sum += figure(&text).unwrap_or(0);
            }
        }
        Ok(sum)
    }

    /// The CPU time of its threads, as the scheduler counts it; a thread that has ended is not in it.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        let nanoseconds = |text: &str| {
            text.split_ascii_whitespace()
                .next()
                .and_then(|n| n.parse().ok())
        };
        Ok(Duration::from_nanos(self.sum("schedstat", nanoseconds)?))
    }

    /// How often its threads have gone to sleep, and so will be or were woken up.
    pub(crate) fn sleeps(&self) -> io::Result<u64> {
        self.sum("status", |text| field(text, "voluntary_ctxt_switches:"))
    }

    pub(crate) fn memory(&self) -> io::Result<Memory> {
        let mut memory = Memory {
            resident: 0,
            private: 0,
        };
        for process in self.processes()? {
            let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
            let figure = |name| field(&text, name).unwrap_or(0);
            memory.resident += figure("Rss:");
            memory.private += figure("Private_Clean:") + figure("Private_Dirty:");
        }
        Ok(memory)
    }

    /// Asks the process that was started (which may be valgrind or strace) to end, and waits until it has.
    pub(crate) fn stop(mut self) -> io::Result<()> {
        kill_process(self.group, Signal::TERM)?;
        let begin = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begin.elapsed() > PATIENCE {
                return Err(ErrorKind::TimedOut.into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut running = running();
        let _ = kill_process_group(self.group, Signal::KILL);
        let _ = self.child.wait();
        running.retain(|&group| group != self.group);
    }
}

/// The groups of the servers that run. Who kills one holds the lock, so that its number is not another's meanwhile.
fn running() -> MutexGuard<'static, Vec<Pid>> {
    static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a key pressed at the terminal, or TERM, end the servers too.
pub(crate) fn end_all_when_interrupted() -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (mut int, mut term) = runtime.block_on(async {
        Ok::<_, io::Error>((
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ))
    })?;
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
            }
        });
        // Held to the end: no other is started.
        let running = running();
        for &group in running.iter() {
            let _ = kill_process_group(group, Signal::KILL);
        }
        #[allow(clippy::exit, reason = "the other threads measure on")]
        std::process::exit(130);
    });
    Ok(())
}

/// The number behind NAME in a file of lines like `VmRSS:  123 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_ascii_whitespace().next()?.parse().ok()
}

/// An address that is free, below the ports that the kernel gives to clients. No two are the same: what one server
/// leaves in `TIME_WAIT` is not in the way of the next one's clients. Always as long, so that requests are, too.
pub(crate) fn free_addr() -> io::Result<SocketAddr> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    for _ in 0..20_000 {
        let given = GIVEN.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + std::process::id().wrapping_mul(251).wrapping_add(given) % 20_000;
        let port = u16::try_from(port).map_err(io::Error::other)?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(addr).is_ok() {
            return Ok(addr);
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

/// The CPUs on which this thread may run, and what it starts.
#[derive(Debug)]
pub(crate) struct Cpus {
    all: CpuSet,
    one: CpuSet,
    /// All but the one, if there are others.
    others: CpuSet,
}

impl Cpus {
    /// The ONE is a CPU's number; by default the last of those that this process may use, because interrupts mostly go
    /// to the first.
    pub(crate) fn new(one: Option<usize>) -> io::Result<Self> {
        let all = sched_getaffinity(None)?;
        let last = (0..CpuSet::MAX_CPU).rev().find(|&cpu| all.is_set(cpu));
        let number = one.or(last).unwrap_or(0);
        if number >= CpuSet::MAX_CPU || !all.is_set(number) {
            return Err(io::Error::other(format!(
                "no CPU {number} for this process"
            )));
        }
        let mut one = CpuSet::new();
        one.set(number);
        let mut others = all;
        others.unset(number);
        if others.count() == 0 {
            others = one;
        }
        Ok(Self { all, one, others })
    }

    /// From now on, one CPU for the client and for the servers that are started.
    pub(crate) fn share_one(&self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.one)?)
    }

    /// Leaves the one to the servers that have been started.
    pub(crate) fn leave_one(&self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.others)?)
    }

    pub(crate) fn use_all(&self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.all)?)
    }
}
