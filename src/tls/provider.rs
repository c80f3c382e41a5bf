//! The cryptography. Everything else of TLS asks this module, so the library behind it is chosen in one place.

use std::sync::Arc;

use once_cell::sync::Lazy;
use rustls::crypto::CryptoProvider;

#[cfg(all(feature = "aws-lc-rs", feature = "ring"))]
compile_error!("features aws-lc-rs and ring: choose one of the two");
#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("feature tls needs one of the features aws-lc-rs and ring");

#[cfg(not(feature = "ring"))]
pub(crate) use aws_lc_rs::{aead, digest, hmac, rand};
#[cfg(feature = "ring")]
pub(crate) use ring::{aead, digest, hmac, rand};
#[cfg(not(feature = "ring"))]
pub(crate) use rustls::crypto::aws_lc_rs::default_provider;
#[cfg(feature = "ring")]
pub(crate) use rustls::crypto::ring::default_provider;

/// The algorithms that the server uses.
///
/// The provider is given to rustls explicitly. The process may have a default provider, but that belongs to the
/// program, not to this library.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: Lazy<Arc<CryptoProvider>> = Lazy::new(|| Arc::new(default_provider()));
    Arc::clone(&PROVIDER)
}

/// The SHA-256 digest of these bytes.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    sum.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    sum
}
