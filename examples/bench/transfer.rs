//! Large bodies, one after the other, on one connection with TLS.

use std::io::{self, BufRead, BufReader, ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};

use rustls::{ClientConnection, StreamOwned};

use crate::client::{PATIENCE, body_length, wrong};
use crate::tls::Tls;

/// The length of a body. Large, but a server that sends a file has it in the kernel's page cache.
pub(crate) const BODY: usize = 64 << 20;

/// What is written at once: as much as rustls takes.
const PIECE: usize = 64 << 10;
static ZEROES: [u8; PIECE] = [0; PIECE];

/// A client, and its connection.
#[derive(Debug)]
pub(crate) struct Transfer {
    addr: SocketAddr,
    stream: StreamOwned<ClientConnection, Socket>,
}

impl Transfer {
    /// Connects. The handshake comes with the first request.
    pub(crate) fn new(addr: SocketAddr, tls: &Tls) -> io::Result<Self> {
        let socket = TcpStream::connect(addr)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let socket = Socket(BufReader::with_capacity(4 * PIECE, socket));
        let stream = StreamOwned::new(tls.connection()?, socket);
        Ok(Self { addr, stream })
    }

    /// Gets a body COUNT times.
    pub(crate) fn download(&mut self, count: usize) -> io::Result<()> {
        for _ in 0..count {
            self.ask("GET", &format!("/bytes/{BODY}"), 0)?;
            let length = self.answer()?;
            if length != BODY {
                return Err(wrong(format!("an answer of {length} bytes")));
            }
        }
        Ok(())
    }

    /// Sends a body COUNT times, and returns when the server has read them all.
    pub(crate) fn upload(&mut self, count: usize) -> io::Result<()> {
        for _ in 0..count {
            self.ask("POST", "/upload", BODY)?;
            for _ in 0..BODY / PIECE {
                self.stream.write_all(&ZEROES)?;
            }
            self.answer()?;
        }
        // A server may answer before it has read the body. But the next request is behind that.
        self.ask("GET", "/", 0)?;
        self.answer()?;
        Ok(())
    }

    fn ask(&mut self, method: &str, path: &str, length: usize) -> io::Result<()> {
        let addr = self.addr;
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nContent-Length: {length}\r\n\r\n");
        self.stream.write_all(head.as_bytes())
    }

    /// Reads a whole answer. The length of its body.
    fn answer(&mut self) -> io::Result<usize> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if self.stream.read_until(b'\n', &mut head)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        response.parse(&head).map_err(io::Error::other)?;
        let length = body_length(&response)?;
        let mut left = length;
        while left > 0 {
            // Looked at where rustls has it.
            let some = self.stream.fill_buf()?.len().min(left);
            if some == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            self.stream.consume(some);
            left -= some;
        }
        Ok(length)
    }
}

/// A socket from which much is read at once: rustls asks for 4 KiB at a time.
#[derive(Debug)]
struct Socket(BufReader<TcpStream>);

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.get_mut().write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
