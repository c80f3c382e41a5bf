//! What the tests of TLS share: a CA, its certificates, and handshakes in memory.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ProducesTickets;
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, ProtocolVersion,
    RootCertStore, ServerConnection, SignatureScheme, SupportedProtocolVersion,
};

use super::provider::provider;
use super::{Generation, Identity, Tls};

/// A CA, which is trusted by itself.
pub(super) struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate that a CA has issued, and its key.
pub(super) struct Leaf {
    pub(super) pem: String,
    pub(super) der: CertificateDer<'static>,
    pub(super) key: String,
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = params(name, &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// The parameters of a certificate for these names.
pub(super) fn params(common_name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.remove(DnType::CommonName);
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

impl Ca {
    pub(super) fn new(name: &str) -> Self {
        Self(CertifiedIssuer::self_signed(ca_params(name), KeyPair::generate().unwrap()).unwrap())
    }

    /// An intermediate CA.
    pub(super) fn issue_ca(&self, name: &str) -> Self {
        Self(
            CertifiedIssuer::signed_by(ca_params(name), KeyPair::generate().unwrap(), &self.0)
                .unwrap(),
        )
    }

    pub(super) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(super) fn issue(&self, params: &CertificateParams) -> Leaf {
        self.issue_for(params, &KeyPair::generate().unwrap())
    }

    pub(super) fn issue_for(&self, params: &CertificateParams, key: &KeyPair) -> Leaf {
        let certificate = params.signed_by(key, &self.0).unwrap();
        Leaf {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            key: key.serialize_pem(),
        }
    }

    pub(super) fn leaf(&self, names: &[&str]) -> Leaf {
        self.issue(&params("leaf", names))
    }

    /// A revocation list, PEM, with these serial numbers.
    pub(super) fn crl(&self, serials: &[u64]) -> String {
        let revoked = |&serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2020, 2, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().pem().unwrap()
    }
}

impl Leaf {
    pub(super) fn identity(&self) -> Identity {
        Identity::from_pem(self.pem.as_bytes(), self.key.as_bytes()).unwrap()
    }
}

/// What `openssl` prints when it reads this text. `None`, and a line that says so, if the program is missing.
pub(super) fn openssl(arguments: &[&str], input: &str) -> Option<String> {
    let command = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = command else {
        eprintln!("skipped: no openssl");
        return None;
    };
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// A new RSA key in PKCS#8, because rcgen cannot make one.
pub(super) fn rsa_key() -> Option<KeyPair> {
    let pem = openssl(
        &[
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
        ],
        "",
    )?;
    Some(KeyPair::from_pem(&pem).unwrap())
}

/// Makes no tickets.
#[derive(Debug)]
struct NoTickets;

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// The settings for rustls, without tickets.
pub(super) fn generation(tls: &Tls) -> Generation {
    tls.generation(Arc::new(NoTickets)).unwrap()
}

/// A client that checks the signatures of these schemes, but trusts every certificate.
#[derive(Debug)]
struct Trusting {
    real: Arc<WebPkiServerVerifier>,
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.real.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.real.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

/// A client, and what it does.
pub(super) struct Client {
    /// The name that it asks for. An address is not sent.
    pub(super) name: &'static str,
    /// Which signatures it can check. Empty: all.
    pub(super) schemes: Vec<SignatureScheme>,
    pub(super) versions: Vec<&'static SupportedProtocolVersion>,
    pub(super) alpn: Vec<Vec<u8>>,
    pub(super) certificate: Option<Arc<CertifiedKey>>,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            name: "a.example.com",
            schemes: Vec::new(),
            versions: rustls::ALL_VERSIONS.to_vec(),
            alpn: Vec::new(),
            certificate: None,
        }
    }
}

impl Client {
    /// Asks for this name.
    pub(super) fn named(name: &'static str) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    /// Has this certificate.
    pub(super) fn with(identity: &Identity) -> Self {
        Self {
            certificate: Some(Arc::clone(identity.key())),
            ..Self::default()
        }
    }

    fn config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(Ca::new("unused").0.der().clone()).unwrap();
        let real = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .unwrap();
        let schemes = if self.schemes.is_empty() {
            real.supported_verify_schemes()
        } else {
            self.schemes.clone()
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&self.versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trusting { real, schemes }));
        let mut config = match &self.certificate {
            None => builder.with_no_client_auth(),
            Some(key) => {
                let resolver = rustls::sign::SingleCertAndKey::from(Arc::clone(key));
                builder.with_client_cert_resolver(Arc::new(resolver))
            }
        };
        config.alpn_protocols.clone_from(&self.alpn);
        config.resumption = Resumption::disabled();
        config
    }

    /// The handshake with a server that has these settings. The server's error if it failed there, or else the
    /// client's.
    pub(super) fn connect(&self, tls: &Tls) -> Result<Connected, rustls::Error> {
        let mut server = ServerConnection::new(generation(tls).config).unwrap();
        let name = ServerName::try_from(self.name).unwrap();
        let mut client = ClientConnection::new(Arc::new(self.config()), name).unwrap();
        while server.is_handshaking()
            || client.is_handshaking()
            || client.wants_write()
            || server.wants_write()
        {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets()?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets()?;
            }
        }
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
        Ok(Connected {
            version: server.protocol_version().unwrap(),
            alpn: server.alpn_protocol().map(<[u8]>::to_vec),
            server: client.peer_certificates().unwrap()[0].clone().into_owned(),
            client: super::ClientCertificate::first(server.peer_certificates()),
        })
    }
}

/// A connection, after its handshake.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) version: ProtocolVersion,
    pub(super) alpn: Option<Vec<u8>>,
    /// The server's certificate.
    pub(super) server: CertificateDer<'static>,
    pub(super) client: Option<super::ClientCertificate>,
}
