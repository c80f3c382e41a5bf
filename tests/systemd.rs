//! What a service manager is told, and what it sees: each test is the manager of a service, which is this program once
//! more. It has the socket that `NOTIFY_SOCKET` names, and looks at who says what in which order.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper that fails fails its test"
)]

mod common;

use std::env;
use std::fmt::Display;
use std::fs;
use std::io::{BufRead as _, BufReader, IoSliceMut, Read as _, Write as _};
use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use httpdown::{
    Dispatch, Exchange, Listener, MockClock, Query, Restart, Server, Stats, no_notify,
    restart_info, restart_ready,
};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use common::skip;

/// How long what must come may take.
const LONG: Duration = Duration::from_secs(20);
/// How the service tells of itself; it makes this program a service.
const MODE: &str = "HTTPDOWN_TEST_MODE";
/// How many servers it has.
const SERVERS: &str = "HTTPDOWN_TEST_SERVERS";
/// Its file, for a restart.
const PID_FILE: &str = "HTTPDOWN_TEST_PID_FILE";
/// A new process fails.
const FAULT: &str = "HTTPDOWN_TEST_FAULT";

/// The service. It ends when its servers have stopped.
#[test]
fn service() {
    let Ok(mode) = env::var(MODE) else { return };
    let is_successor = env::var_os("HTTPDOWN_RESTART").is_some();
    let fails = is_successor && env::var_os(FAULT).is_some();
    assert!(!fails, "something is missing\nMAINPID=1\n");
    if mode == "silent" {
        no_notify();
    }
    let count = env::var(SERVERS).map_or(1, |count| count.parse().unwrap());
    let servers: Vec<_> = (0..count).map(|_| serve(&mode)).collect();
    if !is_successor {
        for server in &servers {
            println!("serving {}", server.local_addrs()[0]);
        }
    }
    match &*mode {
        "ready" => {
            if !is_successor {
                std::io::stdin().lines().next().unwrap().unwrap();
            }
            restart_ready().unwrap();
        }
        "waits" => {}
        _ => drop(servers[0].run().unwrap()),
    }
    for server in servers {
        server.wait_blocking(None).unwrap();
        server.close();
    }
}

fn serve(mode: &str) -> Server {
    let log = Arc::new(Mutex::new(Vec::<String>::new()));
    let told = Arc::clone(&log);
    let mut builder = Server::builder()
        .idle_grace(Duration::from_millis(100))
        .io_threads(NonZeroUsize::MIN)
        .restart(restart(&Query::new("")))
        .on_log(move |level, text| {
            eprintln!("{} {level:?}: {text}", std::process::id());
            told.lock().unwrap().push(text.to_owned());
        });
    let clock = MockClock::new();
    if mode == "counted" {
        builder = builder.clock(clock.clone()).stats(Counts(Arc::clone(&log)));
    }
    let dispatch = match mode {
        "inline" => Dispatch::Inline,
        _ => Dispatch::default(),
    };
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let handler = move |exchange: Exchange| answer(exchange, &log, &clock);
    builder.handle(listener, dispatch, handler).unwrap()
}

/// Averages come into the log.
struct Counts(Arc<Mutex<Vec<String>>>);

impl Stats for Counts {
    fn bump_avg(&mut self, key: &str, value: f64) {
        self.0.lock().unwrap().push(format!("{key} = {value}"));
    }
}

fn answer(exchange: Exchange, log: &Arc<Mutex<Vec<String>>>, clock: &MockClock) {
    let server = exchange.server();
    let target = exchange.uri().clone();
    let query = Query::new(target.query().unwrap_or(""));
    let text = match target.path() {
        "/" => std::process::id().to_string(),
        "/info" => format!("{:?}", restart_info()),
        "/log" => log.lock().unwrap().join("\n"),
        "/minute" => {
            clock.advance(Duration::from_secs(60));
            "passes".into()
        }
        "/stop" => {
            server.stop_begin();
            "stops".into()
        }
        "/hold" => {
            let file = query.get("until").unwrap().into_owned();
            fs::write(format!("{file}.begun"), "").unwrap();
            until(|| fs::exists(&file).unwrap());
            "held".into()
        }
        "/restart" => {
            let restart = restart(&query);
            // Not here: a handler in place must not wait.
            thread::spawn(move || {
                let text = match server.restart_blocking(restart) {
                    Ok(restarted) => format!("ok {}", restarted.pid),
                    Err(error) => format!("failed {error}"),
                };
                exchange.reply(Response::new(Bytes::from(text)))
            });
            return;
        }
        other => panic!("{other}"),
    };
    let _ = exchange.reply(Response::new(Bytes::from(text)));
}

fn restart(query: &Query<'_>) -> Restart {
    let number = |name, otherwise: u64| query.get(name).map_or(otherwise, |n| n.parse().unwrap());
    // What the manager has told is not the host's to leave out.
    let env = env::vars().filter(|(name, _)| name != "NOTIFY_SOCKET");
    let fault = query.get("fault").map(|_| (FAULT.into(), "1".into()));
    let mut restart = Restart::default()
        .env(env.chain(fault))
        .probation(Duration::from_millis(number("probation", 200)))
        .max_predecessors(usize::try_from(number("predecessors", 8)).unwrap());
    if let Ok(path) = env::var(PID_FILE) {
        restart = restart.pid_file(path);
    }
    if query.get("veto").is_some() {
        restart = restart.before(|| Err("not now".into()));
    }
    restart
}

/// Waits for something that nobody tells of.
fn until(mut is_so: impl FnMut() -> bool) {
    let latest = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < latest, "it never came");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What the manager hears.
#[derive(Debug)]
struct Word {
    pid: u32,
    text: String,
    fds: Vec<i32>,
}

/// The manager, and its service.
struct Manager {
    folder: PathBuf,
    socket: UnixDatagram,
    variables: Vec<(&'static str, String)>,
    /// How a shell starts the service.
    starts: &'static str,
}

impl Manager {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("httpdown-systemd-{}-{number}", std::process::id());
        let folder = env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self::with(folder, socket, path.display().to_string())
    }

    fn with(folder: PathBuf, socket: UnixDatagram, address: String) -> Self {
        setsockopt(&socket, sockopt::PassCred, &true).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        Self {
            folder,
            socket,
            variables: vec![("NOTIFY_SOCKET", address)],
            starts: r#"exec "$@""#,
        }
    }

    fn set(mut self, name: &'static str, value: impl Display) -> Self {
        self.variables.push((name, format!("{value}")));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn start(&self, mode: &str) -> Service {
        Service::start(mode, self.starts, &self.variables)
    }

    fn receive(&self, flags: MsgFlags) -> nix::Result<Word> {
        let mut bytes = [0; 4096];
        let mut space = nix::cmsg_space!(nix::sys::socket::UnixCredentials, [i32; 4]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let fd = self.socket.as_raw_fd();
        let received = recvmsg::<()>(fd, &mut slices, Some(&mut space), flags)?;
        let (mut pid, mut fds) = (0, Vec::new());
        for message in received.cmsgs()? {
            match message {
                ControlMessageOwned::ScmCredentials(who) => pid = who.pid().unsigned_abs(),
                ControlMessageOwned::ScmRights(rights) => fds = rights,
                other => panic!("{other:?}"),
            }
        }
        let length = received.bytes;
        let text = String::from_utf8(bytes[..length].to_vec()).unwrap();
        Ok(Word { pid, text, fds })
    }

    fn next(&self) -> Word {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        self.receive(flags).expect("the service says nothing")
    }

    /// The next word is this one, of this process.
    fn hears(&self, pid: u32, text: &str) {
        let word = self.next();
        assert_eq!((word.pid, &*word.text), (pid, text));
        assert_eq!(word.fds, []);
    }

    fn hears_reloading(&self, pid: u32) {
        let word = self.next();
        let at = word.text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        let at: u64 = at.expect(&word.text).parse().unwrap();
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = u64::try_from(now.tv_sec).unwrap() * 1_000_000;
        assert!(word.pid == pid && at.abs_diff(now) < 20_000_000, "{word:?}");
    }

    /// Returns why.
    fn hears_of_failure(&self, pid: u32) -> String {
        let word = self.next();
        let why = word.text.strip_prefix("READY=1\nSTATUS=restart failed: ");
        let why = why.expect(&word.text);
        assert_eq!(word.pid, pid);
        assert!(!why.contains('\n'), "{why}");
        why.to_owned()
    }

    /// A barrier, with its descriptor.
    fn hears_barrier(&self, pid: u32) -> i32 {
        let word = self.next();
        assert_eq!((word.pid, &*word.text), (pid, "BARRIER=1"));
        let [fd] = word.fds[..] else {
            panic!("{word:?}")
        };
        fd
    }

    fn hears_of_success(&self, pids: [u32; 2], generation: u32) {
        let [old, new] = pids;
        let status = format!("took over from PID {old} (restart {generation})");
        self.hears(new, &format!("READY=1\nSTATUS={status}"));
    }

    fn hears_stop(&self, pid: u32) {
        self.hears(pid, "STOPPING=1");
        self.hears(pid, "EXTEND_TIMEOUT_USEC=10000000");
    }

    /// Nothing has been said that was not heard.
    fn has_heard_all(&self) {
        let more = self.receive(MsgFlags::MSG_DONTWAIT);
        assert!(more.is_err(), "{more:?}");
    }

    /// A whole restart. Returns the new process.
    fn restarts(&self, service: &Service, old: u32, generation: u32) -> u32 {
        let restart = service.restart("");
        self.hears_reloading(old);
        let new = self.hears_of_main(old);
        close(self.hears_barrier(old));
        self.hears_of_success([old, new], generation);
        assert_eq!(restart.join().unwrap(), format!("ok {new}"));
        new
    }

    /// Returns the new main process.
    fn hears_of_main(&self, old: u32) -> u32 {
        let word = self.next();
        let pid = word.text.strip_prefix("MAINPID=").expect(&word.text);
        assert_eq!(word.pid, old);
        pid.parse().unwrap()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn close(fd: i32) {
    nix::unistd::close(fd).unwrap();
}

/// The service, as its tests see it: its first process.
struct Service {
    first: Child,
    addrs: Vec<String>,
}

impl Service {
    fn start(mode: &str, starts: &str, variables: &[(&'static str, String)]) -> Self {
        let mut first = Command::new("/bin/sh")
            .args(["-c", starts, "sh"])
            .arg(env::current_exe().unwrap())
            .args(["--exact", "service", "--nocapture"])
            .env(MODE, mode)
            .env_remove("NOTIFY_SOCKET")
            .env_remove("SYSTEMD_EXEC_PID")
            .env_remove("MANAGERPID")
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let count = variables.iter().find(|(name, _)| *name == SERVERS);
        let count = count.map_or(1, |(_, count)| count.parse().unwrap());
        let mut says = BufReader::new(first.stdout.take().unwrap()).lines();
        let serving = says.by_ref().map(Result::unwrap).filter_map(|line| {
            let addr = line.split_once("serving ")?.1;
            Some(addr.to_owned())
        });
        let addrs: Vec<_> = serving.take(count).collect();
        assert_eq!(addrs.len(), count, "the service did not start");
        // All generations write there.
        thread::spawn(move || says.for_each(drop));
        Self { first, addrs }
    }

    fn pid(&self) -> u32 {
        self.get("/").parse().unwrap()
    }

    fn get(&self, target: &str) -> String {
        get(&self.addrs[0], target)
    }

    /// Begins a restart. The answer comes at its end.
    fn restart(&self, query: &str) -> JoinHandle<String> {
        let (addr, target) = (self.addrs[0].clone(), format!("/restart?{query}"));
        thread::spawn(move || get(&addr, &target))
    }

    /// Waits until both processes accept. Returns the new one.
    fn wait_for_probation(&self) -> u32 {
        let mut pid = 0;
        until(|| {
            let info = self.get("/info");
            let Some(successor) = info.split_once("successor: Some(") else {
                return false;
            };
            pid = successor.1.split_once(')').unwrap().0.parse().unwrap();
            info.contains("state: Probation")
        });
        pid
    }

    /// Asks a process that is alone for its end.
    fn stop(&self) {
        for addr in &self.addrs {
            get(addr, "/stop");
        }
    }

    fn waits_for_first(&mut self) {
        assert!(self.first.wait().unwrap().success());
    }
}

impl Drop for Service {
    /// Whoever serves ends, even if the test has failed.
    fn drop(&mut self) {
        let _ = self.first.kill();
        let _ = self.first.wait();
        for addr in &self.addrs {
            let _ = try_to_get(addr, "/stop");
        }
    }
}

fn try_to_get(addr: &str, target: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(LONG))?;
    let head = "Host: a\r\nConnection: close\r\n\r\n";
    write!(stream, "GET {target} HTTP/1.1\r\n{head}")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn get(addr: &str, target: &str) -> String {
    let text = try_to_get(addr, target).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

fn pid_of(number: u32) -> Pid {
    Pid::from_raw(number.cast_signed()).unwrap()
}

fn kill(pid: u32) {
    kill_process(pid_of(pid), Signal::KILL).unwrap();
}

/// A process's parent, by the kernel.
fn parent(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let behind_name = stat.rsplit_once(") ").unwrap().1;
    behind_name.split(' ').nth(1).unwrap().parse().unwrap()
}

fn is_gone(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_err() || status.is_ok_and(|status| status.contains("State:\tZ"))
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("pid")).collect();
    names.sort();
    names
}

#[test]
fn each_step_of_a_restart_is_told_in_its_order() {
    let manager = Manager::new();
    let file = manager.path("pid");
    let manager = manager.set(PID_FILE, file.display());
    let mut service = manager.start("run");
    let first = service.pid();
    manager.hears(first, "READY=1");
    fs::write(&file, format!("{first}\n")).unwrap();
    let content = || fs::read_to_string(&file).unwrap();

    let restart = service.restart("probation=1000");
    manager.hears_reloading(first);
    let second = service.wait_for_probation();
    let beside = format!("pid.{second}");
    assert_eq!(names_in(&manager.folder), ["pid".into(), beside.clone()]);
    assert_eq!(content(), format!("{first}\n"));
    assert_eq!(
        fs::read_to_string(manager.path(&beside)).unwrap(),
        format!("{second}\n")
    );
    assert_eq!(manager.hears_of_main(first), second);
    assert_eq!(content(), format!("{second}\n"), "before it is told");
    assert_eq!(names_in(&manager.folder), ["pid"]);
    let barrier = manager.hears_barrier(first);
    // The sockets are not handed over before the manager knows.
    assert_eq!(service.wait_for_probation(), second);
    manager.has_heard_all();
    close(barrier);
    manager.hears_of_success([first, second], 1);
    assert_eq!(restart.join().unwrap(), format!("ok {second}"));
    service.waits_for_first();

    let third = manager.restarts(&service, second, 2);
    until(|| is_gone(second));
    assert_eq!(content(), format!("{third}\n"));
    manager.has_heard_all();
    service.stop();
    manager.hears_stop(third);
    until(|| is_gone(third));
    manager.has_heard_all();
}

#[test]
fn the_signal_that_the_unit_sends_restarts_the_service() {
    let manager = Manager::new();
    let service = manager.start("run");
    let first = service.pid();
    manager.hears(first, "READY=1");
    kill_process(pid_of(first), Signal::USR2).unwrap();
    manager.hears_reloading(first);
    let second = manager.hears_of_main(first);
    close(manager.hears_barrier(first));
    manager.hears_of_success([first, second], 1);
    kill_process(pid_of(second), Signal::TERM).unwrap();
    manager.hears_stop(second);
    until(|| is_gone(second));
    manager.has_heard_all();
}

#[test]
fn a_failure_is_told_in_one_line_and_so_is_a_refusal() {
    let manager = Manager::new();
    let service = manager.start("run");
    let first = service.pid();
    manager.hears(first, "READY=1");

    let answer = service.restart("fault=1").join().unwrap();
    assert!(answer.starts_with("failed"), "{answer}");
    manager.hears_reloading(first);
    let why = manager.hears_of_failure(first);
    assert!(why.contains("before it was ready"), "{why}");
    assert!(why.contains("something is missing MAINPID=1"), "{why}");

    let refused = |pid: u32, query: &str, expected: &str| {
        let answer = service.restart(query).join().unwrap();
        assert!(answer.contains(expected), "{answer}");
        manager.hears_reloading(pid);
        let why = manager.hears_of_failure(pid);
        assert!(why.contains(expected), "{why}");
        assert_eq!(service.pid(), pid);
    };
    refused(first, "veto=1", "refused: not now");

    let (addr, release) = (service.addrs[0].clone(), manager.path("release"));
    let target = format!("/hold?until={}", release.display());
    let held = thread::spawn(move || get(&addr, &target));
    until(|| manager.path("release.begun").exists());
    let second = manager.restarts(&service, first, 1);
    refused(second, "predecessors=1", "1 earlier processes still drain");
    fs::write(&release, "").unwrap();
    assert_eq!(held.join().unwrap(), "held");
    service.stop();
    manager.hears_stop(second);
}

#[test]
fn a_death_in_probation_moves_neither_the_main_process_nor_the_file() {
    let manager = Manager::new();
    let file = manager.path("pid");
    let manager = manager.set(PID_FILE, file.display());
    let service = manager.start("run");
    let first = service.pid();
    fs::write(&file, format!("{first}\n")).unwrap();
    manager.hears(first, "READY=1");
    let restart = service.restart("probation=20000");
    manager.hears_reloading(first);
    kill(service.wait_for_probation());
    let why = manager.hears_of_failure(first);
    assert!(why.contains("was killed by signal 9"), "{why}");
    assert!(restart.join().unwrap().starts_with("failed"));
    assert_eq!(names_in(&manager.folder), ["pid"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{first}\n"));
    manager.has_heard_all();
    assert_eq!(service.pid(), first);
}

#[test]
fn a_death_before_the_manager_has_noted_it_puts_the_file_back() {
    let manager = Manager::new();
    let file = manager.path("pid");
    let manager = manager.set(PID_FILE, file.display());
    let service = manager.start("run");
    let first = service.pid();
    manager.hears(first, "READY=1");
    let restart = service.restart("");
    manager.hears_reloading(first);
    let second = manager.hears_of_main(first);
    let barrier = manager.hears_barrier(first);
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{second}\n"));
    kill(second);
    manager.hears_of_failure(first);
    assert!(restart.join().unwrap().starts_with("failed"));
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{first}\n"));
    assert_eq!(names_in(&manager.folder), ["pid"]);
    close(barrier);
    assert_eq!(service.pid(), first);
}

#[test]
fn a_stop_in_a_restart_is_told_when_that_has_ended() {
    let manager = Manager::new();
    let service = manager.start("run");
    let first = service.pid();
    manager.hears(first, "READY=1");
    let restart = service.restart("probation=20000");
    manager.hears_reloading(first);
    let second = service.wait_for_probation();
    // The signal of the manager.
    kill_process(pid_of(first), Signal::TERM).unwrap();
    let why = manager.hears_of_failure(first);
    assert!(
        why.contains("because a server of this process stops"),
        "{why}"
    );
    manager.hears_stop(first);
    assert!(restart.join().unwrap().starts_with("failed"));
    until(|| is_gone(first) && is_gone(second));
    manager.has_heard_all();
}

#[test]
fn a_manager_that_knows_no_barrier_is_not_waited_for_long() {
    let manager = Manager::new();
    let service = manager.start("run");
    let first = service.pid();
    manager.hears(first, "READY=1");
    let restart = service.restart("");
    manager.hears_reloading(first);
    let second = manager.hears_of_main(first);
    let barrier = manager.hears_barrier(first);
    let began = Instant::now();
    manager.hears_of_success([first, second], 1);
    let took = began.elapsed();
    assert!(took > Duration::from_secs(4), "{took:?}");
    assert_eq!(restart.join().unwrap(), format!("ok {second}"));
    close(barrier);
}

#[test]
fn a_full_disk_is_found_out_before_anybody_is_at_risk() {
    let mut manager = Manager::new();
    let file = manager.path("disk").join("pid");
    fs::create_dir(manager.path("disk")).unwrap();
    manager = manager.set(PID_FILE, file.display());
    // A file of one page, and no room for another one.
    manager.starts = r#"disk=$(dirname "$HTTPDOWN_TEST_PID_FILE")
        mount -t tmpfs -o size=4k none "$disk" && echo $$ > "$HTTPDOWN_TEST_PID_FILE" && exec "$@""#;
    let probe = Command::new("unshare").args(["-m", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        skip(&"no mount namespace");
        return;
    }
    // The service's shell has a mount of its own, so it is not visible here.
    let inner = manager.starts;
    let starts = format!("exec unshare -m /bin/sh -c '{inner}' sh \"$@\"");
    let service = Service::start("run", &starts, &manager.variables);
    let first = service.pid();
    manager.hears(first, "READY=1");
    let answer = service.restart("probation=20000").join().unwrap();
    let expected = "pid cannot be written: No space left on device";
    assert!(answer.contains(expected), "{answer}");
    manager.hears_reloading(first);
    let why = manager.hears_of_failure(first);
    assert!(why.contains("was killed, because") && why.contains(expected));
    let there = PathBuf::from(format!("/proc/{first}/root")).join(file.strip_prefix("/").unwrap());
    assert_eq!(fs::read_to_string(&there).unwrap(), format!("{first}\n"));
    assert_eq!(names_in(there.parent().unwrap()), ["pid"]);
    assert_eq!(service.pid(), first);
}

#[test]
fn the_managers_new_child_dies_before_its_eyes_while_the_old_one_drains() {
    let manager = Manager::new().set("MANAGERPID", std::process::id());
    let mut service = manager.start("run");
    let first = service.pid();
    assert_eq!(parent(first), std::process::id());
    manager.hears(first, "READY=1");
    let (addr, release) = (service.addrs[0].clone(), manager.path("release"));
    let target = format!("/hold?until={}", release.display());
    let held = thread::spawn(move || get(&addr, &target));
    until(|| manager.path("release.begun").exists());
    let second = manager.restarts(&service, first, 1);
    assert_eq!(parent(second), std::process::id());
    kill(second);
    let (pid, status) = waitpid(Some(pid_of(second)), WaitOptions::empty())
        .unwrap()
        .unwrap();
    assert_eq!(
        (pid, status.terminating_signal()),
        (pid_of(second), Some(9))
    );
    assert!(service.first.try_wait().unwrap().is_none(), "it drains");
    fs::write(&release, "").unwrap();
    assert_eq!(held.join().unwrap(), "held");
    service.waits_for_first();
    // It has drained in silence.
    manager.has_heard_all();
}

#[test]
fn predecessors_are_counted_until_they_have_ended() {
    let manager = Manager::new();
    let mut service = manager.start("counted");
    let first = service.pid();
    manager.hears(first, "READY=1");
    let count_of = |count: u32| format!("restart.predecessors = {count}");
    let passes_a_minute = |expected: &str| {
        until(|| {
            service.get("/minute");
            service.get("/log").contains(expected)
        });
    };
    passes_a_minute("http-state.total");
    assert!(!service.get("/log").contains("restart.predecessors"));
    let (addr, release) = (service.addrs[0].clone(), manager.path("release"));
    let target = format!("/hold?until={}", release.display());
    let held = thread::spawn(move || get(&addr, &target));
    until(|| manager.path("release.begun").exists());
    manager.restarts(&service, first, 1);
    passes_a_minute(&count_of(1));
    assert!(!service.get("/log").contains(&count_of(0)));
    fs::write(&release, "").unwrap();
    assert_eq!(held.join().unwrap(), "held");
    passes_a_minute(&count_of(0));
    service.waits_for_first();
}

#[test]
fn without_a_manager_as_its_parent_the_new_process_is_the_old_ones_child() {
    let manager = Manager::new();
    let service = manager.start("run");
    let first = service.pid();
    manager.hears(first, "READY=1");
    let restart = service.restart("probation=1000");
    manager.hears_reloading(first);
    assert_eq!(parent(service.wait_for_probation()), first);
    let second = manager.hears_of_main(first);
    close(manager.hears_barrier(first));
    manager.hears_of_success([first, second], 1);
    assert_eq!(restart.join().unwrap(), format!("ok {second}"));
}

#[test]
fn a_service_of_several_servers_is_ready_when_it_says_so_and_stops_with_the_last() {
    let manager = Manager::new().set(SERVERS, 3);
    let mut service = manager.start("ready");
    let first = service.pid();
    for addr in &service.addrs {
        assert_eq!(get(addr, "/"), first.to_string());
    }
    manager.has_heard_all();
    writeln!(service.first.stdin.take().unwrap()).unwrap();
    manager.hears(first, "READY=1");
    let second = manager.restarts(&service, first, 1);
    service.waits_for_first();
    for addr in &service.addrs[1..] {
        get(addr, "/stop");
        until(|| TcpStream::connect(addr).is_err());
    }
    manager.has_heard_all();
    get(&service.addrs[0], "/stop");
    manager.hears_stop(second);
    until(|| is_gone(second));
}

#[test]
fn a_service_that_has_not_said_what_it_is_tells_of_restarts_only() {
    let manager = Manager::new().set("WATCHDOG_USEC", 100_000);
    let service = manager.start("waits");
    let first = service.pid();
    let second = manager.restarts(&service, first, 1);
    service.stop();
    until(|| is_gone(second));
    manager.has_heard_all();
}

#[test]
fn a_silent_service_says_nothing() {
    let manager = Manager::new().set("WATCHDOG_USEC", 100_000);
    let service = manager.start("silent");
    let first = service.pid();
    assert!(
        service
            .restart("fault=1")
            .join()
            .unwrap()
            .starts_with("failed")
    );
    let answer = service.restart("").join().unwrap();
    let second: u32 = answer.strip_prefix("ok ").expect(&answer).parse().unwrap();
    assert_ne!(first, second);
    service.stop();
    until(|| is_gone(second));
    manager.has_heard_all();
}

#[test]
fn the_watchdog_hears_of_a_service_as_long_as_its_threads_get_on() {
    let mut manager = Manager::new().set("WATCHDOG_USEC", 200_000);
    manager.starts = r#"export WATCHDOG_PID=$$; exec "$@""#;
    let service = manager.start("inline");
    let first = service.pid();
    manager.hears(first, "READY=1");
    for _ in 0..3 {
        manager.hears(first, "WATCHDOG=1");
    }
    let (addr, release) = (service.addrs[0].clone(), manager.path("release"));
    let target = format!("/hold?until={}", release.display());
    let held = thread::spawn(move || get(&addr, &target));
    // It has become silent when nothing has come for much longer than half of the interval.
    let short = Some(Duration::from_millis(1500));
    manager.socket.set_read_timeout(short).unwrap();
    let mut count = 0;
    while let Ok(word) = manager.receive(MsgFlags::empty()) {
        assert_eq!((word.pid, &*word.text), (first, "WATCHDOG=1"));
        count += 1;
        assert!(count < 100, "a blocked thread goes unnoticed");
    }
    manager.socket.set_read_timeout(Some(LONG)).unwrap();
    fs::write(&release, "").unwrap();
    manager.hears(first, "WATCHDOG=1");
    assert_eq!(held.join().unwrap(), "held");

    // The watchdog goes to the new process with the rest.
    let restart = service.restart("");
    let mut says = Vec::new();
    while !says
        .iter()
        .any(|(_, text): &(u32, String)| text.starts_with("READY=1"))
    {
        let word = manager.next();
        word.fds.iter().for_each(|fd| close(*fd));
        says.push((word.pid, word.text));
    }
    let answer = restart.join().unwrap();
    let second: u32 = answer.strip_prefix("ok ").expect(&answer).parse().unwrap();
    let ready = says.pop().unwrap();
    assert_eq!(ready.0, second);
    assert!(says.iter().all(|(pid, _)| *pid == first), "{says:?}");
    // What the old one has said in the meantime is not behind it.
    manager.hears(second, "WATCHDOG=1");
    manager.hears(second, "WATCHDOG=1");
    service.stop();
    let mut word = manager.next();
    while word.text == "WATCHDOG=1" {
        word = manager.next();
    }
    assert_eq!((word.pid, &*word.text), (second, "STOPPING=1"));
    manager.hears(second, "EXTEND_TIMEOUT_USEC=10000000");
    until(|| is_gone(second));
    manager.has_heard_all();
}

#[test]
fn a_watchdog_for_another_process_hears_nothing() {
    let manager = Manager::new()
        .set("WATCHDOG_USEC", 50_000)
        .set("WATCHDOG_PID", 1);
    let service = manager.start("run");
    let first = service.pid();
    manager.hears(first, "READY=1");
    let second = manager.restarts(&service, first, 1);
    service.stop();
    manager.hears_stop(second);
    until(|| is_gone(second));
    manager.has_heard_all();
}

#[test]
fn a_manager_without_a_path_is_found_by_its_name() {
    let name = format!("httpdown-systemd-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let socket = UnixDatagram::bind_addr(&address).unwrap();
    let folder = env::temp_dir().join(&name);
    fs::create_dir_all(&folder).unwrap();
    let manager = Manager::with(folder, socket, format!("@{name}"));
    let service = manager.start("run");
    let first = service.pid();
    manager.hears(first, "READY=1");
    manager.restarts(&service, first, 1);
}

#[test]
fn a_manager_that_cannot_be_told_is_in_the_log_once_and_holds_up_nothing() {
    for (address, why) in [
        (
            "vsock:2:1234",
            "NOTIFY_SOCKET=vsock:2:1234 is not supported",
        ),
        ("/nowhere/notify", "No such file or directory"),
    ] {
        let variables = [("NOTIFY_SOCKET", address.to_owned())];
        let service = Service::start("run", r#"exec "$@""#, &variables);
        let answer = service.restart("fault=1").join().unwrap();
        assert!(answer.starts_with("failed"), "{answer}");
        let log = service.get("/log");
        let complaints: Vec<_> = log.split("the service manager was not told (").collect();
        assert_eq!(complaints.len(), 2, "{log}");
        assert!(complaints[1].contains(&format!("): {why}")), "{log}");
        let answer = service.restart("").join().unwrap();
        assert!(answer.starts_with("ok"), "{answer}");
    }
}

#[test]
fn what_cannot_be_restarted_says_what_to_do() {
    let starts = r#"export SYSTEMD_EXEC_PID=$$; exec "$@""#;
    let service = Service::start("run", starts, &[]);
    let answer = service.restart("").join().unwrap();
    assert!(answer.contains("set Type=notify"), "{answer}");
    drop(service);

    // The number of another process: the service was started by one of the unit's.
    let starts = r#"export SYSTEMD_EXEC_PID=1; exec "$@""#;
    let service = Service::start("run", starts, &[]);
    for _ in 0..2 {
        let answer = service.restart("").join().unwrap();
        assert!(answer.starts_with("ok"), "{answer}");
        until(|| service.get("/info").contains("state: Idle"));
    }
    drop(service);

    let starts = r#"exec unshare --pid --fork --mount-proc --kill-child "$@""#;
    let probe = r"exec unshare --pid --fork --mount-proc true";
    let probe = Command::new("/bin/sh").args(["-c", probe]).status();
    if !probe.is_ok_and(|status| status.success()) {
        skip(&"no process namespace");
        return;
    }
    let service = Service::start("run", starts, &[]);
    assert_eq!(service.pid(), 1);
    let answer = service.restart("").join().unwrap();
    assert!(answer.contains("replace the container"), "{answer}");
}
