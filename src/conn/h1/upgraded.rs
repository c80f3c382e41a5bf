//! A connection that HTTP has given away: after an upgrade, or as a tunnel.

use std::future::Future;
use std::io;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::wire::Transport;

/// See the module. It is ready for use when the answer that has agreed to it has left.
pub(crate) struct Upgraded(State);

enum State {
    Waiting(OnUpgrade),
    Open {
        transport: Transport,
        /// What has come behind the request.
        early: Bytes,
    },
    /// The answer has never left, or the owner has let go.
    Failed,
}

impl Upgraded {
    pub(crate) fn new(upgrade: OnUpgrade) -> Self {
        Self(State::Waiting(upgrade))
    }

    /// Lets go of the connection. Its task then closes it.
    pub(crate) fn let_go(&mut self) {
        self.0 = State::Failed;
    }

    fn poll_open(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(Pin<&mut Transport>, &mut Bytes)>> {
        if let State::Waiting(upgrade) = &mut self.0 {
            let upgraded = ready!(Pin::new(upgrade).poll(cx)).ok();
            let parts = upgraded.and_then(|upgraded| upgraded.downcast().ok());
            self.0 = parts.map_or(State::Failed, |parts| {
                let io: TokioIo<Transport> = parts.io;
                State::Open {
                    transport: io.into_inner(),
                    early: parts.read_buf,
                }
            });
        }
        Poll::Ready(match &mut self.0 {
            State::Open { transport, early } => Ok((Pin::new(transport), early)),
            _ => Err(io::ErrorKind::ConnectionReset.into()),
        })
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (transport, early) = ready!(self.poll_open(cx))?;
        if early.is_empty() {
            return transport.poll_read(cx, buf);
        }
        let count = early.len().min(buf.remaining());
        buf.put_slice(&early[..count]);
        early.advance(count);
        Poll::Ready(Ok(()))
    }

    /// Takes bytes, and sends them as far as the kernel takes them now.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let (mut transport, _) = ready!(self.poll_open(cx))?;
        let count = ready!(transport.as_mut().poll_write(cx, bytes))?;
        let _ = transport.poll_flush(cx)?;
        Poll::Ready(Ok(count))
    }

    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (mut transport, _) = ready!(self.poll_open(cx))?;
        ready!(transport.as_mut().poll_flush(cx))?;
        transport.poll_shutdown(cx)
    }

    /// Waits until reading would not wait.
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(self.poll_open(cx)) {
            Ok((transport, early)) if early.is_empty() => transport.poll_readable(cx),
            _ => Poll::Ready(()),
        }
    }

    /// Waits until writing would not wait.
    pub(crate) fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(self.poll_open(cx)) {
            Ok((transport, _)) => transport.poll_writable(cx),
            Err(_) => Poll::Ready(()),
        }
    }

    /// The socket, if bytes pass through it as they are, and none has been read from it before.
    pub(crate) fn descriptor(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<RawFd>>> {
        let (transport, early) = ready!(self.poll_open(cx))?;
        Poll::Ready(Ok(transport.descriptor().filter(|_| early.is_empty())))
    }
}
