//! Bodies of requests: what is there to be read, and when it is asked for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::similar_names,
    reason = "a helper that fails fails its test; and what was heard hears"
)]

mod common;

use std::convert::Infallible;
use std::net::Shutdown;
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Collected, Full};
use httpdown::{Body, Dispatch, Error, Exchange, Server};
use hyper::service::service_fn;

use common::{
    Client, Journal, addr, assert_balanced, builder, listener, reply, stop, wait_for_report,
};

fn in_place(handler: impl Fn(Exchange) + Send + Sync + 'static) -> Server {
    let dispatch = Dispatch::Inline;
    builder().handle(listener(), dispatch, handler).unwrap()
}

fn head(fields: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: test\r\n{fields}\r\n\r\n")
}

/// A client that waits for a 100 before it sends its body.
fn waits(length: usize) -> String {
    head(&format!("Content-Length: {length}\r\nExpect: 100-continue"))
}

/// Answers with what can be read, and says how that ended.
fn echo_what_is_there(mut exchange: Exchange) {
    let mut body = Vec::new();
    let end = loop {
        match exchange.read_bytes(usize::MAX) {
            Ok(data) if data.is_empty() => break "all",
            Ok(data) => body.extend_from_slice(&data),
            Err(Error::WouldBlock) => break "more",
            Err(_) => break "error",
        }
    };
    let body = String::from_utf8(body).unwrap();
    reply(exchange, format!("{end}: {body}")).unwrap();
}

#[test]
fn in_place_a_short_body_is_there() {
    let server = builder()
        .body_buffer((64 << 10).try_into().unwrap())
        .handle(listener(), Dispatch::Inline, echo_what_is_there)
        .unwrap();
    let mut client = Client::connect(addr(&server));
    client.send(head("Content-Length: 11") + "half");
    wait_for_report(&server, |report| report.requests == 1);
    client.send(" a body");
    assert_eq!(client.answer().text(), "all: half a body");
    // A body that is not known to be short is there as far as it has come.
    client.send(head("Transfer-Encoding: chunked") + "4\r\nhalf\r\n");
    assert_eq!(client.answer().text(), "more: half");
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn in_place_what_has_been_received_can_be_read() {
    let server = in_place(echo_what_is_there);
    for (request, expected) in [
        (head("Content-Length: 5") + "hello", "all: hello"),
        (
            head("Transfer-Encoding: chunked") + "5\r\nhello\r\n0\r\n\r\n",
            "all: hello",
        ),
        (
            head("Transfer-Encoding: chunked") + "3\r\nhel\r\n2\r\nlo\r\n0\r\nX: y\r\n\r\n",
            "all: hello",
        ),
        (head("Content-Length: 0"), "all: "),
        (head("Content-Length: 10") + "half", "more: half"),
        (
            head("Transfer-Encoding: chunked") + "5\r\nhello\r\n5\r\nha",
            "more: helloha",
        ),
        (head("Content-Length: 10"), "more: "),
        // Whoever waits to be asked has sent nothing.
        (waits(10), "more: "),
    ] {
        for _ in 0..10 {
            let mut client = Client::connect(addr(&server));
            client.send(&request);
            let answer = client.answer();
            if answer.status == 100 {
                assert!(request.contains("Expect"), "{request}");
                assert_eq!(client.answer().text(), expected, "{request}");
            } else {
                assert_eq!(answer.text(), expected, "{request}");
            }
        }
    }
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn in_place_a_long_body_is_there_in_part() {
    let server = in_place(echo_what_is_there);
    let mut client = Client::connect(addr(&server));
    client.send(head("Content-Length: 1000000"));
    let _ = client.try_send(vec![b'x'; 1_000_000]);
    let answer = client.answer();
    let part = answer.text().strip_prefix("more: ").unwrap();
    // The most that is taken in advance, and what one look at the socket brings.
    assert!(part.len() < 1_000_000, "{}", part.len());
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn in_place_the_rest_can_be_read_elsewhere() {
    let server = in_place(|mut exchange: Exchange| {
        let first = exchange.read_bytes(2).unwrap();
        thread::spawn(move || {
            let rest = exchange.read_to_end(100).unwrap();
            reply(exchange, [&first[..], &rest[..]].concat()).unwrap();
        });
    });
    let mut client = Client::connect(addr(&server));
    client.send(head("Content-Length: 10") + "hello");
    client.send("world");
    assert_eq!(client.answer().text(), "helloworld");
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn a_request_that_is_lost_before_its_handler_is_called_is_not_blamed_on_it() {
    let lines = Journal::new();
    let written = lines.clone();
    let server = builder()
        .on_log(move |_, text: &str| written.write(text.to_owned()))
        .handle(listener(), Dispatch::Inline, echo_what_is_there)
        .unwrap();
    for _ in 0..50 {
        let mut client = Client::connect(addr(&server));
        client.send(head("Transfer-Encoding: chunked") + "5\r\nhello\r\n");
        client.reset();
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.failed, 0, "{report:?}");
    let blames = |line: &String| line.contains("did not answer");
    assert!(!lines.all().iter().any(blames), "{:?}", lines.all());
}

/// Asks as one who waits for a 100, and sends its body when that has come; `heard` then lets the handler go on.
fn assert_is_asked_for_first(server: &Server, heard: &dyn Fn()) {
    for _ in 0..50 {
        let mut client = Client::connect(addr(server));
        client.send(waits(5));
        assert_eq!(client.try_head().unwrap().status, 100);
        heard();
        client.send("hello");
        let mut answer = client.try_head().unwrap();
        while answer.status == 100 {
            answer = client.try_head().unwrap(); // Asked twice is no harm.
        }
        assert_eq!(answer.status, 200);
        assert_eq!(client.try_body(&answer).unwrap(), b"hello");
    }
    assert_balanced(&stop(server).unwrap());
}

/// Begins its answer, and reads when the client has heard of that, or been asked. What that waits for is the second.
fn begins_then_reads() -> (impl Fn(Exchange) + Clone + Send + Sync + 'static, impl Fn()) {
    let heard = Arc::new(Barrier::new(2));
    let hears = Arc::clone(&heard);
    let handler = move |mut exchange: Exchange| {
        exchange.start(Response::new(())).unwrap();
        heard.wait();
        let body = exchange.read_to_end(100).unwrap();
        exchange.write_bytes(body).unwrap();
        exchange.finish().unwrap();
    };
    (handler, move || {
        hears.wait();
    })
}

#[test]
fn a_body_is_asked_for_before_an_answer_that_begins_first() {
    let (handler, heard) = begins_then_reads();
    let dispatch = Dispatch::default();
    let server = builder().handle(listener(), dispatch, handler).unwrap();
    assert_is_asked_for_first(&server, &heard);
}

#[test]
fn a_body_is_asked_for_before_an_answer_that_begins_in_place() {
    let heard = Arc::new(Barrier::new(2));
    let hears = Arc::clone(&heard);
    let server = in_place(move |mut exchange: Exchange| {
        exchange.start(Response::new(())).unwrap();
        let heard = Arc::clone(&heard);
        thread::spawn(move || {
            heard.wait();
            let body = exchange.read_to_end(100).unwrap();
            exchange.write_bytes(body).unwrap();
            exchange.finish().unwrap();
        });
    });
    assert_is_asked_for_first(&server, &|| {
        hears.wait();
    });
}

#[test]
fn a_body_is_asked_for_before_an_answer_from_the_queue() {
    let (handler, heard) = begins_then_reads();
    let (server, queue) = builder().queue(listener()).unwrap();
    let takes = thread::spawn(move || {
        while let Ok(taken) = queue.take(16, None) {
            taken.into_iter().for_each(&handler);
        }
    });
    assert_is_asked_for_first(&server, &heard);
    takes.join().unwrap();
}

#[test]
fn a_body_is_asked_for_before_an_answer_of_a_service_that_is_made_of_it() {
    let service = service_fn(|request: Request<Body>| async move {
        Ok::<_, Infallible>(Response::new(request.into_body()))
    });
    let server = builder().serve(listener(), service).unwrap();
    assert_is_asked_for_first(&server, &|| ());
}

#[test]
fn a_body_that_nobody_wants_is_not_asked_for() {
    let refused = || {
        let mut response = Response::new(Bytes::from_static(b"no"));
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        response
    };
    let handler = move |exchange: Exchange| exchange.reply(refused()).unwrap();
    let service =
        service_fn(
            move |_: Request<Body>| async move { Ok::<_, Infallible>(refused().map(Full::new)) },
        );
    for server in [
        builder()
            .handle(listener(), Dispatch::default(), handler)
            .unwrap(),
        in_place(handler),
        builder().serve(listener(), service).unwrap(),
    ] {
        let mut client = Client::connect(addr(&server));
        client.send(waits(10));
        let answer = client.answer();
        assert_eq!((answer.status, answer.text()), (413, "no"));
        assert!(answer.closes());
        client.assert_ended();
        assert_balanced(&stop(&server).unwrap());
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.build().unwrap().block_on(future)
}

/// What a service has seen of a body that does not come to its end.
type Seen = (Result<Bytes, Error>, Result<Bytes, Error>);

/// A service that reads its body twice, and tells what came of that.
fn reads_twice() -> (Server, mpsc::Receiver<()>, mpsc::Receiver<Seen>) {
    let (begun, begins) = mpsc::channel();
    let (tell, seen) = mpsc::channel();
    let service = service_fn(move |request: Request<Body>| {
        let (begun, tell) = (begun.clone(), tell.clone());
        async move {
            let mut body = request.into_body();
            let first = body.frame().await.unwrap().unwrap();
            assert_eq!(first.into_data().unwrap(), "he");
            begun.send(()).unwrap();
            let mut read = async || (&mut body).collect().await.map(Collected::to_bytes);
            let seen = (read().await, read().await);
            tell.send(seen).unwrap();
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"read"))))
        }
    });
    let server = builder().serve(listener(), service).unwrap();
    (server, begins, seen)
}

#[test]
fn a_service_learns_why_its_body_does_not_come_however_often_it_asks() {
    let chunks = head("Transfer-Encoding: chunked") + "2\r\nhe\r\n";
    let known = head("Content-Length: 5") + "he";
    for (request, more) in [
        (&chunks, Some("3\r\nllo\r\n0\r\n\r\n")),
        (&known, Some("llo")),
        (&chunks, Some("x")),
        (&chunks, None),
        (&known, None),
    ] {
        let (server, begins, seen) = reads_twice();
        let mut client = Client::connect(addr(&server));
        client.send(request);
        begins.recv().unwrap();
        match more {
            Some(more) => client.send(more),
            None => client.socket().shutdown(Shutdown::Write).unwrap(),
        }
        let (first, again) = seen.recv().unwrap();
        match more {
            Some("x") => {
                assert!(matches!(first, Err(Error::BadBody)), "{first:?}");
                assert!(matches!(again, Err(Error::BadBody)), "{again:?}");
            }
            Some(_) => assert_eq!(
                (first.unwrap(), again.unwrap()),
                ("llo".into(), Bytes::new())
            ),
            None => {
                assert!(matches!(first, Err(Error::Gone)), "{first:?}");
                assert!(matches!(again, Err(Error::Gone)), "{again:?}");
            }
        }
        assert_balanced(&stop(&server).unwrap());
    }
}

#[test]
fn a_body_that_nobody_reads_or_drops_holds_up_no_stop() {
    for ((length, sent), has_left) in [5, 100_000]
        .into_iter()
        .flat_map(|length| [(length, ""), (length, "he")])
        .flat_map(|case| [(case, true), (case, false)])
    {
        let (give, given) = mpsc::channel();
        let service = service_fn(move |request: Request<Body>| {
            give.send(request.into_body()).unwrap();
            async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"kept")))) }
        });
        let server = builder().serve(listener(), service).unwrap();
        let mut client = Client::connect(addr(&server));
        client.send(head(&format!("Content-Length: {length}")) + sent);
        let answer = client.answer();
        // Nobody knows whether it will be read.
        assert_eq!((answer.text(), answer.closes()), ("kept", true));
        let client = (!has_left).then_some(client);
        assert_balanced(&stop(&server).unwrap());
        drop(client);
        let mut body = given.recv().unwrap();
        let mut frames = Vec::new();
        let end = block_on(async {
            loop {
                match body.frame().await {
                    Some(Ok(frame)) => frames.push(frame.into_data().unwrap()),
                    end => break end,
                }
            }
        });
        assert!(matches!(end, Some(Err(Error::Gone))), "{end:?}");
        assert!(sent.as_bytes().starts_with(&frames.concat()), "{frames:?}");
    }
}

#[test]
fn a_kill_ends_the_body_of_a_service() {
    // The service's own future is dropped by a kill: so the body is read elsewhere.
    let (begun, begins) = mpsc::channel();
    let (tell, seen) = mpsc::channel();
    let service = service_fn(move |request: Request<Body>| {
        let (begun, tell) = (begun.clone(), tell.clone());
        thread::spawn(move || {
            block_on(async {
                let mut body = request.into_body();
                begun.send(()).unwrap();
                tell.send(body.frame().await.map(|frame| frame.map(|_| ())))
                    .unwrap();
            });
        });
        std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>()
    });
    let server = builder().serve(listener(), service).unwrap();
    let mut client = Client::connect(addr(&server));
    client.send(head("Content-Length: 5"));
    begins.recv().unwrap();
    server.kill_begin();
    let end = seen.recv().unwrap();
    assert!(matches!(end, Some(Err(Error::Killed(_)))), "{end:?}");
    assert!(matches!(stop(&server), Err(Error::Killed(_))));
}

#[test]
fn a_body_can_be_made_of_bytes() {
    block_on(async {
        for (body, expected) in [
            (Body::default(), ""),
            (Body::from(""), ""),
            (Body::from("text"), "text"),
            (Body::from("text".to_owned()), "text"),
            (Body::from(b"bytes".as_slice()), "bytes"),
            (Body::from(b"bytes".to_vec()), "bytes"),
            (Body::from(Bytes::from_static(b"bytes")), "bytes"),
        ] {
            assert_eq!(body.is_end_stream(), expected.is_empty());
            assert_eq!(body.size_hint().exact(), Some(expected.len() as u64));
            assert_eq!(body.collect().await.unwrap().to_bytes(), expected);
        }
    });
}

/// Short bodies that do not come occupy no handler. Long ones do, but another thread then takes its turn.
#[test]
fn clients_that_stall_keep_no_handler_from_others() {
    const THREADS: usize = 2;
    let (begun, failed) = (Journal::new(), Journal::new());
    let (begins, fails) = (begun.clone(), failed.clone());
    let handler = move |mut exchange: Exchange| {
        begins.write(());
        match exchange.read_to_end(1 << 20) {
            Ok(_) => drop(reply(exchange, "hello")),
            Err(why) => fails.write(format!("{why:?}")),
        }
    };
    let server = Server::builder()
        .idle_grace(Duration::from_millis(5))
        .body_timeout(Duration::from_millis(500))
        .handle(
            listener(),
            Dispatch::Pool(THREADS.try_into().unwrap()),
            handler,
        )
        .unwrap();
    let stall = |head: &str| {
        let mut client = Client::connect(addr(&server));
        client.send(head.to_owned() + "x");
        client
    };
    let short: Vec<_> = (0..2 * THREADS)
        .map(|_| stall(&head("Content-Length: 65535")))
        .collect();
    let mut other = Client::connect(addr(&server));
    other.ask("/");
    assert_eq!(other.answer().text(), "hello");
    assert_eq!(begun.all().len(), 1);
    let long: Vec<_> = (0..2 * THREADS)
        .map(|_| stall(&head("Content-Length: 65536")))
        .collect();
    begun.wait_for_count(1 + 2 * THREADS);
    other.ask("/");
    assert_eq!(other.answer().text(), "hello");
    for mut client in short.into_iter().chain(long) {
        let answer = client.answer();
        assert_eq!(answer.status, 408);
        assert!(answer.closes());
    }
    assert_eq!(failed.all(), vec!["TooSlow".to_owned(); 2 * THREADS]);
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.timed_out, report.served), (4 * THREADS as u64, 2));
    assert_eq!(report.conns_timed_out, 4 * THREADS as u64);
}
