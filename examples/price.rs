//! What the tracking of connections and requests costs: the same hyper service with httpdown and without, on one I/O
//! thread. `examples/price.sh` counts the instructions.
//!
//! ```text
//! cargo run --release --example price -- httpdown 127.0.0.1:8080     # or: hyper
//! ```

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

#[allow(clippy::unused_async, reason = "a service is async")]
async fn hello(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(
        b"Hello, World!",
    ))))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "httpdown", addr] => {
            let server = Server::builder()
                .io_threads(NonZeroUsize::MIN)
                .serve(Listener::bind(addr)?, service_fn(hello))?;
            server.wait().await?;
            Ok(())
        }
        [_, "hyper", addr] => {
            let listener = TcpListener::bind(addr).await?;
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let service = service_fn(hello);
                tokio::spawn(
                    http1::Builder::new()
                        .half_close(true)
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades(),
                );
            }
        }
        _ => Err("usage: price httpdown|hyper HOST:PORT".into()),
    }
}
