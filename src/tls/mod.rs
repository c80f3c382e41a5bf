//! How a server speaks TLS: its certificates, its versions, and the clients that it accepts.

mod clients;
mod context;
mod identity;
mod info;
mod names;
mod pem;
pub(crate) mod provider;
mod reason;
#[cfg(test)]
mod testing;
mod tickets;
mod x509;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio::sync::Semaphore;

use crate::error::{Error, Result};

pub use clients::{ClientAuth, ClientCertificate};
pub use identity::Identity;
pub use info::TlsInfo;
pub use tickets::TicketKey;

pub(crate) use context::{Context, at_most_content};
pub(crate) use info::has_outlived_its_client;
pub(crate) use reason::Reason;

use context::Limits;
use names::Resolver;
use provider::provider;
use tickets::{KeyRing, Tickets};

/// The protocols that the server speaks, the preferred one first. Some clients offer only the old one if they are told
/// to use it.
const PROTOCOLS: [&[u8]; 2] = [b"http/1.1", b"http/1.0"];

/// A version of TLS. Older versions than these are not supported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    V1_2,
    /// TLS 1.3 (RFC 8446).
    V1_3,
}

/// How a server speaks TLS. Cheap to clone.
#[derive(Clone, Debug)]
#[must_use]
pub struct Tls {
    /// At least one. The first is the default one.
    identities: Vec<Identity>,
    min_version: TlsVersion,
    clients: Option<ClientAuth>,
    limits: Limits,
    ticket_keys: Option<Arc<[TicketKey]>>,
}

impl Tls {
    /// With this certificate for all names. It is also the default one if others follow: see [`Tls::identity`].
    pub fn new(identity: Identity) -> Self {
        Self {
            identities: vec![identity],
            min_version: TlsVersion::default(),
            clients: None,
            limits: Limits {
                timeout: context::TIMEOUT,
                handshakes: context::HANDSHAKES,
            },
            ticket_keys: None,
        }
    }

    /// One more certificate: chosen for clients that ask for one of its [names](Identity::names) (SNI). A certificate
    /// for exactly the name is preferred to one with a wildcard. A client that asks for no name, or for one that no
    /// certificate has, gets the first certificate.
    ///
    /// A name may have several certificates with keys of different types. Each client gets one whose signatures it can
    /// check, and ECDSA or Ed25519 rather than RSA, because these cost the server less.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identities.push(identity);
        self
    }

    /// The oldest version of TLS that clients may use. Default: [`TlsVersion::V1_2`].
    pub fn min_version(mut self, version: TlsVersion) -> Self {
        self.min_version = version;
        self
    }

    /// Asks clients for certificates. By default, no client is asked.
    pub fn clients(mut self, clients: ClientAuth) -> Self {
        self.clients = Some(clients);
        self
    }

    /// How long a handshake may take, from the moment when the connection was accepted. After this time, the connection
    /// is closed. Default: 10 seconds. In real time.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.limits.timeout = timeout;
        self
    }

    /// How many handshakes may be under way in the server: from the end of the client's first message, when they begin
    /// to cost something, to their own end. Others wait for their turn meanwhile, and their time runs. At least 1.
    /// Default: 10,000.
    pub fn handshakes(mut self, count: NonZeroUsize) -> Self {
        self.limits.handshakes = count.get().min(Semaphore::MAX_PERMITS);
        self
    }

    /// The keys of session tickets: the first encrypts, all decrypt. Servers with the same keys resume each other's
    /// sessions, so that after a restart clients need no full handshakes. Whoever gives keys must also replace them now
    /// and then (see [`TicketKey`]), by [`Server::reload_tls`](crate::Server::reload_tls). By default, the server makes
    /// its own keys, a new one every 6 hours, and its tickets end with it.
    pub fn ticket_keys(mut self, keys: impl IntoIterator<Item = TicketKey>) -> Self {
        self.ticket_keys = Some(keys.into_iter().collect());
        self
    }

    /// Whether anything is from files.
    pub(crate) fn has_files(&self) -> bool {
        self.identities.iter().any(Identity::has_files)
            || self.clients.as_ref().is_some_and(ClientAuth::has_files)
    }

    /// The same settings, with all that is from files read again.
    fn reread(&self) -> Result<Self> {
        let identities = self.identities.iter().map(Identity::reread);
        Ok(Self {
            identities: identities.collect::<Result<_>>()?,
            clients: self.clients.as_ref().map(ClientAuth::reread).transpose()?,
            ..self.clone()
        })
    }

    /// What session tickets are bound to: a digest of all that decides which clients are accepted. It is the same in
    /// all processes with the same settings.
    fn namespace(&self) -> [u8; 32] {
        clients::namespace(self.clients.as_ref())
    }

    /// What new connections use, made of these settings.
    ///
    /// `ticketer` must not decrypt the tickets of servers with another [`Tls::namespace`], because rustls does not
    /// check the clients of resumed sessions again.
    ///
    /// # Errors
    /// [`Error::Tls`] if rustls refuses the settings.
    fn generation(&self, ticketer: Arc<dyn ProducesTickets>) -> Result<Generation> {
        let versions: &[&'static SupportedProtocolVersion] = match self.min_version {
            TlsVersion::V1_2 => &[&TLS13, &TLS12],
            TlsVersion::V1_3 => &[&TLS13],
        };
        let verifier = match &self.clients {
            Some(clients) => clients.verifier(),
            None => WebPkiClientVerifier::no_client_auth(),
        };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(|error| Error::Tls(format!("the TLS versions cannot be used: {error}")))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Resolver::new(&self.identities)));

        // A client that offers only other protocols is refused. A client that offers none may go on.
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        // No early data (0-RTT): whoever has recorded it can send it again, so a request could be served twice.
        config.max_early_data_size = 0;
        // All cipher suites of rustls are strong, so the client may choose. A client without instructions for AES
        // prefers ChaCha20, which is faster there.
        config.ignore_client_order = false;
        // Each ticket costs about 250 bytes, and also the size of the client's certificates, in each handshake. One is
        // enough: each connection, resumed or not, brings the ticket for the connection that replaces it. The second
        // ticket of rustls' default would help only clients that open more and more connections.
        config.send_tls13_tickets = 1;
        // Sessions are kept by the clients, in tickets. A memory of our own would not outlive a restart.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = ticketer;

        Ok(Generation {
            config: Arc::new(config),
            settings: Self {
                ticket_keys: None,
                ..self.clone()
            },
        })
    }
}

/// What new connections use, made of a [`Tls`]. A later generation can replace it; open connections keep theirs.
#[derive(Debug)]
struct Generation {
    /// The settings for rustls.
    config: Arc<ServerConfig>,
    /// Without the ticket keys, which are secret, and are the [`KeyRing`]'s.
    settings: Tls,
}

/// How long before a certificate ends that is worth a warning. A renewal that comes in time comes earlier: Let's
/// Encrypt recommends 30 days before the end.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

impl Generation {
    /// When the first of the server's own certificates ends.
    fn not_after(&self) -> SystemTime {
        let ends = self.settings.identities.iter().map(Identity::not_after);
        ends.min().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// What a person should know of the certificates at that time.
    fn warnings(&self, now: SystemTime) -> Vec<String> {
        let mut warnings = Vec::new();
        for identity in &self.settings.identities {
            warnings.extend(identity.warnings(now));
            if let Ok(left) = identity.not_after().duration_since(now)
                && left < SOON
            {
                let (days, name) = (left.as_secs() / 86_400 + 1, identity.place());
                warnings.push(format!("{name} ends in less than {days} days"));
            }
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use rcgen::date_time_ymd;
    use rustls::ProtocolVersion;

    use super::testing::{Ca, Client, generation, params};
    use super::*;

    #[test]
    fn the_oldest_version_can_be_set() {
        let tls = Tls::new(Ca::new("CA").leaf(&["a.example.com"]).identity());
        let old = Client {
            versions: vec![&TLS12],
            ..Client::default()
        };
        assert_eq!(old.connect(&tls).unwrap().version, ProtocolVersion::TLSv1_2);
        assert_eq!(
            Client::default().connect(&tls).unwrap().version,
            ProtocolVersion::TLSv1_3
        );

        let tls = tls.min_version(TlsVersion::V1_3);
        let error = old.connect(&tls).unwrap_err();
        assert!(
            matches!(error, rustls::Error::PeerIncompatible(_)),
            "{error:?}"
        );
        assert_eq!(
            Client::default().connect(&tls).unwrap().version,
            ProtocolVersion::TLSv1_3
        );
    }

    #[test]
    fn a_client_speaks_our_protocol_or_names_none() {
        let tls = Tls::new(Ca::new("CA").leaf(&["a.example.com"]).identity());
        let offers = |names: &[&[u8]]| {
            let alpn = names.iter().map(|name| name.to_vec()).collect();
            Client {
                alpn,
                ..Client::default()
            }
            .connect(&tls)
        };
        assert_eq!(offers(&[]).unwrap().alpn, None);
        for (offered, chosen) in [
            (&[&b"h2"[..], b"http/1.1"][..], b"http/1.1"),
            (&[b"http/1.0", b"http/1.1"], b"http/1.1"),
            (&[b"http/1.0"], b"http/1.0"),
        ] {
            let alpn = offers(offered).unwrap().alpn;
            assert_eq!(alpn.as_deref(), Some(&chosen[..]));
        }
        assert_eq!(
            offers(&[b"h2"]).unwrap_err(),
            rustls::Error::NoApplicationProtocol
        );
    }

    #[test]
    fn a_generation_ends_with_its_first_certificate() {
        let ca = Ca::new("CA");
        let until = |year| {
            let mut params = params("leaf", &["a.example.com"]);
            params.not_after = date_time_ymd(year, 1, 1);
            ca.issue(&params).identity()
        };
        let tls = Tls::new(until(2040))
            .identity(until(2030))
            .identity(until(2050));
        assert_eq!(
            generation(&tls).not_after(),
            UNIX_EPOCH + Duration::from_secs(1_893_456_000)
        );
        assert_eq!(
            tls.namespace(),
            tls.clone().identity(until(2060)).namespace()
        );
    }
}
