//! Connections between two requests, in virtual time.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::Service;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::sleep;

use super::{Bench, PARK, Run, TICK};
use crate::conn::Plain;

const GET: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

/// Answers at once, and tells of what comes of the body, whose pieces it takes slowly.
#[derive(Clone, Debug)]
struct Slow {
    pieces: UnboundedSender<Bytes>,
    /// Copied by whoever drives a connection.
    copies: Arc<()>,
}

impl Slow {
    fn new() -> (Self, UnboundedReceiver<Bytes>) {
        let (pieces, received) = unbounded_channel();
        let copies = Arc::new(());
        (Self { pieces, copies }, received)
    }

    /// How many parsers there are.
    fn parsers(&self) -> usize {
        // This one, and the connection's own.
        Arc::strong_count(&self.copies) - 2
    }
}

impl Service<Request<Incoming>> for Slow {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let pieces = self.pieces.clone();
        let mut body = request.into_body();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = body.frame().await {
                if let Ok(data) = frame.into_data() {
                    let _ = pieces.send(data);
                }
                sleep(5 * PARK * TICK).await;
            }
        });
        ready(Ok(Response::new(Full::from("hello"))))
    }
}

impl Run {
    async fn ticks(&mut self, count: u32) {
        for _ in 0..count {
            self.tick().await;
        }
    }

    fn polls(&self) -> usize {
        self.polls.load(Ordering::Relaxed)
    }

    /// How many answers have come.
    fn answers(&self) -> usize {
        let got = &self.peer.got;
        got.windows(5).filter(|five| five == b"hello").count()
    }
}

#[test]
fn an_idle_connection_needs_no_parser_and_no_processor() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let (service, _) = Slow::new();
        let mut run = Run::start(&bench, Plain(service.clone()));
        run.settle().await;
        assert_eq!(service.parsers(), 0);
        for count in 1..3 {
            assert!(run.send(GET).await);
            assert_eq!((run.answers(), service.parsers()), (count, 1));
            run.ticks(2 * PARK).await;
            assert_eq!(service.parsers(), 0);
            let polls = run.polls();
            run.ticks(50 * PARK).await;
            assert_eq!(run.polls(), polls, "it has woken");
        }
        // Empty lines are no request.
        assert!(run.send(b"\r\n\r").await);
        run.ticks(2 * PARK).await;
        assert_eq!(service.parsers(), 0);
        assert!(run.send(b"\n").await);
        assert!(run.send(GET).await);
        assert_eq!((run.answers(), run.peer.end), (3, None));
    });
}

#[test]
fn a_busy_connection_keeps_its_parser() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let (service, _) = Slow::new();
        let mut run = Run::start(&bench, Plain(service.clone()));
        for _ in 0..20 {
            assert!(run.send(GET).await);
            run.ticks(PARK - 1).await;
            assert_eq!(service.parsers(), 1);
        }
    });
}

#[test]
fn a_client_that_leaves_an_idle_connection_is_noticed() {
    for (reset, request_first) in [(false, false), (true, false), (false, true)] {
        let bench = Bench::new();
        bench.runtime.block_on(async {
            let (service, _) = Slow::new();
            let mut run = Run::start(&bench, Plain(service.clone()));
            assert!(run.send(GET).await);
            run.ticks(2 * PARK).await;
            assert_eq!(service.parsers(), 0);
            if request_first {
                // In one wake-up with the FIN.
                let stream = run.peer.stream.as_mut().unwrap();
                std::io::Write::write_all(stream, GET).unwrap();
                run.half_close().await;
                assert_eq!(run.answers(), 2);
            } else {
                run.close(reset).await;
            }
            assert_eq!(run.gone, Some(run.tick));
            let report = run.shared.report();
            assert_eq!((report.conns_closed, report.raced), (1, 0), "{report:?}");
            assert_eq!(report.served, 1 + u64::from(request_first), "{report:?}");
        });
    }
}

#[test]
fn a_handler_that_has_answered_gets_the_rest_of_the_body() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let (service, mut pieces) = Slow::new();
        let mut run = Run::start(&bench, Plain(service.clone()));
        run.send(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        run.send(b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n").await;
        run.ticks(5 * 5 * PARK).await;
        for piece in ["a", "b", "c"] {
            assert_eq!(pieces.try_recv().ok(), Some(Bytes::from(piece)));
        }
        assert_eq!((run.answers(), service.parsers()), (1, 0));
    });
}
