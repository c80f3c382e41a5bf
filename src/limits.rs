//! The limits that a client can meet: what is said when one of them bites.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::addr::Addr;
use crate::throttle::Throttle;

/// A limit that can bite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// `max_headers` and `max_head_size`: hyper does not say which.
    Head,
    Target,
    Body,
    ConnRequests,
    Conns,
    ClientConns,
    Queued,
}

const COUNT: usize = Limit::Queued as usize + 1;

impl Limit {
    /// The key of its statistic.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Head => "limit.head",
            Self::Target => "limit.target",
            Self::Body => "limit.body",
            Self::ConnRequests => "limit.conn_requests",
            Self::Conns => "limit.conns",
            Self::ClientConns => "limit.client_conns",
            Self::Queued => "limit.queued",
        }
    }

    /// Whether others than the client that meets this limit may be its reason.
    pub(crate) fn is_of_all(self) -> bool {
        matches!(self, Self::Conns | Self::Queued)
    }

    /// What the log says.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Head => "a head is too large (max_headers, max_head_size)",
            Self::Target => "a target is too long (max_target_size)",
            Self::Body => "a body is too large (max_body_size)",
            Self::ConnRequests => "a connection has had all its requests (max_conn_requests)",
            Self::Conns => "accepting pauses (max_conns)",
            Self::ClientConns => "a connection was refused (max_client_conns)",
            Self::Queued => "a request was refused (max_queued)",
        }
    }
}

/// When each limit was logged, and what is counted against the limits.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    throttles: [Throttle; COUNT],
    /// Counts only if there is a limit.
    pub(crate) conns: Gate,
    pub(crate) clients: Clients,
    pub(crate) reserve: Reserve,
}

impl Limits {
    pub(crate) fn throttle(&self, limit: Limit) -> &Throttle {
        &self.throttles[limit as usize]
    }
}

/// More tasks than those that accept, or have done so, are not known to wait.
const MOST_WAITING: usize = 8;

/// How many connections are open, and who waits for room.
#[derive(Debug, Default)]
pub(crate) struct Gate(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    count: usize,
    waiting: Vec<Waker>,
}

impl Gate {
    pub(crate) fn enter(&self) {
        self.lock().count += 1;
    }

    pub(crate) fn leave(&self) {
        let mut open = self.lock();
        open.count -= 1;
        let waiting = std::mem::take(&mut open.waiting);
        drop(open);
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn is_full(&self, most: usize) -> bool {
        self.lock().count >= most
    }

    /// Waits until fewer than `most` are open. Several tasks may wait; each should look again when it is woken.
    pub(crate) fn poll_room(&self, most: usize, cx: &mut Context<'_>) -> Poll<()> {
        let mut open = self.lock();
        if open.count < most {
            return Poll::Ready(());
        }
        // A task that was here before is woken for nothing, rather than forgotten.
        let others = if open.waiting.len() < MOST_WAITING {
            Vec::new()
        } else {
            std::mem::take(&mut open.waiting)
        };
        open.waiting.push(cx.waker().clone());
        drop(open);
        let others = others.into_iter();
        others
            .filter(|other| !other.will_wake(cx.waker()))
            .for_each(Waker::wake);
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// So many bytes of an answer may always wait for their connection …
const ROOM: usize = 48 << 10;

/// … and so many as long as the reserve lasts.
const MOST_ROOM: usize = 256 << 10;

/// How many bytes of answers the connections of a server may keep together, beyond the room that each has. With more
/// room, a writer and the connection wait for each other less often. But many clients that take nothing must not cost
/// much.
#[derive(Debug)]
pub(crate) struct Reserve(AtomicIsize);

impl Default for Reserve {
    fn default() -> Self {
        Self(AtomicIsize::new(2 << 20))
    }
}

impl Reserve {
    /// How many bytes may wait for one connection now. Several connections may be told at once that there is something
    /// left.
    pub(crate) fn room(&self) -> usize {
        if self.0.load(Ordering::Relaxed) > 0 {
            MOST_ROOM
        } else {
            ROOM
        }
    }

    /// Where `before` bytes waited, `after` bytes wait now.
    pub(crate) fn changes(&self, before: usize, after: usize) {
        let [before, after] =
            [before, after].map(|bytes| bytes.clamp(ROOM, MOST_ROOM).cast_signed());
        if before != after {
            self.0.fetch_add(before - after, Ordering::Relaxed);
        }
    }
}

/// How many connections are open from each address.
#[derive(Debug, Default)]
pub(crate) struct Clients(Mutex<HashMap<Client, usize>>);

/// A client, as far as addresses tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Client {
    V4(Ipv4Addr),
    /// The first 64 bits.
    V6(u64),
}

impl Client {
    /// `None`: a client of a Unix socket.
    fn of(addr: &Addr) -> Option<Self> {
        Some(match addr.as_ip()?.ip() {
            IpAddr::V4(ip) => Self::V4(ip),
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        })
    }
}

impl Clients {
    /// Counts another connection from there, unless there are `most` of them.
    pub(crate) fn enter(&self, from: &Addr, most: usize) -> bool {
        let Some(client) = Client::of(from) else {
            return true;
        };
        let mut clients = self.lock();
        let count = clients.entry(client).or_default();
        let enters = *count < most;
        *count += usize::from(enters);
        enters
    }

    pub(crate) fn leave(&self, from: &Addr) {
        let Some(client) = Client::of(from) else {
            return;
        };
        if let Entry::Occupied(mut entry) = self.lock().entry(client) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Client, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn a_client_has_an_address_of_ipv4_or_64_bits_of_ipv6() {
        let clients = Clients::default();
        for (from, enters) in [
            ("192.0.2.1:1", true),
            ("192.0.2.1:2", true),
            ("192.0.2.1:3", false),
            ("192.0.2.2:3", true),
            ("[2001:db8::1]:1", true),
            ("[2001:db8::ffff:0:0:2]:1", true),
            ("[2001:db8:0:0:1::]:1", false),
            ("[2001:db8:0:1::]:1", true),
        ] {
            assert_eq!(clients.enter(&addr(from), 2), enters, "{from}");
        }
        clients.leave(&addr("192.0.2.1:9"));
        assert!(clients.enter(&addr("192.0.2.1:9"), 2));
        assert!(!clients.enter(&addr("192.0.2.1:9"), 2));
        for from in ["192.0.2.1:9", "192.0.2.1:9", "192.0.2.2:1"] {
            clients.leave(&addr(from));
        }
        // Nothing is kept of those that have left.
        assert_eq!(clients.lock().len(), 2);
    }

    #[test]
    fn whoever_waits_for_room_is_woken() {
        struct Flag(AtomicBool);
        impl Wake for Flag {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let gate = Gate::default();
        let woken = Arc::new(Flag(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        assert!(gate.poll_room(1, &mut cx).is_ready());
        gate.enter();
        assert!(gate.is_full(1));
        for _ in 0..100 {
            assert!(gate.poll_room(1, &mut cx).is_pending());
        }
        assert!(gate.lock().waiting.len() <= MOST_WAITING);
        assert!(!woken.0.load(Ordering::Relaxed));
        gate.leave();
        assert!(woken.0.load(Ordering::Relaxed));
        assert!(gate.poll_room(1, &mut cx).is_ready());
    }
}
