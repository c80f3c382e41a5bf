//! TLS for tests: certificates that are made for them, and clients.

use std::io;
use std::sync::{Arc, OnceLock};

use httpdown::{Identity, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore};

/// Whether all servers and clients of the tests speak TLS: so the same tests are run once more
/// (`HTTPDOWN_TEST_SOCKETS=tls`).
pub(crate) fn is_everywhere() -> bool {
    std::env::var("HTTPDOWN_TEST_SOCKETS").is_ok_and(|kind| kind == "tls")
}

/// Who issues certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::named("Servers")
    }

    /// Two that are to be told apart have different names.
    pub(crate) fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// The one that has issued the certificate of [`settings`].
    pub(crate) fn of_servers() -> &'static Self {
        static ONE: OnceLock<Authority> = OnceLock::new();
        ONE.get_or_init(Self::new)
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate with these names, for servers and for clients.
    pub(crate) fn issue(&self, names: &[&str]) -> Pair {
        self.issue_with(names, |_| {})
    }

    pub(crate) fn issue_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let names = names.iter().map(|&name| name.to_owned());
        let mut params = CertificateParams::new(names.collect::<Vec<_>>()).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Pair {
            chain: params.signed_by(&key, &self.0).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

impl Pair {
    /// The certificate.
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.chain.as_bytes()).unwrap()
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity::from_pem(self.chain.as_bytes(), self.key.as_bytes()).unwrap()
    }
}

/// TLS for `localhost` and `127.0.0.1`.
pub(crate) fn settings() -> Tls {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    let identity = IDENTITY.get_or_init(|| {
        let pair = Authority::of_servers().issue(&["localhost", "127.0.0.1"]);
        pair.identity()
    });
    Tls::new(identity.clone())
}

/// A client that trusts [`Authority::of_servers`], without resumption: each handshake is a full one.
pub(crate) fn config() -> Arc<ClientConfig> {
    static ONE: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    let make = || {
        let mut config = config_with(Authority::of_servers(), None, rustls::DEFAULT_VERSIONS);
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    };
    Arc::clone(ONE.get_or_init(make))
}

/// A client that trusts this authority, and has this certificate.
pub(crate) fn config_with(
    trusted: &Authority,
    own: Option<&Pair>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.0.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    match own {
        None => config.with_no_client_auth(),
        Some(pair) => {
            let chain = CertificateDer::pem_slice_iter(pair.chain.as_bytes());
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            let chain = chain.collect::<Result<_, _>>().unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    static ONE: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Arc::clone(ONE.get_or_init(make))
}

pub(crate) fn client() -> Box<ClientConnection> {
    client_by(&config(), "localhost")
}

pub(crate) fn client_by(config: &Arc<ClientConfig>, name: &'static str) -> Box<ClientConnection> {
    let name = ServerName::try_from(name).unwrap();
    Box::new(ClientConnection::new(Arc::clone(config), name).unwrap())
}

/// The alert that this error of a client is about.
pub(crate) fn alert(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}
