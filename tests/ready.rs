//! What happens to a request, and how its handler learns of that: without a thread that waits for it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper that fails fails its test"
)]

mod common;

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Response};
use httpdown::{Dispatch, Error, Exchange, QueueItem, Ready, Result, Server};

use common::{
    Bump, Client, Gate, Journal, Recorder, addr, assert_balanced, builder, each_way, listener,
    reply, stop, wait_for_report,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";

/// An exchange that its own callbacks use.
#[derive(Clone)]
struct Shared(Arc<Mutex<Option<Exchange>>>);

impl Shared {
    fn new(exchange: Exchange) -> Self {
        Self(Arc::new(Mutex::new(Some(exchange))))
    }

    fn with<T>(&self, f: impl FnOnce(&mut Exchange) -> T) -> T {
        f(self.0.lock().unwrap().as_mut().unwrap())
    }

    fn take(&self) -> Exchange {
        self.0.lock().unwrap().take().unwrap()
    }
}

/// Sends back what comes, driven by callbacks alone.
fn echo(exchange: &Shared, mut waiting: Vec<u8>) {
    loop {
        if waiting.is_empty() {
            match exchange.with(|exchange| exchange.read_by(8192, Some(Instant::now()))) {
                Ok(piece) if piece.is_empty() => return exchange.take().finish().unwrap(),
                Ok(piece) => waiting = piece.to_vec(),
                Err(Error::WouldBlock) => break,
                Err(why) => panic!("{why}"),
            }
        }
        match exchange.with(|exchange| exchange.write_by(&waiting, Some(Instant::now()))) {
            Ok(taken) => drop(waiting.drain(..taken)),
            Err(Error::WouldBlock) => break,
            Err(why) => panic!("{why}"),
        }
    }
    let wanted = if waiting.is_empty() {
        Ready::READABLE
    } else {
        Ready::WRITABLE
    };
    let again = exchange.clone();
    exchange.with(|exchange| exchange.notify(wanted, move |_| echo(&again, waiting)));
}

#[test]
fn any_number_of_slow_clients_is_served_without_a_thread_for_each() {
    for dispatch in [Dispatch::Inline, Dispatch::Pool(1.try_into().unwrap())] {
        let server = builder()
            .handle(listener(), dispatch, |mut exchange: Exchange| {
                exchange.start(Response::new(())).unwrap();
                echo(&Shared::new(exchange), Vec::new());
            })
            .unwrap();
        let mut clients: Vec<_> = (0..20).map(|_| Client::connect(addr(&server))).collect();
        for client in &mut clients {
            client.send(POST);
            assert_eq!(client.try_head().unwrap().status, 200);
        }
        for round in ["5\r\nhello\r\n", "6\r\n world\r\n"] {
            for client in &mut clients {
                client.send(round);
            }
            for client in &mut clients {
                let sent = round.split("\r\n").nth(1).unwrap();
                assert_eq!(client.try_chunk().unwrap().unwrap(), sent.as_bytes());
            }
        }
        // One that takes nothing for a while holds up nobody, and loses nothing.
        let mut large = Client::connect(addr(&server));
        let mut sends = large.socket().try_clone().map(Client::from).unwrap();
        large.send(POST);
        assert_eq!(large.try_head().unwrap().status, 200);
        let sender = thread::spawn(move || {
            for _ in 0..1_000 {
                sends.send("2000\r\n");
                sends.send(vec![b'x'; 0x2000]);
                sends.send("\r\n");
            }
            sends.send("0\r\n\r\n");
        });
        for client in &mut clients {
            client.send("0\r\n\r\n");
            assert_eq!(client.try_chunk().unwrap(), None);
        }
        let mut length = 0;
        while let Some(chunk) = large.try_chunk().unwrap() {
            length += chunk.len();
        }
        assert_eq!(length, 1_000 * 0x2000);
        sender.join().unwrap();
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!(report.served, 21);
    }
}

/// A server whose handler gives each request away.
fn giving() -> (Server, mpsc::Receiver<Exchange>) {
    let (give, given) = mpsc::channel();
    let handler = move |exchange: Exchange| give.send(exchange).unwrap();
    let server = builder()
        .handle(listener(), Dispatch::default(), handler)
        .unwrap();
    (server, given)
}

#[test]
fn a_client_that_leaves_is_told_of_once_and_not_after_the_end() {
    let (server, given) = giving();
    let told = Journal::new();
    for ends_first in [false, true] {
        let mut client = Client::connect(addr(&server));
        client.send(GET);
        let mut exchange = given.recv().unwrap();
        let tells = told.clone();
        exchange.notify(Ready::NONE, move |ready| tells.write(ready));
        if ends_first {
            reply(exchange, "hello").unwrap();
            assert_eq!(client.answer().text(), "hello");
            client.reset();
        } else {
            client.reset();
            told.wait_for_count(1);
            assert!(matches!(exchange.cancelled(), Some(Error::Gone)));
            // Who asks when the connection has ended is told, too.
            let (tell, again) = mpsc::channel();
            exchange.notify(Ready::READABLE, move |ready| tell.send(ready).unwrap());
            assert!(again.recv().unwrap().contains(Ready::GONE));
        }
    }
    assert_balanced(&stop(&server).unwrap());
    assert_eq!(told.all(), [Ready::GONE]);
}

#[test]
fn a_client_that_closes_its_side_has_left_only_if_the_host_says_so() {
    for aborts in [false, true] {
        let (give, given) = mpsc::channel();
        let handler = move |exchange: Exchange| give.send(exchange).unwrap();
        let server = builder()
            .abort_on_close(aborts)
            .handle(listener(), Dispatch::default(), handler)
            .unwrap();
        let mut client = Client::connect(addr(&server));
        // A request behind the first hides the end.
        client.send(GET.repeat(2));
        let mut first = given.recv().unwrap();
        let told = Journal::new();
        let tells = told.clone();
        first.notify(Ready::NONE, move |ready| tells.write(ready));
        client.half_close();
        reply(first, "first").unwrap();
        assert_eq!(client.answer().text(), "first");
        let mut second = given.recv().unwrap();
        let tells = told.clone();
        second.notify(Ready::NONE, move |ready| tells.write(ready));
        if aborts {
            told.wait_for_count(1);
            assert_eq!(told.all(), [Ready::GONE]);
            assert!(matches!(reply(second, "second"), Err(Error::Gone)));
        } else {
            reply(second, "second").unwrap();
            assert_eq!(client.answer().text(), "second");
        }
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!(report.gone, u64::from(aborts));
    }
}

#[test]
fn a_kill_is_told() {
    let (server, given) = giving();
    let mut client = Client::connect(addr(&server));
    client.send(GET);
    let mut exchange = given.recv().unwrap();
    let (tell, told) = mpsc::channel();
    exchange.notify(Ready::READABLE, move |ready| tell.send(ready).unwrap());
    // Without a body, reading gives its end at once.
    assert_eq!(told.recv().unwrap(), Ready::READABLE);
    let (tell, told) = mpsc::channel();
    exchange.notify(Ready::NONE, move |ready| tell.send(ready).unwrap());
    server.kill_begin();
    assert_eq!(told.recv().unwrap(), Ready::GONE);
    assert!(matches!(exchange.cancelled(), Some(Error::Killed(_))));
    drop(exchange);
    let _ = server.wait_blocking(None);
}

#[test]
fn another_order_replaces_the_one_before() {
    let (server, given) = giving();
    let mut client = Client::connect(addr(&server));
    client.send(POST);
    let mut exchange = given.recv().unwrap();
    let told = Journal::new();
    for number in 0..3 {
        let tells = told.clone();
        exchange.notify(Ready::READABLE, move |_| tells.write(number));
    }
    client.send("1\r\na\r\n");
    told.wait_for_count(1);
    assert_eq!(exchange.read_bytes(10).unwrap(), "a");
    reply(exchange, "hello").unwrap();
    assert_eq!(client.answer().text(), "hello");
    assert_balanced(&stop(&server).unwrap());
    assert_eq!(told.all(), [2]);
}

/// To end an exchange waits for a callback on another thread, and a callback may end its own exchange.
#[test]
fn nothing_is_told_after_the_end() {
    let (server, given) = giving();
    for _ in 0..50 {
        let mut client = Client::connect(addr(&server));
        client.send(POST);
        let mut exchange = given.recv().unwrap();
        let (entered, ended) = (Journal::new(), Journal::new());
        let (enters, ends) = (entered.clone(), ended.clone());
        exchange.notify(Ready::READABLE, move |_| {
            enters.write(());
            thread::yield_now();
            ends.write(());
        });
        client.send("0\r\n\r\n");
        entered.wait_for_count(1);
        reply(exchange, "hello").unwrap();
        assert_eq!(ended.all().len(), 1);
        assert_eq!(client.answer().text(), "hello");
    }
    let mut client = Client::connect(addr(&server));
    client.send(POST);
    let shared = Shared::new(given.recv().unwrap());
    let own = shared.clone();
    let end = move |_| reply(own.take(), "from within").unwrap();
    shared.with(|exchange| exchange.notify(Ready::READABLE, end));
    client.send("0\r\n\r\n");
    assert_eq!(client.answer().text(), "from within");
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn a_callback_that_panics_ends_nothing() {
    let (server, given) = giving();
    let mut client = Client::connect(addr(&server));
    client.send(POST);
    let mut exchange = given.recv().unwrap();
    let (tell, told) = mpsc::channel::<()>();
    exchange.notify(Ready::READABLE, move |_| {
        let _tell = tell;
        panic!("on purpose");
    });
    client.send("0\r\n\r\n");
    told.recv().unwrap_err();
    reply(exchange, "hello").unwrap();
    assert_eq!(client.answer().text(), "hello");
    assert_balanced(&stop(&server).unwrap());
}

/// Streams that end when they are told to: all of them whole, and one after the other.
#[test]
fn streams_end_at_a_stop_spread_over_a_time() {
    const STREAMS: u32 = 200;
    const RATE: u32 = 400;
    let ended = Journal::new();
    let ends = ended.clone();
    let handler = move |mut exchange: Exchange| {
        exchange.start(Response::new(())).unwrap();
        exchange.write(b"data: 1\n\n").unwrap();
        let shared = Shared::new(exchange);
        let (own, ends) = (shared.clone(), ends.clone());
        let end = move |ready: Ready| {
            assert_eq!(ready, Ready::DRAINING);
            ends.write(Instant::now());
            let mut exchange = own.take();
            exchange.write(b"data: bye\n\n").unwrap();
            exchange.finish().unwrap();
        };
        shared.with(|exchange| exchange.notify(Ready::DRAINING, end));
    };
    let server = builder()
        .drain_rate((RATE as usize).try_into().unwrap())
        .handle(listener(), Dispatch::Inline, handler)
        .unwrap();
    let mut clients: Vec<_> = (0..STREAMS)
        .map(|_| Client::get(addr(&server), "/"))
        .collect();
    for client in &mut clients {
        assert_eq!(client.try_head().unwrap().status, 200);
        assert_eq!(client.try_chunk().unwrap().unwrap(), b"data: 1\n\n");
    }
    let begun = Instant::now();
    let report = stop(&server).unwrap();
    for client in &mut clients {
        assert_eq!(client.try_chunk().unwrap().unwrap(), b"data: bye\n\n");
        assert_eq!(client.try_chunk().unwrap(), None);
    }
    assert_balanced(&report);
    assert_eq!(report.served, u64::from(STREAMS));
    // None ends before its turn.
    let mut moments = ended.all();
    moments.sort();
    for (turn, moment) in (0..).zip(moments) {
        let soonest = begun + Duration::from_secs(1) * turn / RATE;
        assert!(moment + Duration::from_millis(2) >= soonest, "{turn}");
    }
}

/// One thread, one queue, any number of requests: those that come, and what happens to them.
#[test]
fn a_queue_tells_what_happens() {
    let (server, queue) = builder().queue(listener()).unwrap();
    let address = addr(&server);
    let looks = queue.clone();
    let service = thread::spawn(move || -> Result<()> {
        let mut open: Vec<Option<Exchange>> = Vec::new();
        let mut told = Vec::new();
        loop {
            for item in looks.take_all(8, None)? {
                match item {
                    QueueItem::Request(mut exchange) => {
                        looks.notify(&mut exchange, Ready::READABLE, open.len() as u128);
                        open.push(Some(exchange));
                    }
                    QueueItem::StreamReady { .. } => unreachable!("nobody has upgraded"),
                    QueueItem::Ready { token, ready } => {
                        told.push((token, ready));
                        let at = usize::try_from(token).unwrap();
                        let mut exchange = open[at].take().unwrap();
                        match exchange.read_by(100, Some(Instant::now())) {
                            Ok(piece) => reply(exchange, piece)?,
                            Err(Error::WouldBlock) => {
                                looks.notify(&mut exchange, Ready::READABLE, token);
                                open[at] = Some(exchange);
                            }
                            // It has left.
                            Err(_) => {}
                        }
                    }
                }
            }
        }
    });
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(address.clone())).collect();
    for client in &mut clients {
        client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n");
    }
    let leaver = clients.pop().unwrap();
    for client in clients.iter_mut().rev() {
        client.send("hello");
        assert_eq!(client.answer().text(), "hello");
    }
    leaver.reset();
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.gone), (19, 1));
    // The queue ends when nothing more can happen.
    assert!(matches!(service.join().unwrap(), Err(Error::Stopped)));
}

#[test]
fn the_queue_does_not_end_while_something_can_still_happen() {
    let (server, queue) = builder().queue(listener()).unwrap();
    let mut client = Client::connect(addr(&server));
    client.send(POST);
    let mut exchange = queue.take(1, None).unwrap().remove(0);
    queue.notify(&mut exchange, Ready::NONE, 7);
    server.kill_begin();
    let items = queue.take_all(8, None).unwrap();
    assert!(
        matches!(
            items[..],
            [QueueItem::Ready {
                token: 7,
                ready: Ready::GONE
            }]
        ),
        "{items:?}"
    );
    assert!(matches!(queue.take_all(8, None), Err(Error::Stopped)));
    drop(exchange);
    let _ = server.wait_blocking(None);
}

/// Who waits for the whole body is not told of the part that is there again and again.
#[test]
fn whoever_waits_for_the_whole_body_is_told_when_more_of_it_comes() {
    let (server, queue) = builder().queue(listener()).unwrap();
    let mut client = Client::connect(addr(&server));
    client.send(POST.to_owned() + "1\r\na\r\n");
    let mut exchange = queue.take(1, None).unwrap().remove(0);
    let mut told = 0;
    for more in ["1\r\nb\r\n", "0\r\n\r\n"] {
        loop {
            let body = exchange.read_to_end_by(100, Some(Instant::now()));
            assert!(matches!(body, Err(Error::WouldBlock)), "{body:?}");
            queue.notify(&mut exchange, Ready::READABLE, 0);
            let soon = Instant::now() + Duration::from_millis(20);
            match queue.take_all(1, Some(soon)) {
                Ok(_) => told += 1,
                Err(Error::WouldBlock) => break,
                Err(why) => panic!("{why}"),
            }
        }
        client.send(more);
        assert_eq!(queue.take_all(1, None).unwrap().len(), 1);
    }
    // The first bytes may have come after the first look.
    assert!(told <= 3, "{told}");
    while exchange.read_to_end_by(100, Some(Instant::now())).is_err() {
        queue.notify(&mut exchange, Ready::READABLE, 0);
        queue.take_all(1, None).unwrap();
    }
    reply(exchange, "hello").unwrap();
    assert_eq!(client.answer().text(), "hello");
    assert_balanced(&stop(&server).unwrap());
}

/// Even one at a time, requests that come get their turn beside those that something happens to.
#[test]
fn requests_get_their_turn_beside_what_happens() {
    let (server, queue) = builder().queue(listener()).unwrap();
    let mut first = Client::connect(addr(&server));
    first.send(POST.to_owned() + "1\r\na\r\n");
    let mut exchange = queue.take(1, None).unwrap().remove(0);
    let mut second = Client::connect(addr(&server));
    second.send(GET);
    let other = loop {
        queue.notify(&mut exchange, Ready::WRITABLE, 0);
        if let Some(QueueItem::Request(other)) = queue.take_all(1, None).unwrap().pop() {
            break other;
        }
    };
    reply(other, "second").unwrap();
    assert_eq!(second.answer().text(), "second");
    reply(exchange, "first").unwrap();
    assert_eq!(first.answer().text(), "first");
    assert_balanced(&stop(&server).unwrap());
}

/// What happens to a request does not go to a thread that takes only requests.
#[test]
fn who_takes_only_requests_keeps_nothing_from_others() {
    for _ in 0..20 {
        let (server, queue) = builder().queue(listener()).unwrap();
        let mut client = Client::connect(addr(&server));
        client.send(POST);
        let mut exchange = queue.take(1, None).unwrap().remove(0);
        queue.notify(&mut exchange, Ready::READABLE, 7);
        let (all, requests) = (queue.clone(), queue.clone());
        let told = thread::spawn(move || all.take_all(1, None).unwrap());
        let taken = thread::spawn(move || requests.take(1, None));
        // Mostly both are asleep by then, in either order.
        thread::yield_now();
        client.send("1\r\na\r\n");
        let told = told.join().unwrap();
        assert!(matches!(told[..], [QueueItem::Ready { token: 7, .. }]));
        reply(exchange, "hello").unwrap();
        assert_eq!(client.answer().text(), "hello");
        assert_balanced(&stop(&server).unwrap());
        assert!(matches!(taken.join().unwrap(), Err(Error::Stopped)));
    }
}

#[test]
fn a_write_takes_a_part() {
    let (server, given) = giving();
    let mut client = Client::connect(addr(&server));
    client.send(GET);
    let mut exchange = given.recv().unwrap();
    let bytes = vec![b'x'; 1 << 20];
    assert!(matches!(
        exchange.write_by(&bytes, Some(Instant::now())),
        Err(Error::InvalidArgument(_))
    ));
    exchange.start(Response::new(())).unwrap();
    assert_eq!(exchange.write_by(b"", Some(Instant::now())).unwrap(), 0);
    let mut written = 0;
    loop {
        // With some time, because the connection is not done when there was no room.
        let soon = Instant::now() + Duration::from_millis(20);
        match exchange.write_by(&bytes, Some(soon)) {
            Ok(0) => panic!("nothing is no part"),
            Ok(taken) => written += taken,
            Err(Error::WouldBlock) => break,
            Err(why) => panic!("{why}"),
        }
        assert!(
            written < 64 << 20,
            "what is not taken must not wait in memory"
        );
    }
    // There may be a little room, for which nobody is woken.
    while let Ok(taken) = exchange.write_by(&bytes, Some(Instant::now())) {
        written += taken;
    }
    let reader = thread::spawn(move || {
        assert_eq!(client.try_head().unwrap().status, 200);
        let mut length = 0;
        while let Some(chunk) = client.try_chunk().unwrap() {
            length += chunk.len();
        }
        length
    });
    // Without a deadline, all of it.
    assert_eq!(exchange.write_by(&bytes, None).unwrap(), bytes.len());
    exchange.finish().unwrap();
    assert_eq!(reader.join().unwrap(), written + bytes.len());
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn trailers_go_both_ways() {
    let (server, given) = giving();
    let mut client = Client::connect(addr(&server));
    client.send(
        "POST / HTTP/1.1\r\nHost: test\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n\
         1\r\na\r\n0\r\nX-Sum: 1\r\nX-Sum: 2\r\n\r\n",
    );
    let mut exchange = given.recv().unwrap();
    assert!(exchange.trailers().is_empty());
    assert_eq!(exchange.read_to_end(10).unwrap(), "a");
    let sums: Vec<_> = exchange.trailers().get_all("x-sum").iter().collect();
    assert_eq!(sums, ["1", "2"]);
    let mut trailers = HeaderMap::new();
    let sum = HeaderName::from_static("x-sum");
    trailers.insert(&sum, HeaderValue::from_static("3"));
    assert!(matches!(
        exchange.set_trailers(trailers.clone()),
        Err(Error::InvalidArgument(_))
    ));
    let response = Response::builder().header("Trailer", "X-Sum");
    exchange.start(response.body(()).unwrap()).unwrap();
    exchange.write(b"b").unwrap();
    exchange.set_trailers(trailers).unwrap();
    exchange.finish().unwrap();
    client.half_close();
    let text = String::from_utf8(client.until_end().unwrap()).unwrap();
    assert!(text.ends_with("1\r\nb\r\n0\r\nx-sum: 3\r\n\r\n"), "{text}");
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.served, 1);
}

#[tokio::test]
async fn a_task_waits_for_whatever_comes_first() {
    let (server, given) = giving();
    let mut client = Client::connect(addr(&server));
    client.send(POST);
    let mut exchange = given.recv().unwrap();
    let (tell, told) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        let ready = exchange.ready(Ready::READABLE | Ready::DRAINING).await;
        assert_eq!(ready, Ready::READABLE);
        assert_eq!(exchange.read_by(9, Some(Instant::now())).unwrap(), "a");
        tell.send(()).unwrap();
        let ready = exchange.ready(Ready::READABLE | Ready::DRAINING).await;
        assert_eq!(ready, Ready::DRAINING);
        reply(exchange, "draining").unwrap();
    });
    client.send("1\r\na\r\n");
    told.await.unwrap();
    let stopped = tokio::task::spawn_blocking(move || stop(&server).unwrap());
    task.await.unwrap();
    assert_eq!(client.answer().text(), "draining");
    drop(client);
    assert_balanced(&stopped.await.unwrap());
}

/// A handler timeout that passes in each of these tests.
const SHORT: Duration = Duration::from_millis(100);

#[test]
fn a_request_that_is_overdue_is_told_counted_logged_and_still_served() {
    let (recorder, bumps) = Recorder::new();
    let (lines, records) = (Journal::new(), Journal::new());
    let (logs, tells) = (lines.clone(), records.clone());
    let (give, given) = mpsc::channel();
    let handler = move |exchange: Exchange| give.send(exchange).unwrap();
    let server = builder()
        .handler_timeout(SHORT)
        .stats(recorder)
        .on_log(move |level, line: &str| logs.write(format!("{level:?} {line}")))
        .on_done(move |record| tells.write((record.target().to_owned(), record.overdue)))
        .handle(listener(), Dispatch::default(), handler)
        .unwrap();
    let mut client = Client::connect(addr(&server));
    for target in ["/slow?a", "/slow?b"] {
        client.ask(target);
        let mut exchange = given.recv().unwrap();
        let (tell, told) = mpsc::channel();
        exchange.notify(Ready::OVERDUE, move |ready| tell.send(ready).unwrap());
        assert_eq!(told.recv().unwrap(), Ready::OVERDUE);
        assert!(exchange.is_overdue() && exchange.cancelled().is_none());
        reply(exchange, target).unwrap();
        assert_eq!(client.answer().text(), target);
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.overdue), (2, 2));
    let told = ["/slow?a", "/slow?b"].map(|target| (target.into(), true));
    assert_eq!(records.all(), told);
    let is_overdue = |bump: &&Bump| bump.0 == "sum handler.overdue";
    assert_eq!(bumps.all().iter().filter(is_overdue).count(), 2);
    // The log says it once a minute.
    let line = "Warning a request is overdue (handler_timeout): GET /slow?a";
    assert_eq!(lines.all(), [line]);
}

#[test]
fn a_handler_that_blocks_sees_that_it_is_overdue_and_is_counted() {
    let handler = |exchange: Exchange| {
        while !exchange.is_overdue() {
            assert!(exchange.cancelled().is_none());
            thread::yield_now();
        }
        reply(exchange, "a part").unwrap();
    };
    for server in each_way(|| builder().handler_timeout(SHORT), handler) {
        let mut client = Client::get(addr(&server), "/");
        assert_eq!(client.answer().text(), "a part");
        // It was counted before it was answered.
        assert_eq!(server.report().overdue, 1);
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!((report.served, report.overdue), (1, 1));
    }
}

#[test]
fn a_handler_that_blocks_its_io_thread_is_counted_meanwhile_if_there_is_another() {
    let gate = Gate::new();
    let _open_at_end = gate.open_at_end();
    let passes = gate.clone();
    let handler = move |exchange: Exchange| {
        passes.pass();
        reply(exchange, "hello").unwrap();
    };
    let server = builder()
        .io_threads(2.try_into().unwrap())
        .handler_timeout(SHORT)
        .handle(listener(), Dispatch::Inline, handler)
        .unwrap();
    let mut client = Client::get(addr(&server), "/");
    wait_for_report(&server, |report| report.overdue == 1);
    gate.open();
    assert_eq!(client.answer().text(), "hello");
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.served, report.overdue), (1, 1));
}

#[tokio::test]
async fn a_task_is_told_that_its_request_is_overdue() {
    let (give, given) = mpsc::channel();
    let server = builder()
        .handler_timeout(SHORT)
        .handle(listener(), Dispatch::Inline, move |exchange: Exchange| {
            give.send(exchange).unwrap();
        })
        .unwrap();
    let mut client = Client::get(addr(&server), "/");
    let mut exchange = given.recv().unwrap();
    assert_eq!(exchange.ready(Ready::OVERDUE).await, Ready::OVERDUE);
    // It stays so, like all that has happened.
    let ready = exchange.ready(Ready::OVERDUE | Ready::DRAINING).await;
    assert_eq!(ready, Ready::OVERDUE);
    reply(exchange, "late").unwrap();
    assert_eq!(client.answer().text(), "late");
    drop(client);
    let stopped = tokio::task::spawn_blocking(move || stop(&server).unwrap());
    assert_balanced(&stopped.await.unwrap());
}

#[test]
fn a_request_that_is_overdue_at_once_makes_no_sense() {
    let refused = builder().handler_timeout(Duration::ZERO).handle(
        listener(),
        Dispatch::default(),
        |exchange: Exchange| {
            drop(exchange);
        },
    );
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("handler_timeout is 0"), "{why}");
}
