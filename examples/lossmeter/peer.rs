//! A server as hyper's own guide to graceful shutdown shows it: what most Rust programs do.
//!
//! GET anything: "Hello, World!". POST `/echo`: the body. GET `/bytes/N`: so many zeroes.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

async fn answer(request: Request<Incoming>) -> Result<Answer, Infallible> {
    let path = request.uri().path();
    let full = |bytes: Bytes| Full::new(bytes).map_err(|never| match never {}).boxed();
    if request.method() == Method::POST && path == "/echo" {
        return Ok(Response::new(request.into_body().boxed()));
    }
    let count = path
        .strip_prefix("/bytes/")
        .and_then(|count| count.parse().ok());
    Ok(Response::new(full(match count {
        Some(count) => vec![0; count].into(),
        None => Bytes::from_static(b"Hello, World!"),
    })))
}

/// Serves until TERM.
pub(crate) async fn serve(addr: &str) -> io::Result<()> {
    let listener = TcpListener::bind(addr).await?;
    let graceful = GracefulShutdown::new();
    let mut term = signal(SignalKind::terminate())?;
    let mut stop = pin!(term.recv());
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service_fn(answer));
                let connection = graceful.watch(connection);
                tokio::spawn(async move {
                    let _ = connection.await;
                });
            }
            _ = &mut stop => {
                drop(listener);
                break;
            }
        }
    }
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(Duration::from_secs(10)) => {}
    }
    Ok(())
}
