//! Certificates and their keys, checked when they are read.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::InconsistentKeys;
use rustls::pki_types::{CertificateDer, DnsName, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::time::Validity;

use crate::error::{Error, Result};

use super::pem::{PemFile, sections};
use super::provider::provider;
use super::x509::{self, AltName};

/// A certificate chain and its private key: who the server is. Cheap to clone.
///
/// The keys can be ECDSA keys (P-256 or P-384, with aws-lc-rs also P-521), Ed25519 keys, or RSA keys of at least 2,048
/// bits.
///
/// An identity is checked when it is read: the key must fit the first certificate, and each certificate must have been
/// issued by the next. Dates are not checked, because a server must be able to start while a renewal is late: see
/// [`Identity::warnings`].
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    /// The chain's and the key's, if both are from files.
    files: Option<[PemFile; 2]>,
    key: Arc<CertifiedKey>,
    names: Vec<String>,
    /// The name of the chain in texts.
    place: String,
    /// At least one.
    chain: Vec<Link>,
    not_after: SystemTime,
}

/// What the texts are called in errors.
const CHAIN: &str = "the certificate chain";
const KEY: &str = "the private key";

/// What warnings need of a certificate of the chain.
struct Link {
    subject: String,
    validity: Validity,
}

impl Identity {
    /// Reads the certificate chain and the private key from PEM texts.
    ///
    /// `chain` has the server's certificate first, then the certificate of its issuer, and so on. The root may be left
    /// out. `key` has one key: PKCS#8 (`PRIVATE KEY`), PKCS#1 (`RSA PRIVATE KEY`) or SEC1 (`EC PRIVATE KEY`). Other
    /// sections are ignored, so both arguments may be the same text.
    ///
    /// # Errors
    /// [`Error::Tls`] if a text is empty, is malformed, or has no certificate or not exactly one key; if the key is
    /// encrypted, has an unsupported type or does not fit the certificate; if a certificate cannot be read or is not
    /// issued by the next one.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self> {
        Self::new([chain, key], [CHAIN, KEY], None)
    }

    /// Like [`Identity::from_pem`], from files. One file may hold both: then give its path twice. Blocks while the
    /// files are read.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::OutOfResources`] if a file cannot be read; [`Error::InvalidArgument`] if a path is
    /// PEM; else the errors of [`Identity::from_pem`]. The texts name the file.
    pub fn from_pem_files(chain: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Self> {
        let chain = PemFile::new(CHAIN, chain.as_ref())?;
        Self::read([chain, PemFile::new(KEY, key.as_ref())?])
    }

    fn read(files: [PemFile; 2]) -> Result<Self> {
        let [chain, key] = &files;
        let texts = [chain.read()?, key.read()?];
        let names = [chain.name().to_owned(), key.name().to_owned()];
        let [chain_name, key_name] = &names;
        Self::new(
            texts.each_ref().map(Vec::as_slice),
            [chain_name, key_name],
            Some(files),
        )
    }

    pub(super) fn has_files(&self) -> bool {
        self.0.files.is_some()
    }

    /// The same, read again if it is from files.
    pub(super) fn reread(&self) -> Result<Self> {
        self.0.files.clone().map_or(Ok(self.clone()), Self::read)
    }

    /// Reads and checks the texts of the chain and of the key. The names are those of the texts, for errors.
    fn new(
        [chain_pem, key_pem]: [&[u8]; 2],
        [chain_name, key_name]: [&str; 2],
        files: Option<[PemFile; 2]>,
    ) -> Result<Self> {
        // The key comes first. If one text holds both, an encrypted key is found before it is taken for bad base64.
        let key = private_key(key_pem, key_name)?;
        let chain: Vec<CertificateDer<'static>> = sections(chain_pem, chain_name, "certificate")?;
        let certificates = parse(&chain, chain_name)?;

        let key = provider().key_provider.load_private_key(key).map_err(|_| {
            // The provider does not say more.
            let types = "ECDSA with P-256 or P-384, with aws-lc-rs also P-521; Ed25519; RSA with at least 2,048 bits";
            Error::Tls(format!(
                "{key_name} is malformed, or its type is not supported ({types} are)"
            ))
        })?;
        let key = CertifiedKey::new(chain, key);
        check_key(&key, &certificates, chain_name, key_name)?;
        check_order(&certificates, chain_name)?;

        let Some(leaf) = certificates.first() else {
            return Err(Error::Tls(format!("{chain_name} contains no certificate")));
        };
        Ok(Self(Arc::new(Inner {
            files,
            key: Arc::new(key),
            names: host_names(leaf),
            place: chain_name.to_owned(),
            not_after: x509::moment(leaf.tbs_certificate().validity().not_after),
            chain: certificates.iter().map(Link::of).collect(),
        })))
    }

    /// The host names of the certificate (its DNS subject alternative names): in lower case, without a dot at the end,
    /// sorted. `*.example.com` stands for the names with one label more than `example.com`. If there are none, the
    /// certificate is used only as the default. The subject's common name does not count: clients do not read it.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.0.names
    }

    /// When the server's own certificate, the first of the chain, expires.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.0.not_after
    }

    /// What is wrong with this identity at this moment, though it can be used: certificates that have expired or are
    /// not yet valid, and a certificate without a host name. One text for each; usually none.
    #[must_use]
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let place = &self.0.place;
        let mut warnings = Vec::new();
        for (number, Link { subject, validity }) in (1..).zip(&self.0.chain) {
            let (not_before, not_after) = (validity.not_before, validity.not_after);
            if now < x509::moment(not_before) {
                warnings.push(format!(
                    "{place}: certificate {number} ({subject}) is not valid before {not_before}"
                ));
            }
            if now > x509::moment(not_after) {
                warnings.push(format!(
                    "{place}: certificate {number} ({subject}) expired at {not_after}"
                ));
            }
        }
        if self.0.names.is_empty() {
            warnings.push(format!(
                "{place}: certificate 1 has no host name, so it is used only as the default"
            ));
        }
        warnings
    }

    /// What the chain is called in texts.
    pub(super) fn place(&self) -> &str {
        &self.0.place
    }

    /// The chain and the key for rustls.
    pub(super) fn key(&self) -> &Arc<CertifiedKey> {
        &self.0.key
    }
}

/// Prints the names and the end of the validity, never the key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not_after = self
            .0
            .chain
            .first()
            .map(|leaf| leaf.validity.not_after.to_string());
        f.debug_struct("Identity")
            .field("names", &self.0.names)
            .field("not_after", &not_after.unwrap_or_default())
            .finish_non_exhaustive()
    }
}

impl Link {
    /// Of this certificate.
    fn of(certificate: &Certificate) -> Self {
        Self {
            subject: x509::subject(certificate),
            validity: *certificate.tbs_certificate().validity(),
        }
    }
}

/// The one private key of the text.
fn private_key(pem: &[u8], name: &str) -> Result<PrivateKeyDer<'static>> {
    // The PEM reader skips the first, and takes the second for bad base64.
    for mark in ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"] {
        if pem.windows(mark.len()).any(|part| part == mark.as_bytes()) {
            return Err(Error::Tls(format!(
                "{name} is encrypted ({mark}); give it without a passphrase"
            )));
        }
    }
    let mut keys: Vec<PrivateKeyDer<'static>> =
        sections(pem, name, "private key (PKCS#8, PKCS#1 or SEC1)")?;
    match (keys.pop(), keys.len()) {
        (Some(key), 0) => Ok(key),
        (_, others) => Err(Error::Tls(format!(
            "{name} contains {} keys, but must contain one",
            others + 1
        ))),
    }
}

/// Reads each certificate of the chain.
fn parse(chain: &[CertificateDer<'_>], chain_name: &str) -> Result<Vec<Certificate>> {
    (1..)
        .zip(chain)
        .map(|(number, der)| {
            Certificate::from_der(der).map_err(|error| {
                Error::Tls(format!(
                    "certificate {number} of {chain_name} cannot be read: {error}"
                ))
            })
        })
        .collect()
}

/// Checks that the key belongs to the first certificate.
fn check_key(
    key: &CertifiedKey,
    certificates: &[Certificate],
    chain_name: &str,
    key_name: &str,
) -> Result<()> {
    let fits = |der: &CertificateDer<'static>| {
        CertifiedKey::new(vec![der.clone()], Arc::clone(&key.key))
            .keys_match()
            .is_ok()
    };
    let subject = |index: usize| {
        certificates
            .get(index)
            .map(x509::subject)
            .unwrap_or_default()
    };
    match key.keys_match() {
        Ok(()) => Ok(()),
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(Error::Tls(match key.cert.iter().position(fits) {
                Some(index) => format!(
                    "{chain_name} is in the wrong order: {key_name} fits certificate {} ({}), which must be the first",
                    index + 1,
                    subject(index),
                ),
                None => format!(
                    "{key_name} does not fit certificate 1 ({}) of {chain_name}",
                    subject(0)
                ),
            }))
        }
        // The certificate is not one that rustls can use. Or the key does not tell its public key, which no key of the
        // provider does: a key that cannot be compared is refused, too.
        Err(error) => {
            let why = x509::why(&error);
            Err(Error::Tls(format!(
                "certificate 1 of {chain_name} cannot be used: {why}"
            )))
        }
    }
}

/// Checks that each certificate was issued by the next, by their names.
fn check_order(certificates: &[Certificate], chain_name: &str) -> Result<()> {
    for (number, pair) in (1..).zip(certificates.windows(2)) {
        let [certificate, next] = pair else { continue };
        let (issuer, subject) = (x509::issuer(certificate), x509::subject(next));
        // Names are compared as text and without their case (RFC 5280, section 7.1): a CA may encode its own name in
        // two ways.
        if !issuer.eq_ignore_ascii_case(&subject) {
            return Err(Error::Tls(format!(
                "{chain_name} is in the wrong order: certificate {number} ({}) was issued by {issuer}, but certificate \
                 {} is {subject}",
                x509::subject(certificate),
                number + 1,
            )));
        }
    }
    Ok(())
}

/// The host names of a certificate, as [`Identity::names`] gives them.
fn host_names(certificate: &Certificate) -> Vec<String> {
    let mut names: Vec<String> = x509::alt_names(certificate)
        .into_iter()
        .filter_map(|name| match name {
            AltName::Dns(name) => Some(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()),
            _ => None,
        })
        .filter(|name| DnsName::try_from(name.strip_prefix("*.").unwrap_or(name)).is_ok())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, UNIX_EPOCH};

    use rcgen::{CustomExtension, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, date_time_ymd};

    use super::super::testing::{Ca, openssl, params, rsa_key};
    use super::*;

    fn refused(chain: &str, key: &str) -> String {
        match Identity::from_pem(chain.as_bytes(), key.as_bytes()) {
            Err(Error::Tls(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_are_normal_and_sorted() {
        let names = [
            "WWW.Example.com",
            "*.Example.COM",
            "10.0.0.1",
            "www.example.com",
            "*.*.example.com",
        ];
        let identity = Ca::new("CA").leaf(&names).identity();
        assert_eq!(identity.names(), ["*.example.com", "www.example.com"]);
        assert!(identity.warnings(SystemTime::now()).is_empty());
    }

    #[test]
    fn debug_shows_names_and_dates_but_no_key() {
        let mut params = params("leaf", &["a.example.com"]);
        params.not_after = date_time_ymd(2031, 5, 6);
        let identity = Ca::new("CA").issue(&params).identity();
        assert_eq!(
            format!("{identity:?}"),
            r#"Identity { names: ["a.example.com"], not_after: "2031-05-06T00:00:00Z", .. }"#
        );
        assert_eq!(
            identity.not_after(),
            UNIX_EPOCH + Duration::from_secs(1_935_792_000)
        );
    }

    #[test]
    fn keys_of_all_types_and_formats_work() {
        let ca = Ca::new("CA");
        let params = params("leaf", &["a.example.com"]);
        for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            ca.issue_for(&params, &KeyPair::generate_for(algorithm).unwrap())
                .identity();
        }
        let leaf = ca.issue(&params);
        let Some(sec1) = openssl(&["ec"], &leaf.key) else {
            return;
        };
        assert!(sec1.contains("BEGIN EC PRIVATE KEY"));
        Identity::from_pem(leaf.pem.as_bytes(), sec1.as_bytes()).unwrap();

        let Some(rsa) = rsa_key() else { return };
        let leaf = ca.issue_for(&params, &rsa);
        leaf.identity();
        let pkcs1 = openssl(&["rsa", "-traditional"], &leaf.key).unwrap();
        assert!(pkcs1.contains("BEGIN RSA PRIVATE KEY"));
        Identity::from_pem(leaf.pem.as_bytes(), pkcs1.as_bytes()).unwrap();
    }

    #[test]
    fn encrypted_keys_are_refused_by_name() {
        let leaf = Ca::new("CA").leaf(&["a.example.com"]);
        let Some(pkcs8) = openssl(&["pkcs8", "-topk8", "-passout", "pass:secret"], &leaf.key)
        else {
            return;
        };
        assert_eq!(
            refused(&leaf.pem, &pkcs8),
            "the private key is encrypted (BEGIN ENCRYPTED PRIVATE KEY); give it without a passphrase"
        );
        let pkcs1 = openssl(&["ec", "-aes128", "-passout", "pass:secret"], &leaf.key).unwrap();
        let text =
            "the private key is encrypted (Proc-Type: 4,ENCRYPTED); give it without a passphrase";
        assert_eq!(refused(&leaf.pem, &pkcs1), text);
        // One text with both.
        let both = format!("{}{pkcs1}", leaf.pem);
        assert_eq!(refused(&both, &both), text);
    }

    #[test]
    fn bad_pem_is_refused() {
        let leaf = Ca::new("CA").leaf(&["a.example.com"]);
        let (pem, key) = (leaf.pem.as_str(), leaf.key.as_str());
        let no_key = "the private key contains no private key (PKCS#8, PKCS#1 or SEC1)";
        let header = "-----BEGIN CERTIFICATE-----\n";
        let cases = [
            ("", key, "the certificate chain is empty"),
            (pem, " \n", "the private key is empty"),
            (key, key, "the certificate chain contains no certificate"),
            (pem, pem, no_key),
            (
                "\u{30}\u{7f}",
                key,
                "the certificate chain contains no certificate",
            ),
            (
                "-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n",
                key,
                "the certificate chain is malformed: the base64 text cannot be decoded",
            ),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                key,
                "certificate 1 of the certificate chain cannot be read: ",
            ),
            (
                header,
                key,
                "the certificate chain is malformed: the end of a section is missing, or the line ends are",
            ),
            (
                "-----BEGIN CERTIFICATE\n",
                key,
                "the certificate chain is malformed: a line that begins a section is malformed",
            ),
            (
                pem,
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                "the private key is malformed, or its type is not supported (ECDSA with P-256 or P-384, ",
            ),
        ];
        for (chain, key, text) in cases {
            let found = refused(chain, key);
            assert!(found.starts_with(text), "{found}");
        }
        let text = "the private key contains 2 keys, but must contain one";
        assert_eq!(refused(pem, &format!("{key}{key}")), text);
    }

    #[test]
    fn a_certificate_that_rustls_cannot_use_is_refused() {
        let mut params = params("leaf", &["a.example.com"]);
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0]);
        extension.set_criticality(true);
        params.custom_extensions.push(extension);
        let leaf = Ca::new("CA").issue(&params);
        assert_eq!(
            refused(&leaf.pem, &leaf.key),
            "certificate 1 of the certificate chain cannot be used: UnsupportedCriticalExtension"
        );
    }

    #[test]
    fn a_key_must_fit() {
        let ca = Ca::new("CA");
        let (one, other) = (ca.leaf(&["a.example.com"]), ca.leaf(&["b.example.com"]));
        assert_eq!(
            refused(&one.pem, &other.key),
            "the private key does not fit certificate 1 (CN=leaf) of the certificate chain"
        );
    }

    #[test]
    fn the_order_of_the_chain_is_checked() {
        let root = Ca::new("Root");
        let middle = root.issue_ca("Middle");
        let leaf = middle.leaf(&["a.example.com"]);
        let (root, middle, own) = (root.pem(), middle.pem(), leaf.pem.clone());
        for chain in [
            own.clone(),
            format!("{own}{middle}"),
            format!("{own}{middle}{root}"),
        ] {
            Identity::from_pem(chain.as_bytes(), leaf.key.as_bytes()).unwrap();
        }
        let order = "the certificate chain is in the wrong order: ";
        assert_eq!(
            refused(&format!("{middle}{own}"), &leaf.key),
            format!("{order}the private key fits certificate 2 (CN=leaf), which must be the first")
        );
        assert_eq!(
            refused(&format!("{own}{root}{middle}"), &leaf.key),
            format!(
                "{order}certificate 1 (CN=leaf) was issued by CN=Middle, but certificate 2 is CN=Root"
            )
        );
    }

    #[test]
    fn dates_and_missing_names_are_warnings() {
        let mut params = params("late", &[]);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 2, 1);
        let identity = Ca::new("CA").issue(&params).identity();
        let nameless = "the certificate chain: certificate 1 has no host name, so it is used only as the default";
        assert_eq!(
            identity.warnings(SystemTime::now()),
            [
                "the certificate chain: certificate 1 (CN=late) expired at 2020-02-01T00:00:00Z",
                nameless
            ]
        );
        assert_eq!(
            identity.warnings(UNIX_EPOCH),
            [
                "the certificate chain: certificate 1 (CN=late) is not valid before 2020-01-01T00:00:00Z",
                nameless
            ]
        );
    }

    #[test]
    fn one_file_may_hold_both() {
        let directory = std::env::temp_dir().join(format!("identity-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let leaf = Ca::new("CA").leaf(&["a.example.com"]);
        let both = directory.join("both.pem");
        fs::write(&both, format!("{}{}", leaf.key, leaf.pem)).unwrap();
        Identity::from_pem_files(&both, &both).unwrap();

        let missing = directory.join("missing.pem");
        match Identity::from_pem_files(&both, &missing) {
            Err(Error::Io(text, why)) => {
                assert_eq!(text, format!("cannot read the private key {missing:?}"));
                assert_eq!(why.kind(), std::io::ErrorKind::NotFound);
            }
            other => panic!("{other:?}"),
        }
        fs::write(&missing, &leaf.pem).unwrap();
        let text = Identity::from_pem_files(&both, &missing)
            .unwrap_err()
            .to_string();
        assert!(
            text.starts_with(&format!(
                "the private key {missing:?} contains no private key"
            )),
            "{text}"
        );
        fs::remove_dir_all(&directory).unwrap();
    }
}
