//! A connection's way to its client: what the rest of the server needs from a socket of any kind.
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

/// A connection that is driven by the runtime on which this value was made.
#[derive(Debug)]
pub(crate) enum Link {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Evaluates an expression with the stream of either kind.
macro_rules! either {
    ($link:expr, $stream:ident => $body:expr) => {
        match $link {
            Self::Tcp($stream) => $body,
            Self::Unix($stream) => $body,
        }
    };
}

impl Stream {
    /// Must be called on the runtime that will drive the connection.
    pub(crate) fn link(self) -> io::Result<Link> {
        Ok(match self {
            Self::Tcp(stream) => {
                let stream = TcpStream::from_std(stream)?;
                // Responses are written whole, so waiting for more (Nagle) only delays them.
                stream.set_nodelay(true)?;
                Link::Tcp(stream)
            }
            Self::Unix(stream) => Link::Unix(UnixStream::from_std(stream)?),
        })
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
        either!(self, stream => stream.as_fd())
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        either!(self, stream => stream.as_raw_fd())
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

impl Link {
    /// Reads bytes. If nothing was read, the stream has ended.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }

    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let stream = match self {
            Self::Tcp(stream) => return Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => &*stream,
        };
        // Not by `write`, which raises SIGPIPE: a host's thread may drive this connection, and a C host does not
        // ignore that signal. (For TCP, std says MSG_NOSIGNAL itself.)
        let socket = SockRef::from(stream);
        let send = || socket.send_with_flags(bytes, libc::MSG_NOSIGNAL);
        loop {
            ready!(stream.poll_write_ready(cx))?;
            match stream.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Closes our side.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }

    /// Waits until there is something to read: bytes, the end, or an error.
    pub(crate) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read_ready(cx))
    }

    /// Whether tokio knows that the client has closed its side, though there may be bytes before that.
    pub(crate) fn is_read_closed(&self, cx: &mut Context<'_>) -> bool {
        // This does not wait, because it is called after `poll_read_ready`.
        let known =
            either!(self, stream => std::pin::pin!(stream.ready(Interest::READABLE)).poll(cx));
        matches!(known, Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    /// Returns the bytes that can be read, up to the length of the buffer, without taking them.
    pub(crate) fn poll_peek<'a>(
        &self,
        cx: &mut Context<'_>,
        bytes: &'a mut [u8],
    ) -> Poll<io::Result<&'a [u8]>> {
        loop {
            ready!(self.poll_read_ready(cx))?;
            let peek = || sys::peek(self.as_fd(), bytes).map(<[u8]>::len);
            match either!(self, stream => stream.try_io(Interest::READABLE, peek)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => return Poll::Ready(Ok(&bytes[..count])),
            }
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Tcp(_) => Kind::Tcp,
            Self::Unix(_) => Kind::Unix,
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        either!(self, stream => stream.as_fd())
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
