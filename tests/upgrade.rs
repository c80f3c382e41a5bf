//! Connections that a handler takes over: upgrades and tunnels.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper that fails fails its test"
)]

mod common;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd as _;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use http::Response;
use httpdown::{Addr, Dispatch, Error, Exchange, Phase, QueueItem, Ready, Server, Stream};

use common::{
    Client, Journal, addr, assert_balanced, builder, listener, reply, stop, wait_for_phase,
    wait_for_report,
};

const UPGRADE: &str =
    "GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";

fn switching() -> Response<()> {
    let response = Response::builder().status(101).header("Upgrade", "echo");
    response.body(()).unwrap()
}

fn now() -> Instant {
    Instant::now()
}

/// A client whose connection was upgraded, and which has sent this behind its request.
fn upgraded(server: &Server, early: &str) -> Client {
    upgraded_at(addr(server).clone(), early)
}

fn upgraded_at(address: Addr, early: &str) -> Client {
    let mut client = Client::connect(address);
    client.send(UPGRADE.to_owned() + early);
    let head = client.try_head().unwrap();
    assert_eq!(head.status, 101);
    assert_eq!(head.header("upgrade"), Some("echo"));
    assert_eq!(head.header("connection"), Some("upgrade"));
    client
}

fn serve(dispatch: Dispatch, run: impl Fn(Stream) + Send + Sync + 'static) -> Server {
    let handler = move |exchange: Exchange| {
        assert!(exchange.asks_for_upgrade());
        run(exchange.upgrade(switching()).unwrap());
    };
    builder().handle(listener(), dispatch, handler).unwrap()
}

/// A server that gives its streams away.
fn giving() -> (Server, mpsc::Receiver<Stream>) {
    let (give, given) = mpsc::channel();
    let server = serve(Dispatch::default(), move |stream| {
        give.send(stream).unwrap();
    });
    (server, given)
}

fn echo(stream: &Stream) {
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes, None).unwrap() {
            0 => return stream.shutdown(None).unwrap(),
            count => assert_eq!(stream.write(&bytes[..count], None).unwrap(), count),
        }
    }
}

#[test]
fn bytes_go_both_ways_and_early_ones_are_not_lost() {
    let server = serve(Dispatch::default(), |stream| echo(&stream));
    let mut client = upgraded(&server, "early");
    assert_eq!(client.exactly(5).unwrap(), b"early");
    for size in [1, 1_000, 100_000] {
        client.send(vec![b'x'; size]);
        assert_eq!(client.exactly(size).unwrap(), vec![b'x'; size]);
    }
    let report = wait_for_report(&server, |report| report.conns_hijacked == 1);
    assert_eq!(report.served, 1);
    client.half_close();
    client.assert_closed();
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.conns_closed), (1, 1), "{report:?}");
}

#[test]
fn one_thread_reads_while_another_one_writes() {
    const SIZE: usize = 10_000_000;
    let server = serve(Dispatch::default(), |stream| {
        let stream = Arc::new(stream);
        let other = Arc::clone(&stream);
        let writer = thread::spawn(move || {
            other.write(&vec![b'w'; SIZE], None).unwrap();
            other.shutdown(None).unwrap();
        });
        let (mut bytes, mut length) = (vec![0; 100_000], 0);
        while let count @ 1.. = stream.read(&mut bytes, None).unwrap() {
            length += count;
        }
        assert_eq!(length, SIZE);
        writer.join().unwrap();
    });
    let mut client = upgraded(&server, "");
    let mut sends = client.socket().try_clone().map(Client::from).unwrap();
    let sender = thread::spawn(move || {
        sends.send(vec![b'r'; SIZE]);
        sends.half_close();
    });
    assert_eq!(client.until_end().unwrap().len(), SIZE);
    sender.join().unwrap();
    assert_balanced(&stop(&server).unwrap());
}

/// Sends back what comes, driven by callbacks alone.
fn go_on(stream: Stream, mut waiting: Vec<u8>) {
    let mut bytes = [0; 8192];
    loop {
        if waiting.is_empty() {
            match stream.read(&mut bytes, Some(now())) {
                Ok(0) => return,
                Ok(count) => waiting.extend(&bytes[..count]),
                Err(Error::WouldBlock) => break,
                Err(why) => panic!("{why}"),
            }
        }
        match stream.write(&waiting, Some(now())) {
            Ok(count) => drop(waiting.drain(..count)),
            Err(Error::WouldBlock) => break,
            Err(why) => panic!("{why}"),
        }
    }
    let wanted = if waiting.is_empty() {
        Ready::READABLE
    } else {
        Ready::WRITABLE
    };
    let slot = Arc::new(Mutex::new(None));
    let owner = Arc::clone(&slot);
    // Held here, so that the callback finds it.
    let mut held = slot.lock().unwrap();
    stream.notify(wanted, move |_| {
        let stream = owner.lock().unwrap().take().unwrap();
        go_on(stream, waiting);
    });
    *held = Some(stream);
}

#[test]
fn any_number_of_streams_needs_no_thread() {
    let server = serve(Dispatch::Inline, |stream| go_on(stream, Vec::new()));
    let mut clients: Vec<_> = (0..50).map(|_| upgraded(&server, "early")).collect();
    for client in clients.iter_mut().rev() {
        assert_eq!(client.exactly(5).unwrap(), b"early");
        client.send("later");
    }
    for client in &mut clients {
        assert_eq!(client.exactly(5).unwrap(), b"later");
    }
    for mut client in clients {
        client.half_close();
        client.assert_closed();
    }
    assert_balanced(&stop(&server).unwrap());
}

/// Even one that waits for its client meanwhile.
#[test]
fn a_stop_tells_the_streams_and_waits_for_them() {
    fn wait(stream: Stream) {
        let slot = Arc::new(Mutex::new(None));
        let owner = Arc::clone(&slot);
        let mut held = slot.lock().unwrap();
        stream.notify(Ready::DRAINING | Ready::READABLE, move |ready| {
            let stream: Stream = owner.lock().unwrap().take().unwrap();
            if ready.contains(Ready::DRAINING) {
                stream.write(b"bye", Some(now())).unwrap();
                return;
            }
            // That was told in vain.
            let nothing = stream.read(&mut [0], Some(now()));
            assert!(matches!(nothing, Err(Error::WouldBlock)));
            wait(stream);
        });
        *held = Some(stream);
    }
    let server = serve(Dispatch::Inline, wait);
    let clients: Vec<_> = (0..10).map(|_| upgraded(&server, "")).collect();
    let report = stop(&server).unwrap();
    for mut client in clients {
        assert_eq!(client.until_end().unwrap(), b"bye");
    }
    assert_balanced(&report);
    assert_eq!((report.served, report.conns_closed), (10, 10), "{report:?}");
}

#[test]
fn a_queue_serves_streams_until_the_drain() {
    let (server, queue) = builder().queue(listener()).unwrap();
    let address = addr(&server).clone();
    let service = thread::spawn(move || {
        let mut streams = Vec::new();
        let ask = |stream: &Stream, token| {
            queue.notify_stream(stream, Ready::READABLE | Ready::DRAINING, token);
        };
        let mut bytes = [0; 100];
        while let Ok(items) = queue.take_all(8, None) {
            for item in items {
                let (token, ready) = match item {
                    QueueItem::Request(exchange) => {
                        let stream = exchange.upgrade(switching()).unwrap();
                        ask(&stream, streams.len() as u128);
                        streams.push(Some(stream));
                        continue;
                    }
                    QueueItem::Ready { .. } => unreachable!("nobody has asked for that"),
                    QueueItem::StreamReady { token, ready } => (token, ready),
                };
                let slot = &mut streams[usize::try_from(token).unwrap()];
                let stream = slot.as_ref().unwrap();
                if ready.contains(Ready::DRAINING) {
                    stream.write(b"bye", Some(now())).unwrap();
                    *slot = None;
                    continue;
                }
                match stream.read(&mut bytes, Some(now())) {
                    Ok(0) => *slot = None,
                    Ok(count) => {
                        stream.write(&bytes[..count], Some(now())).unwrap();
                        ask(stream, token);
                    }
                    Err(Error::WouldBlock) => ask(stream, token),
                    Err(why) => panic!("{why}"),
                }
            }
        }
        assert!(streams.iter().all(Option::is_none));
    });
    let mut clients: Vec<_> = (0..20)
        .map(|_| upgraded_at(address.clone(), "early"))
        .collect();
    for client in clients.iter_mut().rev() {
        assert_eq!(client.exactly(5).unwrap(), b"early");
        client.send("later");
        assert_eq!(client.exactly(5).unwrap(), b"later");
    }
    drop(clients.pop());
    wait_for_report(&server, |report| report.conns_hijacked == 19);
    let report = stop(&server).unwrap();
    for mut client in clients {
        assert_eq!(client.until_end().unwrap(), b"bye");
    }
    assert_balanced(&report);
    assert_eq!((report.served, report.conns_closed), (20, 20), "{report:?}");
    // The queue ends when nothing more can happen.
    service.join().unwrap();
}

#[tokio::test]
async fn a_task_waits_for_a_stream() {
    let (server, given) = giving();
    let mut client = upgraded(&server, "");
    let stream = given.recv().unwrap();
    let (tell, told) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        let ready = stream.ready(Ready::READABLE | Ready::DRAINING).await;
        assert_eq!(ready, Ready::READABLE);
        let mut bytes = [0; 9];
        assert_eq!(stream.read(&mut bytes, Some(now())).unwrap(), 2);
        tell.send(()).unwrap();
        loop {
            let ready = stream.ready(Ready::READABLE | Ready::DRAINING).await;
            if ready == Ready::DRAINING {
                break;
            }
            // That was told in vain.
            let nothing = stream.read(&mut bytes, Some(now()));
            assert!(matches!(nothing, Err(Error::WouldBlock)));
        }
    });
    client.send("hi");
    told.await.unwrap();
    let stopped = tokio::task::spawn_blocking(move || stop(&server).unwrap());
    task.await.unwrap();
    client.assert_closed();
    assert_balanced(&stopped.await.unwrap());
}

#[test]
fn a_kill_ends_streams() {
    let (server, given) = giving();
    let _client = upgraded(&server, "");
    let stream = given.recv().unwrap();
    let told = Journal::new();
    let tells = told.clone();
    stream.notify(Ready::NONE, move |ready| tells.write(ready));
    server.kill_begin();
    told.wait_for(|ready| ready.contains(Ready::GONE));
    assert!(matches!(stream.read(&mut [0], None), Err(Error::Killed(_))));
    assert!(matches!(stream.write(b"x", None), Err(Error::Killed(_))));
    drop(stream);
    let report = server.wait_blocking(None);
    assert!(matches!(report, Err(Error::Killed(_))), "{report:?}");
    assert_eq!(server.report().hijacked_killed, 1);
}

#[test]
fn a_client_that_leaves_shows_when_the_stream_is_read() {
    let (server, given) = giving();
    for resets in [false, true] {
        let client = upgraded(&server, "");
        let stream = given.recv().unwrap();
        // Unix sockets know no reset.
        if resets && stream.conn().peer.as_ip().is_some() {
            client.reset();
            assert!(matches!(stream.read(&mut [0], None), Err(Error::Gone)));
        } else {
            drop(client);
            assert_eq!(stream.read(&mut [0], None).unwrap(), 0);
        }
    }
    assert_balanced(&stop(&server).unwrap());
}

/// If the socket were just closed, the kernel would reset it, and throw away what has not been sent yet.
#[test]
fn a_stream_that_is_let_go_ends_with_what_was_written_though_the_client_still_sends() {
    let (server, given) = giving();
    let mut client = upgraded(&server, "");
    let stream = given.recv().unwrap();
    client.send("nobody reads this");
    let (tell, told) = mpsc::channel();
    stream.notify(Ready::READABLE, move |_| tell.send(()).unwrap());
    told.recv().unwrap();
    let bytes = vec![b'x'; 100_000];
    let mut written = 0;
    loop {
        match stream.write(&bytes, Some(now())) {
            Ok(count) => written += count,
            Err(Error::WouldBlock) => break,
            Err(why) => panic!("{why}"),
        }
    }
    drop(stream);
    assert_eq!(client.until_end().unwrap().len(), written);
    drop(client);
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.conns_closed), (1, 1), "{report:?}");
}

/// A client that does not close its side holds up nothing for long.
#[test]
fn a_kill_does_not_count_a_stream_that_was_let_go() {
    let (give, given) = mpsc::channel();
    let handler =
        move |exchange: Exchange| give.send(exchange.upgrade(switching()).unwrap()).unwrap();
    let server = builder()
        .linger_timeout(Duration::from_secs(600))
        .handle(listener(), Dispatch::default(), handler)
        .unwrap();
    let mut client = upgraded(&server, "");
    drop(given.recv().unwrap());
    assert!(client.until_end().unwrap().is_empty());
    server.kill_begin();
    let report = server.wait_blocking(None).unwrap();
    assert_eq!(
        (report.hijacked_killed, report.conns_killed),
        (0, 0),
        "{report:?}"
    );
    assert_balanced(&report);
}

#[test]
fn a_stream_may_outlive_its_server() {
    let (give, given) = mpsc::channel();
    let handler =
        move |exchange: Exchange| give.send(exchange.upgrade(switching()).unwrap()).unwrap();
    let server = builder()
        .kill_timeout(Duration::from_millis(10))
        .handle(listener(), Dispatch::default(), handler)
        .unwrap();
    let _client = upgraded(&server, "");
    let stream = given.recv().unwrap();
    server.stop_begin();
    wait_for_phase(&server, Phase::Draining);
    server.kill_begin();
    let _ = server.wait_blocking(None);
    drop(server);
    assert!(stream.read(&mut [0], Some(now())).is_err());
    stream.notify(Ready::READABLE, |_| {});
    let _ = stream.shutdown(Some(now()));
}

#[test]
fn what_does_not_fit_is_refused() {
    let errors = Journal::new();
    let writes = errors.clone();
    let handler = move |exchange: Exchange| {
        let status = exchange.uri().path()[1..].parse().unwrap_or(101);
        let mut response = Response::builder().status(status);
        if exchange.uri().path() != "/none" {
            response = response.header("Upgrade", "echo");
        }
        let refused = exchange.upgrade(response.body(()).unwrap()).unwrap_err();
        writes.write(refused.to_string());
    };
    let server = builder()
        .handle(listener(), Dispatch::Inline, handler)
        .unwrap();
    let upgrade = "Connection: upgrade\r\nUpgrade: echo\r\n";
    for (target, fields) in [
        ("/101", ""),
        ("/none", upgrade),
        ("/304", upgrade),
        (
            "/101",
            "Connection: upgrade\r\nUpgrade: echo\r\nContent-Length: 5\r\n",
        ),
    ] {
        let mut client = Client::connect(addr(&server));
        client.send(format!(
            "GET {target} HTTP/1.1\r\nHost: test\r\n{fields}\r\n"
        ));
        assert_eq!(client.answer().status, 500, "{target} {fields}");
    }
    assert_eq!(errors.all().len(), 4, "{:?}", errors.all());
    assert_balanced(&stop(&server).unwrap());
}

/// A handler may decline.
#[test]
fn who_asks_for_an_upgrade_may_get_an_answer() {
    let server = builder()
        .handle(listener(), Dispatch::default(), |exchange: Exchange| {
            reply(exchange, "no").unwrap();
        })
        .unwrap();
    let mut client = Client::connect(addr(&server));
    for _ in 0..2 {
        client.send(UPGRADE);
        assert_eq!(client.answer().text(), "no");
    }
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn a_tunnel_is_a_stream() {
    let server = builder()
        .handle(listener(), Dispatch::default(), |exchange: Exchange| {
            assert_eq!(exchange.uri(), "example.com:443");
            echo(&exchange.upgrade(Response::new(())).unwrap());
        })
        .unwrap();
    let mut client = Client::connect(addr(&server));
    client.send("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\nearly");
    assert_eq!(client.try_head().unwrap().status, 200);
    assert_eq!(client.exactly(5).unwrap(), b"early");
    client.half_close();
    client.assert_closed();
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn the_socket_itself_can_be_used() {
    let (server, given) = giving();
    let mut client = upgraded(&server, "");
    let stream = given.recv().unwrap();
    let descriptor = stream.descriptor(None).unwrap();
    // SAFETY: the descriptor belongs to the stream, which lives, and is not closed here.
    #[allow(unsafe_code, reason = "a descriptor is borrowed")]
    let mut socket = ManuallyDrop::new(unsafe { File::from_raw_fd(descriptor) });
    socket.write_all(b"direct").unwrap();
    assert_eq!(client.exactly(6).unwrap(), b"direct");
    client.send("back");
    let mut bytes = [0; 4];
    while matches!(socket.read_exact(&mut bytes), Err(why) if why.kind() == std::io::ErrorKind::WouldBlock)
    {
        thread::yield_now();
    }
    assert_eq!(&bytes, b"back");
    drop(stream);
    client.assert_closed();
    let mut client = upgraded(&server, "early");
    let stream = given.recv().unwrap();
    assert!(matches!(
        stream.descriptor(None),
        Err(Error::Unsupported(_))
    ));
    drop(stream);
    client.until_end().unwrap_or_default();
    assert_balanced(&stop(&server).unwrap());
}
