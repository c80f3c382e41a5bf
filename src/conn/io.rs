//! The socket as hyper sees it: every byte passes here.

use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::sys;

use super::track::{Accepted, Open};

pub(super) struct Socket {
    // Before the stream, so that the connection leaves the registry before its descriptor is closed.
    open: Open,
    stream: TcpStream,
    /// A read has failed. hyper takes that for the end of a body only, and lets the handler go on.
    failed: bool,
    /// Ends when the connection has been reset.
    reset: Option<Reset>,
    /// The client has closed its side.
    finished: bool,
    /// We have closed ours, and wait so long for the client to do the same.
    linger: Option<Pin<Box<Sleep>>>,
}

type Reset = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

impl Socket {
    /// Needs the runtime on which the connection will run.
    pub(super) fn new(accepted: Accepted) -> io::Result<Self> {
        let (open, stream) = accepted.into_parts();
        let stream = TcpStream::from_std(stream)?;
        // Responses are written whole, so waiting for more (Nagle) only delays them.
        stream.set_nodelay(true)?;
        Ok(Self {
            open,
            stream,
            failed: false,
            reset: None,
            finished: false,
            linger: None,
        })
    }

    /// Whether the client has left: an error then, and else a wake-up when it does. hyper reads nothing while a handler
    /// works, so it would not notice.
    fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.failed {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.reset.is_none() {
            let mut byte = [0];
            match self.stream.poll_peek(cx, &mut ReadBuf::new(&mut byte)) {
                Poll::Pending => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                // More bytes, or a FIN (the client may only have closed its half), are no loss; but they hide a reset
                // that comes later, because there is always something to read. Watch for that alone, by a copy of the
                // descriptor; few connections ever need it.
                Poll::Ready(Ok(_)) => {
                    let copy = self.stream.as_fd().try_clone_to_owned();
                    let copy = copy.and_then(|copy| sys::watch_for(copy, Interest::ERROR));
                    let Ok(copy) = copy else {
                        return Poll::Ready(Ok(())); // No descriptors: the write will tell.
                    };
                    self.reset = Some(Box::pin(async move {
                        let _ = copy.ready(Interest::ERROR).await;
                    }));
                }
            }
        }
        match self.reset.as_mut().map(|reset| reset.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.open.conn().bytes_read();
        } else if buf.remaining() > 0 {
            self.finished |= matches!(result, Poll::Ready(Ok(())));
        }
        self.failed |= matches!(result, Poll::Ready(Err(_)));
        result
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper calls this only when all it had has been written, and whenever it waits for a handler.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open.conn().response_flushed();
        if self.open.conn().is_waiting_for_handler() {
            self.poll_lost(cx)
        } else {
            Poll::Ready(Ok(()))
        }
    }

    /// Closes our side, and then reads and discards until the client closes its own. If the socket were closed while the
    /// client still sends, the kernel would answer with a reset, which destroys what the client has not read yet
    /// (RFC 9112, 9.6).
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            let timeout = this.open.conn().shared().config.linger_timeout;
            this.linger = Some(Box::pin(tokio::time::sleep(timeout)));
        }
        let mut discarded = [0; 4096];
        while !this.finished {
            let mut buf = ReadBuf::new(&mut discarded);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    this.open.conn().raced();
                }
                Poll::Ready(_) => this.finished = true,
                Poll::Pending => match &mut this.linger {
                    Some(linger) => {
                        ready!(linger.as_mut().poll(cx));
                        this.finished = true;
                    }
                    None => this.finished = true,
                },
            }
        }
        Poll::Ready(Ok(()))
    }
}
