//! TLS, as a client speaks it.
//!
//! What a client sees at its socket is said of TLS as it is of TCP:
//!
//! - The server's end is its `close_notify`, or a FIN without one. Whichever has come counts, so a request that is
//!   written behind either has not crossed it.
//! - A FIN without a `close_notify` ends no answer whose length only the end can tell: that answer is cut.
//! - A fatal alert is a reset: the server has broken the connection off. What is no TLS is no HTTP either.
//! - A request has reached the server when its first record has, to the last byte: before that the server cannot
//!   decrypt it.

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Error, HandshakeKind};
use socket2::SockRef;

use crate::anybody::Anybody;
use crate::stream::{Look, Place};

/// What the clients of a server share: how they speak TLS, and the sessions that they can resume.
#[derive(Debug)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    counts: Arc<Counts>,
}

/// What clients do with the sessions that a server offers for later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sessions {
    Resume,
    Forget,
}

#[derive(Debug, Default)]
struct Counts {
    full: AtomicU64,
    resumed: AtomicU64,
    abrupt: AtomicU64,
}

/// Counts of connections.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Handshakes {
    pub(crate) full: u64,
    pub(crate) resumed: u64,
    /// Connections that the client saw end with a FIN without a `close_notify`.
    pub(crate) abrupt: u64,
}

impl Tls {
    /// With an empty store of sessions: a server that has just been started has made none.
    pub(crate) fn new(place: &Place, sessions: Sessions) -> Result<Self, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let anybody = Anybody(provider.signature_verification_algorithms);
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(anybody))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".into()];
        if sessions == Sessions::Forget {
            config.resumption = Resumption::disabled();
        }
        Ok(Self {
            config: config.into(),
            // Like the field Host.
            name: match place {
                Place::Ip(addr) => addr.ip().into(),
                Place::Unix(_) => ServerName::try_from("localhost")
                    .map_err(|error| Error::General(error.to_string()))?,
            },
            counts: Arc::default(),
        })
    }

    /// Of all clients, so far.
    pub(crate) fn handshakes(&self) -> Handshakes {
        Handshakes {
            full: self.counts.full.load(Ordering::Relaxed),
            resumed: self.counts.resumed.load(Ordering::Relaxed),
            abrupt: self.counts.abrupt.load(Ordering::Relaxed),
        }
    }
}

impl Handshakes {
    pub(crate) fn merge(&mut self, other: Self) {
        self.full += other.full;
        self.resumed += other.resumed;
        self.abrupt += other.abrupt;
    }
}

/// What comes next from the server, of what has been taken from the kernel.
#[derive(Clone, Debug)]
enum Next {
    /// Only the kernel knows.
    Unknown,
    Plaintext,
    CloseNotify,
    /// A FIN without a `close_notify`.
    Fin,
    Failed(ErrorKind, String),
}

/// The plaintext of the largest record.
const RECORD: usize = 16 << 10;

/// A connection's TLS. The socket is lent to each call.
#[derive(Debug)]
pub(crate) struct Session {
    connection: ClientConnection,
    counts: Arc<Counts>,
    next: Next,
    /// Taken from the writer, but not all of its record by the kernel yet.
    sealed: usize,
    /// How many bytes the kernel has taken.
    written: usize,
    /// Where in them the first record of the request ends that was begun last.
    first: Option<usize>,
    /// The kernel takes no more. After that, Linux says of a reset that it is a FIN.
    failed: bool,
}

impl Session {
    pub(crate) fn new(tls: &Tls) -> io::Result<Self> {
        let connection = ClientConnection::new(Arc::clone(&tls.config), tls.name.clone());
        Ok(Self {
            connection: connection.map_err(io::Error::other)?,
            counts: Arc::clone(&tls.counts),
            next: Next::Unknown,
            sealed: 0,
            written: 0,
            first: None,
            failed: false,
        })
    }

    pub(crate) fn is_shaking_hands(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Counts the handshake, which is over.
    pub(crate) fn count(&self) {
        let count = match self.connection.handshake_kind() {
            Some(HandshakeKind::Resumed) => &self.counts.resumed,
            _ => &self.counts.full,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether there is something to read, or an end, of which the kernel knows nothing any more.
    pub(crate) fn has_next(&self) -> bool {
        !matches!(self.next, Next::Unknown)
    }

    /// Looks what comes next. It stays there, but the kernel has it no more.
    pub(crate) fn look(&mut self, socket: &impl AsFd) -> Look {
        while let Next::Unknown = self.next {
            let pulled = self.pull(socket);
            if matches!(&pulled, Err(error) if error.kind() == ErrorKind::WouldBlock) {
                break;
            }
            self.settle(pulled);
        }
        match self.next {
            Next::Unknown => Look::Open,
            Next::Plaintext | Next::Failed(ErrorKind::InvalidData, _) => Look::Bytes,
            Next::CloseNotify | Next::Fin => Look::Fin,
            Next::Failed(..) => Look::Reset,
        }
    }

    /// Takes what the kernel has, or a part of it, and decrypts it.
    fn pull(&mut self, socket: &impl AsFd) -> io::Result<()> {
        // rustls repeats its error. That is for later: what it had decrypted before has been read first.
        self.connection.process_new_packets().map_err(broken)?;
        self.connection.read_tls(&mut &*SockRef::from(socket))?;
        let _ = self.connection.process_new_packets();
        Ok(())
    }

    fn settle(&mut self, pulled: io::Result<()>) {
        self.next = match (self.connection.reader().fill_buf(), pulled) {
            (Ok([]), _) => Next::CloseNotify,
            (Ok(_), _) => Next::Plaintext,
            (Err(_), Err(error)) => Next::Failed(error.kind(), error.to_string()),
            (Err(error), Ok(())) if error.kind() == ErrorKind::UnexpectedEof => {
                if self.failed {
                    let kind = ErrorKind::ConnectionReset;
                    Next::Failed(kind, kind.to_string())
                } else {
                    Next::Fin
                }
            }
            (Err(_), Ok(())) => Next::Unknown,
        };
    }

    /// Like a socket's `read`. A FIN without a `close_notify` is `UnexpectedEof`, and what is no TLS `InvalidData`.
    pub(crate) fn read(&mut self, socket: &impl AsFd, buf: &mut [u8]) -> io::Result<usize> {
        let mut count = 0;
        // As much as there is: a client that reads slowly is to be as slow as without TLS.
        while count < buf.len() {
            self.look(socket);
            let Next::Plaintext = self.next else { break };
            count += self.connection.reader().read(&mut buf[count..])?;
            self.settle(Ok(()));
        }
        match (&self.next, self.end()) {
            _ if count > 0 => Ok(count),
            (Next::CloseNotify, _) => Ok(0),
            (_, Some(end)) => Err(end),
            (_, None) => Err(ErrorKind::WouldBlock.into()),
        }
    }

    /// How the connection has ended, if nothing is left to be read before that.
    pub(crate) fn end(&self) -> Option<io::Error> {
        match &self.next {
            Next::Unknown | Next::Plaintext => None,
            Next::CloseNotify | Next::Fin => Some(ErrorKind::UnexpectedEof.into()),
            Next::Failed(kind, why) => Some(io::Error::new(*kind, why.clone())),
        }
    }

    /// A request begins with what is written next.
    pub(crate) fn begin(&mut self) {
        self.first = None;
    }

    /// Like a socket's `write`, but a record counts when the kernel has all of it: nobody can decrypt a part. After
    /// `WouldBlock` the same bytes must come again.
    pub(crate) fn write(&mut self, socket: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
        if self.sealed == 0 {
            // A single record.
            let most = bytes.len().min(RECORD);
            self.sealed = self.connection.writer().write(&bytes[..most])?;
        }
        self.flush(socket)?;
        self.first.get_or_insert(self.written);
        Ok(std::mem::take(&mut self.sealed))
    }

    /// Gives the kernel what TLS has to say: parts of the handshake, and records.
    pub(crate) fn flush(&mut self, socket: &impl AsFd) -> io::Result<()> {
        while self.connection.wants_write() {
            let written = self.connection.write_tls(&mut &*SockRef::from(socket));
            self.failed |= matches!(&written, Err(error) if error.kind() != ErrorKind::WouldBlock);
            self.written += written?;
        }
        Ok(())
    }

    /// Whether the first record of the request has arrived, if so many bytes have not.
    pub(crate) fn has_arrived(&self, unacknowledged: usize) -> bool {
        let arrived = self.written.saturating_sub(unacknowledged);
        self.first.is_some_and(|first| first <= arrived)
    }

    /// Says that the client closes the connection, as far as that goes without waiting.
    pub(crate) fn part(&mut self, socket: &impl AsFd) {
        // What the kernel still has would make a reset of the FIN. It may also be a session that can be resumed.
        self.look(socket);
        if let Next::Fin = self.next {
            self.counts.abrupt.fetch_add(1, Ordering::Relaxed);
        }
        if self.sealed == 0 {
            self.connection.send_close_notify();
        }
        let _ = self.flush(socket);
    }
}

fn broken(error: Error) -> io::Error {
    let kind = match error {
        Error::AlertReceived(_) => ErrorKind::ConnectionReset,
        _ => ErrorKind::InvalidData,
    };
    io::Error::new(kind, error)
}
