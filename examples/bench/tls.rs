//! TLS, as the clients speak it.
//!
//! The clients offer one version, one cipher suite and one group, so that all servers do the same work, whichever they
//! would prefer. All of them have the same certificate, whose signature the clients do not check: what that costs is no
//! server's affair.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup};

use crate::anybody::Anybody;

/// The certificate of all servers, for an ECDSA key on P-256. `examples/certs.sh` makes both.
pub(crate) const CERTIFICATE: &str = "build/certs/server.pem";
pub(crate) const KEY: &str = "build/certs/server-key.pem";

/// How the clients of a server speak TLS.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    resumed: Arc<AtomicUsize>,
}

/// What clients do with the tickets that they get.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Sessions {
    Resume,
    Forget,
}

impl Tls {
    pub(crate) fn new(sessions: Sessions) -> io::Result<Self> {
        let provider = CryptoProvider {
            // The one that every implementation must have (RFC 8446, 9.1).
            cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![kx_group::X25519],
            ..default_provider()
        };
        let anybody = Anybody(provider.signature_verification_algorithms);
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(anybody))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = match sessions {
            Sessions::Resume => Resumption::store(Arc::new(Tickets::default())),
            Sessions::Forget => Resumption::disabled(),
        };
        Ok(Self {
            config: Arc::new(config),
            resumed: Arc::default(),
        })
    }

    /// How many connections have been closed that had resumed a session.
    pub(crate) fn resumed(&self) -> usize {
        self.resumed.load(Ordering::Relaxed)
    }

    pub(crate) fn connection(&self) -> io::Result<ClientConnection> {
        // A name of the certificate, which goes with the client's first message (SNI).
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        ClientConnection::new(Arc::clone(&self.config), name).map_err(io::Error::other)
    }
}

/// A connection of the clients that wait with epoll. Nothing here waits.
#[derive(Debug)]
pub(crate) struct Session {
    socket: TcpStream,
    tls: ClientConnection,
    resumed: Arc<AtomicUsize>,
}

impl Session {
    pub(crate) fn new(socket: TcpStream, tls: &Tls) -> io::Result<Self> {
        Ok(Self {
            socket,
            tls: tls.connection()?,
            resumed: Arc::clone(&tls.resumed),
        })
    }

    /// Like a socket's `read`. What has been decrypted and does not fit into `buf` is not announced by epoll again, so
    /// `buf` has room for more than is ever answered at once.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(buf) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            self.tls.read_tls(&mut self.socket)?;
            self.tls.process_new_packets().map_err(io::Error::other)?;
            self.flush()?;
        }
    }

    /// During the handshake, rustls keeps what is written, and sends it with the last message of the handshake.
    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tls.writer().write_all(bytes)?;
        self.flush()
    }

    /// The handshake and the requests are small, so the kernel takes all of them.
    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    /// Says that nothing more comes (`close_notify`), like other clients, and closes the socket.
    pub(crate) fn close(mut self) -> io::Result<()> {
        if self.tls.handshake_kind() == Some(HandshakeKind::Resumed) {
            self.resumed.fetch_add(1, Ordering::Relaxed);
        }
        self.tls.send_close_notify();
        self.flush()
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The tickets that have not been used. Each connection takes one, and its server gives one for the next. rustls' own
/// store keeps but eight for a server, which is not enough for the clients that connect at the same time.
#[derive(Debug, Default)]
struct Tickets(Mutex<Vec<Tls13ClientSessionValue>>);

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.push(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.pop()
    }
}
