//! A connection's socket, of any kind.
//!
//! It is an enum, not a trait object: there are few kinds, and every byte passes here.

use std::io;
use std::net;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net as unix;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::addr::Addr;
use crate::conn_info::Credentials;
use crate::sys;

/// A connection that no runtime drives yet: a non-blocking socket.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(net::TcpStream),
    Unix(unix::UnixStream),
}

/// A socket that is driven by the runtime on which this value was made.
#[derive(Debug)]
pub(crate) struct Plain {
    socket: Driven,
    /// How many bytes the kernel has taken from us.
    written: u64,
}

#[derive(Debug)]
enum Driven {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What has come from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readable {
    /// There are bytes, or an error that shows when they are read.
    Bytes,
    /// The client has closed its side.
    End,
    /// The connection has failed.
    Failed,
}

/// Evaluates an expression with the stream of either kind.
macro_rules! either {
    ($kind:ident, $link:expr, $stream:ident => $body:expr) => {
        match $link {
            $kind::Tcp($stream) => $body,
            $kind::Unix($stream) => $body,
        }
    };
}

impl Stream {
    /// Must be called on the runtime that will drive the connection.
    pub(crate) fn drive(self) -> io::Result<Plain> {
        let socket = match self {
            Self::Tcp(stream) => {
                let stream = TcpStream::from_std(stream)?;
                // Responses are written whole, so waiting for more (Nagle) only delays them.
                stream.set_nodelay(true)?;
                Driven::Tcp(stream)
            }
            Self::Unix(stream) => Driven::Unix(UnixStream::from_std(stream)?),
        };
        Ok(Plain { socket, written: 0 })
    }

    /// The process that has connected, if the socket is a Unix socket.
    pub(crate) fn credentials(&self) -> Option<Credentials> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(stream) => {
                let found = sys::peer_credentials(stream.as_fd()).ok()?;
                Some(Credentials {
                    pid: u32::try_from(found.pid).ok().filter(|pid| *pid > 0),
                    uid: found.uid,
                    gid: found.gid,
                })
            }
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        either!(Self, self, stream => stream.as_fd())
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        either!(Self, self, stream => stream.as_raw_fd())
    }
}

impl From<net::TcpStream> for Stream {
    fn from(stream: net::TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl From<unix::UnixStream> for Stream {
    fn from(stream: unix::UnixStream) -> Self {
        Self::Unix(stream)
    }
}

impl Plain {
    /// Reads bytes. If nothing was read, the stream has ended.
    #[inline]
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(Driven, &mut self.socket, stream => Pin::new(stream).poll_read(cx, buf))
    }

    #[allow(clippy::inline_always, reason = "else every response pays for a call")]
    #[inline(always)]
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = match &mut self.socket {
            Driven::Tcp(stream) => ready!(Pin::new(stream).poll_write(cx, bytes)),
            Driven::Unix(_) => ready!(self.poll_send(cx, bytes)),
        }?;
        self.written += count as u64;
        Poll::Ready(Ok(count))
    }

    /// Not by `write`, which raises SIGPIPE: a host's thread may drive this connection, and a C host does not ignore
    /// that signal. (For a TCP socket, std says `MSG_NOSIGNAL` itself.)
    fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let send = || SockRef::from(self).send_with_flags(bytes, libc::MSG_NOSIGNAL);
        either!(Driven, &self.socket, stream => loop {
            ready!(stream.poll_write_ready(cx))?;
            match stream.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        })
    }

    /// Waits until the kernel has room for bytes.
    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(Driven, &self.socket, stream => stream.poll_write_ready(cx))
    }

    /// Closes our side.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(Driven, &mut self.socket, stream => Pin::new(stream).poll_shutdown(cx))
    }

    /// How many bytes the kernel has taken from us.
    #[inline]
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Waits until there is something to read.
    #[inline]
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Readable> {
        // An error shows when the socket is read.
        let _ = ready!(either!(Driven, &self.socket, stream => stream.poll_read_ready(cx)));
        // Only at an end of the input, the kernel is asked whether bytes are before it.
        if !self.is_read_closed(cx) {
            return Poll::Ready(Readable::Bytes);
        }
        Poll::Ready(match sys::peek(self.as_fd(), &mut [0]).map(<[u8]>::len) {
            Ok(0) => Readable::End,
            Ok(_) => Readable::Bytes,
            Err(_) => Readable::Failed,
        })
    }

    /// Whether tokio knows that the client has closed its side, though there may be bytes before that.
    fn is_read_closed(&self, cx: &mut Context<'_>) -> bool {
        // This does not wait, because it is called after `poll_read_ready`.
        let known = either!(Driven, &self.socket, stream => {
            std::pin::pin!(stream.ready(Interest::READABLE)).poll(cx)
        });
        matches!(known, Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    /// Returns the bytes that can be read, up to the length of the buffer, without taking them.
    #[inline]
    pub(super) fn poll_peek<'a>(
        &self,
        cx: &mut Context<'_>,
        bytes: &'a mut [u8],
    ) -> Poll<io::Result<&'a [u8]>> {
        loop {
            ready!(either!(Driven, &self.socket, stream => stream.poll_read_ready(cx)))?;
            let peek = || sys::peek(self.as_fd(), bytes).map(<[u8]>::len);
            match either!(Driven, &self.socket, stream => stream.try_io(Interest::READABLE, peek)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => return Poll::Ready(Ok(&bytes[..count])),
            }
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self.socket {
            Driven::Tcp(_) => Kind::Tcp,
            Driven::Unix(_) => Kind::Unix,
        }
    }
}

impl AsFd for Plain {
    fn as_fd(&self) -> BorrowedFd<'_> {
        either!(Driven, &self.socket, stream => stream.as_fd())
    }
}

/// What code that knows only a socket's descriptor can ask of the socket, and do to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Unix,
}

impl Kind {
    /// The kind of a connection that has this address on our side.
    pub(crate) fn of(local: &Addr) -> Self {
        match local {
            Addr::Ip(_) => Self::Tcp,
            Addr::Unix(_) => Self::Unix,
        }
    }

    /// How much of what was written has not reached the client's kernel: bytes, and a FIN counts 1. On a Unix socket,
    /// that kernel is ours: written bytes have arrived, and stay there for the client whatever becomes of us.
    pub(crate) fn unacked(self, fd: BorrowedFd<'_>) -> u32 {
        match self {
            Self::Tcp => sys::unacked(fd),
            Self::Unix => 0,
        }
    }

    /// Whether the connection is closed on both sides, or reset.
    pub(crate) fn is_over(self, fd: BorrowedFd<'_>) -> bool {
        match self {
            Self::Tcp => sys::is_over(fd),
            Self::Unix => false,
        }
    }

    /// How often our answer to the client's SYN had to be repeated, if we have sent nothing else so far.
    pub(crate) fn handshake_repeats(self, fd: BorrowedFd<'_>) -> u32 {
        match self {
            Self::Tcp => sys::retransmissions(fd),
            Self::Unix => 0,
        }
    }

    /// Ends the connection at once, even if somebody else holds a copy of the descriptor, and whatever the thread that
    /// drives it is doing. A task that waits to read or write is woken.
    ///
    /// The client of a Unix socket sees the end of the connection. No call makes that a reset: the kernel sends a reset
    /// only if there are bytes that we have not read.
    pub(crate) fn reset(self, fd: BorrowedFd<'_>) {
        match self {
            Self::Tcp => sys::reset(fd),
            Self::Unix => {
                let _ = SockRef::from(&fd).shutdown(net::Shutdown::Both);
            }
        }
    }
}
