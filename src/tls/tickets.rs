//! The keys of TLS session tickets.
//!
//! A ticket is the state of a session, encrypted by the server and kept by the client. With it, the client resumes its
//! session at any server that has the key: after a restart, or in another process of a fleet.
//!
//! A ticket is `name (16) | salt (32) | ciphertext | tag (16)`, lengths in bytes. The name says which key of the ring
//! is meant. The plaintext is the state of rustls, followed by the time of issue (8): seconds since 1970, big-endian.
//!
//! Each ticket is encrypted under a key of its own, which is derived from the secret and the random salt. A key that
//! the host gives may serve a fleet for years, and AES-GCM with random nonces of 96 bits allows only 2³² messages per
//! key (NIST SP 800-38D, 8.3): two tickets for each of 1,000 handshakes in a second are that many in 25 days.

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::tls::provider::{aead, hmac, rand};

use self::rand::SecureRandom;

/// How long a ticket may be used, in seconds: 12 hours, like the tickets of rustls' own keys. rustls tells the client,
/// but does not refuse older tickets itself.
const LIFETIME: u32 = 12 * 60 * 60;

/// How long a key that the ring has made encrypts, in seconds.
const PERIOD: u64 = 6 * 60 * 60;

/// How long the ring keeps a key that it has made, in seconds: until the last ticket of the key has ended.
const KEPT: u64 = PERIOD + LIFETIME as u64;

/// How many such keys there are at most: one encrypts, and two only decrypt. More could come only from a clock that is
/// set back again and again.
const MAX_MADE: usize = 3;
const _: () = assert!(KEPT == MAX_MADE as u64 * PERIOD, "a new key each period");

/// How far in the future a ticket's time of issue may be, in seconds. The clocks of a fleet differ.
const MAX_SKEW: u64 = 60 * 60;

/// How many keys the host may give. Rolling takes two or three; a list without end would be a mistake.
const MAX_KEYS: usize = 16;

const NAME_LEN: usize = 16;
const SECRET_LEN: usize = 32;
const NAMESPACE_LEN: usize = 32;
const SALT_LEN: usize = 32;
const TIME_LEN: usize = size_of::<u64>();

/// What a ticket is longer than the state, in bytes. The shortest ticket has no state.
const OVERHEAD: usize = NAME_LEN + SALT_LEN + TIME_LEN + aead::MAX_TAG_LEN;

/// How long a ticket may be, in bytes. The length in front of a ticket has 16 bits, and rustls sends a broken message
/// if the ticket is longer than that. OpenSSL 1.1.1, as a client, even closes the connection if the message with the
/// ticket is longer than a TLS record, 16,384 bytes. Of these, 384 bytes are left for the other fields of the message.
/// A client whose certificates make the state longer gets no ticket.
const MAX_TICKET: usize = 16_000;

/// Separates the keys of tickets from whatever else the host may derive from the same secret. The number is the version
/// of the format: a ticket of another version does not decrypt.
const LABEL: &[u8] = b"httpdown session ticket 1";

/// A key that encrypts TLS session tickets. Servers that have the same keys resume each other's sessions.
///
/// A key is 48 bytes: a name of 16 bytes, which is sent in each ticket as it is, and a secret of 32 bytes. All of them
/// should be random. Whoever knows the secret can decrypt recorded connections of TLS 1.2 whose clients had or got its
/// tickets. While the key is in use, such a person can also pass for these clients, in TLS 1.3 too, and for the server.
/// So replace keys often, for example each day.
///
/// The secret is wiped from memory when the last clone of the key is dropped. The bytes that a caller passes or gets
/// are the caller's to wipe.
///
/// ```
/// use httpdown::TicketKey;
///
/// let key = TicketKey::generate()?;
/// let file: Vec<u8> = key.to_bytes().to_vec(); // For the other servers.
/// let same = TicketKey::from_slice(&file)?;
/// assert_eq!(same.to_bytes(), key.to_bytes());
/// # Ok::<(), httpdown::Error>(())
/// ```
#[derive(Clone)]
pub struct TicketKey {
    name: [u8; NAME_LEN],
    // At one place in memory: to move a key leaves no copy of the secret behind.
    secret: Arc<Zeroizing<[u8; SECRET_LEN]>>,
}

impl TicketKey {
    /// The length of a key in bytes, with its name.
    pub const LEN: usize = NAME_LEN + SECRET_LEN;

    /// Makes a key of its name, 16 bytes, and its secret, 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let bytes = Zeroizing::new(bytes);
        let mut key = Self {
            name: [0; NAME_LEN],
            secret: Arc::default(),
        };
        let (name, secret) = bytes.split_at(NAME_LEN);
        key.name.copy_from_slice(name);
        Arc::make_mut(&mut key.secret).copy_from_slice(secret);
        key
    }

    /// Like [`TicketKey::from_bytes`], for bytes whose number is not known when the program is compiled.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are not 48 bytes.
    pub fn from_slice(bytes: &[u8]) -> Result<Self> {
        let bytes = <[u8; Self::LEN]>::try_from(bytes).map_err(|_| {
            let (right, wrong) = (Self::LEN, bytes.len());
            Error::InvalidArgument(format!("a ticket key has {right} bytes, not {wrong}"))
        })?;
        Ok(Self::from_bytes(bytes))
    }

    /// Makes a random key.
    ///
    /// # Errors
    /// [`Error::Io`] if the system has no random bytes.
    pub fn generate() -> Result<Self> {
        let mut bytes = Zeroizing::new([0; Self::LEN]);
        fill(&mut *bytes).ok_or_else(|| {
            let why = io::Error::other("the system has no random bytes");
            Error::io("cannot make a ticket key", why)
        })?;
        Ok(Self::from_bytes(*bytes))
    }

    /// The name and the secret, 48 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let (name, secret) = bytes.split_at_mut(NAME_LEN);
        name.copy_from_slice(&self.name);
        secret.copy_from_slice(&self.secret[..]);
        bytes
    }

    /// The name in hexadecimal digits.
    fn hex(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.name))
    }

    /// The cipher for the one ticket that has this salt. `None` if the crypto library fails.
    fn cipher(&self, salt: &[u8; SALT_LEN]) -> Option<aead::LessSafeKey> {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &self.secret[..]);
        let mut derived = hmac::Context::with_key(&secret);
        derived.update(LABEL);
        derived.update(salt);
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, derived.sign().as_ref()).ok()?;
        Some(aead::LessSafeKey::new(key))
    }
}

impl fmt::Debug for TicketKey {
    /// Writes the name only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TicketKey({}, ..)", self.hex())
    }
}

/// The keys of a server. The ring outlives the certificates: tickets stay valid when those are loaded anew.
///
/// Either the ring makes its keys itself, or it has those that the host gave by [`KeyRing::set`]. A key that the ring
/// makes encrypts for 6 hours and is kept for 12 hours more. No thread does that: the keys change when a ticket comes
/// or goes and a new key is due. So an idle server keeps old keys in memory. Their tickets are refused in time all the
/// same, because each ticket says when it was issued.
#[derive(Debug)]
pub(crate) struct KeyRing(RwLock<Arc<[Held]>>);

/// A key in the ring. The first key encrypts, and all decrypt.
#[derive(Clone, Debug)]
struct Held {
    key: TicketKey,
    /// When the ring made the key, in seconds since 1970. A key that the host gave has no such time, and stays.
    made: Option<u64>,
}

impl KeyRing {
    /// A ring that makes its keys itself, with the first one.
    ///
    /// # Errors
    /// Those of [`TicketKey::generate`].
    pub(crate) fn new() -> Result<Self> {
        Self::new_at(now())
    }

    fn new_at(now: u64) -> Result<Self> {
        Ok(Self(RwLock::new(Arc::new([Held::new(now)?]))))
    }

    /// Replaces all keys, for good. The first key encrypts, and all decrypt. To roll the keys of a fleet, add the next
    /// key in the second place everywhere, then move that key to the front, and after 12 hours remove the old key.
    ///
    /// Tickets of keys that are no longer there are refused; their clients make full handshakes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are not 1 to 16 keys, or if two have the same name. The ring then keeps the
    /// keys that it has.
    pub(crate) fn set(&self, keys: &[TicketKey]) -> Result<()> {
        if !(1..=MAX_KEYS).contains(&keys.len()) {
            let count = keys.len();
            let why = format!("there must be 1 to {MAX_KEYS} ticket keys, not {count}");
            return Err(Error::InvalidArgument(why));
        }
        for (place, key) in keys.iter().enumerate() {
            let has_name = |other: &TicketKey| other.name == key.name;
            if let Some(first) = keys[..place].iter().position(has_name) {
                let (name, first, second) = (key.hex(), first + 1, place + 1);
                let why = format!("ticket keys {first} and {second} have the same name, {name}");
                return Err(Error::InvalidArgument(why));
            }
        }
        let given = |key: &TicketKey| Held {
            key: key.clone(),
            made: None,
        };
        let keys = keys.iter().map(given).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// The keys that were made here, as a text without spaces; `None` if the host has given its own.
    pub(crate) fn made(&self) -> Option<String> {
        let keys = self.keys(now())?;
        let texts = keys.iter().map(|held| {
            let made = held.made?;
            let bytes = held.key.to_bytes();
            let hex = bytes.iter().map(|byte| format!("{byte:02x}"));
            Some(format!("{made}:{}", hex.collect::<String>()))
        });
        let texts: Option<Vec<_>> = texts.collect();
        texts.map(|texts| texts.join(","))
    }

    /// Replaces the keys that were made here by such ones of another process. Their ages go on. Does nothing if the host
    /// has given its own, or if the text makes no sense.
    pub(crate) fn adopt(&self, made: &str) {
        let adopted: Option<Vec<_>> = made.split(',').map(Held::parse).collect();
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(adopted) = adopted
            && keys.iter().all(|held| held.made.is_some())
            && adopted.len() <= MAX_MADE
        {
            *keys = adopted.into();
        }
    }

    /// The keys at that time. `None` if a new key is due, and the system has no random bytes for it.
    fn keys(&self, now: u64) -> Option<Arc<[Held]>> {
        let keys = Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner));
        if !is_due(&keys, now) {
            return Some(keys);
        }
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have rotated the keys, or set others, since this thread has looked.
        if is_due(&keys, now) {
            *keys = rotated(&keys, now)?;
        }
        Some(Arc::clone(&keys))
    }
}

impl Held {
    fn parse(text: &str) -> Option<Self> {
        let (made, hex) = text.split_once(':')?;
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(byte).collect();
        let bytes = Zeroizing::new(bytes?);
        Some(Self {
            key: TicketKey::from_slice(&bytes).ok()?,
            made: Some(made.parse().ok()?),
        })
    }

    fn new(now: u64) -> Result<Self> {
        Ok(Self {
            key: TicketKey::generate()?,
            made: Some(now),
        })
    }
}

/// Whether the key that encrypts is too old, or from the future.
fn is_due(keys: &[Held], now: u64) -> bool {
    let is_due = |made| now.checked_sub(made).is_none_or(|age| age >= PERIOD);
    keys.first()
        .is_none_or(|held| held.made.is_some_and(is_due))
}

/// The keys that may still decrypt, behind a new key if one is due. If the clock was set back, a key may seem to be
/// from the future. Such a key counts as made now: its tickets stay valid, and the key still ends.
fn rotated(keys: &[Held], now: u64) -> Option<Arc<[Held]>> {
    let mut keys = keys.to_vec();
    for held in &mut keys {
        held.made = held.made.map(|made| made.min(now));
    }
    keys.retain(|held| held.made.is_none_or(|made| now - made < KEPT));
    if is_due(&keys, now) {
        keys.insert(0, Held::new(now).ok()?);
        keys.truncate(MAX_MADE);
    }
    Some(keys.into())
}

/// Encrypts and decrypts the tickets of one configuration of TLS.
///
/// The namespace stands for how the configuration verifies client certificates, as a hash. A session that is resumed
/// keeps the certificates of its client, and rustls does not verify them again. So a ticket must not decrypt under
/// another configuration: else a client that did not have to authenticate itself there would pass as authenticated.
#[derive(Debug)]
pub(crate) struct Tickets {
    ring: Arc<KeyRing>,
    namespace: [u8; NAMESPACE_LEN],
}

impl Tickets {
    pub(crate) fn new(ring: Arc<KeyRing>, namespace: [u8; NAMESPACE_LEN]) -> Self {
        Self { ring, namespace }
    }

    /// What a ticket is bound to, besides its content.
    fn aad(&self, key: &TicketKey) -> aead::Aad<[u8; NAME_LEN + NAMESPACE_LEN]> {
        let mut aad = [0; NAME_LEN + NAMESPACE_LEN];
        let (name, namespace) = aad.split_at_mut(NAME_LEN);
        name.copy_from_slice(&key.name);
        namespace.copy_from_slice(&self.namespace);
        aead::Aad::from(aad)
    }

    fn encrypt_at(&self, state: &[u8], now: u64) -> Option<Vec<u8>> {
        let len = OVERHEAD + state.len();
        if len > MAX_TICKET {
            return None;
        }
        let keys = self.ring.keys(now)?;
        let key = &keys.first()?.key;
        let mut salt = [0; SALT_LEN];
        fill(&mut salt)?;

        let mut ticket = Vec::with_capacity(len);
        ticket.extend(key.name);
        ticket.extend(salt);
        let head = ticket.len();
        ticket.extend(state);
        ticket.extend(now.to_be_bytes());
        let content = ticket.get_mut(head..)?;
        let tag = key
            .cipher(&salt)?
            .seal_in_place_separate_tag(nonce(), self.aad(key), content)
            .ok()?;
        ticket.extend(tag.as_ref());
        Some(ticket)
    }

    fn decrypt_at(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        if !(OVERHEAD..=MAX_TICKET).contains(&ticket.len()) {
            return None;
        }
        let (name, rest) = ticket.split_first_chunk::<NAME_LEN>()?;
        let (salt, sealed) = rest.split_first_chunk::<SALT_LEN>()?;
        let keys = self.ring.keys(now)?;
        // The name is public, so the time that the search takes tells nothing.
        let key = &keys.iter().find(|held| held.key.name == *name)?.key;

        let mut state = sealed.to_vec();
        let content = key
            .cipher(salt)?
            .open_in_place(nonce(), self.aad(key), &mut state)
            .ok()?;
        let (rest, issued) = content.split_last_chunk::<TIME_LEN>()?;
        let (len, issued) = (rest.len(), u64::from_be_bytes(*issued));
        if issued > now.saturating_add(MAX_SKEW) || now.saturating_sub(issued) > LIFETIME.into() {
            return None;
        }
        state.truncate(len);
        Some(state)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    /// In seconds.
    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    /// `None` if the state is too long, or if the system has no random bytes: the client then gets no ticket.
    fn encrypt(&self, state: &[u8]) -> Option<Vec<u8>> {
        self.encrypt_at(state, now())
    }

    /// `None` for whatever is no valid ticket: the client then makes a full handshake.
    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.decrypt_at(ticket, now())
    }
}

/// Always the same nonce: each cipher encrypts one ticket only.
fn nonce() -> aead::Nonce {
    aead::Nonce::assume_unique_for_key([0; aead::NONCE_LEN])
}

/// Fills the buffer with random bytes. `None` if the system has none.
fn fill(bytes: &mut [u8]) -> Option<()> {
    rand::SystemRandom::new().fill(bytes).ok()
}

/// Seconds since 1970. A clock that is set to an earlier time counts as 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::Arc;

    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::version::{TLS12, TLS13};
    use rustls::{
        ClientConfig, ClientConnection, ConnectionCommon, HandshakeKind, RootCertStore,
        ServerConfig, ServerConnection, SupportedProtocolVersion,
    };

    use super::*;
    use crate::tls::provider::default_provider;

    const HOUR: u64 = 60 * 60;
    const NOW: u64 = 1_800_000_000;
    const STATE: &[u8] = b"the state of a session";

    fn key(number: u8) -> TicketKey {
        TicketKey::from_bytes([number; TicketKey::LEN])
    }

    /// Tickets under keys of the ring's own.
    fn own() -> Tickets {
        let ring = KeyRing::new_at(NOW).unwrap();
        Tickets::new(Arc::new(ring), [0; 32])
    }

    /// Tickets under the keys with these numbers.
    fn given(keys: &[u8], namespace: u8) -> Tickets {
        let tickets = Tickets::new(Arc::new(KeyRing::new().unwrap()), [namespace; 32]);
        let keys: Vec<_> = keys.iter().copied().map(key).collect();
        tickets.ring.set(&keys).unwrap();
        tickets
    }

    fn held(tickets: &Tickets) -> usize {
        tickets.ring.0.read().unwrap().len()
    }

    #[test]
    fn a_ticket_decrypts_to_its_state() {
        for state in [STATE, b"", &[7; MAX_TICKET - OVERHEAD]] {
            for tickets in [own(), given(&[1], 0)] {
                let ticket = tickets.encrypt_at(state, NOW).unwrap();
                assert_eq!(ticket.len(), state.len() + OVERHEAD);
                assert_eq!(tickets.decrypt_at(&ticket, NOW).as_deref(), Some(state));
                assert_ne!(tickets.encrypt_at(state, NOW).unwrap(), ticket);
            }
        }
    }

    #[test]
    fn servers_with_the_same_key_share_tickets() {
        let ticket = given(&[1], 0).encrypt_at(STATE, NOW).unwrap();
        let decrypt = |keys: &[u8], namespace| given(keys, namespace).decrypt_at(&ticket, NOW);
        assert_eq!(decrypt(&[1], 0).as_deref(), Some(STATE));
        assert_eq!(decrypt(&[2, 1], 0).as_deref(), Some(STATE));
        assert_eq!(decrypt(&[2], 0), None, "no such key");
        assert_eq!(decrypt(&[1], 1), None, "another namespace");
        let mut other = [1; TicketKey::LEN];
        other[TicketKey::LEN - 1] = 2;
        let ring = KeyRing::new().unwrap();
        ring.set(&[TicketKey::from_bytes(other)]).unwrap();
        let other = Tickets::new(Arc::new(ring), [0; 32]);
        assert_eq!(other.decrypt_at(&ticket, NOW), None, "another secret");
    }

    #[test]
    fn a_fleet_rolls_its_keys_without_losing_tickets() {
        // Each server is at one of two neighbouring steps. The last step, without the old key, is for 12 hours later.
        let steps: [&[u8]; 3] = [&[1], &[1, 2], &[2, 1]];
        for pair in steps.windows(2) {
            let (a, b) = (given(pair[0], 0), given(pair[1], 0));
            for (from, to) in [(&a, &b), (&b, &a)] {
                let ticket = from.encrypt_at(STATE, NOW).unwrap();
                assert!(to.decrypt_at(&ticket, NOW).is_some(), "{pair:?}");
            }
        }
    }

    #[test]
    fn a_garbled_ticket_is_refused() {
        let tickets = given(&[1], 0);
        let ticket = tickets.encrypt_at(STATE, NOW).unwrap();
        for place in 0..ticket.len() {
            for bit in 0..8 {
                let mut garbled = ticket.clone();
                garbled[place] ^= 1 << bit;
                assert_eq!(tickets.decrypt_at(&garbled, NOW), None, "{place} {bit}");
            }
        }
    }

    #[test]
    fn a_ticket_of_a_wrong_length_is_refused() {
        let tickets = given(&[1], 0);
        let mut ticket = tickets.encrypt_at(STATE, NOW).unwrap();
        for len in 0..ticket.len() {
            assert_eq!(tickets.decrypt_at(&ticket[..len], NOW), None, "{len}");
        }
        for len in [
            ticket.len() + 1,
            MAX_TICKET,
            MAX_TICKET + 1,
            65_535,
            100_000,
        ] {
            ticket.resize(len, 0);
            assert_eq!(tickets.decrypt_at(&ticket, NOW), None, "{len}");
        }
        let too_long = [0; MAX_TICKET - OVERHEAD + 1];
        assert_eq!(tickets.encrypt_at(&too_long, NOW), None);
    }

    #[test]
    fn a_ticket_ends_with_its_lifetime() {
        for tickets in [own(), given(&[1], 0)] {
            let ticket = tickets.encrypt_at(STATE, NOW).unwrap();
            let is_valid = |now| tickets.decrypt_at(&ticket, now).is_some();
            assert!(is_valid(NOW + 12 * HOUR));
            assert!(!is_valid(NOW + 12 * HOUR + 1));
            assert!(is_valid(NOW - HOUR));
            assert!(!is_valid(NOW - HOUR - 1));
            assert!(!is_valid(0));
            assert!(!is_valid(u64::MAX));
        }
    }

    #[test]
    fn own_keys_are_rotated_and_outlive_their_tickets() {
        let tickets = own();
        let mut issued = Vec::new();
        // A ticket at the start and at the end of each period, for three days.
        for period in 0..12 {
            for now in [NOW + period * PERIOD, NOW + (period + 1) * PERIOD - 1] {
                issued.push((now, tickets.encrypt_at(STATE, now).unwrap()));
                for (then, ticket) in &issued {
                    let is_valid = tickets.decrypt_at(ticket, now).is_some();
                    assert_eq!(is_valid, now - then <= 12 * HOUR, "{then} {now}");
                }
                assert!(held(&tickets) <= 3);
            }
        }
        let mut names: Vec<_> = issued
            .iter()
            .map(|(_, ticket)| &ticket[..NAME_LEN])
            .collect();
        names.dedup();
        assert_eq!(names.len(), 12, "a key for each period");

        // The last ticket of a key, to the second.
        let (then, ticket) = &issued[issued.len() - 1];
        assert!(tickets.decrypt_at(ticket, then + 6 * HOUR).is_some());
        assert!(tickets.decrypt_at(ticket, then + 12 * HOUR).is_some());
        assert_eq!(tickets.decrypt_at(ticket, then + 12 * HOUR + 1), None);
    }

    #[test]
    fn own_keys_end_after_a_pause() {
        let tickets = own();
        let ticket = tickets.encrypt_at(STATE, NOW + PERIOD - 1).unwrap();
        assert!(tickets.decrypt_at(&ticket, NOW + 18 * HOUR - 1).is_some());
        assert_eq!(held(&tickets), 2);
        tickets.encrypt_at(STATE, NOW + 40 * HOUR).unwrap();
        assert_eq!(held(&tickets), 1);
    }

    #[test]
    fn a_clock_that_is_set_back_ends_no_key_and_keeps_none_for_ever() {
        let tickets = own();
        let ticket = tickets.encrypt_at(STATE, NOW).unwrap();
        // By half an hour, which the ticket survives, too.
        assert!(tickets.decrypt_at(&ticket, NOW - HOUR / 2).is_some());
        // By years: the ticket is from the future, and the key stays.
        for now in [NOW / 2, 1, 0] {
            assert_eq!(tickets.decrypt_at(&ticket, now), None);
            let other = tickets.encrypt_at(STATE, now).unwrap();
            assert_eq!(other[..NAME_LEN], ticket[..NAME_LEN]);
            assert!(tickets.decrypt_at(&other, now).is_some());
        }
        // The key ends 6 hours after the earliest of these times.
        let other = tickets.encrypt_at(STATE, PERIOD).unwrap();
        assert_ne!(other[..NAME_LEN], ticket[..NAME_LEN]);
        // The clock is right again: both keys are long past.
        tickets.encrypt_at(STATE, NOW).unwrap();
        assert_eq!(held(&tickets), 1);
        // The clock goes back and forth: the keys do not become more and more.
        for now in [0, PERIOD, u64::MAX].into_iter().cycle().take(99) {
            let ticket = tickets.encrypt_at(STATE, now).unwrap();
            assert!(tickets.decrypt_at(&ticket, now).is_some());
            assert!(held(&tickets) <= 3);
        }
        for _ in 0..9 {
            tickets.encrypt_at(STATE, PERIOD).unwrap();
            tickets.encrypt_at(STATE, 0).unwrap();
            assert!(held(&tickets) <= 3);
        }
    }

    #[test]
    fn given_keys_are_never_rotated() {
        let tickets = given(&[1, 2], 0);
        for now in [NOW, NOW + 1000 * PERIOD, 0, u64::MAX] {
            let ticket = tickets.encrypt_at(STATE, now).unwrap();
            assert_eq!(ticket[..NAME_LEN], [1; NAME_LEN]);
            assert!(tickets.decrypt_at(&ticket, now).is_some());
        }
        assert_eq!(held(&tickets), 2);
    }

    #[test]
    fn wrong_lists_of_keys_change_nothing() {
        let tickets = given(&[1], 0);
        let set = |keys: &[u8]| {
            let keys: Vec<_> = keys.iter().copied().map(key).collect();
            tickets.ring.set(&keys).map_err(|error| error.to_string())
        };
        let why = |keys: &[u8]| set(keys).unwrap_err();
        assert_eq!(why(&[]), "there must be 1 to 16 ticket keys, not 0");
        let many: Vec<u8> = (0..17).collect();
        assert_eq!(why(&many), "there must be 1 to 16 ticket keys, not 17");
        let name = "03".repeat(NAME_LEN);
        let same = format!("ticket keys 2 and 4 have the same name, {name}");
        assert_eq!(why(&[2, 3, 4, 3]), same);
        assert_eq!(tickets.encrypt_at(STATE, NOW).unwrap()[0], 1);
        set(&many[..16]).unwrap();
        assert_eq!(tickets.encrypt_at(STATE, NOW).unwrap()[0], 0);
    }

    #[test]
    fn a_key_is_48_bytes() {
        let bytes: [u8; 48] = std::array::from_fn(|place| u8::try_from(place).unwrap());
        assert_eq!(TicketKey::from_bytes(bytes).to_bytes(), bytes);
        assert_eq!(TicketKey::from_slice(&bytes).unwrap().to_bytes(), bytes);
        for wrong in [&bytes[..47], &[0; 49], &[]] {
            let error = TicketKey::from_slice(wrong).unwrap_err().to_string();
            let len = wrong.len();
            assert_eq!(error, format!("a ticket key has 48 bytes, not {len}"));
        }
        let random = || TicketKey::generate().unwrap().to_bytes();
        assert_ne!(random(), random());
    }

    #[test]
    fn debug_shows_no_secret() {
        let mut bytes = [0xab; TicketKey::LEN];
        bytes[0] = 0x01;
        bytes[NAME_LEN..].fill(0xcd);
        let key = TicketKey::from_bytes(bytes);
        let text = format!("TicketKey(01{}, ..)", "ab".repeat(15));
        assert_eq!(format!("{key:?}"), text);
        let tickets = given(&[1], 0);
        tickets.ring.set(&[key]).unwrap();
        let all = format!("{tickets:?}");
        assert!(all.contains(&text), "{all}");
        assert!(!all.contains("cd") && !all.contains("205"), "{all}");
    }

    #[test]
    fn threads_rotate_once() {
        let tickets = own();
        let later = NOW + PERIOD;
        let encrypt = || tickets.encrypt_at(STATE, later).unwrap()[..NAME_LEN].to_vec();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(encrypt)).collect();
            let mut names: Vec<_> = threads.into_iter().map(|it| it.join().unwrap()).collect();
            names.dedup();
            assert_eq!(names.len(), 1);
        });
        assert_eq!(held(&tickets), 2);
    }

    #[test]
    fn a_client_resumes_at_another_server_with_the_same_keys() {
        let made = rcgen::generate_simple_self_signed([String::from("localhost")]).unwrap();
        for version in [&TLS13, &TLS12] {
            let client = client(&made, version);
            let server = |keys: &[u8], namespace| server(&made, given(keys, namespace));
            let connect = |server| connect(&client, server);
            assert_eq!(connect(server(&[1], 0)), HandshakeKind::Full);
            assert_eq!(connect(server(&[1], 0)), HandshakeKind::Resumed);
            assert_eq!(connect(server(&[2, 1], 0)), HandshakeKind::Resumed);
            assert_eq!(connect(server(&[2], 0)), HandshakeKind::Resumed);
            assert_eq!(connect(server(&[2], 1)), HandshakeKind::Full, "namespace");
            assert_eq!(connect(server(&[2], 1)), HandshakeKind::Resumed);
            assert_eq!(connect(server(&[3], 1)), HandshakeKind::Full, "key");
        }
    }

    type Made = rcgen::CertifiedKey<rcgen::KeyPair>;

    fn server(made: &Made, tickets: Tickets) -> Arc<ServerConfig> {
        let chain = vec![made.cert.der().clone()];
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(default_provider().into())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.ticketer = Arc::new(tickets);
        config.into()
    }

    fn client(made: &Made, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        ClientConfig::builder_with_provider(default_provider().into())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
            .into()
    }

    /// Connects, and exchanges a byte each way, so that the client has read its tickets.
    fn connect(client: &Arc<ClientConfig>, server: Arc<ServerConfig>) -> HandshakeKind {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
        let mut server = ServerConnection::new(server).unwrap();
        client.writer().write_all(b"a").unwrap();
        server.writer().write_all(b"b").unwrap();
        while client.wants_write() || server.wants_write() {
            carry(&mut client, &mut server);
            carry(&mut server, &mut client);
        }
        let mut byte = [0];
        client.reader().read_exact(&mut byte).unwrap();
        server.reader().read_exact(&mut byte).unwrap();
        let kind = client.handshake_kind();
        assert_eq!(kind, server.handshake_kind());
        kind.unwrap()
    }

    fn carry<A, B>(from: &mut ConnectionCommon<A>, to: &mut ConnectionCommon<B>) {
        let mut bytes = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            to.read_tls(&mut rest).unwrap();
            to.process_new_packets().unwrap();
        }
    }
}
