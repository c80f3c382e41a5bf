//! Which certificate a client gets: by the name that it asks for, and by the signatures that it can check.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};

use super::identity::Identity;

/// Identities in the order in which they are tried.
type Keys = Vec<Arc<CertifiedKey>>;

/// Chooses an identity for each client. The tables are made once.
///
/// A client tries the identities of its exact name first, then those of a wildcard one label above, then the default
/// ones. It gets the first whose key can make a signature that the client can check.
///
/// Among the identities of a name, RSA comes last: a signature by ECDSA or Ed25519 costs the server much less.
#[derive(Debug)]
pub(super) struct Resolver {
    exact: HashMap<String, Keys>,
    /// By the name without the `*.`.
    wildcard: HashMap<String, Keys>,
    /// For clients without a name, or with an unknown one. First the first identity and those with exactly the same
    /// names. Then one identity for each other type of key: a client that cannot check the signatures of the first may
    /// still get an answer.
    default: Keys,
}

impl Resolver {
    /// The tables for these identities. The first one is the default.
    pub(super) fn new(identities: &[Identity]) -> Self {
        let cheap_first = {
            let mut sorted: Vec<&Identity> = identities.iter().collect();
            sorted.sort_by_key(|identity| algorithm(identity) == SignatureAlgorithm::RSA);
            sorted
        };
        let (mut exact, mut wildcard) = (HashMap::<_, Keys>::new(), HashMap::<_, Keys>::new());
        for identity in &cheap_first {
            for name in identity.names() {
                let (table, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut wildcard, parent),
                    None => (&mut exact, name.as_str()),
                };
                table
                    .entry(name.to_owned())
                    .or_default()
                    .push(Arc::clone(identity.key()));
            }
        }

        let first = identities.first().map(Identity::names);
        let (mut default, others): (Vec<&Identity>, Vec<&Identity>) = cheap_first
            .into_iter()
            .partition(|identity| Some(identity.names()) == first);
        for other in others {
            if default
                .iter()
                .all(|known| algorithm(known) != algorithm(other))
            {
                default.push(other);
            }
        }
        let default = default
            .into_iter()
            .map(|identity| Arc::clone(identity.key()))
            .collect();
        Self {
            exact,
            wildcard,
            default,
        }
    }

    /// The identity for a client that asks for this name, and can check these signatures. `None` only if there are no
    /// identities. If no key can sign for the client, rustls finds that out, and tells the client so.
    fn find(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Arc<CertifiedKey>> {
        let name = name.map(normal);
        let exact = name.as_deref().and_then(|name| self.exact.get(name));
        let parent = name.as_deref().and_then(|name| name.split_once('.'));
        let wildcard = parent.and_then(|(_, parent)| self.wildcard.get(parent));

        let candidates = || {
            exact
                .into_iter()
                .chain(wildcard)
                .chain([&self.default])
                .flatten()
        };
        candidates()
            .find(|candidate| candidate.key.choose_scheme(schemes).is_some())
            .or_else(|| candidates().next())
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name(), hello.signature_schemes())
            .cloned()
    }
}

/// The type of the identity's key.
fn algorithm(identity: &Identity) -> SignatureAlgorithm {
    identity.key().key.algorithm()
}

/// The name in lower case and without a dot at its end. Nothing is copied if the case is right already.
fn normal(name: &str) -> Cow<'_, str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use rustls::version::TLS12;

    use super::super::Tls;
    use super::super::testing::{Ca, Client, Leaf, params, rsa_key};
    use super::*;

    fn tls(leaves: &[&Leaf]) -> Tls {
        let (first, rest) = leaves.split_first().unwrap();
        rest.iter().fold(Tls::new(first.identity()), |tls, leaf| {
            tls.identity(leaf.identity())
        })
    }

    #[test]
    fn the_exact_name_wins_then_the_wildcard_then_the_first() {
        let ca = Ca::new("CA");
        let default = ca.leaf(&["default.example.org"]);
        let wild = ca.leaf(&["*.example.com"]);
        let exact = ca.leaf(&["a.example.com", "www.a.example.com"]);
        let tls = tls(&[&default, &wild, &exact]);
        let cases = [
            ("a.example.com", &exact),
            ("A.eXample.COM", &exact),
            ("a.example.com.", &exact),
            ("www.a.example.com", &exact),
            ("b.example.com", &wild),
            ("example.com", &default),
            ("x.b.example.com", &default),
            ("unknown.test", &default),
            ("com", &default),
            // Sends no name.
            ("192.0.2.1", &default),
        ];
        for (name, leaf) in cases {
            let connected = Client::named(name).connect(&tls).unwrap();
            assert_eq!(connected.server, leaf.der, "{name}");
        }
        let resolver = Resolver::new(&[default.identity(), exact.identity()]);
        let all = [SignatureScheme::ECDSA_NISTP256_SHA256];
        assert_eq!(
            resolver.find(Some("A.Example.com."), &all).unwrap().cert[0],
            exact.der
        );
        assert!(
            Resolver::new(&[])
                .find(Some("a.example.com"), &all)
                .is_none()
        );
    }

    #[test]
    fn the_key_suits_the_client_and_is_not_rsa_if_that_is_possible() {
        let Some(key) = rsa_key() else { return };
        let ca = Ca::new("CA");
        let names = ["a.example.com", "*.example.com"];
        let rsa = ca.issue_for(&params("leaf", &names), &key);
        let ecdsa = ca.leaf(&names);
        let other = ca.leaf(&["other.example.org"]);
        for tls in [tls(&[&rsa, &ecdsa, &other]), tls(&[&ecdsa, &rsa, &other])] {
            for name in [
                "a.example.com",
                "b.example.com",
                "unknown.test",
                "192.0.2.1",
            ] {
                let only = |schemes: &[SignatureScheme]| Client {
                    schemes: schemes.to_vec(),
                    ..Client::named(name)
                };
                let all = Client::named(name).connect(&tls).unwrap();
                assert_eq!(all.server, ecdsa.der, "{name}");
                let pss = only(&[SignatureScheme::RSA_PSS_SHA256])
                    .connect(&tls)
                    .unwrap();
                assert_eq!(pss.server, rsa.der, "{name}");
                let p256 = only(&[SignatureScheme::ECDSA_NISTP256_SHA256])
                    .connect(&tls)
                    .unwrap();
                assert_eq!(p256.server, ecdsa.der, "{name}");
                let old = Client {
                    versions: vec![&TLS12],
                    ..only(&[SignatureScheme::RSA_PKCS1_SHA256])
                };
                assert_eq!(old.connect(&tls).unwrap().server, rsa.der, "{name}");
            }
        }
    }

    #[test]
    fn a_client_that_cannot_check_the_default_gets_another_type_of_key() {
        let Some(key) = rsa_key() else { return };
        let ca = Ca::new("CA");
        let rsa = ca.issue_for(&params("leaf", &["rsa.example.org"]), &key);
        let (first, second) = (ca.leaf(&["a.example.com"]), ca.leaf(&["b.example.com"]));
        let only_rsa = Client {
            schemes: vec![SignatureScheme::RSA_PSS_SHA256],
            ..Client::named("unknown.test")
        };

        assert_eq!(
            only_rsa
                .connect(&tls(&[&first, &second, &rsa]))
                .unwrap()
                .server,
            rsa.der
        );
        // The first is the default one even if another one is cheaper.
        let tls_rsa = tls(&[&rsa, &first, &second]);
        assert_eq!(
            Client::named("unknown.test")
                .connect(&tls_rsa)
                .unwrap()
                .server,
            rsa.der
        );
        // No key suits: rustls says so.
        let error = only_rsa.connect(&tls(&[&first, &second])).unwrap_err();
        assert!(
            matches!(error, rustls::Error::PeerIncompatible(_)),
            "{error:?}"
        );
    }
}
