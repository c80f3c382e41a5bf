//! A connection's way to its client: what the rest of the server needs of it, with or without TLS.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use super::plain::{Kind, Plain, Readable};
#[cfg(feature = "tls")]
use super::tls::Secure;

/// A connection that is driven by the runtime on which its socket was made.
#[derive(Debug)]
pub(crate) enum Link {
    Plain(Plain),
    #[cfg(feature = "tls")]
    Tls(Box<Secure>),
}

/// Evaluates an expression with the link of either kind.
macro_rules! either {
    ($link:expr, $inner:ident => $body:expr) => {
        match $link {
            Self::Plain($inner) => $body,
            #[cfg(feature = "tls")]
            Self::Tls($inner) => $body,
        }
    };
}

impl Link {
    /// Reads bytes. If nothing was read, the stream has ended.
    #[inline]
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, link => link.poll_read(cx, buf))
    }

    /// Takes bytes for the client. Some of them may wait here until [`Link::poll_flush`].
    #[inline]
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, link => link.poll_write(cx, bytes))
    }

    /// Gives the kernel all that was written.
    #[allow(
        clippy::needless_pass_by_ref_mut,
        reason = "without TLS, nothing waits here"
    )]
    #[inline]
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => {
                let _ = cx;
                Poll::Ready(Ok(()))
            }
            #[cfg(feature = "tls")]
            Self::Tls(link) => link.poll_flush(cx),
        }
    }

    /// Waits until the kernel has room for bytes, and takes what was written before.
    pub(crate) fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        either!(self, link => link.poll_writable(cx))
    }

    /// Closes our side. With TLS, the client is told first, so that it can tell this end from one that an attacker has
    /// made.
    #[inline]
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, link => link.poll_shutdown(cx))
    }

    /// How many bytes the kernel has taken from us, up to the end of what was to be written.
    #[inline]
    pub(crate) fn written(&self) -> u64 {
        either!(self, link => link.written())
    }

    /// How many bytes the kernel has taken from us behind that: what TLS says at the end.
    #[inline]
    pub(crate) fn written_behind(&self) -> u64 {
        match self {
            Self::Plain(_) => 0,
            #[cfg(feature = "tls")]
            Self::Tls(link) => link.written_behind(),
        }
    }

    /// Waits until there is something for HTTP to read. What TLS has to read for itself is dealt with meanwhile.
    #[inline]
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Readable> {
        either!(self, link => link.poll_readable(cx))
    }

    /// How many bytes have been read from the kernel, and not from here. With TLS, a part of a record may be among
    /// them.
    #[inline]
    pub(crate) fn held(&self) -> usize {
        match self {
            Self::Plain(_) => 0,
            #[cfg(feature = "tls")]
            Self::Tls(link) => link.held(),
        }
    }

    /// Whether a part of a record has been read from the kernel. Its rest will tell whether it is for HTTP.
    #[inline]
    pub(crate) fn holds_part(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            #[cfg(feature = "tls")]
            Self::Tls(link) => link.holds_part(),
        }
    }

    /// Whether the connection has to end before long, because TLS can encrypt no more on it.
    #[inline]
    pub(crate) fn is_worn(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            #[cfg(feature = "tls")]
            Self::Tls(link) => link.is_worn(),
        }
    }

    /// Whether the client has broken the protocol of TLS. It has been told so, if it reads that; what else it sends can
    /// be read to the end, and is discarded.
    #[inline]
    pub(crate) fn is_broken(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            #[cfg(feature = "tls")]
            Self::Tls(link) => link.is_broken(),
        }
    }

    /// Whether the link has TLS. Then our end is told in bytes, before the FIN, and a client that closes without
    /// reading them resets the connection.
    #[inline]
    pub(crate) fn is_secure(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            #[cfg(feature = "tls")]
            Self::Tls(_) => true,
        }
    }

    /// Whether the end of what the client sends may have been made by somebody else.
    #[inline]
    pub(crate) fn is_truncated(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            #[cfg(feature = "tls")]
            Self::Tls(link) => link.is_truncated(),
        }
    }

    /// Returns the bytes that the kernel has, up to the length of the buffer, without taking them. If there are none,
    /// the task is woken when some come, or when the connection ends.
    #[inline]
    pub(crate) fn poll_peek<'a>(
        &self,
        cx: &mut Context<'_>,
        bytes: &'a mut [u8],
    ) -> Poll<io::Result<&'a [u8]>> {
        either!(self, link => link.poll_peek(cx, bytes))
    }

    #[inline]
    pub(crate) fn kind(&self) -> Kind {
        either!(self, link => link.kind())
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        either!(self, link => link.as_fd())
    }
}

impl From<Plain> for Link {
    fn from(plain: Plain) -> Self {
        Self::Plain(plain)
    }
}
