//! Client certificates: which ones are asked for, and what a handler sees of them.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::error::{Error, Result};

use super::pem::{PemFile, sections};
use super::provider::{provider, sha256};
use super::x509::{self, AltName};

/// Which client certificates are asked for, and who must have issued them. Cheap to clone.
///
/// A certificate must lead to one of the CAs, be valid at this moment, and be meant for clients (its extended key usage
/// is absent or has `clientAuth`). A resumed session is not checked again, but for the dates of the client's own
/// certificate: its client was checked when the session began.
#[derive(Clone)]
pub struct ClientAuth {
    required: bool,
    roots: Arc<RootCertStore>,
    /// The digests of the CA certificates.
    cas: BTreeSet<[u8; 32]>,
    /// Where these are from, if it is a file.
    ca_file: Option<PemFile>,
    crls: Vec<Crls>,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// Certificate revocation lists that are from one text.
#[derive(Clone)]
struct Crls {
    lists: Arc<[CertificateRevocationListDer<'static>]>,
    file: Option<PemFile>,
}

/// What the texts are called in errors.
const CAS: &str = "the CA bundle";
const CRLS: &str = "the CRL bundle";

impl ClientAuth {
    /// Every client must have a certificate that one of these CAs has issued, or the handshake fails. The CA
    /// certificates are PEM; each of them is trusted by itself, whoever has issued it.
    ///
    /// # Errors
    /// [`Error::Tls`] if the PEM is empty, is malformed, or has no certificate; if a certificate cannot be used.
    pub fn required(ca_pem: &[u8]) -> Result<Self> {
        Self::new(true, ca_pem, CAS, None)
    }

    /// Like [`ClientAuth::required`], from a file. Blocks while the file is read.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::OutOfResources`] if the file cannot be read; [`Error::InvalidArgument`] if the path is
    /// PEM; else the errors of [`ClientAuth::required`]. The texts name the file.
    pub fn required_from_file(ca: impl AsRef<Path>) -> Result<Self> {
        Self::read(true, PemFile::new(CAS, ca.as_ref())?)
    }

    /// Like [`ClientAuth::required`], but a client may have no certificate. If it has one, one of the CAs must have
    /// issued it. The handler finds out whether there is a certificate, and which.
    ///
    /// # Errors
    /// The errors of [`ClientAuth::required`].
    pub fn optional(ca_pem: &[u8]) -> Result<Self> {
        Self::new(false, ca_pem, CAS, None)
    }

    /// Like [`ClientAuth::optional`], from a file. Blocks while the file is read.
    ///
    /// # Errors
    /// The errors of [`ClientAuth::required_from_file`].
    pub fn optional_from_file(ca: impl AsRef<Path>) -> Result<Self> {
        Self::read(false, PemFile::new(CAS, ca.as_ref())?)
    }

    /// Refuses certificates that one of these certificate revocation lists (PEM, `X509 CRL`) names. Further calls add
    /// further lists.
    ///
    /// Once there are lists, each certificate needs one from its issuer, and so do the intermediate certificates: if
    /// there is none, the client is refused. A list that has expired still counts. It names the certificates that were
    /// revoked until then, and without it a late update would lock all clients out.
    ///
    /// # Errors
    /// [`Error::Tls`] if the PEM is empty, is malformed, or has no list; if a list cannot be used.
    pub fn crls(self, pem: &[u8]) -> Result<Self> {
        self.with_crls(pem, CRLS, None)
    }

    /// Like [`ClientAuth::crls`], from a file. Blocks while the file is read.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::OutOfResources`] if the file cannot be read; [`Error::InvalidArgument`] if the path is
    /// PEM; else the errors of [`ClientAuth::crls`]. The texts name the file.
    pub fn crls_from_file(self, path: impl AsRef<Path>) -> Result<Self> {
        self.read_crls(PemFile::new(CRLS, path.as_ref())?)
    }

    fn read_crls(self, file: PemFile) -> Result<Self> {
        let name = file.name().to_owned();
        self.with_crls(&file.read()?, &name, Some(file))
    }

    fn with_crls(mut self, pem: &[u8], name: &str, file: Option<PemFile>) -> Result<Self> {
        let lists: Vec<_> = sections(pem, name, "certificate revocation list")?;
        let lists = lists.into();
        self.crls.push(Crls { lists, file });
        self.verifier = verifier(self.required, &self.roots, &self.crls)
            .map_err(|error| Error::Tls(format!("{name} cannot be used: {error}")))?;
        Ok(self)
    }

    pub(super) fn has_files(&self) -> bool {
        self.ca_file.is_some() || self.crls.iter().any(|crls| crls.file.is_some())
    }

    /// The same, read again as far as it is from files.
    pub(super) fn reread(&self) -> Result<Self> {
        let mut next = match &self.ca_file {
            Some(file) => Self::read(self.required, file.clone())?,
            None => Self {
                crls: Vec::new(),
                ..self.clone()
            },
        };
        for crls in &self.crls {
            match &crls.file {
                Some(file) => next = next.read_crls(file.clone())?,
                None => next.crls.push(crls.clone()),
            }
        }
        next.verifier = verifier(next.required, &next.roots, &next.crls)
            .map_err(|error| cannot_be_checked(&error))?;
        Ok(next)
    }

    fn read(required: bool, ca: PemFile) -> Result<Self> {
        let name = ca.name().to_owned();
        Self::new(required, &ca.read()?, &name, Some(ca))
    }

    /// The settings without revocation lists. `name` is what the text is called in errors.
    fn new(required: bool, ca_pem: &[u8], name: &str, ca_file: Option<PemFile>) -> Result<Self> {
        let certificates: Vec<CertificateDer<'static>> = sections(ca_pem, name, "certificate")?;
        let cas = certificates.iter().map(|der| sha256(der)).collect();
        let mut roots = RootCertStore::empty();
        for (number, der) in (1..).zip(certificates) {
            roots.add(der).map_err(|error| {
                let why = x509::why(&error);
                Error::Tls(format!(
                    "certificate {number} of {name} cannot be used: {why}"
                ))
            })?;
        }
        let roots = Arc::new(roots);
        let verifier =
            verifier(required, &roots, &[]).map_err(|error| cannot_be_checked(&error))?;
        Ok(Self {
            required,
            roots,
            cas,
            ca_file,
            crls: Vec::new(),
            verifier,
        })
    }

    /// The check for rustls.
    pub(super) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.verifier)
    }
}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientAuth")
            .field("required", &self.required)
            .field("cas", &self.cas.len())
            .field("crls", &lists(&self.crls).count())
            .finish_non_exhaustive()
    }
}

fn cannot_be_checked(error: &VerifierBuilderError) -> Error {
    Error::Tls(format!("client certificates cannot be checked: {error}"))
}

/// A digest of all that decides which clients are accepted: whether certificates are asked for and required, the CAs,
/// and the revocation lists. The order of CAs and lists does not matter. The digest is the same in all processes.
///
/// Session tickets are bound to this digest, because a resumed session is not checked again. Otherwise, a ticket of a
/// server that asks for no certificates could open a server that requires them, and a certificate that was revoked
/// since could still be used.
pub(super) fn namespace(clients: Option<&ClientAuth>) -> [u8; 32] {
    let (mode, cas, crls) = match clients {
        None => (0, BTreeSet::new(), BTreeSet::new()),
        Some(clients) => {
            let crls = lists(&clients.crls).map(|der| sha256(der)).collect();
            (1 + u8::from(clients.required), clients.cas.clone(), crls)
        }
    };
    let mut text = b"httpdown client certificates".to_vec();
    text.push(mode);
    for digests in [cas, crls] {
        // With their number, so that a CA and a list cannot change places.
        text.extend(
            u64::try_from(digests.len())
                .unwrap_or(u64::MAX)
                .to_be_bytes(),
        );
        text.extend(digests.iter().flatten());
    }
    sha256(&text)
}

fn lists(crls: &[Crls]) -> impl Iterator<Item = &CertificateRevocationListDer<'static>> {
    crls.iter().flat_map(|crls| crls.lists.iter())
}

/// The check of rustls, with its defaults: all certificates of a chain are looked up in the lists, one without a list
/// is refused, and expired lists count.
fn verifier(
    required: bool,
    roots: &Arc<RootCertStore>,
    crls: &[Crls],
) -> std::result::Result<Arc<dyn ClientCertVerifier>, VerifierBuilderError> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
    let builder = builder.with_crls(lists(crls).cloned());
    let builder = if required {
        builder
    } else {
        builder.allow_unauthenticated()
    };
    builder.build()
}

/// The certificate of a client, which was verified when its session began. Cheap to clone.
///
/// The certificate is parsed only when its subject or its names are asked for, each time anew.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientCertificate(Arc<[u8]>);

impl ClientCertificate {
    /// The client's own certificate: the first that rustls gives. `None` if the client has sent none.
    pub(crate) fn first(chain: Option<&[CertificateDer<'_>]>) -> Option<Self> {
        chain?.first().map(|der| Self(Arc::from(der.as_ref())))
    }

    /// The certificate as the client has sent it, in DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.0
    }

    /// The subject as text (RFC 4514): `CN=alice,O=Example`. The subject may be empty, and so is the text of a
    /// certificate that cannot be parsed.
    #[must_use]
    pub fn subject(&self) -> String {
        self.parse()
            .map(|certificate| x509::subject(&certificate))
            .unwrap_or_default()
    }

    /// The subject alternative names: host names, addresses, mail addresses and URIs, in the order of the certificate.
    /// Other kinds are left out, and so are names that are not visible ASCII. There are none if the certificate cannot
    /// be parsed.
    ///
    /// The kinds are not told apart. If the CAs issue several kinds, and a mere host name must not pass for a mail
    /// address, for example, read [`ClientCertificate::der`].
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let Some(certificate) = self.parse() else {
            return Vec::new();
        };
        x509::alt_names(&certificate)
            .into_iter()
            .map(|name| match name {
                AltName::Email(text) | AltName::Dns(text) | AltName::Uri(text) => text.to_owned(),
                AltName::Ip(ip) => ip.to_string(),
            })
            .collect()
    }

    /// The SHA-256 digest of [`ClientCertificate::der`].
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(&self.0)
    }

    /// Whether the certificate is valid at that time, as far as its dates say. One that cannot be read here was read by
    /// rustls, and is taken for valid.
    pub(crate) fn is_valid_at(&self, time: SystemTime) -> bool {
        self.parse().is_none_or(|certificate| {
            let validity = certificate.tbs_certificate().validity();
            (x509::moment(validity.not_before)..=x509::moment(validity.not_after)).contains(&time)
        })
    }

    fn parse(&self) -> Option<Certificate> {
        Certificate::from_der(&self.0).ok()
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate")
            .field("subject", &self.subject())
            .field("names", &self.names())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use rcgen::{DnType, SanType, SerialNumber, date_time_ymd};
    use rustls::version::{TLS12, TLS13};
    use rustls::{CertificateError, Error as TlsError};

    use super::super::testing::{Ca, Client, Connected, Leaf, params};
    use super::super::{Identity, Tls};
    use super::*;

    fn server(clients: ClientAuth) -> Tls {
        Tls::new(Ca::new("Servers").leaf(&["a.example.com"]).identity()).clients(clients)
    }

    /// With both versions. Both must end alike.
    fn connect(client: Option<&Leaf>, tls: &Tls) -> std::result::Result<Connected, TlsError> {
        let identity = client.map(Leaf::identity);
        let [old, new] = [&TLS12, &TLS13].map(|version| {
            let client = identity.as_ref().map(Client::with).unwrap_or_default();
            Client {
                versions: vec![version],
                ..client
            }
            .connect(tls)
        });
        assert_eq!(old.as_ref().err(), new.as_ref().err());
        new
    }

    fn text<T: fmt::Debug>(result: Result<T>) -> String {
        match result {
            Err(Error::Tls(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_required_certificate_must_be_there_and_trusted() {
        let ca = Ca::new("Clients");
        let tls = server(ClientAuth::required(ca.pem().as_bytes()).unwrap());
        let alice = ca.issue(&params("alice", &[]));
        let connected = connect(Some(&alice), &tls).unwrap();
        let certificate = connected.client.unwrap();
        assert_eq!(certificate.der(), &*alice.der);
        assert_eq!(certificate.subject(), "CN=alice");

        assert_eq!(
            connect(None, &tls).unwrap_err(),
            TlsError::NoCertificatesPresented
        );
        let stranger = Ca::new("Strangers").issue(&params("mallory", &[]));
        let error = connect(Some(&stranger), &tls).unwrap_err();
        assert_eq!(
            error,
            TlsError::InvalidCertificate(CertificateError::UnknownIssuer)
        );
    }

    #[test]
    fn an_optional_certificate_may_be_missing_but_not_untrusted() {
        let ca = Ca::new("Clients");
        let tls = server(ClientAuth::optional(ca.pem().as_bytes()).unwrap());
        assert!(connect(None, &tls).unwrap().client.is_none());
        let alice = ca.issue(&params("alice", &[]));
        assert!(connect(Some(&alice), &tls).unwrap().client.is_some());
        let stranger = Ca::new("Strangers").issue(&params("mallory", &[]));
        connect(Some(&stranger), &tls).unwrap_err();
    }

    #[test]
    fn an_expired_certificate_is_refused() {
        let ca = Ca::new("Clients");
        let tls = server(ClientAuth::optional(ca.pem().as_bytes()).unwrap());
        let mut params = params("late", &[]);
        params.not_after = date_time_ymd(2020, 1, 1);
        match connect(Some(&ca.issue(&params)), &tls).unwrap_err() {
            TlsError::InvalidCertificate(CertificateError::ExpiredContext { .. }) => {}
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_revoked_certificate_is_refused_and_so_is_one_without_a_list() {
        let (ca, other) = (Ca::new("Clients"), Ca::new("Others"));
        let pems = format!("{}{}", ca.pem(), other.pem());
        let clients = ClientAuth::required(pems.as_bytes()).unwrap();
        let clients = clients.crls(ca.crl(&[7]).as_bytes()).unwrap();
        let tls = server(clients.clone());
        let leaf = |ca: &Ca, serial: u64| {
            let mut params = params("client", &[]);
            params.serial_number = Some(SerialNumber::from(serial));
            ca.issue(&params)
        };
        connect(Some(&leaf(&ca, 8)), &tls).unwrap();
        let error = connect(Some(&leaf(&ca, 7)), &tls).unwrap_err();
        assert_eq!(
            error,
            TlsError::InvalidCertificate(CertificateError::Revoked)
        );
        let error = connect(Some(&leaf(&other, 8)), &tls).unwrap_err();
        assert_eq!(
            error,
            TlsError::InvalidCertificate(CertificateError::UnknownRevocationStatus)
        );

        // A further call adds lists.
        let tls = server(clients.crls(other.crl(&[]).as_bytes()).unwrap());
        connect(Some(&leaf(&other, 8)), &tls).unwrap();
        connect(Some(&leaf(&ca, 7)), &tls).unwrap_err();
    }

    #[test]
    fn verification_without_a_ca_is_refused() {
        let ca = Ca::new("Clients");
        let crl = ca.crl(&[]);
        assert_eq!(text(ClientAuth::required(b"")), "the CA bundle is empty");
        let none = "the CA bundle contains no certificate";
        assert_eq!(text(ClientAuth::optional(crl.as_bytes())), none);
        let bad = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let found = text(ClientAuth::required(bad));
        assert!(
            found.starts_with("certificate 1 of the CA bundle cannot be used: "),
            "{found}"
        );

        let clients = ClientAuth::required(ca.pem().as_bytes()).unwrap();
        let none = "the CRL bundle contains no certificate revocation list";
        assert_eq!(text(clients.clone().crls(ca.pem().as_bytes())), none);
        let bad = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
        let found = text(clients.clone().crls(bad));
        assert!(
            found.starts_with("the CRL bundle cannot be used: "),
            "{found}"
        );
        let path = std::env::temp_dir().join("httpdown-no-such-file.pem");
        let read = [
            ClientAuth::required_from_file(&path),
            ClientAuth::optional_from_file(&path),
            clients.crls_from_file(&path),
        ];
        for read in read {
            let found = read.unwrap_err().to_string();
            assert!(found.contains("httpdown-no-such-file.pem"), "{found}");
        }
        let found = ClientAuth::required_from_file(ca.pem()).unwrap_err();
        assert!(!found.to_string().contains("BEGIN"), "{found}");
    }

    #[test]
    fn the_namespace_depends_on_the_settings_but_not_on_their_order() {
        let (one, two) = (Ca::new("One"), Ca::new("Two"));
        let (crl, pem) = (one.crl(&[1]), one.pem());
        let required = |pem: &str| ClientAuth::required(pem.as_bytes()).unwrap();
        let (forth, back) = (
            format!("{pem}{}", two.pem()),
            format!("{}{pem}{pem}", two.pem()),
        );
        let of = |clients: &ClientAuth| namespace(Some(clients));
        assert_eq!(of(&required(&forth)), of(&required(&back)));
        let both = [crl.as_bytes(), two.crl(&[2]).as_bytes()].concat();
        let different = [
            namespace(None),
            of(&required(&pem)),
            of(&ClientAuth::optional(pem.as_bytes()).unwrap()),
            of(&required(&forth)),
            of(&required(&pem).crls(crl.as_bytes()).unwrap()),
            of(&required(&pem).crls(&both).unwrap()),
        ];
        let set: BTreeSet<_> = different.iter().collect();
        assert_eq!(set.len(), different.len());
        // The digest must be the same in other processes and versions.
        assert_eq!(
            namespace(None)[..4],
            sha256(b"httpdown client certificates\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")[..4]
        );
    }

    #[test]
    fn a_handler_sees_the_names() {
        let mut params = params("Müller, \"J\"\n", &[]);
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Example");
        let email = SanType::Rfc822Name("j@example.com".try_into().unwrap());
        let uri = SanType::URI("spiffe://example.com/web".try_into().unwrap());
        let host = SanType::DnsName("Web.example.com".try_into().unwrap());
        let unseen = SanType::DnsName("a b\r\nX: y".try_into().unwrap());
        let ip = |text: &str| SanType::IpAddress(text.parse::<IpAddr>().unwrap());
        let other = SanType::OtherName((vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3], "upn".into()));
        params.subject_alt_names = vec![
            other,
            host,
            unseen,
            email,
            uri,
            ip("192.0.2.1"),
            ip("2001:db8::1"),
        ];
        let leaf = Ca::new("CA").issue(&params);
        let certificate = ClientCertificate::first(Some(&[leaf.der])).unwrap();
        assert_eq!(
            certificate.names(),
            [
                "Web.example.com",
                "j@example.com",
                "spiffe://example.com/web",
                "192.0.2.1",
                "2001:db8::1"
            ]
        );
        assert_eq!(certificate.subject(), r#"O=Example,CN=Müller\, \"J\"\0a"#);
        assert_eq!(certificate.fingerprint(), sha256(certificate.der()));
        assert!(format!("{certificate:?}").contains("192.0.2.1"));
    }

    #[test]
    fn garbled_certificates_do_not_panic() {
        let leaf = Ca::new("CA").leaf(&["a.example.com", "192.0.2.1"]);
        let read = |der: &[u8]| {
            let certificate = ClientCertificate(Arc::from(der));
            (
                certificate.subject(),
                certificate.names(),
                certificate.fingerprint(),
            )
        };
        for index in 0..leaf.der.len() {
            assert_eq!(read(&leaf.der[..index]).1, [""; 0]);
            for flip in [0x01, 0x80, 0xff] {
                let mut der = leaf.der.to_vec();
                der[index] ^= flip;
                read(&der);
            }
        }
        assert!(ClientCertificate::first(None).is_none());
        assert!(ClientCertificate::first(Some(&[])).is_none());
    }

    #[test]
    fn a_server_certificate_is_no_client_certificate() {
        let ca = Ca::new("Clients");
        let tls = server(ClientAuth::required(ca.pem().as_bytes()).unwrap());
        let mut params = params("server", &[]);
        params.insert_extended_key_usage(rcgen::ExtendedKeyUsagePurpose::ServerAuth);
        let leaf = ca.issue(&params);
        let _: &Identity = &leaf.identity();
        connect(Some(&leaf), &tls).unwrap_err();
    }
}
