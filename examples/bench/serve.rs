//! The servers in Rust: the same hyper service with httpdown, and with hyper alone on the same kind of runtime.

use std::convert::Infallible;
use std::error::Error;
use std::num::NonZeroUsize;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use httpdown::{Listener, Server};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::Builder;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[allow(clippy::unused_async, reason = "a service is async")]
async fn hello(_: Request<Incoming>) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(
        b"Hello, World!",
    ))))
}

/// Serves until it is killed, or until TERM.
pub(crate) fn serve(name: &str, addr: &str, threads: NonZeroUsize) -> Result<()> {
    match name {
        "httpdown" => {
            let server = Server::builder()
                .io_threads(threads)
                .serve(Listener::bind(addr)?, service_fn(hello))?;
            server.run()?;
            Ok(())
        }
        "hyper" => hyper(addr, false),
        "hyper-flush" => hyper(addr, true),
        _ => Err(format!("no server {name:?}").into()),
    }
}

/// hyper as we configure it, on one thread.
fn hyper(addr: &str, pipeline_flush: bool) -> Result<()> {
    Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let listener = TcpListener::bind(addr).await?;
            loop {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                // httpdown gives each request its connection, too.
                let service = service_fn(move |mut request: Request<Incoming>| {
                    request.extensions_mut().insert((peer, peer));
                    hello(request)
                });
                tokio::spawn(
                    http1::Builder::new()
                        .half_close(true)
                        .pipeline_flush(pipeline_flush)
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades(),
                );
            }
        })
}
