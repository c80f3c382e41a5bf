//! A client's connection, by TCP or by a Unix socket, with TLS or without.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::sleep;

use crate::sys;
use crate::tls::{Session, Tls};

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

/// What a look at a connection shows, without taking anything that is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Open,
    Bytes,
    Fin,
    Reset,
}

#[derive(Debug)]
pub(crate) struct Stream {
    socket: Socket,
    /// From the beginning of the handshake on.
    tls: Option<Box<Session>>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

macro_rules! either {
    ($socket:expr, $inner:ident => $body:expr) => {
        match $socket {
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
                    stream => return stream.map(Socket::Unix).map(Self::plain),
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
        Ok(Self::plain(Socket::Tcp(stream)))
    }

    fn plain(socket: Socket) -> Self {
        Self { socket, tls: None }
    }

    /// Shakes hands. The errors are those of [`Stream::try_read`], but each end is one.
    pub(crate) async fn secure(&mut self, tls: &Tls) -> io::Result<()> {
        let tls = self.tls.insert(Session::new(tls)?.into());
        loop {
            let flush = || tls.flush(&self.socket);
            match self.socket.try_io(Interest::WRITABLE, flush) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.socket.ready(Interest::WRITABLE).await?;
                    continue;
                }
                flushed => flushed?,
            }
            if !tls.is_shaking_hands() {
                tls.count();
                return Ok(());
            }
            self.socket.ready(Interest::READABLE).await?;
            let look = || found(tls.look(&self.socket));
            let _ = self.socket.try_io(Interest::READABLE, look);
            if let Some(end) = tls.end() {
                return Err(end);
            }
        }
    }

    /// A request begins with what is written next.
    pub(crate) fn begin(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.begin();
        }
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        if self.has_next() {
            return Ok(());
        }
        self.socket.ready(Interest::READABLE).await
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.socket.ready(Interest::WRITABLE).await
    }

    /// The end is 0. With TLS, a FIN that was not announced is `UnexpectedEof`, and what is no TLS is `InvalidData`.
    pub(crate) fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reading(|socket, tls| match tls {
            Some(tls) => tls.read(socket, buf),
            None => (&*SockRef::from(socket)).read(buf),
        })
    }

    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Self { socket, tls } = self;
        let socket = &*socket;
        socket.try_io(Interest::WRITABLE, || match tls {
            Some(tls) => tls.write(socket, bytes),
            None => (&*SockRef::from(socket)).write(bytes),
        })
    }

    /// Asks the kernel, not tokio, which knows only what its last poll saw.
    pub(crate) fn look(&mut self) -> Look {
        look(&self.socket, self.tls.as_deref_mut())
    }

    /// The same by way of tokio, which is to forget that there once was something to read. `WouldBlock` stands for
    /// [`Look::Open`].
    pub(crate) fn try_look(&mut self) -> io::Result<Look> {
        self.reading(|socket, tls| found(look(socket, tls)))
    }

    /// Calls `f` if there is something to read, as far as is known. If there is not, it says `WouldBlock`.
    fn reading<T>(
        &mut self,
        f: impl FnOnce(&Socket, Option<&mut Session>) -> io::Result<T>,
    ) -> io::Result<T> {
        if self.has_next() {
            return f(&self.socket, self.tls.as_deref_mut());
        }
        let f = || f(&self.socket, self.tls.as_deref_mut());
        self.socket.try_io(Interest::READABLE, f)
    }

    /// Whether TLS has something to read of which neither the kernel nor tokio knows any more.
    fn has_next(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.has_next())
    }

    /// Whether the server's host has some of the bytes that were `sent` since the request began; with TLS, its first
    /// record. That of a Unix socket is ours.
    pub(crate) fn has_arrived(&self, sent: usize) -> bool {
        match (&self.socket, &self.tls) {
            (Socket::Tcp(socket), None) => {
                sys::unacknowledged(socket).is_ok_and(|count| count < sent)
            }
            (Socket::Tcp(socket), Some(tls)) => {
                sys::unacknowledged(socket).is_ok_and(|count| tls.has_arrived(count))
            }
            (Socket::Unix(_), _) => sent > 0,
        }
    }

    /// Whether what is written is there at once.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.socket, Socket::Unix(_))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.part(&self.socket);
        }
    }
}

fn look(socket: &Socket, tls: Option<&mut Session>) -> Look {
    if let Some(tls) = tls {
        return tls.look(socket);
    }
    match SockRef::from(socket).peek(&mut [MaybeUninit::uninit()]) {
        Ok(0) => Look::Fin,
        Ok(_) => Look::Bytes,
        Err(error) if error.kind() == ErrorKind::WouldBlock => Look::Open,
        Err(_) => Look::Reset,
    }
}

fn found(seen: Look) -> io::Result<Look> {
    match seen {
        Look::Open => Err(ErrorKind::WouldBlock.into()),
        seen => Ok(seen),
    }
}

impl Socket {
    async fn ready(&self, interest: Interest) -> io::Result<()> {
        either!(self, socket => socket.ready(interest).await.map(drop))
    }

    fn try_io<T>(&self, interest: Interest, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        either!(self, socket => socket.try_io(interest, f))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        either!(self, socket => socket.as_fd())
    }
}
