//! Connections that begin with a header of the PROXY protocol, in virtual time.

use std::convert::Infallible;
use std::future::ready;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::service::service_fn;

use super::{Bench, GRACE, HEADER, Run};
use crate::conn::{Body, Plain};
use crate::phase::Phase;
use crate::server::Server;

const V1: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.2 4660 80\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x02\x12\x34\0\x50";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn start(bench: &Bench) -> Run {
    let service = service_fn(|_: Request<Body>| {
        let answer = Response::new(Full::new(Bytes::from("hello")));
        ready(Ok::<_, Infallible>(answer))
    });
    let builder = Server::builder().proxy_protocol_from("127.0.0.1, unix:");
    Run::start_with(bench, &Plain(service), builder)
}

/// At most so long; returns when the connection had ended.
async fn wait(run: &mut Run, ticks: u32) -> Option<u32> {
    for _ in 0..ticks {
        if run.ended.is_some() {
            break;
        }
        run.tick().await;
    }
    run.ended
}

#[test]
fn a_header_must_come_in_time() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        for header in [V1, V2] {
            for sent in 0..header.len() {
                let mut run = start(&bench);
                run.settle().await;
                assert_eq!(run.shared.report().conns_handshaking, 1);
                run.send(&header[..sent]).await;
                assert_eq!(wait(&mut run, 2 * HEADER).await, Some(HEADER), "{sent}");
                assert_eq!(run.peer.got, b"");
                run.close(false).await;
                let report = run.shared.report();
                assert_eq!((report.conns_timed_out, report.requests), (1, 0), "{sent}");
            }
        }
    });
}

/// Whatever has come of header and request when a stop begins: what comes within the grace is served.
#[test]
fn a_stop_loses_no_request_behind_a_header() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        for header in [V1, V2] {
            let all = [header, GET].concat();
            for sent in 0..=all.len() {
                let mut run = start(&bench);
                run.send(&all[..sent]).await;
                run.enter(Phase::Quiescing).await;
                run.enter(Phase::Draining).await;
                assert_eq!(wait(&mut run, GRACE - 1).await, None, "{sent}");
                run.send(&all[sent..]).await;
                let got = String::from_utf8_lossy(&run.peer.got).into_owned();
                assert!(got.ends_with("hello"), "{sent}: {got}");
                run.close(false).await;
                let report = run.shared.report();
                assert_eq!((report.served, report.conns_closed), (1, 1), "{sent}");
            }
        }
    });
}

/// A connection whose header has come is as new; one whose header has begun is not.
#[test]
fn a_stop_waits_for_what_has_begun() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        for header in [V1, V2] {
            for sent in 0..=header.len() {
                let mut run = start(&bench);
                run.send(&header[..sent]).await;
                run.enter(Phase::Quiescing).await;
                run.enter(Phase::Draining).await;
                let begun = sent > 0 && sent < header.len();
                let expected = if begun { HEADER } else { GRACE };
                assert_eq!(wait(&mut run, 2 * HEADER).await, Some(expected), "{sent}");
                // It has crossed our close.
                let rest = [&header[sent..], GET].concat();
                run.send(&rest).await;
                run.close(false).await;
                let report = run.shared.report();
                let ends = (report.conns_timed_out, report.closed_idle, report.raced);
                let expected = if begun { (1, 0, 0) } else { (0, 0, 1) };
                assert_eq!(ends, expected, "{sent}");
            }
        }
    });
}

#[test]
fn a_kill_cuts_it() {
    let bench = Bench::new();
    bench.runtime.block_on(async {
        for sent in [0, 5] {
            let mut run = start(&bench);
            run.send(&V1[..sent]).await;
            run.kill().await;
            assert_eq!(run.ended, Some(0));
            assert_eq!(run.shared.report().conns_open, 0);
        }
    });
}
