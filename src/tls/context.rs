//! How a server speaks TLS now: what its connections share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::error::{Error, Result};
use crate::throttle::Throttle;

use super::{Generation, KeyRing, Reason, Tickets, Tls};

/// How many handshakes may be under way, from the client's first message to its last. This bounds memory: each takes
/// some 20 KB, so all of them 200 MB. It is so high because the client is waited for meanwhile, for as long as a
/// handshake may take: whoever begins so many in that time, and leaves them there, keeps others out.
pub(super) const HANDSHAKES: usize = 10_000;

/// How long a handshake may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// What bounds the handshakes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) timeout: Duration,
    pub(crate) handshakes: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Context {
    /// Whole: certificates, keys and the clients' certificates change together or not at all.
    generation: RwLock<Arc<Generation>>,
    reloads: AtomicU64,
    /// So that of two that read the files, the later one has the newer files.
    rereading: Mutex<()>,
    keys: Arc<KeyRing>,
    limits: Limits,
    turns: Semaphore,
    failures: [Throttle; Reason::COUNT],
}

impl Context {
    pub(crate) fn new(tls: &Tls) -> Result<Self> {
        let keys = Arc::new(KeyRing::new()?);
        if let Some(given) = &tls.ticket_keys {
            keys.set(given)?;
        }
        let generation = generation(tls, &keys)?;
        let limits = tls.limits;
        if limits.timeout.is_zero() {
            let why = "handshake_timeout is 0: no handshake could be done in time";
            return Err(Error::InvalidArgument(why.into()));
        }
        Ok(Self {
            generation: RwLock::new(Arc::new(generation)),
            reloads: AtomicU64::new(0),
            rereading: Mutex::default(),
            keys,
            limits,
            turns: Semaphore::new(limits.handshakes),
            failures: Default::default(),
        })
    }

    /// The keys of tickets that were made here, as a text for [`Context::adopt_keys`].
    pub(crate) fn made_keys(&self) -> Option<String> {
        self.keys.made()
    }

    /// Goes on with the keys that another process has made. Those that the host has given are better.
    pub(crate) fn adopt_keys(&self, made: &str) {
        self.keys.adopt(made);
    }

    /// From now on, new connections get this. If it cannot be used, nothing changes.
    pub(crate) fn reload(&self, tls: &Tls) -> Result<()> {
        self.replace(tls, None)
    }

    /// Like [`Context::reload`], with the settings of now, whose files are read again. Blocks meanwhile.
    pub(crate) fn reread(&self) -> Result<()> {
        let _turn = self
            .rereading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = self.now();
        if !now.settings.has_files() {
            let why = "nothing of the TLS settings is from files that could be read again";
            return Err(Error::Unsupported(why.into()));
        }
        self.replace(&now.settings.reread()?, Some(&now))
    }

    /// Does nothing if there is something newer already than what this is made of.
    fn replace(&self, tls: &Tls, made_of: Option<&Arc<Generation>>) -> Result<()> {
        let next = Arc::new(generation(tls, &self.keys)?);
        // Whoever reloads at the same time waits, so that nobody gets the keys of one and the certificates of another.
        let now = self.generation.write();
        let mut now = now.unwrap_or_else(PoisonError::into_inner);
        if made_of.is_some_and(|old| !Arc::ptr_eq(old, &now)) {
            return Ok(());
        }
        if let Some(keys) = &tls.ticket_keys {
            self.keys.set(keys)?;
        }
        *now = next;
        self.reloads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.now().config)
    }

    fn now(&self) -> Arc<Generation> {
        let generation = self.generation.read();
        Arc::clone(&generation.unwrap_or_else(PoisonError::into_inner))
    }

    /// How long the first of the server's certificates that ends will last, in seconds; negative once it has ended.
    pub(crate) fn seconds_left(&self, now: SystemTime) -> f64 {
        match self.now().not_after().duration_since(now) {
            Ok(left) => left.as_secs_f64(),
            Err(since) => -since.duration().as_secs_f64(),
        }
    }

    /// What a person should know of the certificates at that time.
    pub(crate) fn warnings(&self, now: SystemTime) -> Vec<String> {
        self.now().warnings(now)
    }

    /// How often the settings were replaced.
    pub(crate) fn reloads(&self) -> u64 {
        self.reloads.load(Ordering::Relaxed)
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Waits for a turn, in the order of the calls. `None` never comes: the turns are never closed.
    pub(crate) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.acquire().await.ok()
    }

    pub(crate) fn failures(&self, reason: Reason) -> &Throttle {
        &self.failures[reason as usize]
    }
}

fn generation(tls: &Tls, keys: &Arc<KeyRing>) -> Result<Generation> {
    let tickets = Tickets::new(Arc::clone(keys), tls.namespace());
    tls.generation(Arc::new(tickets))
}

/// What a record adds to its content, at least (TLS 1.2 with RFC 7905): five bytes of header, sixteen that
/// authenticate.
const OVERHEAD: u64 = 5 + 16;
/// The longest record (RFC 5246, 6.2.3).
const LONGEST: u64 = 5 + (1 << 14) + 2048;

/// How many bytes of content there are in so many bytes of records, at most.
pub(crate) fn at_most_content(bytes: u64) -> u64 {
    // The last record may not be here in full.
    bytes - bytes / LONGEST * OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::super::testing::Ca;
    use super::*;

    #[test]
    fn what_was_made_of_older_settings_replaces_no_newer_ones() {
        let ca = Ca::new("CA");
        let tls = |name: &str| Tls::new(ca.leaf(&[name]).identity());
        let context = Context::new(&tls("first")).unwrap();
        let read = context.now();
        context.reload(&tls("second")).unwrap();
        context.replace(&tls("third"), Some(&read)).unwrap();
        assert_eq!(context.now().settings.identities[0].names(), ["second"]);
        assert_eq!(context.reloads(), 1);
        context
            .replace(&tls("third"), Some(&context.now()))
            .unwrap();
        assert_eq!(context.now().settings.identities[0].names(), ["third"]);
    }
}
