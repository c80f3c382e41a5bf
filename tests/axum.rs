//! The example for axum, as its clients see it; and services by what they are made from.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper that fails fails its test"
)]

mod common;

#[path = "../examples/axum.rs"]
#[allow(dead_code, reason = "its main is for people")]
mod example;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use http::{Request, Response};
use http_body_util::Full;
use httpdown::{Body, Dispatch, Exchange, LogLevel, Server};
use hyper::service::service_fn;
use tokio::runtime::Runtime;

type Answer = Result<Response<Full<Bytes>>, Infallible>;

#[allow(clippy::unnecessary_wraps, reason = "what a service returns")]
fn answer(text: impl Into<Bytes>) -> Answer {
    Ok(Response::new(Full::new(text.into())))
}

#[test]
fn streams_and_websockets_of_an_axum_application_end_when_a_stop_begins() {
    let runtime = Runtime::new().unwrap();
    let server = {
        let _runtime = runtime.enter();
        example::serve(listener()).unwrap()
    };
    let addr = addr(&server);
    let mut hello = Client::get(addr, "/");
    let peer = hello.name();
    assert_eq!(hello.answer().text(), format!("Hello, {peer}!\n"));
    drop(hello);

    let mut events = Client::get(addr, "/events");
    let head = events.try_head().unwrap();
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    let mut echo = Client::connect(addr);
    echo.send(
        "GET /echo HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    assert_eq!(echo.try_head().unwrap().status, 101);
    // "hi", masked with zeroes, and back without a mask.
    echo.send(b"\x81\x82\0\0\0\0hi");
    assert_eq!(echo.exactly(4).unwrap(), b"\x81\x02hi");

    let report = runtime.block_on(server.stop()).unwrap();
    // The default is a minute.
    assert!(report.stop_duration < Duration::from_secs(30), "{report:?}");
    assert_balanced(&report);
    assert_eq!((report.requests, report.served), (3, 3));
    // A close frame.
    assert_eq!(echo.exactly(2).unwrap(), b"\x88\x00");
    let told = events.try_body(&head).unwrap();
    assert!(told.starts_with(b"data: 0\n\n"), "{told:?}");
}

#[test]
fn a_tower_service_is_served_on_threads_of_the_servers_too() {
    let app = axum::Router::new().route("/", axum::routing::get(async || "Hello, World!"));
    let server = builder().serve_tower(listener(), app).unwrap();
    assert_eq!(
        Client::get(addr(&server), "/").answer().text(),
        "Hello, World!"
    );
    assert_balanced(&wait_after_stop(&server));
}

fn wait_after_stop(server: &Server) -> httpdown::Report {
    server.stop_blocking().unwrap()
}

#[test]
fn each_connection_has_a_service_of_its_own_that_knows_whose_it_is() {
    let mut count = 0;
    let server = builder()
        .serve_connections(listener(), move |server, conn| {
            count += 1;
            let number = count;
            let server = server.clone();
            service_fn(move |_: Request<Body>| {
                let open = server.report().conns_open;
                let text = format!("{number} {} {open}", conn.peer);
                async move { answer(text) }
            })
        })
        .unwrap();
    let mut first = Client::get(addr(&server), "/");
    let peer = first.name();
    assert_eq!(first.answer().text(), format!("1 {peer} 1"));
    first.ask("/");
    assert_eq!(first.answer().text(), format!("1 {peer} 1"));
    let mut second = Client::get(addr(&server), "/");
    let peer = second.name();
    assert_eq!(second.answer().text(), format!("2 {peer} 2"));
    assert_balanced(&wait_after_stop(&server));
}

#[test]
fn a_service_that_panics_when_it_is_made_harms_only_its_connection() {
    let mut count = 0;
    let server = builder()
        .serve_connections(listener(), move |_, _| {
            count += 1;
            assert!(count > 1, "the first");
            service_fn(async |_: Request<Body>| answer("x"))
        })
        .unwrap();
    assert!(Client::get(addr(&server), "/").try_answer().is_err());
    assert_eq!(Client::get(addr(&server), "/").answer().text(), "x");
    wait_after_stop(&server);
}

#[test]
fn who_waits_for_the_stop_to_begin_is_told_when_it_does() {
    let server = builder()
        .lame_duck(LONG)
        .handle(listener(), Dispatch::default(), |exchange: Exchange| {
            let stopping = exchange.server().stopping();
            futures_executor(stopping);
            reply(exchange, "stops").unwrap();
        })
        .unwrap();
    let mut stopping = pin!(server.stopping());
    let mut cx = Context::from_waker(Waker::noop());
    assert!(stopping.as_mut().poll(&mut cx).is_pending());
    let mut client = Client::get(addr(&server), "/");
    wait_for_report(&server, |report| report.requests == 1);
    server.stop_begin();
    // It waits for nothing but the beginning: the lame duck has just begun.
    assert_eq!(client.answer().text(), "stops");
    futures_executor(stopping);
    assert!(pin!(server.stopping()).poll(&mut cx).is_ready());
    server.kill_begin();
    let _ = server.wait_blocking(None);
    assert!(pin!(server.stopping()).poll(&mut cx).is_ready());
}

/// On a thread that has no runtime.
fn futures_executor(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future);
}

#[test]
fn tasks_that_a_service_has_left_on_the_servers_threads_are_not_dropped_without_a_word() {
    let logs = Journal::new();
    let writes = logs.clone();
    let server = builder()
        .on_log(move |level, text| writes.write((level, text.to_owned())))
        .serve(
            listener(),
            service_fn(async |_: Request<Body>| {
                tokio::spawn(std::future::pending::<()>());
                answer("x")
            }),
        )
        .unwrap();
    assert_eq!(Client::get(addr(&server), "/").answer().text(), "x");
    assert_eq!(Client::get(addr(&server), "/").answer().text(), "x");
    wait_after_stop(&server);
    server.close();
    let logs = logs.all();
    let told = |(level, text): &&(LogLevel, String)| {
        *level == LogLevel::Warning && text.starts_with("2 tasks that a service had spawned")
    };
    assert_eq!(logs.iter().filter(told).count(), 1, "{logs:?}");
}

#[test]
fn an_async_run_serves_on_the_only_thread_of_a_runtime_until_a_signal() {
    let running = Arc::new(OnceLock::<Server>::new());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let report = runtime.block_on(async {
        let server = builder()
            .runtime(tokio::runtime::Handle::current())
            .serve(listener(), service_fn(async |_: Request<Body>| answer("x")))
            .unwrap();
        // One that is given up has caught nothing for longer.
        {
            let mut run = pin!(server.run_async());
            assert!(
                run.as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()))
                    .is_pending()
            );
        }
        running.set(server.clone()).unwrap();
        let client = {
            let addr = addr(&server);
            thread::spawn(move || {
                assert_eq!(Client::get(addr, "/").answer().text(), "x");
                rustix::process::kill_process(
                    rustix::process::getpid(),
                    rustix::process::Signal::TERM,
                )
                .unwrap();
            })
        };
        let signals = loop {
            // Until what was given up has been put back.
            match httpdown::Signals::catch() {
                Ok(signals) => break signals,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let report = signals.run_async(&server).await.unwrap();
        client.join().unwrap();
        report
    });
    assert_eq!(report.served, 1);
}
