//! Clients that are too slow, in virtual time.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::service::Service;
use tokio::time::sleep;

use super::{Bench, Run, TICK};
use crate::conn::{Body, Plain};
use crate::dispatch::{Dispatcher, RequestQueue};
use crate::error::Error;
use crate::server::{Builder, Server};

/// In ticks.
const SECOND: u32 = 20;
const TIMEOUT: u32 = 10 * SECOND;
/// Bytes a second.
const RATE: usize = 100;

fn builder() -> Builder {
    Server::builder()
        .body_timeout(TIMEOUT * TICK)
        .write_timeout(TIMEOUT * TICK)
        .least_rate(RATE.try_into().unwrap())
}

/// Reads the body after a while, and answers with so many bytes. Notes why a body could not be read.
#[derive(Clone, Debug, Default)]
struct Reader {
    after: u32,
    answer: usize,
    failed: Arc<Mutex<Vec<Error>>>,
}

impl Service<Request<Body>> for Reader {
    type Response = Response<Full<Bytes>>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn call(&self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            sleep(this.after * TICK).await;
            let read = request.into_body().collect().await;
            if let Err(why) = read {
                this.failed.lock().unwrap().push(why.clone());
                return Err(why);
            }
            Ok(Response::new(Full::from(vec![b'x'; this.answer])))
        })
    }
}

fn post(length: usize) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

fn text(run: &Run) -> String {
    String::from_utf8_lossy(&run.peer.got).into_owned()
}

/// For how many ticks the connection is open, if the client sends so much in each second.
async fn lasts(run: &mut Run, each_second: usize, most: u32) -> u32 {
    for tick in 0..most {
        if run.gone.is_some() || run.ended.is_some() {
            return tick;
        }
        if tick % SECOND == 0 && each_second > 0 {
            run.send(&vec![b'y'; each_second]).await;
        }
        run.tick().await;
    }
    most
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let reader = Reader::default();
        let mut run = Run::start_with(&bench, &Plain(reader.clone()), builder());
        run.send(&post(10)).await;
        run.send(b"1").await;
        let lasted = lasts(&mut run, 0, 3 * TIMEOUT).await;
        assert!((TIMEOUT..=TIMEOUT + SECOND).contains(&lasted), "{lasted}");
        let got = text(&run);
        assert!(got.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{got}");
        assert!(got.contains("connection: close"), "{got}");
        assert!(matches!(
            reader.failed.lock().unwrap()[..],
            [Error::TooSlow]
        ));
        run.close(false).await;
        let report = run.shared.report();
        assert_eq!(
            (report.requests, report.timed_out, report.served),
            (1, 1, 0)
        );
        assert_eq!((report.conns_timed_out, report.conns_gone), (1, 0));
    });
}

#[test]
fn a_body_that_comes_slowly_but_at_the_least_rate_is_waited_for() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        for (each_second, lives) in [(RATE, true), (RATE / 2, false), (1, false)] {
            let reader = Reader::default();
            let mut run = Run::start_with(&bench, &Plain(reader.clone()), builder());
            let length = 8 * RATE * (TIMEOUT / SECOND) as usize;
            run.send(&post(length)).await;
            let lasted = lasts(&mut run, each_second, 5 * TIMEOUT).await;
            assert_eq!(lasted == 5 * TIMEOUT, lives, "{each_second}: {lasted}");
            // At half the rate, each second is half earned back.
            assert!(
                lives || lasted <= 2 * TIMEOUT + 2 * SECOND,
                "{each_second}: {lasted}"
            );
            if lives {
                let sent = 5 * (TIMEOUT / SECOND) as usize * each_second;
                run.send(&vec![b'y'; length - sent]).await;
                assert!(text(&run).starts_with("HTTP/1.1 200"));
                assert_eq!(run.shared.report().served, 1);
            }
            run.close(true).await;
        }
    });
}

#[test]
fn time_in_which_nobody_reads_does_not_count() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let reader = Reader {
            after: 3 * TIMEOUT,
            ..Reader::default()
        };
        let mut run = Run::start_with(&bench, &Plain(reader), builder());
        run.send(&post(10)).await;
        assert_eq!(
            lasts(&mut run, 0, 3 * TIMEOUT + SECOND).await,
            3 * TIMEOUT + SECOND
        );
        run.send(b"0123456789").await;
        assert!(text(&run).starts_with("HTTP/1.1 200"));
        run.close(false).await;
    });
}

#[test]
fn a_client_that_takes_no_more_of_its_answer_is_cut() {
    let bench = Bench::of_tcp();
    bench.runtime.block_on(async {
        let reader = Reader {
            answer: 1 << 20,
            ..Reader::default()
        };
        let mut run = Run::start_with(&bench, &Plain(reader), builder());
        run.peer.is_reading = false;
        run.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let lasted = lasts(&mut run, 0, 3 * TIMEOUT).await;
        assert!((TIMEOUT..=TIMEOUT + SECOND).contains(&lasted), "{lasted}");
        let report = run.shared.report();
        assert_eq!((report.requests, report.timed_out, report.gone), (1, 1, 0));
        assert_eq!((report.conns_timed_out, report.conns_gone), (1, 0));
        // By a reset: the answer must not look complete.
        run.catch_up().await;
        assert_eq!(run.peer.end, Some(false));
    });
}

#[test]
fn a_client_that_takes_its_answer_slowly_is_not_cut() {
    let bench = Bench::of_tcp();
    bench.runtime.block_on(async {
        let reader = Reader {
            answer: 100_000,
            ..Reader::default()
        };
        let mut run = Run::start_with(&bench, &Plain(reader), builder());
        run.peer.is_reading = false;
        run.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        // Sockets take so little at a time only in a test.
        while run.peer.got.len() < 100_000 {
            assert_eq!(run.shared.report().conns_open, 1);
            let got = run.peer.got.len();
            run.catch_up().await;
            assert!(run.peer.got.len() > got);
            for _ in 0..TIMEOUT / 2 {
                run.tick().await;
            }
        }
        run.close(false).await;
        assert_eq!(run.shared.report().timed_out, 0);
    });
}

/// A handler that may wait gets a request with a short body when the body is there.
#[test]
fn a_short_body_is_there_when_the_handler_gets_its_request() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let queue = RequestQueue::new(None);
        let builder = builder().body_buffer(21.try_into().unwrap());
        let mut run = Run::start_with(&bench, &Dispatcher::Queue(queue.clone()), builder);
        let take = || queue.take(1, Some(Instant::now()));
        run.send(&post(20)).await;
        run.send(&[b'1'; 19]).await;
        assert!(matches!(take(), Err(Error::WouldBlock)));
        run.send(b"2").await;
        let mut exchange = take().unwrap().remove(0);
        assert_eq!(exchange.read_to_end(20).unwrap().len(), 20);
        exchange.reply(Response::new(Bytes::new())).unwrap();
        run.settle().await;

        // Longer ones, those in chunks, and those that must be asked for, are handed over at once.
        run.send(&post(21)).await;
        drop(take().unwrap());
        run.close(true).await;
        for head in [
            "Transfer-Encoding: chunked",
            "Content-Length: 5\r\nExpect: 100-continue",
        ] {
            let builder = self::builder();
            let mut run = Run::start_with(&bench, &Dispatcher::Queue(queue.clone()), builder);
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n");
            run.send(head.as_bytes()).await;
            drop(take().unwrap());
            run.close(true).await;
        }
    });
}

#[test]
fn no_handler_gets_a_request_whose_short_body_does_not_come() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let queue = RequestQueue::new(None);
        let mut run = Run::start_with(&bench, &Dispatcher::Queue(queue.clone()), builder());
        run.send(&post(20)).await;
        run.send(b"1").await;
        let lasted = lasts(&mut run, 0, 3 * TIMEOUT).await;
        assert!(lasted <= TIMEOUT + SECOND, "{lasted}");
        assert!(text(&run).starts_with("HTTP/1.1 408"));
        assert!(matches!(
            queue.take(1, Some(Instant::now())),
            Err(Error::WouldBlock)
        ));
        run.close(false).await;
        let report = run.shared.report();
        assert_eq!((report.requests, report.timed_out), (1, 1));
    });
}
