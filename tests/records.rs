//! What the host is told of each request when it has ended.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper that fails fails its test"
)]

mod common;

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use http::{Response, StatusCode, Version};
use httpdown::{
    Body, Builder, Dispatch, Error, Event, Exchange, Report, RequestEnd, RequestRecord, Server,
};
use hyper::service::service_fn;

use common::{
    Client, Gate, Journal, addr, assert_balanced, builder, each_way, hello, listener, reply,
    rest_of_events, serve_upgrades, stop, tcp_listener, wait, wait_for_report,
};

/// Has everything that is told written into the journal.
fn recorded(builder: Builder) -> (Builder, Journal<RequestRecord>) {
    let journal = Journal::new();
    let written = journal.clone();
    let builder = builder.on_done(move |record| written.write(record.clone()));
    (builder, journal)
}

fn ends(records: &[RequestRecord]) -> [u64; 5] {
    let mut ends = [0; 5];
    for record in records {
        ends[record.end as usize] += 1;
    }
    ends
}

/// The columns of requests, in the order of [`RequestEnd`].
fn columns(report: &Report) -> [u64; 5] {
    [
        report.served,
        report.failed,
        report.gone,
        report.timed_out,
        report.killed,
    ]
}

/// What is told is what the report says. Returns it.
fn assert_told(server: &Server, journal: &Journal<RequestRecord>) -> Vec<RequestRecord> {
    let report = server.report();
    assert_balanced(&report);
    server.clone().close();
    let records = journal.all();
    assert_eq!(ends(&records), columns(&report), "{records:?}, {report:?}");
    records
}

/// The moments of a record that were noted are in order.
fn assert_in_order(record: &RequestRecord) {
    let moments = [
        record.head,
        record.called,
        record.answered,
        record.flushed,
        record.acknowledged,
        Some(record.ended),
    ];
    let moments: Vec<_> = moments.into_iter().flatten().collect();
    assert!(moments.is_sorted(), "{moments:?}");
}

#[test]
fn a_record_tells_what_was_asked_and_answered() {
    let before = SystemTime::now();
    let journal = Journal::new();
    let builder = || {
        let written = journal.clone();
        builder().on_done(move |record| written.write(record.clone()))
    };
    let echo = |mut exchange: Exchange| {
        let body = exchange.read_to_end(1 << 20).unwrap_or_default();
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::CREATED;
        let _ = exchange.reply(response);
    };
    for server in each_way(builder, echo) {
        let mut client = Client::connect(addr(&server));
        client.send(
            b"POST /a?b HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nReferer: r\xe9f\r\nUser-Agent: \"curl\"\r\n\r\n\
              hello",
        );
        assert_eq!(client.answer().text(), "hello");
        client.send("HEAD /c HTTP/1.0\r\n\r\n");
        assert_eq!(client.try_head().unwrap().status, 201);
        journal.wait_for(|record| record.target() == "/c");
        let name = client.name();
        stop(&server).unwrap();
        server.close();
        let records = journal.all();
        let [post, head] = &records[records.len() - 2..] else {
            unreachable!()
        };
        assert_eq!((post.method(), post.target()), ("POST", "/a?b"));
        assert_eq!((head.method(), head.target()), ("HEAD", "/c"));
        assert_eq!(
            (post.end, head.end),
            (RequestEnd::Served, RequestEnd::Served)
        );
        assert_eq!(post.status, Some(StatusCode::CREATED));
        assert_eq!(post.version(), Some(Version::HTTP_11));
        assert_eq!(head.version(), Some(Version::HTTP_10));
        assert_eq!((post.received, post.sent), (5, 5));
        assert_eq!((head.received, head.sent), (0, 0));
        assert_eq!(post.referer(), Some(&b"r\xe9f"[..]));
        assert_eq!(post.user_agent(), Some(&b"\"curl\""[..]));
        assert_eq!((head.referer(), head.user_agent()), (None, None));
        assert_eq!((post.number(), head.number()), (1, 2));
        assert_eq!((post.conn().id, head.conn().id), (0, 0));
        assert_eq!(post.conn().peer.to_string(), name);
        assert_eq!(post.conn().is_secure(), common::tls::is_everywhere());
        for record in [post, head] {
            assert!(record.began() >= before && record.began() <= SystemTime::now());
            assert_in_order(record);
            assert!(record.head.is_some() && record.called.is_some());
            assert!(record.answered.is_some() && record.flushed.is_some());
        }
    }
}

#[test]
fn a_body_that_nobody_reads_and_one_in_chunks_are_counted_without_what_the_coding_adds() {
    let (builder, journal) = recorded(builder());
    let server = builder
        .handle(listener(), Dispatch::default(), |mut exchange: Exchange| {
            if exchange.uri().path() == "/unread" {
                let _ = reply(exchange, "");
                return;
            }
            let mut echo = || {
                exchange.start(Response::new(()))?;
                exchange.write(b"12345")?;
                exchange.write(b"6789")
            };
            echo().unwrap();
            exchange.finish().unwrap();
        })
        .unwrap();
    let mut client = Client::connect(addr(&server));
    client.send("POST /unread HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabc");
    client.answer();
    client.ask("/chunks");
    assert_eq!(client.answer().text(), "123456789");
    journal.wait_for_count(2);
    stop(&server).unwrap();
    let records = assert_told(&server, &journal);
    assert_eq!((records[0].received, records[0].sent), (3, 0));
    assert_eq!((records[1].received, records[1].sent), (0, 9));
}

#[test]
fn a_service_is_told_of_too() {
    let (builder, journal) = recorded(builder());
    let service = service_fn(|request: http::Request<Body>| async move {
        if request.uri().path() == "/fails" {
            return Err(Error::Gone);
        }
        Ok(Response::new(Body::from("hello")))
    });
    let server = builder.serve(listener(), service).unwrap();
    let mut client = Client::connect(addr(&server));
    for (path, status) in [("/", 200), ("/fails", 500)] {
        client.ask(path);
        assert_eq!(client.answer().status, status);
    }
    stop(&server).unwrap();
    let records = assert_told(&server, &journal);
    assert_eq!(ends(&records), [2, 0, 0, 0, 0]);
    assert_eq!(records[1].status, Some(StatusCode::INTERNAL_SERVER_ERROR));
    assert!(records[1].called.is_some());
}

#[test]
fn the_readiness_answer_is_told_and_bytes_that_are_no_request_are_not() {
    let (builder, journal) = recorded(builder().ready_path("/healthz"));
    let server = hello(builder, listener());
    let mut client = Client::get(addr(&server), "/healthz");
    assert_eq!(client.answer().text(), "ready\n");
    for bytes in [
        "nonsense\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ] {
        let mut client = Client::connect(addr(&server));
        client.send(bytes);
        assert_eq!(client.answer().status, 400);
    }
    stop(&server).unwrap();
    let records = assert_told(&server, &journal);
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].target(), "/healthz");
    assert_eq!(records[0].called, None);
    assert_eq!(records[0].sent, 6);
}

#[test]
fn an_upgrade_ends_when_its_answer_has_left() {
    let (builder, journal) = recorded(builder());
    let server = serve_upgrades(builder, listener(), |io| async move { drop(io) });
    let mut client = Client::connect(addr(&server));
    client.send("GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(client.try_head().unwrap().status, 101);
    client.assert_ended();
    journal.wait_for_count(1);
    stop(&server).unwrap();
    let records = assert_told(&server, &journal);
    assert_eq!(records[0].status, Some(StatusCode::SWITCHING_PROTOCOLS));
    assert_eq!((records[0].end, records[0].sent), (RequestEnd::Served, 0));
}

#[test]
fn what_fails_leaves_or_is_too_slow_is_told_as_such() {
    let (builder, journal) = recorded(builder().body_timeout(Duration::from_millis(20)));
    let gate = Gate::new();
    let _open = gate.open_at_end();
    let called = Journal::new();
    let (waits, calls) = (gate.clone(), called.clone());
    let server = builder
        .handle(
            listener(),
            Dispatch::default(),
            move |mut exchange: Exchange| match exchange.uri().path() {
                "/dies" => {
                    exchange.start(Response::new(())).unwrap();
                    exchange.write(b"half").unwrap();
                }
                "/waits" => {
                    calls.write(());
                    waits.pass();
                    let _ = reply(exchange, "late");
                }
                _ => {
                    let _ = exchange.read_to_end(100);
                }
            },
        )
        .unwrap();
    let mut client = Client::get(addr(&server), "/dies");
    assert!(client.try_answer().is_err());
    journal.wait_for_count(1);
    let client = Client::get(addr(&server), "/waits");
    called.wait_for_count(1);
    client.reset();
    wait_for_report(&server, |report| report.gone == 1);
    gate.open();
    let mut client = Client::connect(addr(&server));
    client.send("POST /reads HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nabc");
    assert_eq!(client.answer().status, 408);
    stop(&server).unwrap();
    let mut records = assert_told(&server, &journal);
    assert_eq!(ends(&records), [0, 1, 1, 1, 0]);
    records.iter().for_each(assert_in_order);
    records.sort_by_key(|record| record.end as u8);
    let [failed, gone, timed_out] = &records[..] else {
        unreachable!()
    };
    assert_eq!((failed.status, failed.sent), (Some(StatusCode::OK), 4));
    assert_eq!((failed.flushed, failed.acknowledged), (None, None));
    assert_eq!((gone.status, gone.answered), (None, None));
    assert!(gone.called.is_some());
    assert_eq!(timed_out.status, Some(StatusCode::REQUEST_TIMEOUT));
    assert_eq!(timed_out.received, 3);
}

#[test]
fn what_a_kill_cuts_or_refuses_is_told_as_killed() {
    let (builder, journal) = recorded(builder().kill_timeout(Duration::ZERO));
    let (server, queue) = builder.queue(listener()).unwrap();
    let mut taken = Client::get(addr(&server), "/taken");
    // By another thread: the one that waits for the end may hold none.
    let other = queue.clone();
    let thread = thread::spawn(move || other.take(1, None).unwrap().remove(0));
    let exchange = thread.join().unwrap();
    let mut queued = Client::get(addr(&server), "/queued");
    let mut half = Client::connect(addr(&server));
    half.send("GET /half HTTP/1.1\r\n");
    wait_for_report(&server, |report| {
        report.requests == 2 && report.conns_active == 3
    });
    server.kill_begin();
    assert_eq!(queued.answer().status, 503);
    assert!(taken.try_answer().is_err());
    assert!(half.try_answer().is_err());
    assert!(matches!(wait(&server), Err(Error::TimedOut(_))));
    let report = server.report();
    assert_eq!(report.abandoned, 1);
    drop(exchange);
    let mut records = assert_told(&server, &journal);
    assert_eq!(ends(&records), [0, 0, 0, 0, 3]);
    records.sort_by(|one, other| one.target().cmp(other.target()));
    let [half, queued, taken] = &records[..] else {
        unreachable!()
    };
    assert_eq!(
        (half.method(), half.target(), half.version()),
        ("", "", None)
    );
    assert_eq!((half.status, half.head, half.number()), (None, None, 1));
    assert!(half.common_log().to_string().contains("\"-\" 000 -"));
    assert_eq!(queued.status, Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(queued.called, None);
    assert_eq!(taken.status, None);
    assert!(taken.called.is_some());
}

#[test]
fn in_a_stop_the_acknowledgement_is_known() {
    let (builder, journal) = recorded(builder());
    let gate = Gate::new();
    let _open = gate.open_at_end();
    let waits = gate.clone();
    let server = builder
        .handle(
            tcp_listener(),
            Dispatch::default(),
            move |exchange: Exchange| {
                waits.pass();
                let _ = reply(exchange, "hello");
            },
        )
        .unwrap();
    let mut client = Client::get(addr(&server), "/");
    wait_for_report(&server, |report| report.requests == 1);
    server.stop_begin();
    wait_for_report(&server, |report| report.phase >= httpdown::Phase::Draining);
    gate.open();
    assert_eq!(client.answer().text(), "hello");
    drop(client);
    wait(&server).unwrap();
    let records = assert_told(&server, &journal);
    assert!(records[0].acknowledged.is_some(), "{records:?}");
    assert_in_order(&records[0]);
}

#[test]
fn records_can_be_pulled() {
    let server = hello(builder().pull_events(), listener());
    let mut client = Client::get(addr(&server), "/x");
    client.answer();
    stop(&server).unwrap();
    let records: Vec<_> = rest_of_events(&server)
        .into_iter()
        .filter_map(|event| match event {
            Event::Done(record) => Some(record),
            _ => None,
        })
        .collect();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].target(), "/x");
}

#[test]
fn what_a_handler_attaches_is_in_the_record_and_is_dropped_once() {
    /// Tells when it is dropped.
    struct Data(&'static str, mpsc::Sender<&'static str>);
    impl Drop for Data {
        fn drop(&mut self) {
            self.1.send(self.0).unwrap();
        }
    }
    let journal = Journal::new();
    let (dropped, drops) = mpsc::channel();
    let seen = journal.clone();
    let builder = builder().on_done(move |record| {
        let data = record.data().and_then(|data| data.downcast_ref::<Data>());
        seen.write(data.map(|data| data.0));
    });
    let server = builder
        .handle(
            listener(),
            Dispatch::default(),
            move |exchange: Exchange| {
                exchange.attach(Arc::new(Data("first", dropped.clone())));
                exchange.attach(Arc::new(Data("second", dropped.clone())));
                let _ = reply(exchange, "hello");
            },
        )
        .unwrap();
    Client::get(addr(&server), "/").answer();
    stop(&server).unwrap();
    server.close();
    assert_eq!(journal.all(), [Some("second")]);
    assert_eq!(drops.iter().collect::<Vec<_>>(), ["first", "second"]);
}

#[test]
fn records_that_nobody_takes_are_dropped_and_counted_before_they_fill_the_memory() {
    let builder = builder().max_target_size(65_000.try_into().unwrap());
    let builder = builder.max_head_size((1 << 17).try_into().unwrap());
    let server = hello(builder.pull_events(), listener());
    let mut client = Client::connect(addr(&server));
    let long = format!("GET /{} HTTP/1.1\r\nHost: test\r\n\r\n", "x".repeat(60_000));
    for _ in 0..400 {
        client.send(&long);
        client.answer();
    }
    stop(&server).unwrap();
    let told = rest_of_events(&server);
    let told = told.iter().filter(|event| matches!(event, Event::Done(_)));
    let told = told.count() as u64;
    assert!((200..300).contains(&told), "{told}");
    assert_eq!(server.report().events_dropped, 400 - told);
}

#[test]
fn a_callback_that_panics_loses_only_its_own_record() {
    let journal = Journal::new();
    let seen = journal.clone();
    let builder = builder().on_done(move |record| {
        assert!(record.target() != "/bad", "as it should");
        seen.write(record.target().to_owned());
    });
    let server = hello(builder, listener());
    let mut client = Client::connect(addr(&server));
    for path in ["/bad", "/good"] {
        client.ask(path);
        client.answer();
    }
    stop(&server).unwrap();
    server.close();
    assert_eq!(journal.all(), ["/good"]);
}
