//! Why handshakes fail, as few words as one wants to count.

use rustls::Error;

/// Why a handshake has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Version,
    Parameters,
    ClientCertificate,
    Alert,
    Protocol,
    PlainHttp,
    NotTls,
    Left,
    Timeout,
    Other,
}

impl Reason {
    pub(crate) const COUNT: usize = Self::Other as usize + 1;

    /// rustls cannot go on.
    pub(crate) fn of(error: &Error) -> Self {
        use rustls::PeerIncompatible as Incompatible;
        match error {
            Error::PeerIncompatible(
                Incompatible::Tls12NotOffered
                | Incompatible::Tls12NotOfferedOrEnabled
                | Incompatible::Tls13RequiredForQuic
                | Incompatible::SupportedVersionsExtensionRequired,
            ) => Self::Version,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Self::Parameters,
            Error::NoCertificatesPresented
            | Error::InvalidCertificate(_)
            | Error::InvalidCertRevocationList(_) => Self::ClientCertificate,
            Error::AlertReceived(_) => Self::Alert,
            Error::InvalidMessage(_)
            | Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::DecryptError
            | Error::PeerMisbehaved(_)
            | Error::PeerSentOversizedRecord => Self::Protocol,
            _ => Self::Other,
        }
    }

    /// The key of the statistics.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Version => "tls.error.version",
            Self::Parameters => "tls.error.parameters",
            Self::ClientCertificate => "tls.error.client_certificate",
            Self::Alert => "tls.error.alert",
            Self::Protocol => "tls.error.protocol",
            Self::PlainHttp => "tls.error.plain_http",
            Self::NotTls => "tls.error.not_tls",
            Self::Left => "tls.error.left",
            Self::Timeout => "tls.error.timeout",
            Self::Other => "tls.error.other",
        }
    }
}
