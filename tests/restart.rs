//! A restart: what becomes of clients, of sockets and of processes. Each test starts this program once more, as a
//! service that can be told to restart itself, and talks with it and its successors by HTTP.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "descriptors get their numbers between fork and exec; a helper that fails fails its test"
)]

mod common;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use httpdown::{
    Dispatch, Error, Exchange, Identity, Listener, Query, Restart, Server, Tls, restart_info,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, kill_process, kill_process_group,
    pidfd_open, setrlimit,
};
use socket2::{SockAddr, Socket};

use common::deny;
use common::tls::{self, Authority};
use common::{Client, Journal, LONG, Place, skip, unconnected};

/// The addresses on which the service listens, in lines. This is what makes the program a service.
const ADDRS: &str = "HTTPDOWN_TEST_ADDRS";
/// How every generation of the service behaves: a query.
const HOST: &str = "HTTPDOWN_TEST_HOST";
/// How a service behaves that was started by a restart, and only that one: a query.
const FAULT: &str = "HTTPDOWN_TEST_FAULT";
/// A copy of standard error, made before the process was ready.
static SAVED_STDERR: AtomicI32 = AtomicI32::new(-1);
/// Certificate and key, if the service speaks TLS.
const CHAIN: &str = "HTTPDOWN_TEST_CHAIN";
const KEY: &str = "HTTPDOWN_TEST_KEY";

// The service.

/// The service. It ends when its servers have stopped.
#[test]
fn service() {
    let Ok(addrs) = env::var(ADDRS) else { return };
    let predecessor = env::var("HTTPDOWN_RESTART").unwrap_or_default();
    let is_successor = predecessor.ends_with(&format!(":{}", process::id()));
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    say(format_args!("starts with {names:?}"));
    let (host, fault) = (env::var(HOST).unwrap_or_default(), env::var(FAULT));
    let fault = fault.ok().filter(|_| is_successor).unwrap_or_default();
    let (host, fault) = (Query::new(&host), Query::new(&fault));
    let is = |flag| fault.get(flag).is_some();
    match host.get("children").as_deref() {
        // SAFETY: no handler.
        Some("ignored") => drop(unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) }),
        Some("waited for") => drop(thread::spawn(wait_for_all_children)),
        _ => {}
    }
    if is("grandchild") {
        // It gets all that is not close-on-exec.
        let _ = Command::new("sleep").arg("1000").spawn().unwrap().id();
    }
    if let Some(number) = host.get("keeps").filter(|_| !is_successor) {
        let kept = fs::File::open("/dev/zero").unwrap();
        // SAFETY: no pointers, and nothing of ours has that number.
        assert!(unsafe { libc::dup2(kept.as_raw_fd(), number.parse().unwrap()) } > 0);
    }
    if let Some(pipe) = fault.get("writer") {
        start_writer(&pipe);
    }
    if is("saves stderr") {
        // SAFETY: no pointers.
        SAVED_STDERR.store(unsafe { libc::dup(2) }, Ordering::Relaxed);
    }
    if let Some(log) = fault.get("log") {
        let log = fs::File::create(&*log).unwrap();
        // SAFETY: no pointers.
        assert!(unsafe { libc::dup2(log.as_raw_fd(), 2) } == 2);
    }
    if let Some(gate) = fault.get("gate") {
        stand_at(&gate);
    }
    if is("tells") {
        // If nobody reads it, this panics; a program in C would be ended by SIGPIPE.
        eprintln!("{} still starts", process::id());
    }
    if is("no pidfd") {
        deny::deny_everywhere(libc::SYS_pidfd_open, libc::EPERM);
    }
    if is("no memfd") {
        deny::deny_everywhere(libc::SYS_memfd_create, libc::EPERM);
    }
    assert!(!is("panic"), "something is missing");
    let (mut bound, mut servers) = (Vec::new(), Vec::new());
    for (at, addr) in addrs.lines().enumerate() {
        if at == 1
            && let Some(gate) = fault.get("between")
        {
            stand_at(&gate);
        }
        if at == 0 || !is("forget") {
            let listener = listen(addr, is_successor);
            if host.get("reversed").is_some() {
                bound.push((at, listener));
            } else {
                servers.push(serve(at, listener, host));
            }
        }
    }
    for (at, listener) in bound.into_iter().rev() {
        servers.insert(0, serve(at, listener, host));
    }
    if host.get("at once").is_some() && !is_successor {
        let begun = servers
            .last()
            .unwrap()
            .restart_begin(Restart::default().probation(Duration::ZERO));
        say(format_args!("restart at once: {begun:?}"));
    }
    if is("ready") || host.get("ready").is_some() {
        let ready = httpdown::restart_ready();
        say(format_args!("restart_ready: {ready:?}"));
    }
    if !is_successor {
        for server in &servers {
            say(format_args!("serves {}", server.local_addrs()[0]));
        }
    }
    for server in servers {
        let ended = server.wait_blocking(None);
        let report = server.report();
        assert_eq!(report.successor, restart_info().successor);
        let is_ok = ended.is_ok();
        let lost = [report.killed, report.conns_killed, report.unaccepted];
        say(format_args!(
            "ended: {is_ok}, lost {lost:?}, successor {:?}",
            report.successor
        ));
        server.close();
    }
    if is("again") {
        let server = serve(0, listen(addrs.lines().next().unwrap(), is_successor), host);
        say(format_args!("serves again"));
        server.wait_blocking(None).unwrap();
    }
}

/// One line, in one piece, with our process ID before it. All generations write to the same pipe.
fn say(what: std::fmt::Arguments<'_>) {
    let line = format!("{} {what}\n", process::id());
    let _ = io::stderr().write_all(line.as_bytes());
}

/// As hosts do that want no zombies.
fn wait_for_all_children() {
    loop {
        // SAFETY: no pointers but NULL.
        if unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } < 0 {
            thread::yield_now();
        }
    }
}

/// Waits until the test opens the gate.
fn stand_at(gate: &str) {
    let mut stream = TcpStream::connect(gate).unwrap();
    let _ = stream.read(&mut [0]);
}

fn listen(addr: &str, is_successor: bool) -> Listener {
    let bound = |addr| Listener::try_from(TcpListener::bind(addr).unwrap()).unwrap();
    match addr.split_once(':') {
        Some(("group", addr)) => Listener::bind_reuse_port(addr).unwrap(),
        // A socket that the host binds itself, and gets back by the name that such sockets have, or by its number.
        Some(("own" | "given", addr)) if !is_successor => bound(addr),
        Some(("own", _)) => Listener::bind("fd:httpdown").unwrap(),
        Some(("given" | "passed", _)) => {
            // SAFETY: the process was started with it, and nobody else takes it.
            Listener::from_fd(unsafe { OwnedFd::from_raw_fd(3) }).unwrap()
        }
        _ => Listener::bind(addr).unwrap(),
    }
}

fn serve(at: usize, listener: Listener, host: Query<'_>) -> Server {
    let grace = host
        .get("grace")
        .map_or(300, |grace| grace.parse().unwrap());
    let builder = Server::builder()
        .idle_grace(Duration::from_millis(grace))
        .on_log(|level, text| say(format_args!("{level:?}: {text}")));
    let builder = match (env::var(CHAIN), env::var(KEY)) {
        (Ok(chain), Ok(key)) => {
            let identity = Identity::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
            builder.tls(Tls::new(identity))
        }
        _ => builder,
    };
    let fault = env::var(FAULT).unwrap_or_default();
    let builder = match Query::new(&fault).get("canary") {
        Some(target) => builder.canary(target),
        None => builder,
    };
    let (builder, dispatch) = match Query::new(&fault).get("inline") {
        Some(_) => (builder.io_threads(NonZeroUsize::MIN), Dispatch::Inline),
        None => (builder, Dispatch::default()),
    };
    builder
        .handle(listener, dispatch, move |exchange: Exchange| {
            answer(at, exchange);
        })
        .unwrap()
}

fn answer(at: usize, exchange: Exchange) {
    let server = exchange.server();
    let target = exchange.uri().clone();
    let query = Query::new(target.query().unwrap_or(""));
    let text = match (exchange.method().clone(), target.path()) {
        (Method::GET, "/") => process::id().to_string(),
        (_, "/at") => at.to_string(),
        (_, "/well") => {
            let conn = exchange.conn();
            let is_canary = conn.peer == conn.local && conn.credentials.is_some();
            assert!(is_canary, "{conn:?}");
            "well".into()
        }
        // Never answered.
        (_, "/kept") => {
            static KEPT: Mutex<Vec<Exchange>> = Mutex::new(Vec::new());
            KEPT.lock().unwrap().push(exchange);
            return;
        }
        (_, "/hold") => {
            stand_at(&query.get("gate").unwrap());
            process::id().to_string()
        }
        (_, "/restart") => restart(&server, query, target.query().unwrap_or("")),
        (_, "/info") => format!("{:?}", restart_info()),
        (_, "/variable") => env::var(&*query.get("name").unwrap()).unwrap_or_default(),
        (_, "/limit") => {
            let what = if query.get("of").as_deref() == Some("nproc") {
                Resource::Nproc
            } else {
                Resource::Nofile
            };
            let current = query.get("to").map(|to| to.parse().unwrap());
            let maximum = getrlimit(what).maximum;
            setrlimit(what, Rlimit { current, maximum }).unwrap();
            String::new()
        }
        (_, "/catch") => {
            extern "C" fn nothing(_: libc::c_int) {}
            // SAFETY: the handler does nothing.
            unsafe { libc::signal(libc::SIGUSR1, nothing as *const () as libc::sighandler_t) };
            String::new()
        }
        (_, "/merciful") => {
            deny::deny_everywhere(libc::SYS_pidfd_send_signal, libc::EPERM);
            String::new()
        }
        (_, "/another") => {
            static OTHERS: Mutex<Vec<Server>> = Mutex::new(Vec::new());
            let another = serve(1, listen("127.0.0.1:0", false), Query::new(""));
            let addr = another.local_addrs()[0].to_string();
            OTHERS.lock().unwrap().push(another);
            addr
        }
        // As hosts do that catch what is written while something runs.
        (_, "/stderr-back") => {
            let saved = SAVED_STDERR.load(Ordering::Relaxed);
            // SAFETY: no pointers.
            assert_eq!(unsafe { libc::dup2(saved, libc::STDERR_FILENO) }, 2);
            String::new()
        }
        (_, "/stop") => {
            server.stop_begin();
            "stops".into()
        }
        _ => {
            let not_found = Response::builder().status(StatusCode::NOT_FOUND);
            let _ = exchange.reply(not_found.body(Bytes::new()).unwrap());
            return;
        }
    };
    let _ = exchange.reply(Response::new(Bytes::from(text)));
}

/// Starts a process that keeps our standard error. It writes to it when somebody writes to the pipe of this name, and
/// says there that it goes on.
fn start_writer(pipe: &str) {
    let script = "read line <$0; echo first words >&2; echo last words >&2; echo lives >$0";
    let _ = Command::new("sh")
        .args(["-c", script, pipe])
        .spawn()
        .unwrap()
        .id();
}

fn restart(server: &Server, query: Query<'_>, fault: &str) -> String {
    let millis = |name: &str| Some(Duration::from_millis(query.get(name)?.parse().unwrap()));
    let mut restart = Restart::default();
    if query.get("plainly").is_none() {
        let mut env: Vec<_> = env::vars().collect();
        env.retain(|(name, _)| name != FAULT);
        env.push((FAULT.into(), fault.into()));
        restart = restart.env(env);
    }
    restart = restart
        .probation(millis("probation").unwrap_or(Duration::from_millis(100)))
        .drop_unclaimed(query.get("drop").is_some())
        .keep_fds(query.get("keep").is_some())
        .plain_stderr(query.get("plain").is_some());
    if let Some(timeout) = millis("timeout") {
        restart = restart.ready_timeout(timeout);
    }
    if let Some(path) = query.get("pid") {
        restart = restart.pid_file(&*path);
    }
    if let Some(most) = query.get("most") {
        restart = restart.max_predecessors(most.parse().unwrap());
    }
    if let Some(veto) = query.get("veto") {
        let veto = veto.into_owned();
        restart = restart.before(move || match &*veto {
            "panic" => panic!("the veto panics"),
            gate if gate.starts_with("127.0.0.1") => {
                stand_at(gate);
                Ok(())
            }
            why => Err(why.to_owned()),
        });
    }
    if let Some(gate) = query.get("told") {
        let gate = gate.into_owned();
        restart = restart.on_end(move |result| {
            say(format_args!("told: {result:?}"));
            if gate != "no gate" {
                stand_at(&gate);
            }
        });
    }
    match server.restart_blocking(restart) {
        Ok(restarted) => format!("ok {}", restarted.pid),
        Err(Error::RestartFailed(why)) => format!("failed: {why}"),
        Err(Error::Busy(why)) => format!("busy: {why}"),
        Err(error) => format!("{error:?}"),
    }
}

// The service as its tests see it.

/// A service with all its generations: they end with this value.
struct Service {
    first: Child,
    addrs: Vec<String>,
    /// What all generations write to their standard error, line by line.
    lines: Journal<String>,
}

/// How a service is started.
#[derive(Default)]
struct Start {
    addrs: Vec<String>,
    host: String,
    fds: Vec<OwnedFd>,
    names: Vec<&'static str>,
    program: Option<PathBuf>,
    dir: Option<PathBuf>,
    user: Option<u32>,
    before: String,
    tls: bool,
}

impl Start {
    fn at(addrs: &[&str]) -> Self {
        let addrs = addrs.iter().map(|&addr| addr.to_owned()).collect();
        Self {
            addrs,
            ..Self::default()
        }
    }

    fn host(mut self, host: &str) -> Self {
        self.host = host.into();
        self
    }

    /// Gives it a descriptor, as systemd does.
    fn fd(mut self, name: &'static str, fd: impl AsFd) -> Self {
        // Out of the way of the numbers that they will have.
        self.fds
            .push(rustix::io::fcntl_dupfd_cloexec(fd, 100).unwrap());
        self.names.push(name);
        self
    }

    fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// What a shell does first.
    fn before(mut self, commands: &str) -> Self {
        self.before = commands.into();
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new("sh");
        let commands = format!("{}\nexport LISTEN_PID=$$; exec \"$@\"", self.before);
        let program = self
            .program
            .clone()
            .unwrap_or_else(|| env::current_exe().unwrap());
        command
            .args(["-c", &commands, "sh"])
            .arg(program)
            .args(["--exact", "service", "--nocapture"])
            .env(ADDRS, self.addrs.join("\n"))
            .env(HOST, &self.host)
            .env("RUST_BACKTRACE", "0")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if !self.names.is_empty() {
            command
                .env("LISTEN_FDS", self.names.len().to_string())
                .env("LISTEN_FDNAMES", self.names.join(":"));
        }
        if self.tls || tls::is_everywhere() {
            let pair = Authority::of_servers().issue(&["localhost"]);
            command.env(CHAIN, pair.chain).env(KEY, pair.key);
        }
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        if let Some(user) = self.user {
            command.uid(user);
        }
        let fds: Vec<RawFd> = self.fds.iter().map(OwnedFd::as_raw_fd).collect();
        let give_numbers = move || {
            for (fd, number) in fds.iter().zip(3..) {
                // SAFETY: no pointers, and nothing of ours has that number in the child.
                if unsafe { libc::dup2(*fd, number) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: the closure only makes system calls.
        unsafe { command.pre_exec(give_numbers) };
        command
    }

    fn start(self) -> Service {
        let mut service = self.begin();
        let serves = format!("{} serves ", service.first());
        let find = |lines: &[String]| {
            let addrs = lines.iter().filter_map(|line| line.strip_prefix(&serves));
            addrs.map(str::to_owned).collect::<Vec<_>>()
        };
        let count = self.addrs.len();
        service.lines.wait_until(|lines| find(lines).len() == count);
        service.addrs = find(&service.lines.all());
        service
    }

    /// Does not wait until it serves.
    fn begin(&self) -> Service {
        let mut first = self.command().spawn().unwrap();
        let lines = Journal::new();
        let (written, errors) = (lines.clone(), first.stderr.take().unwrap());
        // All generations write there.
        thread::spawn(move || {
            let lines = BufReader::new(errors).lines().map_while(Result::ok);
            lines.for_each(|line| written.write(line));
        });
        Service {
            first,
            addrs: Vec::new(),
            lines,
        }
    }
}

impl Service {
    fn start() -> Self {
        Self::start_with("")
    }

    /// Where the environment says so, on a Unix socket.
    fn start_with(host: &str) -> Self {
        Start::at(&[&free_addr()]).host(host).start()
    }

    fn addr(&self) -> &str {
        &self.addrs[0]
    }

    fn get(&self, target: &str) -> String {
        get(self.addr(), target)
    }

    /// Asks, and does not wait for the answer.
    fn ask(&self, target: &str) -> Client {
        ask(self.addr(), target)
    }

    fn first(&self) -> u32 {
        self.first.id()
    }

    /// Waits until a process has written a line with this text. Returns which process.
    #[track_caller]
    fn line(&self, text: &str) -> String {
        self.lines.wait_for(|line| line.contains(text));
        self.lines
            .all()
            .into_iter()
            .find(|line| line.contains(text))
            .unwrap()
    }

    /// Waits until the text stands before the ID of a new process, which is not one of these.
    #[track_caller]
    fn started(&self, but: &[u32]) -> u32 {
        let find = |lines: &[String]| {
            let mut pids = lines
                .iter()
                .filter_map(|line| line.split_once("restart: started PID ")?.1.parse().ok());
            pids.find(|pid| !but.contains(pid))
        };
        self.lines.wait_until(|lines| find(lines).is_some());
        find(&self.lines.all()).unwrap()
    }

    /// Both processes accept: connects until this one has the connection.
    fn connect_to(&self, pid: u32) -> Client {
        loop {
            let mut client = self.ask("/");
            if text(&mut client) == pid.to_string() {
                return client;
            }
        }
    }

    fn ask_one(&self, pid: u32, target: &str) -> String {
        let mut client = self.connect_to(pid);
        client.ask(target);
        text(&mut client)
    }

    /// The same, for a request that waits.
    fn hold_one(&self, pid: u32) -> Held {
        let gate = Gate::new();
        let mut client = self.connect_to(pid);
        client.ask(&format!("/hold?gate={}", gate.addr()));
        let reached = gate.reached();
        Held { client, reached }
    }

    /// Restarts it, which must succeed.
    #[track_caller]
    fn restart(&self, how: &str) -> u32 {
        let answer = self.get(&format!("/restart?{how}"));
        succeeded(&answer)
    }

    /// Ends the process that serves now, which must lose nothing. Then nobody may listen any more.
    #[track_caller]
    fn stop(mut self) {
        let mut pids = BTreeSet::new();
        for addr in &self.addrs {
            let mut client = ask(addr, "/info");
            // One that has handed over may accept for a moment.
            while text(&mut client).contains("HandedOver") {
                client = ask(addr, "/info");
            }
            client.ask("/");
            pids.insert(text(&mut client));
            client.ask("/stop");
            text(&mut client);
        }
        for pid in pids {
            self.assert_ended_well(pid.parse().unwrap());
        }
        let _ = self.first.wait();
        for addr in &self.addrs {
            assert_refuses(addr);
        }
    }

    /// Waits for the end of all processes, of which those that have served must have lost nothing.
    #[track_caller]
    fn assert_all_ended_well(&self) {
        let all = self.lines.all();
        let starts = all.iter().filter(|line| line.contains(" starts with "));
        let pids = starts.map(|line| line.split(' ').next().unwrap().parse().unwrap());
        for pid in pids.collect::<BTreeSet<u32>>() {
            wait_for_end(pid);
        }
        let all = self.lines.all();
        let mut ended = all.iter().filter(|line| line.contains(" ended: "));
        assert!(
            ended.all(|line| line.contains("ended: true, lost [0, 0, 0]")),
            "{all:#?}"
        );
    }

    /// Waits for the end of a process, which must have lost nothing.
    #[track_caller]
    fn assert_ended_well(&self, pid: u32) {
        let ended = self.line(&format!("{pid} ended: "));
        assert!(ended.contains("ended: true, lost [0, 0, 0]"), "{ended}");
        wait_for_end(pid);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.first);
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.first.wait();
        if thread::panicking() {
            println!("{}", self.lines.all().join("\n"));
        }
    }
}

/// An address that is free; where the environment says so, of a Unix socket.
fn free_addr() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let id = process::id();
    if env::var("HTTPDOWN_TEST_SOCKETS").is_ok_and(|kind| kind == "unix") {
        return format!("unix:@httpdown-restart-{id}-{count}");
    }
    // Each service has an address of its own: who connects after its end must not find another one.
    let own = (id % 8_000) << 11 | (count % 2_000 + 1);
    format!(
        "{}:0",
        Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 0, 0).to_bits() | own)
    )
}

/// A folder that ends with this value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("httpdown-restart-{}-{name}", process::id());
        let folder = env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The address of a Unix socket with a file.
    fn socket(&self) -> String {
        format!("unix:{}", self.join("socket").display())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a service has said its address is.
struct At<'a>(&'a str);

impl Place for At<'_> {
    fn sockaddr(&self) -> SockAddr {
        match self.0.strip_prefix("unix:") {
            None => SockAddr::from(self.0.parse::<std::net::SocketAddr>().unwrap()),
            Some(path) => SockAddr::unix(path.replacen('@', "\0", 1)).unwrap(),
        }
    }
}

fn connect(addr: &str) -> io::Result<Client> {
    let (to, socket): (_, Socket) = unconnected(At(addr))?;
    socket.connect(&to)?;
    socket.set_read_timeout(Some(LONG))?;
    socket.set_write_timeout(Some(LONG))?;
    let mut client = Client::from(socket);
    client.shake_hands()?;
    Ok(client)
}

fn ask(addr: &str, target: &str) -> Client {
    let mut client = connect(addr).unwrap();
    client.ask(target);
    client
}

#[track_caller]
fn get(addr: &str, target: &str) -> String {
    text(&mut ask(addr, target))
}

#[track_caller]
fn text(client: &mut Client) -> String {
    let answer = client.answer();
    assert_eq!(answer.status, 200);
    answer.text().to_owned()
}

#[track_caller]
fn assert_refuses(addr: &str) {
    let error = connect(addr).unwrap_err();
    let is_gone = matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::NotFound
    );
    assert!(is_gone, "{error}");
}

#[track_caller]
fn succeeded(answer: &str) -> u32 {
    answer.strip_prefix("ok ").expect(answer).parse().unwrap()
}

fn send_signal(pid: u32, signal: Signal) {
    kill_process(id_of(pid), signal).unwrap();
}

fn id_of(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed()).unwrap()
}

/// Waits until a process has ended, whoever its parent is.
#[track_caller]
fn wait_for_end(pid: u32) {
    // There is none if it has been waited for.
    if let Ok(process) = pidfd_open(id_of(pid), PidfdFlags::empty()) {
        let long = Timespec {
            tv_sec: LONG.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        let mut watched = [PollFd::new(&process, PollFlags::IN)];
        assert_eq!(
            poll(&mut watched, Some(&long)),
            Ok(1),
            "process {pid} has ended"
        );
    }
}

/// Where a process of the service waits until the test lets it go on.
struct Gate(TcpListener);

impl Gate {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Socket::from(listener.try_clone().unwrap())
            .set_read_timeout(Some(LONG))
            .unwrap();
        Self(listener)
    }

    fn addr(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }

    /// Waits until somebody stands there. The gate opens when the result is dropped.
    fn reached(&self) -> TcpStream {
        self.0.accept().unwrap().0
    }
}

/// A request that a process works on.
struct Held {
    client: Client,
    reached: TcpStream,
}

impl Held {
    /// Lets it go on. Returns which process has answered.
    #[track_caller]
    fn ends(mut self) -> u32 {
        drop(self.reached);
        text(&mut self.client).parse().unwrap()
    }
}

/// Clients that come all the time: half of them with a new connection for each request.
struct Load {
    /// Who has answered each request.
    answers: Journal<u32>,
    is_over: Arc<AtomicBool>,
    /// A client that is refused ends, and has lost nothing.
    may_be_refused: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<io::Error>>>,
}

impl Load {
    fn on(addr: &str, count: usize) -> Self {
        let (answers, is_over) = (Journal::new(), Arc::new(AtomicBool::new(false)));
        let may_be_refused = Arc::new(AtomicBool::new(false));
        let client = |number: usize| {
            let (addr, answers) = (addr.to_owned(), answers.clone());
            let (is_over, may_be_refused) = (Arc::clone(&is_over), Arc::clone(&may_be_refused));
            let may_be_refused = Arc::clone(&may_be_refused);
            thread::spawn(move || {
                let mut lost = Vec::new();
                let mut kept = None;
                while !is_over.load(Ordering::Relaxed) {
                    match one_request(&addr, &mut kept, number.is_multiple_of(2)) {
                        Ok(pid) => answers.write(pid),
                        Err(error)
                            if error.kind() == ErrorKind::ConnectionRefused
                                && may_be_refused.load(Ordering::Relaxed) =>
                        {
                            break;
                        }
                        Err(error) => lost.push(error),
                    }
                }
                lost
            })
        };
        let clients = (0..count).map(client).collect();
        Self {
            answers,
            is_over,
            may_be_refused,
            clients,
        }
    }

    /// Waits until this process has answered a few requests more.
    #[track_caller]
    fn answered_by(&self, pid: u32) {
        let before = self.answers.all().len();
        self.answers
            .wait_until(|all| all[before..].iter().filter(|it| **it == pid).count() > 100);
    }

    fn ends_at_refusals(&self) {
        self.may_be_refused.store(true, Ordering::Relaxed);
    }

    /// How many requests were answered, and what the others have met.
    fn end(self) -> (usize, Vec<io::Error>) {
        self.is_over.store(true, Ordering::Relaxed);
        let lost = self
            .clients
            .into_iter()
            .flat_map(|client| client.join().unwrap());
        let lost = lost.collect();
        (self.answers.all().len(), lost)
    }

    #[track_caller]
    fn lost_none(self) {
        let (answered, lost) = self.end();
        assert!(
            lost.is_empty(),
            "{} of {answered}: {:?}",
            lost.len(),
            lost[0]
        );
    }
}

fn one_request(addr: &str, kept: &mut Option<Client>, keeps: bool) -> io::Result<u32> {
    let mut client = match kept.take() {
        Some(client) => client,
        None => connect(addr)?,
    };
    let closes = if keeps { "" } else { "Connection: close\r\n" };
    client.try_send(format!("GET / HTTP/1.1\r\nHost: test\r\n{closes}\r\n"))?;
    let answer = client.try_answer()?;
    if !answer.closes() {
        *kept = Some(client);
    }
    answer.text().parse().map_err(io::Error::other)
}

// Clients.

#[test]
fn nobody_is_lost_in_three_restarts() {
    let service = Service::start_with("grace=20000");
    let load = Load::on(service.addr(), 64);
    let mut pid = service.first();
    load.answered_by(pid);
    for _ in 0..3 {
        let next = service.restart("probation=200");
        load.answered_by(next);
        service.assert_ended_well(pid);
        pid = next;
    }
    load.lost_none();
    service.stop();
}

#[test]
fn the_new_process_takes_over() {
    for host in ["", "reversed"] {
        let mut service = Start::at(&["127.0.0.1:0", "127.0.0.1:0"])
            .host(host)
            .start();
        let first = service.get("/");
        let second = service.restart("").to_string();
        assert_ne!(first, second);
        assert!(service.first.wait().unwrap().success());
        for (at, addr) in service.addrs.iter().enumerate() {
            assert_eq!(get(addr, "/"), second);
            assert_eq!(get(addr, "/at"), at.to_string(), "each has its own port");
        }
        let info = service.get("/info");
        assert!(
            info.contains("generation: 1") && info.contains("predecessors: []"),
            "{info}"
        );
        service.line(&format!(
            "{second} Info: restart: took over from PID {first}"
        ));
        service.stop();
    }
}

#[test]
fn a_server_is_known_as_soon_as_it_has_started() {
    let service = Start::at(&["127.0.0.1:0", "127.0.0.1:0"])
        .host("at once")
        .start();
    service.line("restart at once: Ok(())");
    let second = service.started(&[]);
    service.line(&format!("{second} Info: restart: took over"));
    service.assert_ended_well(service.first());
    for addr in &service.addrs {
        assert_eq!(get(addr, "/"), second.to_string());
    }
    service.stop();
}

#[test]
fn a_request_under_way_ends_in_the_old_process() {
    let service = Service::start_with("grace=20000");
    let first = service.first();
    let slow = service.hold_one(first);
    let mut idle = service.ask("/");
    assert!(!idle.answer().closes());
    let second = service.restart("");
    assert_eq!(service.get("/"), second.to_string());
    // A connection that was open stays with its process for one more request.
    idle.ask("/info");
    let answer = idle.answer();
    let info = answer.text();
    assert!(answer.closes());
    assert!(
        info.contains("HandedOver") && info.contains(&format!("successor: Some({second})")),
        "{info}"
    );
    let info = service.get("/info");
    assert!(info.contains(&format!("predecessors: [{first}]")), "{info}");
    assert_eq!(slow.ends(), first);
    service.assert_ended_well(first);
    let info = service.get("/info");
    assert!(info.contains("predecessors: []"), "{info}");
    service.stop();
}

/// Whether the session was resumed. Both TLS versions give tickets.
fn resumes(addr: &str, config: &Arc<rustls::ClientConfig>) -> bool {
    let mut client = Client::secure(At(addr), config);
    client.ask("/");
    client.answer();
    client.tls().handshake_kind() == Some(rustls::HandshakeKind::Resumed)
}

#[test]
fn tls_sessions_are_resumed_by_the_new_process() {
    let service = Start::at(&["127.0.0.1:0"]).tls().start();
    let trusted = Authority::of_servers();
    let config = || Arc::new(tls::config_with(trusted, None, rustls::DEFAULT_VERSIONS));
    let (old, new) = (config(), config());
    assert!(!resumes(service.addr(), &old));
    let restart = |how: &str| {
        let mut client = Client::secure(At(service.addr()), &new);
        client.ask(how);
        succeeded(&text(&mut client));
    };
    for _ in 0..2 {
        restart("/restart");
        assert!(resumes(service.addr(), &old));
    }
    assert!(!resumes(service.addr(), &config()));
}

// A new process that fails.

#[test]
fn a_canary_shows_whether_the_new_process_works() {
    let service = Service::start();
    let first = service.get("/");
    for (target, said) in [
        ("/nothing", "the canary GET /nothing was answered by 404"),
        (
            "/kept",
            "was not ready after 3s: the canary is not answered",
        ),
    ] {
        let answer = service.get(&format!("/restart?canary={target}&timeout=3000"));
        assert!(
            answer.starts_with("failed") && answer.contains(said),
            "{answer}"
        );
        assert_eq!(service.get("/"), first);
    }
    let answer = service.get("/restart?canary=/well");
    assert!(answer.starts_with("ok"), "{answer}");
}

#[test]
fn if_the_new_process_fails_the_old_one_goes_on() {
    let service = Start::at(&["127.0.0.1:0", "127.0.0.1:0"]).start();
    let first = service.get("/");
    let load = Load::on(service.addr(), 8);
    let answer = service.get("/restart?panic");
    assert!(answer.starts_with("failed: PID"), "{answer}");
    assert!(
        answer.contains("has exited with status 101 before it was ready"),
        "{answer}"
    );
    assert!(
        answer.contains("something is missing"),
        "its own words: {answer}"
    );
    assert_eq!(service.get("/"), first);
    let gate = Gate::new();
    let answer = service.get(&format!("/restart?gate={}&timeout=300", gate.addr()));
    assert!(answer.contains("was not ready after 300ms"), "{answer}");
    let forgotten = &service.addrs[1];
    let answer = service.get("/restart?forget&timeout=3000");
    assert!(
        answer.contains(&format!(
            "was not ready after 3s: nobody listens on {forgotten}"
        )),
        "{answer}"
    );
    assert_eq!(service.get("/"), first);
    load.lost_none();
    // And it can still be restarted.
    service.restart("");
    service.stop();
}

#[test]
fn a_new_process_that_is_killed_before_it_is_ready_costs_nothing() {
    let service = Service::start();
    let (first, gate) = (service.first(), Gate::new());
    let load = Load::on(service.addr(), 16);
    let mut asked = service.ask(&format!("/restart?gate={}", gate.addr()));
    let _reached = gate.reached();
    let second = service.started(&[]);
    send_signal(second, Signal::KILL);
    let answer = text(&mut asked);
    let why = format!("failed: PID {second} was killed by signal 9 before it was ready");
    assert!(answer.starts_with(&why), "{answer}");
    load.answered_by(first);
    load.lost_none();
    service.stop();
}

#[test]
fn a_new_process_that_is_killed_in_its_probation_loses_at_most_what_it_holds() {
    let service = Service::start();
    let first = service.first();
    let load = Load::on(service.addr(), 16);
    let mut asked = service.ask("/restart?probation=60000");
    let second = service.started(&[]);
    load.answered_by(second);
    send_signal(second, Signal::KILL);
    let answer = text(&mut asked);
    let why = format!("failed: PID {second} was killed by signal 9, ");
    assert!(
        answer.starts_with(&why) && answer.contains(" after it was ready; it held "),
        "{answer}"
    );
    let held = answer.split_once(" requests on ").unwrap().1;
    let held = held.split_once(" connections").unwrap().0.parse().unwrap();
    load.answered_by(first);
    let (_, lost) = load.end();
    assert!(lost.len() <= held, "{}, {answer}", lost.len());
    for error in lost {
        assert_ne!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    }
    service.restart("");
    service.stop();
}

#[test]
fn what_a_killed_process_held_is_known_exactly() {
    let service = Service::start();
    let (first, mut killed) = (service.first(), Vec::new());
    for (signal, how) in [
        (Signal::KILL, "was killed by"),
        (Signal::STOP, "has not answered"),
    ] {
        let mut asked = service.ask("/restart?probation=60000");
        let second = service.started(&killed);
        killed.push(second);
        let _idle: Vec<_> = (0..3).map(|_| service.connect_to(second)).collect();
        let ended = service.connect_to(second);
        drop(ended);
        let _held = [service.hold_one(second), service.hold_one(second)];
        send_signal(second, signal);
        let answer = text(&mut asked);
        assert!(answer.contains(how), "{answer}");
        assert!(
            answer.contains("it held 2 requests on 5 connections"),
            "{answer}"
        );
        assert_eq!(service.get("/"), first.to_string());
    }
    service.stop();
}

#[test]
fn a_new_process_that_cannot_show_what_it_holds_takes_over_all_the_same() {
    let service = Service::start();
    let mut asked = service.ask("/restart?no+memfd&probation=60000");
    let second = service.started(&[]);
    let _idle = service.connect_to(second);
    send_signal(second, Signal::KILL);
    let answer = text(&mut asked);
    assert!(answer.contains("it did not show what it held"), "{answer}");
    service.restart("no+memfd");
    service.stop();
}

#[test]
fn a_server_that_is_started_during_a_restart_makes_it_fail() {
    let service = Service::start();
    let first = service.first().to_string();
    let gate = Gate::new();
    let mut asked = service.ask(&format!("/restart?probation=0&gate={}", gate.addr()));
    let reached = gate.reached();
    let another = service.get("/another");
    drop(reached);
    let answer = text(&mut asked);
    let why = "was told to stop, because another server was started here";
    assert!(answer.contains(why), "{answer}");
    assert_eq!([service.get("/"), get(&another, "/")], [&*first; 2]);
}

#[test]
fn a_new_process_that_is_stopped_before_it_is_ready_is_killed() {
    let service = Service::start();
    let (first, gate) = (service.first(), Gate::new());
    let load = Load::on(service.addr(), 8);
    let mut asked = service.ask(&format!("/restart?timeout=4000&gate={}", gate.addr()));
    let reached = gate.reached();
    let second = service.started(&[]);
    send_signal(second, Signal::STOP);
    drop(reached);
    let answer = text(&mut asked);
    assert!(answer.contains("was not ready after 4s"), "{answer}");
    wait_for_end(second);
    load.answered_by(first);
    load.lost_none();
    service.stop();
}

#[test]
fn a_new_process_that_hangs_in_its_probation_is_found_out() {
    let service = Service::start();
    let first = service.first();
    let mut asked = service.ask("/restart?probation=60000");
    let second = service.started(&[]);
    service.line(&format!("PID {second} is ready"));
    send_signal(second, Signal::STOP);
    let answer = text(&mut asked);
    assert!(answer.contains("has not answered for 4s"), "{answer}");
    wait_for_end(second);
    let load = Load::on(service.addr(), 8);
    load.answered_by(first);
    load.lost_none();
    service.restart("");
    service.stop();
}

#[test]
fn a_new_process_whose_io_thread_is_blocked_has_hung() {
    let service = Service::start();
    let (first, mut failed) = (service.first(), Vec::new());
    for (probation, how) in [
        (60_000, "has not answered for 4s"),
        // There are fewer questions before its end.
        (1_000, "does not answer any more"),
    ] {
        let mut asked = service.ask(&format!("/restart?inline&probation={probation}"));
        let second = service.started(&failed);
        failed.push(second);
        // The handler in place blocks the only thread that drives connections.
        let _held = service.hold_one(second);
        let answer = text(&mut asked);
        assert!(answer.contains(how), "{answer}");
        assert!(answer.contains("it held 1 requests on "), "{answer}");
        wait_for_end(second);
        assert_eq!(service.get("/"), first.to_string());
    }
    // One that gets on again is well.
    let mut asked = service.ask("/restart?inline&probation=2000");
    let second = service.started(&failed);
    let Held { client, reached } = service.hold_one(second);
    drop((reached, client));
    assert_eq!(succeeded(&text(&mut asked)), second);
    service.assert_ended_well(first);
    service.stop();
}

#[test]
fn if_both_processes_were_suspended_the_new_one_has_time_to_answer() {
    let service = Service::start();
    let first = service.first();
    let mut asked = service.ask("/restart?probation=7000");
    let second = service.started(&[]);
    service.ask_one(second, "/");
    service.ask_one(first, "/");
    for pid in [first, second] {
        send_signal(pid, Signal::STOP);
    }
    // More questions would be due than may be without an answer.
    thread::sleep(Duration::from_millis(5_500));
    send_signal(first, Signal::CONT);
    let goes_on = Instant::now();
    while goes_on.elapsed() < Duration::from_millis(300) {
        assert_eq!(service.get("/"), first.to_string());
    }
    send_signal(second, Signal::CONT);
    assert_eq!(succeeded(&text(&mut asked)), second);
    service.assert_ended_well(first);
    service.stop();
}

#[test]
fn the_error_has_what_the_new_process_writes_unless_that_is_switched_off() {
    let service = Service::start();
    let answer = service.get("/restart?panic&plain");
    assert!(
        answer.ends_with("has exited with status 101 before it was ready"),
        "{answer}"
    );
    service.line("something is missing");
    let answer = service.get("/restart?panic");
    assert!(answer.contains("something is missing"), "{answer}");
    let pipe = link_of(service.first(), 2);
    for how in ["plain", ""] {
        let pid: u32 = service.get("/").parse().unwrap();
        let next = service.restart(how);
        assert_eq!(link_of(next, 2), pipe, "once it is ready, it has the same");
        service.assert_ended_well(pid);
    }
    service.stop();
}

#[test]
fn what_the_new_process_has_started_may_write_errors_after_the_old_one_has_ended() {
    let folder = Folder::new("writer");
    let pipe = folder.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let service = Service::start();
    service.restart(&format!("writer={}", pipe.display()));
    service.assert_ended_well(service.first());
    fs::write(&pipe, "go on\n").unwrap();
    service.line("first words");
    service.line("last words");
    assert_eq!(fs::read_to_string(&pipe).unwrap(), "lives\n");
    service.stop();
}

#[test]
fn a_standard_error_from_before_that_is_put_back_later_is_not_copied_to_itself() {
    let service = Service::start();
    let first = service.first();
    let before = link_of(first, 2);
    let _asked = service.ask("/restart?saves+stderr&probation=60000");
    let second = service.started(&[]);
    service.ask_one(second, "/stderr-back");
    assert_ne!(link_of(second, 2), before);
    send_signal(first, Signal::KILL);
    service.line("has ended before it handed over");
    assert_eq!(link_of(second, 2), before);
    service.stop();
}

#[test]
fn a_standard_error_that_the_new_process_has_chosen_stays() {
    let folder = Folder::new("log");
    let log = folder.join("log");
    let service = Service::start();
    let second = service.restart(&format!("log={}", log.display()));
    service.assert_ended_well(service.first());
    assert_eq!(link_of(second, 2), log.display().to_string());
    let third = service.restart("");
    wait_for_end(second);
    assert_eq!(link_of(third, 2), log.display().to_string());
}

#[test]
fn a_new_process_that_cannot_be_killed_leaves_by_itself() {
    let service = Service::start();
    let (first, gate) = (service.get("/"), Gate::new());
    service.get("/merciful");
    let asks = format!("/restart?timeout=300&gate={}", gate.addr());
    let mut asked = service.ask(&asks);
    let reached = gate.reached();
    let second = service.started(&[]);
    let answer = text(&mut asked);
    assert!(answer.contains("was not ready after 300ms"), "{answer}");
    let lives = pidfd_open(id_of(second), PidfdFlags::empty());
    let lives = lives.expect("it was not killed");
    let mut watched = [PollFd::new(&lives, PollFlags::IN)];
    assert_eq!(poll(&mut watched, Some(&Timespec::default())), Ok(0));
    // It would serve now.
    drop(reached);
    wait_for_end(second);
    assert_eq!(service.get("/"), first);
    let third = service.restart("");
    service.assert_ended_well(first.parse().unwrap());
    assert_eq!(service.get("/"), third.to_string());
    service.stop();
}

#[test]
fn a_new_process_whose_server_is_stopped_in_its_probation_has_failed() {
    let service = Service::start();
    let first = service.first();
    let load = Load::on(service.addr(), 16);
    let mut asked = service.ask("/restart?probation=60000");
    let second = service.started(&[]);
    load.answered_by(second);
    // It drains until this request has ended.
    let slow = service.hold_one(second);
    service.ask_one(second, "/stop");
    let answer = text(&mut asked);
    assert!(
        answer.contains(&format!("PID {second} says: its servers stop")),
        "{answer}"
    );
    assert_eq!(slow.ends(), second);
    service.assert_ended_well(second);
    load.answered_by(first);
    load.lost_none();
    service.stop();
}

#[test]
fn a_new_process_that_cannot_watch_the_old_one_does_not_take_over() {
    let service = Service::start();
    let first = service.first();
    let answer = service.get("/restart?no+pidfd");
    let why = format!("watching process {first}: Operation not permitted");
    assert!(answer.contains(&why), "{answer}");
    assert_eq!(service.get("/"), first.to_string());
    service.stop();
}

#[test]
fn a_new_process_that_has_failed_does_not_come_back() {
    let service = Service::start();
    let first = service.first();
    let mut asked = service.ask("/restart?probation=60000&again");
    let second = service.started(&[]);
    service.line(&format!("PID {second} is ready"));
    let slow = service.hold_one(second);
    service.ask_one(second, "/stop");
    assert_eq!(
        text(&mut asked),
        format!("failed: PID {second} says: its servers stop")
    );
    assert_eq!(slow.ends(), second);
    service.line(&format!("{second} serves again"));
    wait_for_end(second);
    assert_eq!(service.get("/"), first.to_string());
    service.stop();
}

// A stop.

#[test]
fn a_stop_while_a_new_process_starts_ends_that_one() {
    let service = Service::start();
    let gate = Gate::new();
    let mut asked = service.ask(&format!("/restart?gate={}", gate.addr()));
    let _reached = gate.reached();
    let second = service.started(&[]);
    let load = Load::on(service.addr(), 8);
    load.answered_by(service.first());
    load.ends_at_refusals();
    let first = service.first();
    service.get("/stop");
    let answer = text(&mut asked);
    let why = format!("failed: PID {second} was killed, because a server of this process stops");
    assert!(answer.starts_with(&why), "{answer}");
    wait_for_end(second);
    service.assert_ended_well(first);
    assert_refuses(service.addr());
    load.lost_none();
}

#[test]
fn a_stop_in_the_probation_loses_nothing_in_either_process() {
    let service = Service::start();
    let first = service.first();
    let mut asked = service.ask("/restart?probation=60000");
    let second = service.started(&[]);
    let load = Load::on(service.addr(), 16);
    load.answered_by(second);
    let slow = service.hold_one(second);
    load.ends_at_refusals();
    service.ask_one(first, "/stop");
    let answer = text(&mut asked);
    let why =
        format!("failed: PID {second} was told to stop, because a server of this process stops");
    assert_eq!(answer, why);
    service.assert_ended_well(first);
    assert_refuses(service.addr());
    assert_eq!(slow.ends(), second);
    service.assert_ended_well(second);
    load.lost_none();
}

#[test]
fn a_stop_before_the_new_process_is_started_keeps_it_from_starting() {
    let service = Service::start();
    let (first, gate) = (service.first(), Gate::new());
    let mut asked = service.ask(&format!("/restart?veto={}", gate.addr()));
    let reached = gate.reached();
    let mut idle = service.ask("/");
    text(&mut idle);
    service.get("/stop");
    // The stop goes on without the restart, which does not end.
    idle.assert_ended();
    drop(reached);
    assert_eq!(text(&mut asked), "failed: a server of this process stops");
    service.assert_ended_well(first);
    let is_start = |line: &String| line.contains("started PID");
    assert!(!service.lines.all().iter().any(is_start));
}

#[test]
fn a_stop_may_come_at_any_moment() {
    let delays = (0..12).map(|step| Duration::from_millis(step * 12));
    let tries = delays.map(|delay| thread::spawn(move || stop_after(delay)));
    let tries: Vec<_> = tries.collect();
    for one in tries {
        one.join().unwrap();
    }
}

/// Stops a service at this time after a restart was asked for.
fn stop_after(delay: Duration) {
    let service = Service::start();
    let first = service.first();
    let load = Load::on(service.addr(), 4);
    load.answered_by(first);
    load.ends_at_refusals();
    let mut idle = [service.ask("/"), service.ask("/")];
    for client in &mut idle {
        text(client);
    }
    let [mut restarts, mut stops] = idle;
    restarts.ask("/restart?probation=30");
    thread::sleep(delay);
    stops.ask("/stop");
    assert_eq!(text(&mut stops), "stops");
    let answer = text(&mut restarts);
    if answer.starts_with("ok ") {
        // It came too late.
        let second = succeeded(&answer);
        service.assert_ended_well(first);
        service.line(&format!("{second} Info: restart: took over"));
        get(service.addr(), "/stop");
    }
    load.lost_none();
    service.assert_all_ended_well();
    assert_refuses(service.addr());
}

// The death of the old process.

#[test]
fn if_the_old_process_dies_the_new_one_that_starts_takes_over() {
    if tls::is_everywhere() {
        return skip(&"clients cannot wait in the queue before their handshake");
    }
    // The new process has not looked for its sockets yet; or it serves the first of them.
    for place in ["gate", "between"] {
        let service = Start::at(&["127.0.0.1:0", "127.0.0.1:0", "own:127.0.0.1:0"]).start();
        let gate = Gate::new();
        let _asked = service.ask(&format!("/restart?{place}={}", gate.addr()));
        let reached = gate.reached();
        let second = service.started(&[]);
        send_signal(service.first(), Signal::KILL);
        wait_for_end(service.first());
        let mut waits = Vec::new();
        waits.extend(service.addrs.iter().map(|addr| ask(addr, "/")));
        if place == "between" {
            assert_eq!(text(&mut waits.remove(0)), second.to_string());
            service.line("has ended before it handed over");
        }
        drop(reached);
        for client in &mut waits {
            assert_eq!(text(client), second.to_string(), "nobody is lost");
        }
        service.line("has ended before it handed over");
        let third = service.restart("");
        service.assert_ended_well(second);
        assert_eq!(service.get("/"), third.to_string());
        service.stop();
    }
}

#[test]
fn if_the_old_process_dies_the_new_one_may_still_write_errors() {
    let service = Service::start();
    let gate = Gate::new();
    let _asked = service.ask(&format!("/restart?tells&gate={}", gate.addr()));
    let reached = gate.reached();
    let second = service.started(&[]);
    send_signal(service.first(), Signal::KILL);
    wait_for_end(service.first());
    drop(reached);
    service.line("has ended before it handed over");
    service.line(&format!("{second} still starts"));
    assert_eq!(service.get("/"), second.to_string());
    service.stop();
}

#[test]
fn if_the_old_process_dies_in_the_probation_the_new_one_owns_the_socket() {
    let folder = Folder::new("dies");
    for addr in [free_addr(), folder.socket()] {
        let service = Start::at(&[&addr]).start();
        let mut asked = service.ask("/restart?probation=60000");
        let second = service.started(&[]);
        service.line(&format!("PID {second} is ready"));
        send_signal(service.first(), Signal::KILL);
        asked.try_answer().unwrap_err();
        service.line("has ended before it handed over");
        let load = Load::on(service.addr(), 8);
        load.answered_by(second);
        load.lost_none();
        service.stop();
        if let Some(path) = addr.strip_prefix("unix:/") {
            assert!(!Path::new("/").join(path).exists());
        }
    }
}

#[test]
fn if_the_old_process_dies_the_file_gets_the_number_of_the_new_one() {
    let folder = Folder::new("pid");
    for dies_in in ["start", "probation"] {
        let service = Service::start();
        let (gate, path) = (Gate::new(), folder.join("pid"));
        fs::write(&path, format!("{}\n", service.first())).unwrap();
        let how = match dies_in {
            "start" => format!("&gate={}", gate.addr()),
            _ => "&probation=60000".into(),
        };
        let _asked = service.ask(&format!("/restart?pid={}{how}", path.display()));
        let reached = (dies_in == "start").then(|| gate.reached());
        let second = service.started(&[]);
        if dies_in == "probation" {
            // The new file is there before the process may serve.
            let _serves = service.connect_to(second);
        }
        send_signal(service.first(), Signal::KILL);
        wait_for_end(service.first());
        drop(reached);
        service.line("has ended before it handed over");
        let written = fs::read_to_string(&path).unwrap();
        assert_eq!(written, format!("{second}\n"), "{dies_in}");
        let names = fs::read_dir(&folder.0).unwrap();
        let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["pid"], "nothing stays beside it");
        service.stop();
    }
}

#[test]
fn if_the_old_process_dies_and_the_file_cannot_be_written_the_new_one_says_so() {
    let folder = Folder::new("no-pid");
    let (service, gate) = (Service::start(), Gate::new());
    let path = folder.join("gone").join("pid");
    let path = path.display();
    let _asked = service.ask(&format!("/restart?pid={path}&gate={}", gate.addr()));
    let reached = gate.reached();
    let second = service.started(&[]);
    send_signal(service.first(), Signal::KILL);
    wait_for_end(service.first());
    drop(reached);
    service.line(&format!(
        "Error: restart: {path} cannot be written: No such file"
    ));
    assert_eq!(service.get("/"), second.to_string());
    service.stop();
}

#[test]
fn a_socket_that_nobody_serves_after_that_is_found_by_a_later_process() {
    if tls::is_everywhere() {
        return skip(&"clients cannot wait in the queue before their handshake");
    }
    let service = Start::at(&["127.0.0.1:0", "127.0.0.1:0"]).start();
    let gate = Gate::new();
    let _asked = service.ask(&format!("/restart?forget&gate={}", gate.addr()));
    let reached = gate.reached();
    let second = service.started(&[]);
    send_signal(service.first(), Signal::KILL);
    wait_for_end(service.first());
    let mut waits = ask(&service.addrs[1], "/");
    drop(reached);
    service.line("has ended before it handed over");
    let third = service.restart("");
    service.assert_ended_well(second);
    assert_eq!(text(&mut waits), third.to_string());
    let fourth = service.restart("");
    for addr in &service.addrs {
        assert_eq!(get(addr, "/"), fourth.to_string());
    }
    service.stop();
}

// What the host is told.

#[test]
fn the_host_is_told_how_it_ends_and_may_take_its_time() {
    let service = Service::start();
    let first = service.first();
    service.get("/restart?panic&told=no+gate");
    service.line("told: Err(RestartFailed(\"PID ");
    let gate = Gate::new();
    let mut idle = service.ask("/");
    idle.answer();
    let mut asked = service.ask(&format!("/restart?told={}", gate.addr()));
    let reached = gate.reached();
    let began = Instant::now();
    service.line("told: Ok(Restarted { pid: ");
    // Meanwhile the old process stops.
    idle.assert_ended();
    let took = began.elapsed();
    // It would wait for 3 s.
    assert!(took < Duration::from_millis(2_800), "{took:?}");
    drop(reached);
    succeeded(&text(&mut asked));
    service.assert_ended_well(first);
    service.stop();
}

#[test]
fn the_host_may_refuse_a_restart() {
    let service = Service::start();
    let answer = service.get("/restart?veto=not+now");
    assert_eq!(answer, "failed: refused: not now");
    let answer = service.get("/restart?veto=panic");
    assert_eq!(answer, "failed: refused: the check before it panicked");
    assert!(
        !service
            .lines
            .all()
            .iter()
            .any(|line| line.contains("started PID"))
    );
    service.restart("");
    service.stop();
}

#[test]
fn there_is_one_restart_at_a_time() {
    let service = Service::start_with("grace=20000");
    let first = service.first();
    let mut asked = service.ask("/restart?probation=1000");
    let second = service.started(&[]);
    service.line(&format!("PID {second} is ready"));
    let answer = service.ask_one(first, "/restart");
    assert_eq!(answer, "busy: a restart is under way");
    let answer = service.ask_one(second, "/restart");
    assert_eq!(
        answer,
        format!("busy: this process has not taken over from PID {first} yet")
    );
    let held = service.hold_one(first);
    succeeded(&text(&mut asked));
    service.line(&format!("{second} Info: restart: took over"));
    assert_eq!(held.ends(), first);
    service.assert_ended_well(first);
    service.stop();
}

#[test]
fn a_process_that_has_handed_over_is_not_restarted_again() {
    let service = Service::start_with("grace=20000");
    let mut idle = service.ask("/");
    idle.answer();
    let second = service.restart("");
    idle.ask("/restart");
    assert_eq!(
        text(&mut idle),
        format!("busy: process {second} has taken over")
    );
    service.stop();
}

#[test]
fn many_old_processes_may_drain_but_not_too_many() {
    let service = Service::start();
    let first = service.first();
    let slow = service.hold_one(first);
    let second = service.restart("most=1");
    let slower = service.hold_one(second);
    let answer = service.get("/restart?most=1");
    assert_eq!(
        answer,
        format!("busy: 1 earlier processes still drain: {first}")
    );
    let third = service.restart("most=2");
    let info = service.get("/info");
    assert!(
        info.contains(&format!("predecessors: [{second}, {first}]")),
        "{info}"
    );
    let answer = service.get("/restart?most=2");
    assert_eq!(
        answer,
        format!("busy: 2 earlier processes still drain: {second}, {first}")
    );
    assert_eq!(slow.ends(), first);
    service.assert_ended_well(first);
    // Nobody has told the third process: it has seen it.
    let fourth = service.restart("most=2");
    assert_ne!(third, fourth);
    assert_eq!(slower.ends(), second);
    service.assert_ended_well(second);
    service.stop();
}

// Sockets.

#[test]
fn a_socket_that_is_not_asked_for_any_more_is_stopped_without_loss() {
    let service = Start::at(&["127.0.0.1:0", "127.0.0.1:0"])
        .host("ready")
        .start();
    let first = service.first();
    let dropped = service.addrs[1].clone();
    let answer = service.get("/restart?forget");
    assert!(
        answer.contains(&format!("says: nobody listens on {dropped}")),
        "{answer}"
    );
    let load = Load::on(&dropped, 8);
    load.answered_by(first);
    load.ends_at_refusals();
    let second = service.restart("forget&drop");
    service.line(&format!("{second} Warning: restart: closed {dropped}"));
    load.lost_none();
    service.assert_ended_well(first);
    assert_refuses(&dropped);
    assert_eq!(service.get("/"), second.to_string());
}

#[test]
fn the_file_of_a_unix_socket_stays_until_the_last_stop() {
    let folder = Folder::new("stays");
    let addr = folder.socket();
    let path = addr.strip_prefix("unix:").unwrap();
    let inode = || fs::metadata(path).unwrap().ino();
    let service = Start::at(&[&addr]).start();
    let before = inode();
    for how in ["", "panic", ""] {
        let pid: u32 = service.get("/").parse().unwrap();
        let answer = service.get(&format!("/restart?{how}"));
        if how.is_empty() {
            succeeded(&answer);
            service.assert_ended_well(pid);
        }
        assert_eq!(inode(), before);
    }
    service.stop();
    assert!(!Path::new(path).exists());
}

#[test]
fn sockets_that_the_host_has_bound_come_back_by_their_name_or_number() {
    for addr in ["own:127.0.0.1:0", "given:127.0.0.1:0"] {
        let service = Start::at(&[addr]).start();
        for _ in 0..2 {
            let pid: u32 = service.get("/").parse().unwrap();
            let next = service.restart("");
            service.assert_ended_well(pid);
            assert_eq!(service.get("/"), next.to_string());
        }
        service.stop();
    }
}

/// An address in a group of `SO_REUSEPORT`, and what keeps it free: a socket that does not listen is no member.
fn group() -> (Socket, String) {
    let place = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    place.set_reuse_port(true).unwrap();
    let at: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    place.bind(&at.into()).unwrap();
    let at = place.local_addr().unwrap().as_socket().unwrap();
    (place, format!("group:{at}"))
}

#[test]
fn a_group_of_sockets_at_one_address_is_passed_on_without_loss() {
    let (_place, addr) = group();
    let service = Start::at(&[&addr, &addr]).host("grace=20000").start();
    let load = Load::on(service.addr(), 32);
    let mut pid = service.first();
    load.answered_by(pid);
    for _ in 0..2 {
        let next = service.restart("probation=200");
        load.answered_by(next);
        service.assert_ended_well(pid);
        pid = next;
    }
    load.lost_none();
    for at in ["0", "1"] {
        let mut client = service.ask("/at");
        while text(&mut client) != at {
            client = service.ask("/at");
        }
        client.ask("/stop");
        text(&mut client);
    }
    service.assert_ended_well(pid);
    assert_refuses(service.addr());
}

#[test]
fn one_of_two_services_in_a_group_is_restarted_and_stopped_without_loss() {
    let (_place, addr) = group();
    let start = || Start::at(&[&addr]).host("grace=20000").start();
    let (one, other) = (start(), start());
    let load = Load::on(one.addr(), 32);
    load.answered_by(other.first());
    let mut pid = one.first();
    for _ in 0..2 {
        let next = succeeded(&one.ask_one(pid, "/restart?probation=200"));
        load.answered_by(next);
        one.assert_ended_well(pid);
        pid = next;
    }
    one.ask_one(pid, "/stop");
    one.assert_ended_well(pid);
    load.answered_by(other.first());
    load.lost_none();
    other.stop();
}

/// The text that the kernel has for a descriptor of a process.
fn link_of(pid: u32, fd: usize) -> String {
    let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
    link.to_string_lossy().into_owned()
}

#[test]
fn what_a_supervisor_has_passed_on_goes_on() {
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = web.local_addr().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let start = Start::at(&[
        "fd:web",
        &at.to_string().replace(&at.port().to_string(), "0"),
    ]);
    let service = start.fd("dns", &udp).fd("web", &web).start();
    let dns = link_of(service.first(), 3);
    for _ in 0..2 {
        let pid: u32 = service.get("/").parse().unwrap();
        service.restart("");
        service.assert_ended_well(pid);
    }
    let third: u32 = service.get("/").parse().unwrap();
    let starts = service.line(&format!("{third} starts with"));
    let names = starts
        .split('"')
        .nth(1)
        .unwrap()
        .split(':')
        .collect::<Vec<_>>();
    assert_eq!(names.len(), 3, "{names:?}");
    let place = names.iter().position(|name| *name == "dns").unwrap();
    assert_eq!(link_of(third, 3 + place), dns);
    assert_eq!(get(&service.addrs[1], "/"), third.to_string());
    for addr in &service.addrs {
        get(addr, "/stop");
    }
    service.assert_ended_well(third);
    assert_refuses(&service.addrs[1]);
    // The supervisor's socket still listens.
    let _client = TcpStream::connect(at).unwrap();
    web.accept().unwrap();
}

#[test]
fn a_descriptor_of_the_host_is_kept_if_that_is_asked_for() {
    const NUMBER: usize = 150;
    let service = Service::start_with(&format!("keeps={NUMBER}"));
    for _ in 0..2 {
        let pid: u32 = service.get("/").parse().unwrap();
        let next = service.restart("keep");
        service.assert_ended_well(pid);
        assert_eq!(link_of(next, NUMBER), "/dev/zero");
    }
    let last = service.restart("");
    assert!(!Path::new(&format!("/proc/{last}/fd/{NUMBER}")).exists());
    service.stop();
}

#[test]
fn a_descriptor_that_cannot_be_kept_makes_the_restart_fail() {
    for number in 3..=5 {
        // The socket gets 3, and what the two processes say to each other goes by 4.
        let service = Start::at(&["127.0.0.1:0"])
            .before(&format!("exec {number}</dev/zero"))
            .start();
        let answer = service.get("/restart?keep");
        if number == 5 {
            let next = succeeded(&answer);
            assert_eq!(link_of(next, number), "/dev/zero");
        } else {
            let why = format!(
                "was not started: keeping descriptors: the sockets get the numbers from 3 to 4, and \
                 {number} is /dev/zero: give that a higher number"
            );
            assert!(answer.contains(&why), "{answer}");
            assert_eq!(service.get("/"), service.first().to_string());
            // Without the wish to keep it, it is in nobody's way.
            service.restart("");
        }
        service.stop();
    }
}

#[test]
fn options_that_make_no_sense_are_refused_when_the_server_starts() {
    let restart = Restart::default;
    for (restart, why) in [
        (
            restart().program("bin/app"),
            "program \"bin/app\" is not absolute",
        ),
        (
            restart().directory("run"),
            "directory \"run\" is not absolute",
        ),
        (restart().directory(""), "directory \"\" is not absolute"),
        (
            restart().pid_file("app.pid"),
            "pid_file \"app.pid\" is not absolute",
        ),
        (
            restart().pid_file("/run/"),
            "pid_file \"/run/\" is not the path of a file",
        ),
        (restart().pid_file("/run/a\0b"), "pid_file has a zero byte"),
        (
            restart().args(Vec::<String>::new()),
            "args is empty: the first one is the program's name",
        ),
        (restart().args(["app", "a\0b"]), "args[1] has a zero byte"),
        (
            restart().env([("A=B", "C")]),
            "env: \"A=B\" is not a variable's name",
        ),
        (
            restart().env([("SECRET", "a\0b")]),
            "env: \"SECRET\" has a zero byte",
        ),
        (
            restart().ready_timeout(Duration::ZERO),
            "ready_timeout is 0: no process would be ready in time",
        ),
        (
            restart().max_predecessors(0),
            "max_predecessors is 0: every restart would be refused",
        ),
    ] {
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let handler = |exchange: Exchange| drop(exchange);
        let server = Server::builder().restart(restart.clone());
        let error = server.handle(listener, Dispatch::default(), handler);
        assert_eq!(
            format!("{:#}", error.unwrap_err()),
            format!("restart: {why}")
        );
    }
}

#[test]
fn a_socket_that_is_passed_on_anyway_is_in_nobodys_way() {
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut start = Start::at(&["passed:3"]);
    // It is not close-on-exec, and the host gives it by its number.
    let above = rustix::io::fcntl_dupfd_cloexec(&web, 100).unwrap();
    start.fds.push(above);
    drop(web);
    let service = start.start();
    for _ in 0..2 {
        let pid: u32 = service.get("/").parse().unwrap();
        service.restart("keep");
        service.assert_ended_well(pid);
    }
    service.stop();
}

#[test]
fn a_canary_is_the_target_of_a_request() {
    for target in [
        "",
        "x",
        "http://x/",
        "/a b",
        "/x#y",
        "/\n",
        "/\u{e9}",
        "/\0",
    ] {
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let handler = |exchange: Exchange| drop(exchange);
        let server = Server::builder().canary(target);
        let error = server.handle(listener, Dispatch::default(), handler);
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains(&format!("canary {target:?}")), "{error}");
    }
}

// The program.

/// A folder of its own, with this program in it as `app`.
fn folder_with_app(name: &str) -> (Folder, PathBuf) {
    let folder = Folder::new(name);
    let app = folder.join("app");
    symlink(env::current_exe().unwrap(), &app).unwrap();
    (folder, app)
}

/// A new version of the program: says so, and is the same.
fn write_version(path: &Path, version: &str) {
    let exe = env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\nVERSION={version} exec {} \"$@\"\n",
        exe.display()
    );
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn the_program_is_the_one_that_stands_there_at_the_restart() {
    let (folder, app) = folder_with_app("version");
    let mut start = Start::at(&["127.0.0.1:0"]);
    start.program = Some(app.clone());
    let service = start.start();
    let version = || service.get("/variable?name=VERSION");
    assert_eq!(version(), "");
    // Another file is moved to its place.
    write_version(&folder.join("app.new"), "2");
    fs::rename(folder.join("app.new"), &app).unwrap();
    service.restart("");
    assert_eq!(version(), "2");
}

#[test]
fn whoever_connects_after_a_restart_comes_to_the_new_process() {
    let service = Service::start();
    for _ in 0..10 {
        let pid = service.restart("probation=0");
        for _ in 0..5 {
            assert_eq!(service.get("/"), pid.to_string());
        }
    }
    service.stop();
}

#[test]
fn a_link_to_the_program_is_followed_anew() {
    let (folder, app) = folder_with_app("link");
    let mut start = Start::at(&["127.0.0.1:0"]);
    start.program = Some(app.clone());
    let service = start.start();
    let next = folder.join("app-2");
    write_version(&next, "2");
    symlink(&next, folder.join("app.new")).unwrap();
    fs::rename(folder.join("app.new"), &app).unwrap();
    service.restart("");
    assert_eq!(service.get("/variable?name=VERSION"), "2");
}

#[test]
fn what_cannot_be_started_says_why() {
    let (folder, app) = folder_with_app("cannot");
    let mut start = Start::at(&["127.0.0.1:0"]);
    start.program = Some(app.clone());
    let dir = folder.join("dir");
    fs::create_dir(&dir).unwrap();
    start.dir = Some(dir.clone());
    let service = start.start();
    let first = service.get("/");
    let shown = app.display();
    fs::remove_file(&app).unwrap();
    let answer = service.get("/restart");
    let why = "executing the program: No such file or directory";
    assert!(
        answer.starts_with(&format!("failed: {shown} was not started: {why}")),
        "{answer}"
    );
    fs::write(&app, "#!/nowhere/sh\n").unwrap();
    fs::set_permissions(&app, fs::Permissions::from_mode(0o755)).unwrap();
    let answer = service.get("/restart");
    let why = "(os error 2): the file is there, but not its interpreter (\"#!\")";
    assert!(answer.contains(why), "{answer}");
    write_version(&app, "2");
    fs::set_permissions(&app, fs::Permissions::from_mode(0o644)).unwrap();
    let answer = service.get("/restart");
    let why = "executing the program: Permission denied";
    assert!(
        answer.starts_with(&format!("failed: {shown} was not started: {why}")),
        "{answer}"
    );
    fs::write(&app, "\x7fELF").unwrap();
    fs::set_permissions(&app, fs::Permissions::from_mode(0o755)).unwrap();
    let answer = service.get("/restart");
    let why = "executing the program: Exec format error";
    assert!(
        answer.starts_with(&format!("failed: {shown} was not started: {why}")),
        "{answer}"
    );
    write_version(&app, "2");
    fs::remove_dir(&dir).unwrap();
    let answer = service.get("/restart");
    let why = format!(
        "changing to the directory {}: No such file or directory (os error 2); set `directory` to start it elsewhere",
        dir.display()
    );
    assert!(answer.contains(&why), "{answer}");
    assert_eq!(service.get("/"), first);
    fs::create_dir(&dir).unwrap();
    service.restart("");
    service.stop();
}

// What is short.

fn fds(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn if_descriptors_are_short_the_restart_says_so_and_leaves_none_behind() {
    let service = Service::start();
    let first = service.first();
    let mut client = service.ask("/");
    text(&mut client);
    let before = fds(first);
    let mut failures = BTreeSet::new();
    for limit in before.. {
        client.ask(&format!("/limit?of=nofile&to={limit}"));
        text(&mut client);
        client.ask("/restart");
        let answer = text(&mut client);
        if answer.starts_with("ok ") {
            break;
        }
        assert!(limit < before + 60, "{answer}");
        assert!(
            answer.contains("Too many open files") || answer.contains("OutOfResources"),
            "{limit}: {answer}"
        );
        let began = Instant::now();
        // Its thread ends a little later.
        while fds(first) != before {
            assert!(
                began.elapsed() < LONG,
                "{answer}: {} of {before}",
                fds(first)
            );
            thread::yield_now();
        }
        failures.insert(answer);
    }
    assert!(failures.len() > 2, "{failures:#?}");
    service.assert_ended_well(first);
}

/// How many threads a user has.
fn threads_of(user: u32) -> usize {
    let processes = fs::read_dir("/proc").unwrap().map_while(Result::ok);
    let theirs = processes.filter(|process| process.metadata().is_ok_and(|it| it.uid() == user));
    let threads =
        theirs.filter_map(|process| Some(fs::read_dir(process.path().join("task")).ok()?.count()));
    threads.sum()
}

#[test]
fn if_there_may_be_no_more_processes_the_restart_says_so() {
    const NOBODY: u32 = 65_534;
    let exe = fs::metadata(env::current_exe().unwrap()).unwrap();
    if !rustix::process::getuid().is_root() || exe.mode() & 0o5 != 0o5 {
        return skip(&"only root may start the service as another user");
    }
    let mut start = Start::at(&["127.0.0.1:0"]);
    start.user = Some(NOBODY);
    let service = start.start();
    let first = service.first();
    let mut client = service.ask("/");
    text(&mut client);
    let before = threads_of(NOBODY);
    let mut failures = Vec::new();
    for limit in before.. {
        client.ask(&format!("/limit?of=nproc&to={limit}"));
        text(&mut client);
        client.ask("/restart");
        let answer = text(&mut client);
        if answer.starts_with("ok ") {
            break;
        }
        assert!(limit < before + 30, "{answer}");
        assert!(
            answer.contains("Resource temporarily unavailable"),
            "{limit}: {answer}"
        );
        failures.push(answer);
    }
    let fails = |why: &str| {
        assert!(
            failures.iter().any(|answer| answer.contains(why)),
            "{failures:#?}"
        );
    };
    fails("was not started: ");
    service.assert_ended_well(first);
}

// Generations.

/// What must not grow: bytes of environment, descriptors, threads.
fn weight(pid: u32) -> [usize; 3] {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let variables = environ.split(|byte| *byte == 0).map(|variable| {
        // These have numbers, which may have more digits.
        let pid = pid.to_string();
        String::from_utf8_lossy(variable).replace(&pid, "PID")
    });
    [
        variables.map(|variable| variable.len()).sum(),
        fds(pid),
        threads,
    ]
}

#[test]
fn twenty_generations_leave_nothing_behind() {
    let service = Service::start_with("grace=20");
    let mut pid = service.first();
    let mut weights = Vec::new();
    for generation in 1..=20 {
        let next = service.restart("plainly&probation=0");
        service.assert_ended_well(pid);
        pid = next;
        let info = service.get("/info");
        let expected = format!("generation: {generation}, successor: None, predecessors: []");
        assert!(info.contains(&expected), "{info}");
        weights.push(weight(pid));
    }
    let (early, late) = weights.split_at(10);
    for at in 0..3 {
        let before = early.iter().map(|weight| weight[at]).max();
        let after = late.iter().map(|weight| weight[at]).max();
        assert!(after <= before, "{weights:?}");
    }
    service.stop();
}

/// A number in hexadecimal digits, from the kernel's description of a process.
fn status(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
}

#[test]
fn ignored_signals_stay_ignored_and_no_others() {
    let start = Start::at(&["127.0.0.1:0"]).before("trap '' HUP USR2");
    let service = start.start();
    service.get("/catch");
    let bit = |signal: libc::c_int| 1 << (signal - 1);
    let caught = status(service.first(), "SigCgt");
    assert_ne!(caught & bit(libc::SIGUSR1), 0);
    let second = service.restart("");
    let ignored = status(second, "SigIgn");
    for signal in [libc::SIGHUP, libc::SIGUSR2] {
        assert_ne!(ignored & bit(signal), 0, "{signal}");
    }
    assert_eq!(ignored & bit(libc::SIGUSR1), 0);
    assert_eq!(status(second, "SigCgt") & bit(libc::SIGUSR1), 0);
    assert_eq!(status(second, "SigBlk"), 0, "of the first thread");
    service.stop();
}

#[test]
fn a_host_that_takes_the_status_of_all_children_does_no_harm() {
    for host in ["children=ignored", "children=waited+for"] {
        let service = Service::start_with(host);
        let answer = service.get("/restart?panic");
        let ended = answer.contains("has ended before it was ready")
            || answer.contains("has exited with status 101 before it was ready");
        assert!(ended, "{answer}");
        let second = service.restart("");
        service.assert_ended_well(service.first());
        assert_eq!(service.get("/"), second.to_string());
        service.stop();
    }
}

#[test]
fn a_grandchild_that_has_copies_of_all_descriptors_does_no_harm() {
    let service = Service::start();
    let began = Instant::now();
    let answer = service.get("/restart?panic&grandchild");
    assert!(
        answer.contains("has exited with status 101 before it was ready"),
        "{answer}"
    );
    assert!(began.elapsed() < LONG / 2, "its end is seen at once");
    let first = service.first();
    let second = service.restart("grandchild");
    service.assert_ended_well(first);
    assert_eq!(service.get("/"), second.to_string());
    // Its copies of the sockets do not keep them open.
    service.stop();
}

// Variables that make no sense.

/// What the service says that ends because of this variable.
#[track_caller]
fn complaint(variable: &str, fds: &[OwnedFd]) -> String {
    let mut start =
        Start::at(&["127.0.0.1:0"]).before(&format!("export HTTPDOWN_RESTART={variable}"));
    let above = |fd| rustix::io::fcntl_dupfd_cloexec(fd, 100).unwrap();
    start.fds = fds.iter().map(above).collect();
    let service = start.command().spawn().unwrap();
    wait_for_end(service.id());
    let output = service.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(101));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_variable_that_makes_no_sense_is_an_error() {
    for variable in ["nonsense", "3", "3:", ":$$", "x:$$", "-1:$$"] {
        let complaint = complaint(variable, &[]);
        let shown = variable.replace("$$", "");
        let is_named = complaint.contains("HTTPDOWN_RESTART is ") && complaint.contains(&shown);
        assert!(is_named, "{variable}: {complaint}");
    }
    let gone = complaint("7:$$", &[]);
    assert!(
        gone.contains("HTTPDOWN_RESTART: descriptor 7 is not open"),
        "{gone}"
    );
    let file = fs::File::open("/dev/null").unwrap();
    let file = complaint("3:$$", &[file.into()]);
    assert!(
        file.contains("HTTPDOWN_RESTART: Socket operation on non-socket"),
        "{file}"
    );
    // It is left over from long ago, and for another process.
    let start = Start::at(&["127.0.0.1:0"]).before("export HTTPDOWN_RESTART=7:1");
    start.start().stop();
}

// A predecessor of another version.

fn channel() -> (OwnedFd, OwnedFd) {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    let socket = Socket::from(ours);
    socket.set_read_timeout(Some(LONG)).unwrap();
    (socket.into(), theirs)
}

fn hear(channel: &OwnedFd) -> String {
    let mut buffer = [0; 4096];
    let count = nix::unistd::read(channel, &mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

fn tell(channel: &OwnedFd, text: &str) {
    let count = nix::unistd::write(channel, text.as_bytes()).unwrap();
    assert_eq!(count, text.len());
}

#[test]
fn another_protocol_is_refused() {
    for (first, why) in [
        ("HELLO 2\ngeneration=x", "speaks version 2 of the restart"),
        ("PING 1", "did not begin with HELLO"),
    ] {
        let (ours, theirs) = channel();
        tell(&ours, first);
        let complaint = complaint("3:$$", &[theirs]);
        assert!(complaint.contains(why), "{complaint}");
        let failed = hear(&ours);
        assert!(
            failed.starts_with("FAILED ") && failed.contains(why),
            "{failed}"
        );
    }
    let (ours, theirs) = channel();
    drop(ours);
    let complaint = complaint("3:$$", &[theirs]);
    assert!(
        complaint.contains("the other process has gone"),
        "{complaint}"
    );
}

#[test]
fn both_processes_are_told_of_a_socket_that_was_forgotten() {
    let (ours, theirs) = channel();
    let (one, other) = (
        TcpListener::bind("127.0.0.1:0").unwrap(),
        TcpListener::bind("127.0.0.1:0").unwrap(),
    );
    let at = one.local_addr().unwrap().to_string();
    let mut start = Start::at(&[&at])
        .host("ready")
        .before("export HTTPDOWN_RESTART=5:$$");
    start = start.fd("httpdown", &one).fd("httpdown", &other);
    start
        .fds
        .push(rustix::io::fcntl_dupfd_cloexec(theirs, 100).unwrap());
    let pid = process::id();
    tell(
        &ours,
        &format!("HELLO 1\ngeneration=4\npredecessor={pid}\nsocket needed\nsocket needed\nnew=1"),
    );
    let service = start.begin();
    let forgotten = other.local_addr().unwrap();
    let why = format!("nobody listens on {forgotten} (descriptor 4, \"httpdown\")");
    service.line(&format!("restart_ready: Err(RestartFailed({why:?}))"));
    let heard = || Some(hear(&ours)).filter(|heard| !heard.is_empty());
    let mut said = std::iter::from_fn(heard);
    let failed = said.find(|heard| !heard.starts_with("WAITS ") && heard != "HOLDS");
    assert_eq!(failed, Some(format!("FAILED {why}")));
}
