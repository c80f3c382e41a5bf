//! The socket as hyper sees it: every byte passes here.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::track::{Accepted, Open};

#[derive(Debug)]
pub(super) struct Socket {
    // Before the stream, so that the connection leaves the registry before its descriptor is closed.
    open: Open,
    stream: TcpStream,
}

impl Socket {
    /// Needs the runtime on which the connection will run.
    pub(super) fn new(accepted: Accepted) -> io::Result<Self> {
        let (open, stream) = accepted.into_parts();
        let stream = TcpStream::from_std(stream)?;
        // Responses are written whole, so waiting for more (Nagle) only delays them.
        stream.set_nodelay(true)?;
        Ok(Self { open, stream })
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
        }
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
            // hyper reads nothing meanwhile, so a reset would go unnoticed: look. More bytes, or a FIN (the client may
            // only have closed its half), are no loss.
            let mut byte = [0];
            if let Poll::Ready(Err(error)) =
                Pin::new(&mut self.stream).poll_peek(cx, &mut ReadBuf::new(&mut byte))
            {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
