//! The server for benchmarks, in Rust: the same hyper service with httpdown, and with hyper alone on the same kind of
//! runtime. In a program of its own, so that what is beside it does not change what the compiler makes of it.
//!
//! ```text
//! cargo run --release --example hello -- httpdown 127.0.0.1:8080 1     # or: hyper, …
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::thread;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use httpdown::{Listener, Server};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[allow(clippy::unused_async, reason = "a service is async")]
async fn hello<B>(_: Request<B>) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(
        b"Hello, World!",
    ))))
}

fn main() -> Result<()> {
    let args: Vec<_> = std::env::args().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "httpdown", addr, threads] => {
            let server = Server::builder()
                .io_threads(threads.parse()?)
                .serve(Listener::bind(addr)?, service_fn(hello))?;
            server.run()?;
            Ok(())
        }
        [_, "hyper", addr] => hyper(addr, false),
        [_, "hyper-flush", addr] => hyper(addr, true),
        // Where a process has two threads, system calls cost more: glibc guards them against cancellation, and the kernel
        // counts who uses a descriptor. A server within a program is never alone.
        [_, "hyper-beside", addr] => {
            thread::spawn(|| {
                loop {
                    thread::park();
                }
            });
            hyper(addr, false)
        }
        _ => Err(
            "usage: hello httpdown HOST:PORT THREADS | hyper|hyper-flush|hyper-beside HOST:PORT"
                .into(),
        ),
    }
}

/// hyper as httpdown configures it.
#[tokio::main(flavor = "current_thread")]
async fn hyper(addr: &str, pipeline_flush: bool) -> Result<()> {
    let listener = TcpListener::bind(addr).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = service_fn(hello);
        tokio::spawn(
            http1::Builder::new()
                .half_close(true)
                .pipeline_flush(pipeline_flush)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades(),
        );
    }
}
