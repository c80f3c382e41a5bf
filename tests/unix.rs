//! Unix sockets: their files, who may connect, who has; and what is theirs alone at a stop. What they have in common with
//! TCP is tested by the same tests (`HTTPDOWN_TEST_SOCKETS=unix`).

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::fs::{self, File};
use std::future::Future as _;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use httpdown::{Dispatch, Error, Exchange, Listener, Phase, Server};
use nix::fcntl::{Flock, FlockArg};

use common::deny::{deny, deny_netlink};
use common::{
    Client, Gate, Journal, LONG, addr, assert_balanced, builder, hello, reply, skip, stop,
    stop_elsewhere, wait_for_phase, wait_for_report,
};

/// A directory of its own, which is gone when it is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("httpdown-unix-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self) -> PathBuf {
        self.0.join("app.sock")
    }

    fn addr(&self) -> String {
        place(&self.path())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn place(path: &Path) -> String {
    format!("unix:{}", path.display())
}

fn bind(addr: &str) -> Listener {
    Listener::bind(addr).unwrap()
}

/// Why nobody can listen there.
fn refusal(addr: &str) -> String {
    format!("{:#}", Listener::bind(addr).unwrap_err())
}

#[test]
fn it_answers_says_where_it_listens_and_takes_its_file_away() {
    let directory = Directory::new();
    let whoami = |exchange: Exchange| {
        let conn = exchange.conn();
        let text = format!("{} {} {:?}", conn.local, conn.peer, conn.credentials);
        let _ = reply(exchange, text);
    };
    let listener = bind(&directory.addr());
    assert_eq!(listener.local_addr().to_string(), directory.addr());
    let server = builder()
        .handle(listener, Dispatch::default(), whoami)
        .unwrap();
    assert_eq!(addr(&server).to_string(), directory.addr());
    let unix = addr(&server).as_unix().unwrap();
    assert_eq!(unix.path(), Some(&*directory.path()));
    assert!(!unix.is_unnamed());
    assert_eq!((addr(&server).as_ip(), addr(&server).port()), (None, None));

    let mut client = Client::get(addr(&server), "/");
    let (pid, me) = (std::process::id(), fs::metadata("/proc/self").unwrap());
    let credentials = format!("pid: Some({pid}), uid: {}, gid: {}", me.uid(), me.gid());
    let answer = client.answer();
    assert_eq!(
        answer.text(),
        format!(
            "{} unix: Some(Credentials {{ {credentials} }})",
            addr(&server)
        )
    );
    assert_balanced(&stop(&server).unwrap());
    assert!(!directory.path().exists());
    let refused = Client::try_connect(addr(&server)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
}

#[test]
fn an_abstract_name_has_no_file_and_is_free_again_after_the_stop() {
    let name = format!("unix:@httpdown-test-{}", std::process::id());
    for _ in 0..2 {
        let server = hello(builder(), bind(&name));
        assert_eq!(addr(&server).to_string(), name);
        assert_eq!(Client::get(addr(&server), "/").answer().text(), "hello");
        assert!(refusal(&name).contains("in use"), "{}", refusal(&name));
        stop(&server).unwrap();
    }
}

/// What another process cannot be: dead, with its file left behind.
fn leave_behind(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    assert!(fs::metadata(path).unwrap().file_type().is_socket());
}

#[test]
fn a_file_that_nobody_listens_on_is_replaced_and_no_other() {
    let directory = Directory::new();
    let path = directory.path();
    leave_behind(&path);
    let listener = bind(&directory.addr());
    // Somebody listens now.
    let why = refusal(&directory.addr());
    assert!(why.contains("somebody listens there"), "{why}");
    let error = Listener::bind(&directory.addr()).unwrap_err();
    assert!(matches!(error, Error::Io(_, why) if why.kind() == ErrorKind::AddrInUse));
    let server = hello(builder(), listener);
    assert_eq!(Client::get(addr(&server), "/").answer().text(), "hello");
    stop(&server).unwrap();

    // One that is not ours, and whose queue is full.
    let theirs = UnixListener::bind(&path).unwrap();
    assert!(refusal(&directory.addr()).contains("somebody listens"));
    let full: Vec<_> = (0..1_000)
        .map_while(|_| {
            let (at, client) = common::unconnected(addr(&server)).unwrap();
            client.set_nonblocking(true).unwrap();
            client.connect(&at).ok().map(|()| client)
        })
        .collect();
    assert!(!full.is_empty());
    assert!(refusal(&directory.addr()).contains("somebody listens"));
    drop(theirs);

    fs::remove_file(&path).unwrap();
    let datagrams = UnixDatagram::bind(&path).unwrap();
    assert!(refusal(&directory.addr()).contains("somebody listens"));
    drop(datagrams);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "mine").unwrap();
    assert!(refusal(&directory.addr()).contains("not a socket"));
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/nowhere", &path).unwrap();
    assert!(refusal(&directory.addr()).contains("not a socket"));
}

/// Of two servers that follow each other, the first does not take the second one's file away.
#[test]
fn a_successor_that_binds_during_the_drain_keeps_its_file() {
    let directory = Directory::new();
    let gate = Gate::new();
    let waits = gate.clone();
    let old = builder()
        .handle(
            bind(&directory.addr()),
            Dispatch::default(),
            move |exchange: Exchange| {
                waits.pass();
                let _ = reply(exchange, "old");
            },
        )
        .unwrap();
    let _opens = gate.open_at_end();
    let mut slow = Client::get(addr(&old), "/");
    wait_for_report(&old, |report| report.requests == 1);
    let stopping = stop_elsewhere(&old);
    wait_for_phase(&old, Phase::Draining);
    let new = hello(builder(), bind(&directory.addr()));
    assert_eq!(Client::get(addr(&new), "/").answer().text(), "hello");
    gate.open();
    assert_eq!(slow.answer().text(), "old");
    assert_balanced(&stopping.join().unwrap().unwrap());
    assert_eq!(Client::get(addr(&new), "/").answer().text(), "hello");
    stop(&new).unwrap();
    assert!(!directory.path().exists());
}

#[test]
fn a_file_that_has_taken_its_place_stays() {
    let directory = Directory::new();
    let server = hello(builder(), bind(&directory.addr()));
    fs::remove_file(directory.path()).unwrap();
    let theirs = UnixListener::bind(directory.path()).unwrap();
    stop(&server).unwrap();
    assert!(directory.path().exists());
    drop(theirs);

    // Nor is it missed if it is gone, with its directory.
    let gone = Directory::new();
    let server = hello(builder(), bind(&gone.addr()));
    drop(gone);
    stop(&server).unwrap();
}

/// As a daemon's parent, or a worker's.
#[test]
fn a_forked_child_that_drops_a_listener_takes_no_file_away() {
    let directory = Directory::new();
    let listener = bind(&directory.addr());
    #[allow(unsafe_code, reason = "there is no other way to fork")]
    // SAFETY: the child only drops the listener, and ends at once.
    let child = unsafe {
        let child = libc::fork();
        if child == 0 {
            drop(listener);
            libc::_exit(0);
        }
        let mut status = 1;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        status
    };
    assert_eq!(child, 0);
    assert!(directory.path().exists());
    drop(listener);
    assert!(!directory.path().exists());
}

/// Where netlink does not tell how many wait, `accept` does.
#[test]
fn without_netlink_a_stop_is_clean_all_the_same() {
    deny_netlink();
    let directory = Directory::new();
    let server = hello(builder(), bind(&directory.addr()));
    let clients: Vec<_> = (0..20).map(|_| Client::get(addr(&server), "/")).collect();
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.unaccepted), (20, 0));
    for mut client in clients {
        assert_eq!(client.answer().text(), "hello");
    }
}

/// Who waits and cannot be accepted is counted, and the stop says so.
#[test]
fn who_cannot_be_accepted_is_counted() {
    let directory = Directory::new();
    for netlink in [true, false] {
        let run = || {
            deny(libc::SYS_accept4, &[], libc::EMFILE);
            if !netlink {
                deny_netlink();
            }
            let server = builder().stop_timeout(Duration::from_millis(50));
            let server = hello(server, bind(&directory.addr()));
            let clients = [(); 4].map(|()| Client::connect(addr(&server)));
            let result = stop(&server);
            assert!(matches!(result, Err(Error::Killed(_))), "{result:?}");
            // Without netlink it is only known that somebody may wait.
            let expected = if netlink { clients.len() } else { 1 };
            assert_eq!(server.report().unaccepted, expected as u64);
        };
        // What is denied to a thread is denied for good.
        thread::scope(|scope| scope.spawn(run).join().unwrap());
    }
}

#[test]
fn a_listener_that_is_never_served_takes_its_file_away() {
    let directory = Directory::new();
    drop(bind(&directory.addr()));
    assert!(!directory.path().exists());
    // Also where the server does not come to be.
    let listener = bind(&directory.addr());
    let handler = |exchange: Exchange| drop(exchange);
    let failed =
        Server::builder()
            .ready_path("no path")
            .handle(listener, Dispatch::default(), handler);
    failed.unwrap_err();
    assert!(!directory.path().exists());
}

#[test]
fn a_socket_that_was_given_keeps_its_file() {
    let directory = Directory::new();
    let given = UnixListener::bind(directory.path()).unwrap();
    let server = hello(builder(), Listener::try_from(given).unwrap());
    assert_eq!(addr(&server).to_string(), directory.addr());
    assert_eq!(Client::get(addr(&server), "/").answer().text(), "hello");
    stop(&server).unwrap();
    assert!(directory.path().exists());
    let refused = Client::try_connect(addr(&server)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

/// Whoever has this copy of the socket goes on.
fn assert_accepts(theirs: &UnixListener, path: &Path) {
    let client = UnixStream::connect(path).unwrap();
    // The client waits in the queue already.
    theirs.accept().unwrap();
    drop(client);
}

/// As systemd does: whoever else has it goes on.
#[test]
fn a_shared_socket_is_left_to_the_others() {
    let directory = Directory::new();
    let theirs = UnixListener::bind(directory.path()).unwrap();
    let copy = theirs.as_fd().try_clone_to_owned().unwrap();
    let server = hello(builder(), Listener::from_fd(copy).unwrap().shared());
    assert_eq!(Client::get(addr(&server), "/").answer().text(), "hello");
    stop(&server).unwrap();
    assert_accepts(&theirs, &directory.path());
}

#[test]
fn what_is_no_stream_socket_is_refused() {
    let directory = Directory::new();
    let datagrams = UnixDatagram::bind(directory.path()).unwrap();
    let error = Listener::from_fd(datagrams.into()).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    let kind = socket2::Type::SEQPACKET;
    let packets = socket2::Socket::new(socket2::Domain::UNIX, kind, None).unwrap();
    let at = socket2::SockAddr::unix(directory.0.join("packets")).unwrap();
    packets.bind(&at).unwrap();
    packets.listen(1).unwrap();
    let error = Listener::from_fd(packets.into()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("neither a TCP nor a Unix stream socket"),
        "{error}"
    );
}

#[test]
fn mode_and_owner_are_as_asked_for() {
    let directory = Directory::new();
    let there = || fs::metadata(directory.path()).unwrap();
    for (parameters, mode) in [("mode=0600", 0o600), ("mode=666", 0o666), ("mode=0", 0)] {
        let listener = bind(&format!("{}?{parameters}", directory.addr()));
        assert_eq!(there().permissions().mode() & 0o7777, mode);
        assert_eq!(listener.local_addr().to_string(), directory.addr());
    }
    let me = fs::metadata("/proc/self").unwrap();
    let own = format!("{}?user={}&group={}", directory.addr(), me.uid(), me.gid());
    drop(bind(&own));
    if me.uid() != 0 {
        skip(&"only root may give a file to another user");
        return;
    }
    let listener = bind(&format!(
        "{}?user=nobody&group=1&mode=0660",
        directory.addr()
    ));
    let found = (there().uid(), there().gid(), there().permissions().mode());
    assert_eq!((found.0, found.1, found.2 & 0o7777), (65534, 1, 0o660));
    drop(listener);
    assert!(!directory.path().exists());
}

#[test]
fn what_cannot_be_understood_is_refused_with_a_reason() {
    let directory = Directory::new();
    let long = format!("unix:/{}", "x".repeat(107));
    let with = |parameters: &str| format!("{}?{parameters}", directory.addr());
    for (addr, why) in [
        ("unix:".to_owned(), "no path"),
        ("unix:@".to_owned(), "no path"),
        ("unix:?mode=0600".to_owned(), "no path"),
        (long, "longer than 107 bytes"),
        ("unix:/tmp/a\0b".to_owned(), "NUL"),
        ("unix:@name?mode=0600".to_owned(), "neither mode nor owner"),
        (with("mode=0888"), "not an octal number"),
        (with("mode=01777"), "not an octal number"),
        (with("mode=+660"), "not an octal number"),
        (with("mode="), "not an octal number"),
        (with("mode"), "not an octal number"),
        (with("mode=0600&mode=0660"), "given twice"),
        (with("user=no such user"), "there is no user"),
        (with("group="), "there is no group"),
        (with("group=4294967295"), "there is no group"),
        (with("color=red"), "\"color\" is not known"),
        (with(""), "\"\" is not known"),
    ] {
        let error = Listener::bind(&addr).unwrap_err();
        assert!(matches!(error, Error::Address(_)), "{addr:?}: {error}");
        assert!(error.to_string().contains(why), "{addr:?}: {error}");
    }
    let error = Listener::bind_reuse_port(&directory.addr()).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    for (path, kind) in [
        ("/nowhere/app.sock", ErrorKind::NotFound),
        ("/dev/null/app.sock", ErrorKind::NotADirectory),
    ] {
        let error = Listener::bind(&place(Path::new(path))).unwrap_err();
        assert!(
            matches!(&error, Error::Io(_, why) if why.kind() == kind),
            "{error:#}"
        );
    }
    assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 0);
}

/// Many start at once where a file was left behind: one listens, and the others are told so.
#[test]
fn of_many_that_start_at_once_one_listens() {
    let directory = Directory::new();
    for _ in 0..300 {
        leave_behind(&directory.path());
        let start = Barrier::new(8);
        let begin = || {
            start.wait();
            Listener::bind(&directory.addr())
        };
        let bound: Vec<_> = thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(begin)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let listening: Vec<_> = bound.iter().filter_map(|one| one.as_ref().ok()).collect();
        assert_eq!(listening.len(), 1, "{bound:?}");
        UnixStream::connect(directory.path()).unwrap();
    }
}

/// As `flock -n DIRECTORY ./server` does, or any user who can read the directory.
#[test]
fn a_directory_that_somebody_has_locked_is_not_waited_for_without_end() {
    let directory = Directory::new();
    let lock = File::open(&directory.0).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    let server = hello(builder(), bind(&directory.addr()));
    assert_eq!(Client::get(addr(&server), "/").answer().text(), "hello");
    // A stop waits for it even less: the file stays, and is replaced by the next.
    stop(&server).unwrap();
    assert!(directory.path().exists());
    drop(lock);
    drop(bind(&directory.addr()));
    assert!(!directory.path().exists());
}

#[test]
fn a_socket_that_cannot_be_given_away_leaves_no_file() {
    let directory = Directory::new();
    for call in [libc::SYS_lchown, libc::SYS_fchownat] {
        deny(call, &[], libc::EPERM);
    }
    let why = refusal(&format!("{}?user=1", directory.addr()));
    assert!(why.contains("setting mode and owner"), "{why}");
    assert!(!directory.path().exists());
}

/// As for TCP: else the server would be awake for ever, and serve nobody.
#[test]
fn a_listener_that_somebody_else_shuts_down_ends_the_server() {
    let directory = Directory::new();
    let listener = bind(&directory.addr());
    let copy = socket2::Socket::from(listener.as_fd().try_clone_to_owned().unwrap());
    let server = hello(builder(), listener);
    assert_eq!(Client::get(addr(&server), "/").answer().text(), "hello");
    copy.shutdown(Shutdown::Read).unwrap();
    let error = common::wait(&server).unwrap_err();
    assert!(error.to_string().contains("accepting"), "{error:#}");
}

/// The first worker that stops must not take the others' file away.
#[test]
fn a_socket_that_was_bound_here_and_is_shared_keeps_its_file() {
    let directory = Directory::new();
    let listener = bind(&directory.addr());
    let theirs = UnixListener::from(listener.as_fd().try_clone_to_owned().unwrap());
    let server = hello(builder(), listener.shared());
    stop(&server).unwrap();
    assert_accepts(&theirs, &directory.path());
}

/// Who waits in `connect`, because the queue is full, is told, though somebody still has a copy of the socket.
#[test]
fn who_waits_for_a_place_in_the_queue_is_refused_by_a_stop() {
    let directory = Directory::new();
    let at = socket2::SockAddr::unix(directory.path()).unwrap();
    let listening = socket2::Socket::new(at.domain(), socket2::Type::STREAM, None).unwrap();
    listening.bind(&at).unwrap();
    listening.listen(1).unwrap();
    let copy = listening.try_clone().unwrap();
    let run = || {
        deny(libc::SYS_accept4, &[], libc::EMFILE);
        let listener = Listener::from_fd(listening.into()).unwrap();
        let server = hello(builder().stop_timeout(Duration::from_millis(50)), listener);
        let waiting: Vec<_> = (0..6)
            .map(|_| {
                let (at, client) = common::unconnected(addr(&server)).unwrap();
                // Of `connect`, too: who is not told gives up, but later than this test.
                client.set_write_timeout(Some(2 * LONG)).unwrap();
                thread::spawn(move || client.connect(&at))
            })
            .collect();
        // Two have a place: one more than the backlog.
        let wait_for = |count| {
            let deadline = Instant::now() + LONG;
            while waiting.iter().filter(|client| client.is_finished()).count() < count {
                assert!(Instant::now() < deadline, "not {count} are told");
                thread::yield_now();
            }
        };
        wait_for(2);
        let _ = stop(&server);
        wait_for(waiting.len());
        let ends = waiting.into_iter().map(|client| client.join().unwrap());
        let refused = ends.filter_map(Result::err).map(|error| error.kind());
        assert_eq!(
            refused.collect::<Vec<_>>(),
            [ErrorKind::ConnectionRefused; 4]
        );
    };
    thread::scope(|scope| scope.spawn(run).join().unwrap());
    drop(copy);
}

struct Blocks(Gate);

impl Wake for Blocks {
    fn wake(self: Arc<Self>) {
        self.0.pass();
    }
}

/// The host holds the helper until it is too late to accept: what was counted as lost then is lost, and nothing else.
#[test]
fn who_was_counted_as_lost_is_not_accepted_afterwards() {
    let directory = Directory::new();
    let (helper, slow) = (Gate::new(), Gate::new());
    let _opens = (helper.open_at_end(), slow.open_at_end());
    let waits = slow.clone();
    let server = builder()
        .stop_timeout(Duration::from_secs(1))
        .handle(
            bind(&directory.addr()),
            Dispatch::default(),
            move |exchange: Exchange| {
                if exchange.uri().path() == "/slow" {
                    waits.pass();
                }
                let _ = reply(exchange, "hello");
            },
        )
        .unwrap();
    let _slow = Client::get(addr(&server), "/slow");
    wait_for_report(&server, |report| report.requests == 1);
    let mut stopping = Box::pin(server.stopping());
    let waker = Waker::from(Arc::new(Blocks(helper.clone())));
    let begun = stopping.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(begun.is_pending());
    server.stop_begin();
    wait_for_phase(&server, Phase::Quiescing);
    // The accepting task may still take some.
    let mut clients = 1;
    let mut last = loop {
        let mut client = Client::get(addr(&server), "/");
        clients += 1;
        client.set_read_timeout(Duration::from_millis(100));
        if client.try_answer().is_err() {
            break client;
        }
    };
    wait_for_phase(&server, Phase::Killing);
    helper.open();
    last.set_read_timeout(LONG);
    let _ = last.try_answer();
    slow.open();
    common::wait(&server).unwrap_err();
    // Nobody is counted twice.
    let report = server.report();
    assert_eq!(
        report.connections + report.unaccepted,
        clients,
        "{report:?}"
    );
}

/// A client may choose its own address: what it chooses stays in one line.
#[test]
fn a_clients_own_path_cannot_forge_a_line() {
    let directory = Directory::new();
    let whoami = |exchange: Exchange| {
        let peer = exchange.conn().peer.to_string();
        let _ = reply(exchange, peer);
    };
    let server = builder()
        .handle(bind(&directory.addr()), Dispatch::default(), whoami)
        .unwrap();
    for (name, shown) in [("a\nb\x1b[0m", "a\\nb\\u{1b}[0m"), ("plain", "plain")] {
        let own = socket2::SockAddr::unix(directory.0.join(name)).unwrap();
        let (at, client) = common::unconnected(addr(&server)).unwrap();
        client.bind(&own).unwrap();
        client.connect(&at).unwrap();
        let mut client = Client::from(client);
        client.ask("/");
        let expected = format!("unix:{}/{shown}", directory.0.display());
        assert_eq!(client.answer().text(), expected);
    }
    stop(&server).unwrap();
}

/// Relative to where the process is when it binds; afterwards it may go elsewhere.
#[test]
fn a_relative_path_is_made_absolute() {
    let directory = Directory::new();
    let here = std::env::current_dir().unwrap();
    std::env::set_current_dir(&directory.0).unwrap();
    let listener = bind("unix:app.sock");
    std::env::set_current_dir(here).unwrap();
    assert_eq!(listener.local_addr().to_string(), directory.addr());
    drop(listener);
    assert!(!directory.path().exists());
}

/// Clients that have connected before the stop are served, however many wait, and nobody is reset.
#[test]
fn who_is_connected_is_served_and_the_rest_are_refused() {
    let directory = Directory::new();
    for round in 0..30 {
        let server = hello(builder(), bind(&directory.addr()));
        let (connected, refused) = (Journal::new(), Journal::new());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        match Client::try_connect(addr(&server)) {
                            Ok(mut client) => {
                                client.ask("/");
                                assert_eq!(client.answer().text(), "hello");
                                connected.write(());
                            }
                            Err(error) => break refused.write(error.kind()),
                        }
                    }
                });
            }
            connected.wait_for_count(20 + round);
            let report = stop(&server).unwrap();
            assert_balanced(&report);
            assert_eq!(report.unaccepted, 0);
        });
        let expected = [ErrorKind::ConnectionRefused, ErrorKind::NotFound];
        let refused = refused.all();
        assert!(
            refused.iter().all(|kind| expected.contains(kind)),
            "{refused:?}"
        );
    }
}

/// The client closes while its handler works: on a Unix socket the server learns of it at once.
#[test]
fn a_client_that_closes_cancels_its_request() {
    let directory = Directory::new();
    let (begun, ended) = (Journal::new(), Journal::new());
    let (begins, ends) = (begun.clone(), ended.clone());
    let server = builder()
        .handle(
            bind(&directory.addr()),
            Dispatch::default(),
            move |exchange: Exchange| {
                begins.write(());
                let late = std::time::Instant::now() + LONG;
                ends.write(exchange.cancellation().wait_until(Some(late)).is_some());
            },
        )
        .unwrap();
    // With more behind the request, too: which hides the end.
    for more in ["", "GET"] {
        let mut client = Client::get(addr(&server), "/");
        client.send(more);
        begun.wait_for_count(1);
        drop(client);
    }
    ended.wait_for_count(2);
    assert_eq!(ended.all(), [true, true]);
    // One that has only closed its side still reads.
    let mut client = Client::get(addr(&server), "/");
    client.half_close();
    begun.wait_for_count(3);
    server.kill_begin();
    let _ = client.try_answer();
    let _ = common::wait(&server);
}

/// What is written has arrived: the client's kernel is ours, and keeps it whatever becomes of the server.
#[test]
fn an_answer_outlives_its_server() {
    const SIZE: usize = 100_000;
    let directory = Directory::new();
    let big = |exchange: Exchange| {
        let _ = exchange.reply(Response::new(Bytes::from(vec![b'x'; SIZE])));
    };
    let server = builder()
        .handle(bind(&directory.addr()), Dispatch::default(), big)
        .unwrap();
    let mut client = Client::get(addr(&server), "/");
    wait_for_report(&server, |report| report.served == 1);
    assert_balanced(&stop(&server).unwrap());
    drop(server);
    assert_eq!(client.answer().body.len(), SIZE);
}

/// A server may listen in both ways.
#[test]
fn beside_a_tcp_socket() {
    let directory = Directory::new();
    let listeners = vec![bind(&directory.addr()), bind("127.0.0.1:0")];
    let server = hello(builder(), listeners);
    for addr in server.local_addrs() {
        assert_eq!(Client::get(addr, "/").answer().text(), "hello");
    }
    let idle: Vec<_> = server.local_addrs().iter().map(Client::connect).collect();
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.served, 2);
    idle.into_iter().for_each(Client::assert_closed);
}
