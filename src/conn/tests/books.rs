//! What becomes of requests is counted once, whoever comes to them late.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use socket2::Socket;

use super::super::{Accepted, Conn};
use super::{Bench, Run, enter};
use crate::dispatch::{Dispatcher, RequestQueue};
use crate::phase::Phase;
use crate::report::Report;
use crate::request::Exchange;
use crate::server::Server;
use crate::shared::Shared;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const REQUESTS: usize = 20;

fn take(queue: &RequestQueue) -> Exchange {
    queue.take(1, Some(Instant::now())).unwrap().remove(0)
}

fn reply(exchange: Exchange, length: usize) {
    let body = Bytes::from(vec![b'x'; length]);
    exchange.reply(Response::new(body)).unwrap();
}

fn columns(report: &Report) -> [u64; 5] {
    [
        report.requests,
        report.served,
        report.failed,
        report.gone,
        report.killed,
    ]
}

/// A queue, and a connection whose requests go there.
fn queued(bench: &Bench) -> (RequestQueue, Run) {
    let queue = RequestQueue::new(None);
    let run = Run::start(bench, &Dispatcher::Queue(queue.clone()));
    (queue, run)
}

#[test]
fn of_the_answers_in_one_write_a_kill_has_only_those_that_it_refused() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let (queue, mut run) = queued(&bench);
        run.peer.is_reading = false;
        assert!(run.send(&GET.repeat(REQUESTS)).await);
        // Until the sockets are full: then one is answered and not written, and the next waits to be taken.
        let mut answered = 0;
        while run.shared.report().served == answered {
            answered += 1;
            reply(take(&queue), 10_000);
            run.settle().await;
        }
        let served = answered - 1;
        assert_eq!(
            columns(&run.shared.report()),
            [answered + 1, served, 0, 0, 0]
        );
        // When the client reads again, and the task wakes to write on, a kill has begun.
        let shared = Arc::clone(&run.shared);
        *run.worker.ambush.lock().unwrap() = Some(Box::new(move || {
            queue.end().for_each(Exchange::refuse);
            enter(&shared, Phase::Killing);
        }));
        // It has all that the kernel had before the task can go on: what is left has room then.
        run.peer.is_reading = true;
        run.peer.look();
        run.wait_for_delivery();
        run.catch_up().await;
        let got = String::from_utf8_lossy(&run.peer.got);
        assert!(got.contains("HTTP/1.1 503 Service Unavailable"));
        let refused = REQUESTS as u64 - answered;
        let expected = [REQUESTS as u64, answered, 0, 0, refused];
        assert_eq!(columns(&run.shared.report()), expected);
    });
}

#[test]
fn what_comes_to_a_connection_when_its_books_are_closed_is_not_counted() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let (queue, mut run) = queued(&bench);
        assert!(run.send(GET).await);
        reply(take(&queue), 1);
        assert!(run.send(GET).await);
        let exchange = take(&queue);
        assert_eq!(run.shared.registry.held(), 1);
        run.shared.registry.abandon_all();
        let closed = [2, 1, 0, 1, 0];
        assert_eq!(columns(&run.shared.report()), closed);
        // As a thread that was blocked, and goes on before the server has ended.
        reply(exchange, 1);
        run.settle().await;
        run.close(false).await;
        assert!(run.gone.is_some());
        let report = run.shared.report();
        assert_eq!(columns(&report), closed);
        assert_eq!((report.conns_gone, report.conns_open), (1, 0), "{report:?}");
        assert_eq!(run.shared.registry.held(), 0);
    });
}

/// A connection that is accepted, and its client's end.
fn accepted(bench: &Bench) -> (Arc<Shared>, Accepted, Socket) {
    let handle = tokio::runtime::Handle::current();
    let shared = Server::builder().shared(0, &[], handle).unwrap();
    let shared = Arc::new(shared);
    let (client, connected) = bench.connect();
    let accepted = Conn::accept(&shared, connected);
    (shared, accepted, client)
}

#[test]
fn the_books_of_a_connection_are_closed_before_its_socket_is() {
    // It keeps the socket: another test's would have its number otherwise, and be shut down for it.
    struct Probe<S>(
        Arc<Shared>,
        #[allow(dead_code, reason = "it is dropped last")] S,
    );
    impl<S> Drop for Probe<S> {
        fn drop(&mut self) {
            let report = self.0.report();
            assert_eq!((report.conns_open, report.conns_closed), (0, 1));
        }
    }
    let bench = Bench::new();
    let _runtime = bench.runtime.enter();
    let (shared, accepted, _client) = accepted(&bench);
    let socket = accepted.convert(|stream| Ok(Probe(Arc::clone(&shared), stream)));
    assert_eq!(shared.report().conns_open, 1);
    drop(socket);
}

#[test]
fn a_socket_that_cannot_be_converted_is_not_known_by_its_number_any_more() {
    let bench = Bench::new();
    let _runtime = bench.runtime.enter();
    let (shared, accepted, _client) = accepted(&bench);
    let conn = Arc::clone(accepted.conn());
    let failed = accepted.convert::<()>(|_| Err(ErrorKind::OutOfMemory.into()));
    assert!(failed.is_err());
    let report = shared.report();
    assert_eq!((report.conns_open, report.conns_closed), (0, 1));
    // Sockets of the host's, one of which has that number.
    let others: Vec<_> = (0..64)
        .map(|_| std::os::unix::net::UnixStream::pair().unwrap())
        .collect();
    shared.registry.reset_all();
    for (mut one, mut other) in others {
        one.write_all(b"x").unwrap();
        other.read_exact(&mut [0]).unwrap();
    }
    drop(conn);
}

/// As a forked child would, a copy of the socket keeps it open.
#[test]
fn a_connection_that_nobody_drives_ends_for_its_client_whoever_has_a_copy() {
    let bench = Bench::new();
    let _runtime = bench.runtime.enter();
    let (_shared, accepted, mut client) = accepted(&bench);
    let copy = accepted.stream.as_fd().try_clone_to_owned().unwrap();
    drop(accepted);
    client
        .set_read_timeout(Some(Duration::from_secs(50)))
        .unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    drop(copy);
}
