//! A client's way to its server, with or without TLS. Nothing here waits.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use crate::tls::{Session, Tls};

#[derive(Debug)]
pub(crate) enum Link {
    Plain(TcpStream),
    Tls(Box<Session>),
}

impl Link {
    pub(crate) fn connect(addr: SocketAddr, tls: Option<&Tls>) -> io::Result<Self> {
        let socket = TcpStream::connect(addr)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        Ok(match tls {
            None => Self::Plain(socket),
            Some(tls) => Self::Tls(Box::new(Session::new(socket, tls)?)),
        })
    }

    /// Like a socket's `read`.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buf),
            Self::Tls(session) => session.read(buf),
        }
    }

    /// A few KB, into an empty buffer: all or nothing.
    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.write_all(bytes),
            Self::Tls(session) => session.write_all(bytes),
        }
    }

    /// Closes the connection, as clients do that need it no more.
    pub(crate) fn close(self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(session) => session.close(),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(socket) => socket.as_fd(),
            Self::Tls(session) => session.as_fd(),
        }
    }
}
