//! The server for benchmarks, in Rust: the same hyper service with httpdown, and with hyper alone on the same kind of
//! runtime. In a program of its own, so that what is beside it does not change what the compiler makes of it.
//!
//! ```text
//! cargo run --release --example hello -- httpdown 127.0.0.1:8080 1     # or: hyper, …
//! cargo run --release --example hello -- hyper-tls 127.0.0.1:8443 build/certs/server.pem build/certs/server-key.pem
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Either, Full};
use httpdown::{Identity, Listener, Server, Tls};
use hyper::body::{Body, Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[allow(clippy::unused_async, reason = "a service is async")]
async fn hello<B>(_: Request<B>) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(
        b"Hello, World!",
    ))))
}

/// The service with TLS. It has large bodies, too: `GET /bytes/N`, and whatever is posted is read to its end.
async fn transfer<B: Body>(
    request: Request<B>,
) -> std::result::Result<Response<Either<Full<Bytes>, Zeroes>>, B::Error> {
    let (head, body) = request.into_parts();
    let mut body = pin!(body);
    while body.frame().await.transpose()?.is_some() {}
    let count = head.uri.path().strip_prefix("/bytes/");
    let body = match count.and_then(|count| count.parse().ok()) {
        Some(left) => Either::Right(Zeroes { left }),
        None => Either::Left(Full::new(Bytes::from_static(b"Hello, World!"))),
    };
    Ok(Response::new(body))
}

/// A body of so many bytes.
struct Zeroes {
    left: u64,
}

impl Body for Zeroes {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        // Like hello.c.
        static ZEROES: [u8; 65_536] = [0; 65_536];
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let count = usize::try_from(self.left).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
        self.left -= count as u64;
        let piece = Bytes::from_static(&ZEROES[..count]);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
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
        [_, "httpdown-tls", addr, threads, cert, key] => {
            let server = Server::builder()
                .io_threads(threads.parse()?)
                .tls(Tls::new(Identity::from_pem_files(cert, key)?))
                .serve(Listener::bind(addr)?, service_fn(transfer))?;
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
        [_, "hyper-tls", addr, cert, key] => hyper_tls(addr, cert, key),
        _ => Err(
            "usage: hello httpdown HOST:PORT THREADS | hyper|hyper-flush|hyper-beside HOST:PORT \
            | httpdown-tls HOST:PORT THREADS CERT KEY | hyper-tls HOST:PORT CERT KEY"
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

/// hyper on tokio-rustls, both as httpdown configures hyper and rustls.
#[tokio::main(flavor = "current_thread")]
async fn hyper_tls(addr: &str, cert: &str, key: &str) -> Result<()> {
    let chain = CertificateDer::pem_file_iter(cert)?.collect::<std::result::Result<_, _>>()?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.send_tls13_tickets = 1;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(addr).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let handshake = acceptor.accept(stream);
        tokio::spawn(async move {
            let stream = handshake.await?;
            let connection = http1::Builder::new()
                .half_close(true)
                .serve_connection(TokioIo::new(stream), service_fn(transfer));
            Result::Ok(connection.with_upgrades().await?)
        });
    }
}
