//! Reads certificates: their dates and their names.
//!
//! Nothing here decides whether a certificate is trusted: that is rustls' work.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::CertificateError;
use x509_cert::Certificate;
use x509_cert::der::asn1::AnyRef;
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::{Decode, Tag, Tagged};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::time::Time;

/// A subject alternative name of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AltName<'a> {
    /// A mail address.
    Email(&'a str),
    /// A host name, which may begin with `*.`.
    Dns(&'a str),
    /// A URI, such as a SPIFFE ID.
    Uri(&'a str),
    /// An address.
    Ip(IpAddr),
}

impl<'a> AltName<'a> {
    /// The name with this tag (RFC 5280, `GeneralName`), if its kind is one of these and its text is visible ASCII.
    ///
    /// Such names are printed, compared and put into header fields. A name with a space, a line break or a zero byte
    /// would be read as something else there.
    fn read(number: u32, value: &'a [u8]) -> Option<Self> {
        let text = || {
            let visible = !value.is_empty() && value.iter().all(u8::is_ascii_graphic);
            str::from_utf8(value).ok().filter(|_| visible)
        };
        match number {
            1 => text().map(Self::Email),
            2 => text().map(Self::Dns),
            6 => text().map(Self::Uri),
            7 => match value.len() {
                4 => <[u8; 4]>::try_from(value)
                    .ok()
                    .map(|ip| Self::Ip(Ipv4Addr::from(ip).into())),
                16 => <[u8; 16]>::try_from(value)
                    .ok()
                    .map(|ip| Self::Ip(Ipv6Addr::from(ip).into())),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The subject alternative names that can be read, in the order of the certificate.
///
/// The names are read one by one: a name of a kind that is not known here must not hide the others.
pub(super) fn alt_names(certificate: &Certificate) -> Vec<AltName<'_>> {
    let extensions = certificate.tbs_certificate().extensions();
    extensions
        .into_iter()
        .flatten()
        .filter(|extension| extension.extn_id == SubjectAltName::OID)
        .filter_map(|extension| Vec::<AnyRef<'_>>::from_der(extension.extn_value.as_bytes()).ok())
        .flatten()
        .filter_map(|name| match name.tag() {
            Tag::ContextSpecific { number, .. } => AltName::read(number.value(), name.value()),
            _ => None,
        })
        .collect()
}

/// The subject as text (RFC 4514): `CN=www.example.com,O=Example`.
pub(super) fn subject(certificate: &Certificate) -> String {
    certificate.tbs_certificate().subject().to_string()
}

/// The issuer as text (RFC 4514).
pub(super) fn issuer(certificate: &Certificate) -> String {
    certificate.tbs_certificate().issuer().to_string()
}

/// Why rustls cannot use a certificate. Its own texts are about the certificate of the peer.
pub(super) fn why(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => other.to_string(),
        rustls::Error::InvalidCertificate(error) => error.to_string(),
        error => error.to_string(),
    }
}

/// The moment of a certificate's time.
pub(super) fn moment(time: Time) -> SystemTime {
    UNIX_EPOCH + time.to_unix_duration()
}
