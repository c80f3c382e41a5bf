//! A client's connection, by TCP or by a Unix socket.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::sleep;

use crate::sys;

/// Where a server listens.
#[derive(Debug)]
pub(crate) enum Place {
    Ip(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Drop for Place {
    fn drop(&mut self) {
        // A server that was killed has left it.
        if let Self::Unix(path) = self {
            let _ = fs::remove_file(path);
        }
    }
}

/// For the field `Host`, and for people.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Unix(_) => f.write_str("localhost"),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

macro_rules! either {
    ($stream:expr, $inner:ident => $body:expr) => {
        match $stream {
            Self::Tcp($inner) => $body,
            Self::Unix($inner) => $body,
        }
    };
}

impl Stream {
    /// `small`: the kernel reads little on our behalf.
    pub(crate) async fn connect(place: &Place, small: bool) -> io::Result<Self> {
        let addr = match place {
            Place::Ip(addr) => *addr,
            Place::Unix(path) => loop {
                match UnixStream::connect(path).await {
                    // Its queue is full.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        sleep(Duration::from_millis(1)).await;
                    }
                    stream => return stream.map(Self::Unix),
                }
            },
        };
        let socket = TcpSocket::new_v4()?;
        if small {
            // As good as it can: the default does no harm.
            let _ = socket.set_recv_buffer_size(64 << 10);
        }
        let stream = socket.connect(addr).await?;
        // Some systems refuse options once a reset is there.
        stream
            .set_nodelay(true)
            .map_err(|_| ErrorKind::ConnectionReset)?;
        Ok(Self::Tcp(stream))
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        either!(self, stream => stream.readable().await)
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        either!(self, stream => stream.writable().await)
    }

    pub(crate) fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        either!(self, stream => stream.try_read(buf))
    }

    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        either!(self, stream => stream.try_write(bytes))
    }

    pub(crate) fn try_look<T>(&self, look: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        either!(self, stream => stream.try_io(Interest::READABLE, look))
    }

    /// Whether the server's host has some of the bytes that were `sent`. That of a Unix socket is ours.
    pub(crate) fn has_arrived(&self, sent: usize) -> bool {
        match self {
            Self::Tcp(stream) => sys::unacknowledged(stream).is_ok_and(|count| count < sent),
            Self::Unix(_) => sent > 0,
        }
    }

    /// Whether what is written is there at once.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self, Self::Unix(_))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        either!(self, stream => stream.as_fd())
    }
}
