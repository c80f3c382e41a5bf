//! What a handshake has agreed on.

use std::time::SystemTime;

use rustls::{CommonState, HandshakeKind, ProtocolVersion};

use super::{ClientCertificate, TlsVersion};

/// What the TLS handshake of a connection has agreed on. Get it by [`ConnInfo::tls`](crate::ConnInfo::tls).
///
/// ```
/// # let conn: Option<httpdown::ConnInfo> = None;
/// # let Some(conn) = conn else { return };
/// match conn.tls() {
///     Some(tls) => println!("{:?}, {}", tls.version(), tls.cipher_suite()),
///     None => println!("without TLS"),
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsInfo {
    version: TlsVersion,
    suite: &'static str,
    server_name: Option<Box<str>>,
    alpn: Option<Box<[u8]>>,
    client: Option<ClientCertificate>,
    resumed: bool,
}

impl TlsInfo {
    /// What is known of a handshake that is done, in which the client has asked for `server_name`.
    pub(crate) fn of(session: &CommonState, server_name: Option<Box<str>>) -> Self {
        let suite = session.negotiated_cipher_suite();
        Self {
            version: match session.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => TlsVersion::V1_2,
                _ => TlsVersion::V1_3,
            },
            suite: suite
                .and_then(|suite| suite.suite().as_str())
                .unwrap_or_default(),
            server_name,
            alpn: session.alpn_protocol().map(Box::from),
            client: ClientCertificate::first(session.peer_certificates()),
            resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }

    /// The version of the protocol.
    #[must_use]
    pub fn version(&self) -> TlsVersion {
        self.version
    }

    /// The cipher suite, by its name in the IANA's registry, such as `TLS13_AES_256_GCM_SHA384`.
    #[must_use]
    pub fn cipher_suite(&self) -> &str {
        self.suite
    }

    /// The name that the client has asked for (SNI), in lower case; `None` if it has named none. A request's `Host` may
    /// differ.
    #[must_use]
    pub fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// The protocol that client and server have agreed on (ALPN), such as `http/1.1`; `None` if the client has not
    /// offered any.
    #[must_use]
    pub fn alpn(&self) -> Option<&[u8]> {
        self.alpn.as_deref()
    }

    /// The client's certificate. It was verified, now or, if the session was [resumed](TlsInfo::is_resumed), in the
    /// handshake that began the session.
    #[must_use]
    pub fn client_certificate(&self) -> Option<&ClientCertificate> {
        self.client.as_ref()
    }

    /// Whether the session goes on from an earlier connection, by a ticket.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }
}

/// Whether the session goes on from one whose client has had a certificate, and that certificate has ended since.
/// rustls does not look at it again.
pub(crate) fn has_outlived_its_client(session: &CommonState) -> bool {
    session.handshake_kind() == Some(HandshakeKind::Resumed)
        && ClientCertificate::first(session.peer_certificates())
            .is_some_and(|client| !client.is_valid_at(SystemTime::now()))
}
