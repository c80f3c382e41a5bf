//! Requests that are with the program for too long, in virtual time.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::service::Service;
use tokio::time::sleep;

use super::{Bench, PARK, Run, TICK};
use crate::conn::{Body, Plain};
use crate::dispatch::{Dispatcher, QueueItem, RequestQueue};
use crate::request::{Exchange, Ready};
use crate::server::{Builder, Server};

/// In ticks.
const LIMIT: u32 = 10;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn builder() -> Builder {
    Server::builder().handler_timeout(LIMIT * TICK)
}

/// Answers after so many ticks.
#[derive(Clone, Debug)]
struct After(u32);

impl Service<Request<Body>> for After {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, _: Request<Body>) -> Self::Future {
        let ticks = self.0;
        Box::pin(async move {
            sleep(ticks * TICK).await;
            Ok(Response::new(Full::from("hello")))
        })
    }
}

async fn ticks(run: &mut Run, count: u32) {
    for _ in 0..count {
        run.tick().await;
    }
}

fn take(queue: &RequestQueue) -> Exchange {
    queue.take(1, Some(Instant::now())).unwrap().remove(0)
}

fn answer(exchange: Exchange) {
    exchange.reply(Response::new("hello".into())).unwrap();
}

/// A connection whose requests go to a queue.
fn queued(bench: &Bench, builder: Builder) -> (Run, RequestQueue) {
    let queue = RequestQueue::new(None);
    let run = Run::start_with(bench, &Dispatcher::Queue(queue.clone()), builder);
    (run, queue)
}

#[test]
fn a_service_that_is_late_is_counted_once_and_not_cut() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        for (after, overdue) in [(LIMIT - 1, 0), (3 * LIMIT, 1)] {
            let mut run = Run::start_with(&bench, &Plain(After(after)), builder());
            for number in 1..=3 {
                run.send(GET).await;
                ticks(&mut run, LIMIT - 2).await;
                assert_eq!(run.shared.report().overdue, overdue * (number - 1));
                ticks(&mut run, 3).await;
                assert_eq!(run.shared.report().overdue, overdue * number);
                ticks(&mut run, after).await;
                let report = run.shared.report();
                assert_eq!((report.served, report.overdue), (number, overdue * number));
            }
            run.close(false).await;
        }
    });
}

#[test]
fn each_request_has_the_whole_time_and_the_wait_in_the_queue_is_part_of_it() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let (mut run, queue) = queued(&bench, builder());
        run.send(GET).await;
        ticks(&mut run, LIMIT - 2).await;
        answer(take(&queue));
        run.settle().await;
        // The deadline of the first request passes now.
        run.send(GET).await;
        ticks(&mut run, LIMIT - 1).await;
        assert_eq!(run.shared.report().overdue, 0);
        ticks(&mut run, 2).await;
        assert_eq!(run.shared.report().overdue, 1);
        answer(take(&queue));
        run.settle().await;
        assert_eq!(run.shared.report().served, 2);
        run.close(false).await;
    });
}

#[test]
fn whoever_asks_is_told_in_time_and_once_and_the_answer_is_as_good_as_before() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let (mut run, queue) = queued(&bench, builder());
        let look = || queue.take_all(1, Some(Instant::now()));
        for asks_late in [false, true] {
            run.send(GET).await;
            let mut exchange = take(&queue);
            if asks_late {
                ticks(&mut run, LIMIT + 1).await;
            } else {
                queue.notify(&mut exchange, Ready::OVERDUE, 7);
                ticks(&mut run, LIMIT - 1).await;
                assert!(look().is_err() && !exchange.is_overdue());
                ticks(&mut run, 2).await;
            }
            assert!(exchange.is_overdue() && exchange.cancelled().is_none());
            if asks_late {
                queue.notify(&mut exchange, Ready::OVERDUE, 7);
            }
            let [QueueItem::Ready { token: 7, ready }] = look().unwrap()[..] else {
                panic!("not told");
            };
            assert_eq!(ready, Ready::OVERDUE);
            // Who asks for something else is not told of it.
            queue.notify(&mut exchange, Ready::DRAINING, 8);
            ticks(&mut run, LIMIT).await;
            assert!(look().is_err());
            answer(exchange);
            run.settle().await;
        }
        let report = run.shared.report();
        assert_eq!((report.served, report.overdue), (2, 2));
        run.close(false).await;
    });
}

#[test]
fn the_wait_for_a_short_body_is_not_the_programs() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let (mut run, queue) = queued(&bench, builder());
        run.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n")
            .await;
        ticks(&mut run, 3 * LIMIT).await;
        run.send(b"1").await;
        ticks(&mut run, LIMIT - 1).await;
        answer(take(&queue));
        run.settle().await;
        let report = run.shared.report();
        assert_eq!((report.served, report.overdue), (1, 0));
        run.close(false).await;
    });
}

#[test]
fn the_time_ends_with_the_whole_answer_whether_the_client_takes_it_or_not() {
    let bench = Bench::of_tcp();
    bench.runtime.block_on(async {
        for is_whole in [true, false] {
            let (mut run, queue) = queued(&bench, builder());
            run.peer.is_reading = false;
            run.send(GET).await;
            let mut exchange = take(&queue);
            let held = if is_whole {
                let body = Bytes::from(vec![b'x'; 4 << 20]);
                exchange.reply(Response::new(body)).unwrap();
                None
            } else {
                exchange.start(Response::new(())).unwrap();
                exchange.write(b"a part").unwrap();
                Some(exchange)
            };
            ticks(&mut run, 2 * LIMIT).await;
            let report = run.shared.report();
            assert_eq!((report.served, report.overdue), (0, u64::from(!is_whole)));
            run.close(true).await;
            drop(held);
        }
    });
}

#[test]
fn a_client_that_leaves_ends_the_time() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let (mut run, queue) = queued(&bench, builder());
        run.send(GET).await;
        let exchange = take(&queue);
        run.close(true).await;
        ticks(&mut run, 2 * LIMIT).await;
        assert!(!exchange.is_overdue());
        drop(exchange);
        run.settle().await;
        let report = run.shared.report();
        assert_eq!((report.gone, report.overdue), (1, 0));
    });
}

#[test]
fn a_connection_that_is_idle_is_not_woken_for_it() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let limit = 10 * PARK;
        let builder = Server::builder().handler_timeout(limit * TICK);
        let (mut run, queue) = queued(&bench, builder);
        run.send(GET).await;
        answer(take(&queue));
        ticks(&mut run, 3 * PARK).await;
        let polls = run.polls();
        ticks(&mut run, 2 * limit).await;
        assert_eq!(run.polls(), polls);
        run.close(false).await;
    });
}
