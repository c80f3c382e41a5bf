//! Sockets that a program is started with (`LISTEN_FDS`, systemd's socket activation): who gets them, and that nobody
//! loses by it. Each test runs once more in a process of its own, which is started with sockets.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "descriptors get their numbers between fork and exec; a helper that fails fails its test"
)]

mod common;

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use httpdown::{Addr, Dispatch, Error, Exchange, Listener, LogLevel, MockClock, Server};
use socket2::{Domain, Socket, Type};

use common::{
    Client, Journal, LONG, addr, assert_balanced, builder, hello, reply, skip, stop,
    wait_for_report,
};

/// Says to the second process that it is the second, and what it is to know; in lines.
const WORDS: &str = "HTTPDOWN_TEST_WORDS";

/// What the second process is told; `None` in the first.
fn words() -> Option<Vec<String>> {
    let words = env::var(WORDS).ok()?;
    Some(words.lines().map(str::to_owned).collect())
}

/// Runs a test in a process that is started with sockets.
struct Program {
    test: &'static str,
    fds: Vec<OwnedFd>,
    names: Vec<&'static str>,
    variables: Vec<(&'static str, String)>,
    /// How a shell starts the program.
    starts: &'static str,
}

impl Program {
    fn new(test: &'static str) -> Self {
        Self {
            test,
            fds: Vec::new(),
            names: Vec::new(),
            variables: Vec::new(),
            starts: r#"export LISTEN_PID=$$; exec "$@""#,
        }
    }

    fn fd(mut self, name: &'static str, fd: impl AsFd) -> Self {
        // Out of the way of the numbers that they will have.
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 100).unwrap();
        self.fds.push(fd);
        self.names.push(name);
        self
    }

    fn variable(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    fn starts(mut self, how: &'static str) -> Self {
        self.starts = how;
        self
    }

    fn start(self, words: &[String]) -> Running {
        let mut command = Command::new("sh");
        command
            .args(["-c", self.starts, "sh"])
            .arg(env::current_exe().unwrap())
            .args(["--exact", self.test, "--nocapture"])
            .env(WORDS, words.join("\n"))
            .env("LISTEN_FDS", self.fds.len().to_string())
            .env("LISTEN_FDNAMES", self.names.join(":"))
            .envs(self.variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
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
        Running(command.spawn().unwrap())
    }

    /// Runs the test there, which must pass.
    fn passes(self, words: &[String]) {
        self.start(words).passes();
    }
}

struct Running(Child);

impl Running {
    /// Waits until the program says so.
    fn says(&mut self, what: &str) {
        let mut says = BufReader::new(self.0.stdout.as_mut().unwrap());
        let mut line = String::new();
        while !line.contains(what) {
            line.clear();
            assert!(says.read_line(&mut line).unwrap() > 0, "it says {what}");
        }
        assert_eq!(says.buffer(), b"", "it says no more for now");
    }

    fn passes(mut self) {
        drop(self.0.stdin.take());
        let Output {
            status,
            stdout,
            stderr,
        } = self.0.wait_with_output().unwrap();
        let (text, errors) = (
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr),
        );
        assert!(status.success(), "{text}\n{errors}");
        assert!(text.contains("1 passed"), "{text}");
    }
}

/// In the second process: serves until the first one closes our standard input.
fn serve_until_told(server: &Server) {
    println!("serves");
    io::stdin().read_to_string(&mut String::new()).unwrap();
    stop(server).unwrap();
}

fn tcp() -> (TcpListener, String) {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = socket.local_addr().unwrap().to_string();
    (socket, addr)
}

fn bind(addr: &str) -> Listener {
    Listener::bind(addr).unwrap()
}

/// Why nobody can listen there.
fn refusal(addr: &str) -> String {
    format!("{:#}", Listener::bind(addr).unwrap_err())
}

fn is_open(fd: RawFd) -> bool {
    Path::new(&format!("/proc/self/fd/{fd}"))
        .symlink_metadata()
        .is_ok()
}

/// A server, and what it says.
fn logged(listeners: Vec<Listener>, clock: &MockClock) -> (Server, Journal<(LogLevel, String)>) {
    logged_by(builder(), listeners, clock)
}

fn logged_by(
    builder: httpdown::Builder,
    listeners: Vec<Listener>,
    clock: &MockClock,
) -> (Server, Journal<(LogLevel, String)>) {
    let journal = Journal::new();
    let log = journal.clone();
    let builder = builder
        .clock(clock.clone())
        .on_log(move |level, text: &str| log.write((level, text.to_owned())));
    (hello(builder, listeners), journal)
}

/// Makes the time pass after which a server complains of sockets.
fn until_complaints(clock: &MockClock) {
    clock.wait_for_timers(1, LONG).unwrap();
    clock.advance(Duration::from_secs(10));
}

#[test]
fn each_kind_of_socket_is_found_by_its_address_and_outlives_the_server() {
    let Some(addrs) = words() else {
        let folder = env::temp_dir().join(format!("httpdown-inherited-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("app.sock");
        let unix = UnixListener::bind(&path).unwrap();
        let name = format!("httpdown-inherited-{}", std::process::id());
        let place = UnixAddr::from_abstract_name(&name).unwrap();
        let nameless = UnixListener::bind_addr(&place).unwrap();
        let (ip, addr) = tcp();
        let mut program =
            Program::new("each_kind_of_socket_is_found_by_its_address_and_outlives_the_server")
                .fd("path", &unix)
                .fd("ip", &ip)
                .fd("abstract", &nameless);
        let mut words = vec![
            addr,
            // What systemd has set decides who may connect.
            format!("unix:{}?mode=0600", path.display()),
            format!("unix:@{name}"),
        ];
        let ipv6 = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0));
        match &ipv6 {
            Ok(socket) => {
                program = program.fd("everywhere", socket);
                words.push(format!(":{}", socket.local_addr().unwrap().port()));
            }
            Err(error) => skip(error),
        }
        let mode = fs::metadata(&path).unwrap();
        program.passes(&words);
        assert!(path.exists(), "the file is not the server's");
        let kept = fs::metadata(&path).unwrap();
        assert_eq!(kept.permissions(), mode.permissions());
        // Nobody accepts, and nobody is refused.
        TcpStream::connect(ip.local_addr().unwrap()).unwrap();
        ip.accept().unwrap();
        drop(ipv6);
        fs::remove_dir_all(folder).unwrap();
        return;
    };
    let listeners: Vec<_> = addrs.iter().map(|addr| bind(addr)).collect();
    let server = hello(builder(), listeners);
    assert_eq!(server.local_addrs().len(), addrs.len());
    for local in server.local_addrs() {
        let to = match local.as_ip() {
            Some(ip) if ip.ip().is_unspecified() => {
                Addr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, ip.port())))
            }
            _ => local.clone(),
        };
        assert_eq!(Client::get(&to, "/").answer().text(), "hello");
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.served, addrs.len() as u64);
    // And what is not inherited is bound as ever.
    let other = bind("127.0.0.1:0");
    assert!(!addrs.contains(&other.local_addr().to_string()));
}

#[test]
fn a_socket_without_a_host_is_found_where_it_is_of_ipv4() {
    let Some(words) = words() else {
        let socket = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        Program::new("a_socket_without_a_host_is_found_where_it_is_of_ipv4")
            .fd("web", &socket)
            .passes(&[format!(":{port}")]);
        return;
    };
    let server = hello(builder(), bind(&words[0]));
    assert!(addr(&server).as_ip().unwrap().is_ipv4());
    stop(&server).unwrap();
}

#[test]
fn sockets_are_found_by_their_names_in_order() {
    let Some(addrs) = words() else {
        let (sockets, addrs): (Vec<_>, Vec<_>) = (0..3).map(|_| tcp()).unzip();
        Program::new("sockets_are_found_by_their_names_in_order")
            .fd("web", &sockets[0])
            .fd("", &sockets[1])
            .fd("web", &sockets[2])
            .passes(&addrs);
        return;
    };
    let listens = |name| bind(name).local_addr().to_string();
    let first = bind("fd:web");
    assert_eq!(first.local_addr().to_string(), addrs[0]);
    let second = bind("fd:web");
    assert_eq!(second.local_addr().to_string(), addrs[2]);
    assert_eq!(
        refusal("fd:web"),
        "listening on fd:web: somebody in this process has the inherited socket"
    );
    assert!(matches!(
        Listener::bind("fd:web"),
        Err(Error::Io(_, why)) if why.kind() == io::ErrorKind::AddrInUse
    ));
    // systemd's own name for a socket without a name.
    assert_eq!(listens("fd:unknown"), addrs[1]);
    assert_eq!(
        refusal("fd:api"),
        r#"address "fd:api": no inherited socket has this name; there are "web", "unknown", "web""#
    );
    assert!(matches!(Listener::bind("fd:api"), Err(Error::Address(_))));
    // Those who do not serve give their socket back, and so do those who have served.
    drop(first);
    for _ in 0..2 {
        let server = hello(builder(), bind("fd:web"));
        assert_eq!(addr(&server).to_string(), addrs[0]);
        assert_eq!(Client::get(addr(&server), "/").answer().text(), "hello");
        stop(&server).unwrap();
        server.close();
    }
    // A name is never an address: nothing was bound anew.
    drop(second);
    assert_eq!(listens(&addrs[2]), addrs[2]);
}

#[test]
fn without_sockets_a_name_says_why_there_are_none() {
    assert_eq!(
        refusal("fd:web"),
        r#"address "fd:web": no socket was inherited (LISTEN_FDS and LISTEN_PID are not set)"#
    );
}

#[test]
fn what_was_meant_for_another_process_is_not_touched() {
    let Some(words) = words() else {
        let (socket, addr) = tcp();
        Program::new("what_was_meant_for_another_process_is_not_touched")
            .fd("web", &socket)
            .starts(r#"export LISTEN_PID=1; exec "$@""#)
            .passes(&[addr]);
        return;
    };
    assert_eq!(
        refusal("fd:web"),
        r#"address "fd:web": the inherited sockets are for process 1 (LISTEN_PID), not for this one"#
    );
    assert_ne!(bind("127.0.0.1:0").local_addr().to_string(), words[0]);
    let why = refusal(&words[0]);
    assert!(why.contains("for process 1 (LISTEN_PID)"), "{why}");
    assert_eq!(env::var("LISTEN_FDS").unwrap(), "1");
    assert!(is_open(3));
}

#[test]
fn a_wrapper_that_does_not_exec_is_named() {
    let Some(words) = words() else {
        let (socket, addr) = tcp();
        Program::new("a_wrapper_that_does_not_exec_is_named")
            .fd("web", &socket)
            .starts(r#"export LISTEN_PID=$$; "$@"; exit $?"#)
            .passes(&[addr]);
        return;
    };
    let parent = std::os::unix::process::parent_id();
    let hint = format!(
        "the inherited sockets are for the parent process {parent} (LISTEN_PID); what starts this program must do so \
         by exec, without a fork"
    );
    assert_eq!(refusal("fd:web"), format!("address \"fd:web\": {hint}"));
    let why = refusal(&words[0]);
    let what = format!("listening on {} ({hint}): ", words[0]);
    assert!(why.starts_with(&what), "{why}");
    // Others have nothing to do with it.
    hello(builder(), bind("127.0.0.1:0"))
        .stop_blocking()
        .unwrap();
}

#[test]
fn variables_that_make_no_sense_are_named() {
    const TEST: &str = "variables_that_make_no_sense_are_named";
    let Some(words) = words() else {
        let (socket, _) = tcp();
        for (count, error) in [
            ("-1", r#"LISTEN_FDS is "-1", not a number from 0 to 1024"#),
            (
                "99999999999",
                r#"LISTEN_FDS is "99999999999", not a number from 0 to 1024"#,
            ),
            (
                "1025",
                r#"LISTEN_FDS is "1025", not a number from 0 to 1024"#,
            ),
            ("two", r#"LISTEN_FDS is "two", not a number from 0 to 1024"#),
            ("", r#"LISTEN_FDS is "", not a number from 0 to 1024"#),
        ] {
            Program::new(TEST)
                .fd("web", &socket)
                .variable("LISTEN_FDS", count)
                .passes(&[error.to_owned()]);
        }
        Program::new(TEST)
            .fd("web", &socket)
            .starts(r#"export LISTEN_PID=me; exec "$@""#)
            .passes(&[r#"LISTEN_PID is "me", not a number from 0 to 2147483647"#.to_owned()]);
        return;
    };
    for addr in ["127.0.0.1:0", "fd:web", "unix:@httpdown-nobody"] {
        assert_eq!(refusal(addr), words[0]);
        assert!(matches!(
            Listener::bind(addr),
            Err(Error::InvalidArgument(_))
        ));
    }
    // Who brings sockets along has no need of the variables.
    let server = hello(builder(), Listener::try_from(tcp().0).unwrap());
    assert_eq!(Client::get(addr(&server), "/").answer().text(), "hello");
    stop(&server).unwrap();
    assert!(is_open(3));
}

#[test]
fn what_no_server_can_use_is_left_to_others() {
    let Some(words) = words() else {
        let datagrams = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let deaf = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        deaf.bind(&any.into()).unwrap();
        let deaf_at = deaf.local_addr().unwrap().as_socket().unwrap();
        let (socket, addr) = tcp();
        Program::new("what_no_server_can_use_is_left_to_others")
            .fd("datagrams", &datagrams)
            .fd("file", File::open("/dev/null").unwrap())
            .fd("deaf", &deaf)
            .fd("web", &socket)
            .variable("LISTEN_FDNAMES", "datagrams:file:deaf:web:closed")
            .variable("LISTEN_FDS", "5")
            .passes(&[addr, deaf_at.to_string()]);
        return;
    };
    let clock = MockClock::new();
    let (server, log) = logged(vec![bind(&words[0])], &clock);
    for (name, error) in [
        ("fd:datagrams", "descriptor 3 is not a listening socket"),
        ("fd:deaf", "descriptor 5 is not a listening socket"),
        (
            "fd:closed",
            r#"descriptor 7 ("closed" in LISTEN_FDNAMES) is not open"#,
        ),
    ] {
        assert_eq!(refusal(name), error);
        assert_eq!(refusal(name), error, "and again");
    }
    let error = refusal("fd:file");
    assert!(
        error.starts_with("descriptor 4 cannot be asked whether it listens"),
        "{error}"
    );
    // Somebody else has that address, and nobody listens there.
    assert!(matches!(Listener::bind(&words[1]), Err(Error::Io(_, _))));
    until_complaints(&clock);
    stop(&server).unwrap();
    server.close();
    assert_eq!(log.all(), []);
    assert!((3..7).all(is_open));
}

#[test]
fn a_socket_that_nobody_listens_on_is_logged_once_and_stays_open() {
    let Some(words) = words() else {
        let (web, addr) = tcp();
        let (forgotten, forgotten_at) = tcp();
        Program::new("a_socket_that_nobody_listens_on_is_logged_once_and_stays_open")
            .fd("web", &web)
            .fd("admin", &forgotten)
            .passes(&[addr, forgotten_at.clone()]);
        TcpStream::connect(forgotten_at).unwrap();
        return;
    };
    // An address that is nearly right is in use, and the text says by what.
    let port = words[1].rsplit_once(':').unwrap().1;
    let why = refusal(&format!("0.0.0.0:{port}"));
    let hint = format!("not asked for: {} (descriptor 3, \"web\")", words[0]);
    assert!(why.contains(&hint), "{why}");
    // The first server has ended by then. Its socket was served.
    let clock = MockClock::new();
    let (short, quiet) = logged(vec![bind(&words[0])], &clock);
    stop(&short).unwrap();
    short.close();
    let clock = MockClock::new();
    let (server, log) = logged(vec![bind("127.0.0.1:0")], &clock);
    until_complaints(&clock);
    log.wait_for_count(1);
    let clock = MockClock::new();
    let other = logged(vec![bind("127.0.0.1:0")], &clock);
    until_complaints(&clock);
    for server in [&server, &other.0] {
        stop(server).unwrap();
    }
    other.0.close();
    server.close();
    let text = format!(
        "nobody listens on the inherited socket {} (descriptor 4, \"admin\")",
        words[1]
    );
    assert_eq!(log.all(), [(LogLevel::Error, text)]);
    assert_eq!((quiet.all(), other.1.all()), (vec![], vec![]));
    assert!(is_open(4));
    assert_eq!(
        bind("fd:admin").local_addr().to_string(),
        words[1],
        "not too late"
    );
}

#[test]
fn what_a_handler_starts_inherits_none_of_it() {
    let Some(words) = words() else {
        let (web, addr) = tcp();
        let (other, _) = tcp();
        Program::new("what_a_handler_starts_inherits_none_of_it")
            .fd("web", &web)
            .fd("other", &other)
            .variable("LISTEN_PIDFDID", "17")
            .passes(&[addr]);
        return;
    };
    let starts = |exchange: Exchange| {
        let shell = Command::new("sh")
            .args(["-c", "env; ls -l /proc/self/fd"])
            .output()
            .unwrap();
        let _ = reply(exchange, shell.stdout);
    };
    let server = builder()
        .handle(bind(&words[0]), Dispatch::default(), starts)
        .unwrap();
    let answer = Client::get(addr(&server), "/").answer();
    let text = answer.text();
    assert!(text.contains("PATH="), "{text}");
    assert!(!text.contains("LISTEN_"), "{text}");
    assert!(!text.contains("socket:"), "{text}");
    stop(&server).unwrap();
}

#[test]
fn a_queue_of_clients_is_answered_by_the_program_that_is_started_for_them_and_by_the_next() {
    const CLIENTS: u64 = 64;
    const TEST: &str =
        "a_queue_of_clients_is_answered_by_the_program_that_is_started_for_them_and_by_the_next";
    let Some(words) = words() else {
        let (web, addr) = tcp();
        let to = web.local_addr().unwrap();
        for _ in 0..2 {
            // Nobody listens to them yet, or no more.
            let mut clients: Vec<_> = (0..CLIENTS).map(|_| Client::get(to, "/")).collect();
            let program = Program::new(TEST).fd("web", &web);
            let mut program = program.start(std::slice::from_ref(&addr));
            program.says("serves");
            for client in &mut clients {
                assert_eq!(client.answer().text(), "hello");
            }
            drop(clients);
            program.passes();
        }
        return;
    };
    let server = hello(builder(), bind(&words[0]));
    serve_until_told(&server);
    assert_eq!(server.report().unaccepted, 0);
    wait_for_report(&server, |report| report.served == CLIENTS);
}

/// A host that speaks the protocol itself.
#[test]
fn a_socket_that_the_host_has_taken_is_not_given_to_others() {
    let Some(words) = words() else {
        let (sockets, addrs): (Vec<_>, Vec<_>) = (0..2).map(|_| tcp()).unzip();
        Program::new("a_socket_that_the_host_has_taken_is_not_given_to_others")
            .fd("web", &sockets[0])
            .fd("admin", &sockets[1])
            .passes(&addrs);
        return;
    };
    // SAFETY: the process was started with it.
    let web = unsafe { BorrowedFd::borrow_raw(3) };
    let web = web.try_clone_to_owned().unwrap();
    let web = Listener::from_fd(web).unwrap().shared();
    assert_eq!(
        env::var("LISTEN_FDNAMES").unwrap(),
        "web:admin",
        "the host may read it"
    );
    assert!(refusal("fd:web").contains("somebody in this process has"));
    assert_eq!(env::var_os("LISTEN_FDNAMES"), None);
    let clock = MockClock::new();
    let (server, log) = logged(vec![web, bind(&words[1])], &clock);
    until_complaints(&clock);
    stop(&server).unwrap();
    server.close();
    assert_eq!(log.all(), []);
}

#[test]
fn a_descriptor_that_the_host_has_closed_is_not_taken_for_what_has_its_number_now() {
    let Some(words) = words() else {
        let (web, addr) = tcp();
        Program::new(
            "a_descriptor_that_the_host_has_closed_is_not_taken_for_what_has_its_number_now",
        )
        .fd("web", &web)
        .passes(&[addr]);
        return;
    };
    drop(bind("fd:web"));
    // SAFETY: nobody has it; the library says so of its own numbers.
    assert_eq!(unsafe { libc::close(3) }, 0);
    let (other, _) = tcp();
    assert_eq!(other.as_raw_fd(), 3);
    assert_eq!(
        refusal("fd:web"),
        r#"descriptor 3 ("web" in LISTEN_FDNAMES) is not open"#
    );
    // It is not found by its address either, and its first process has it.
    let why = refusal(&words[0]);
    assert!(
        why.starts_with(&format!("listening on {}: ", words[0])),
        "{why}"
    );
}

#[test]
fn what_an_inherited_socket_is_not_is_logged() {
    let Some(words) = words() else {
        match TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)) {
            Ok(socket) => {
                let port = socket.local_addr().unwrap().port();
                Program::new("what_an_inherited_socket_is_not_is_logged")
                    .fd("web", &socket)
                    .passes(&[format!(":{port}")]);
            }
            Err(error) => skip(&error),
        }
        return;
    };
    let clock = MockClock::new();
    let mut builder = builder().v6_only(true).reuse_port(true);
    drop(builder.listen("fd:web").unwrap());
    let listener = builder.listen(&words[0]).unwrap();
    let (server, log) = logged_by(builder, vec![listener], &clock);
    stop(&server).unwrap();
    server.close();
    let text = format!(
        "[::]{} was inherited, and takes IPv4, though v6_only is set, and has no SO_REUSEPORT, though reuse_port is \
         set",
        words[0]
    );
    assert_eq!(log.all(), [(LogLevel::Warning, text)]);
}
