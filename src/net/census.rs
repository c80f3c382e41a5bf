//! Which handshakes have begun and are not done. Sources: the kernel's own list of them, and a sign of those that the
//! kernel forgets.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::fs;
use std::io;

use super::sock_diag::{SockDiag, Which, u32_at};
use super::tcp;

const STATE_LISTEN: u8 = 10;
/// A half-open handshake, in the kernel's table of sockets. The kernel shows it to us as `SYN_RECV`. To ask for
/// `SYN_RECV` itself selects other handshakes: those have a socket already (TCP Fast Open), and wait to be accepted
/// like others.
const STATE_NEW_SYN_RECV: u8 = 12;

/// Looks at the kernel's list of sockets.
///
/// It must be made before a stop begins: at the stop, there may be no descriptor left, and cookies may have been sent.
#[derive(Debug)]
pub(crate) struct Census {
    /// `sock_diag(7)`: the kernel walks through the table of sockets, but does not write the text of `/proc/net/tcp`.
    netlink: SockDiag,
    cookies: Option<u64>,
}

impl Census {
    /// Makes a census for the network namespace of the calling thread.
    pub(crate) fn new() -> Self {
        Self {
            netlink: SockDiag::new(),
            cookies: syn_cookies_sent(),
        }
    }

    /// What the kernel lists now at the places where these sockets listen.
    ///
    /// # Errors
    /// The kernel does not say. A list in which one of the listening sockets is missing does not count: it is that of
    /// another network namespace.
    pub(crate) fn look<'a>(
        &self,
        listeners: impl Iterator<Item = &'a tcp::Listener>,
    ) -> io::Result<View> {
        let mut view = View::default();
        for listener in listeners {
            let place = Place::of(listener);
            if let Entry::Vacant(entry) = view.places.entry(place) {
                entry.insert(self.find(place)?);
            }
            if view.listening(listener).is_none() {
                let why = "not among the sockets of this network namespace";
                return Err(io::Error::new(io::ErrorKind::NotFound, why));
            }
            view.ours.push(listener.inode());
        }
        Ok(view)
    }

    /// Whether the kernel may have answered a SYN with a cookie since this census was made. The kernel then knows
    /// nothing of the handshake until it is done. This is about the whole network namespace, because no counter exists
    /// for one socket.
    pub(crate) fn any_cookies(&self) -> bool {
        self.cookies.is_none() || self.cookies != syn_cookies_sent()
    }

    fn find(&self, place: Place) -> io::Result<Found> {
        find_by_netlink(&self.netlink, place).or_else(|_| find_in_proc(place))
    }
}

/// Where sockets listen. If a socket is dual-stack, the kernel counts it and its IPv4 clients as IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    ipv6: bool,
    port: u16,
}

impl Place {
    fn of(listener: &tcp::Listener) -> Self {
        Self {
            ipv6: listener.is_ipv6(),
            port: listener.addr().port(),
        }
    }
}

/// What the kernel listed at one moment.
#[derive(Debug, Default)]
pub(crate) struct View {
    places: BTreeMap<Place, Found>,
    /// The inodes of the sockets for which the census was taken.
    ours: Vec<u64>,
}

impl View {
    /// The group of this socket: the sockets that listen at its address, itself included. `None` if there are no
    /// others.
    pub(crate) fn group_of(&self, listener: &tcp::Listener) -> Option<Group> {
        let mine = self.listening(listener)?;
        let found = self.places.get(&Place::of(listener))?;
        let members = found.listening.iter().filter(|other| other.at == mine.at);
        let mut members: Vec<_> = members.map(|member| member.inode).collect();
        members.sort_unstable();
        let others = members.iter().any(|inode| !self.ours.contains(inode));
        others.then_some(Group {
            at: mine.at,
            members,
        })
    }

    /// The handshakes that have begun and are not done, and have come to this socket or to another of its group: the
    /// kernel says to which address they came, but not to which socket. A handshake that may have come elsewhere does
    /// not count.
    pub(crate) fn half_open(&self, listener: &tcp::Listener) -> impl Iterator<Item = Handshake> {
        let found = self
            .places
            .get(&Place::of(listener))
            .zip(self.listening(listener));
        found.into_iter().flat_map(|(found, mine)| {
            let half_open = found.half_open.iter().copied();
            half_open.filter(|handshake| {
                let mut candidates = found.candidates(handshake.local).peekable();
                candidates.peek().is_some()
                    && candidates.all(|it| it.at == mine.at || self.ours.contains(&it.inode))
            })
        })
    }

    fn listening(&self, listener: &tcp::Listener) -> Option<&Listening> {
        let found = self.places.get(&Place::of(listener))?;
        let mut all = found.listening.iter();
        all.find(|found| found.inode == listener.inode())
    }
}

/// A group of `SO_REUSEPORT` in which others have members, for example another process that will succeed this one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Group {
    pub(crate) at: Spot,
    /// The inodes, sorted.
    pub(crate) members: Vec<u64>,
}

/// What the kernel lists at a place.
#[derive(Debug, Default)]
struct Found {
    listening: Vec<Listening>,
    half_open: Vec<Handshake>,
}

#[derive(Debug)]
struct Listening {
    at: Spot,
    /// A multipath socket has its own cookie, but the inode of its TCP socket.
    inode: u64,
}

/// What all sockets of one group have in common, besides the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot {
    place: Place,
    addr: Address,
    /// The interface that the sockets are bound to. (`/proc` does not show it.)
    device: u32,
}

impl fmt::Display for Spot {
    /// The text is for names, not for people. It leaves out what only one of the two lists shows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.place.ipv6 { 6 } else { 4 };
        let addr = u128::from_be_bytes(self.addr);
        write!(f, "{family}:{addr:x}:{}", self.place.port)
    }
}

/// A handshake: the address that it came to, and the address and port that it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Handshake {
    local: Address,
    remote: (Address, u16),
}

/// An address as the kernel stores it. An IPv4 address has the first four bytes.
type Address = [u8; 16];

/// Any address.
const UNSPECIFIED: Address = [0; 16];

impl Found {
    /// The sockets that a handshake may have come to. The kernel prefers sockets bound to exactly this address to
    /// sockets bound to any address.
    fn candidates(&self, local: Address) -> impl Iterator<Item = &Listening> {
        let at = |addr: Address| self.listening.iter().filter(move |it| it.at.addr == addr);
        let addr = if at(local).next().is_some() {
            local
        } else {
            UNSPECIFIED
        };
        at(addr)
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "constants that fit"
)]
fn find_by_netlink(netlink: &SockDiag, place: Place) -> io::Result<Found> {
    const STATES: u32 = 1 << STATE_LISTEN | 1 << STATE_NEW_SYN_RECV;
    let family = if place.ipv6 {
        libc::AF_INET6
    } else {
        libc::AF_INET
    };
    // struct inet_diag_req_v2. The kernel sends only sockets with this port.
    let request = [
        &[family as u8, libc::IPPROTO_TCP as u8, 0, 0][..],
        &STATES.to_ne_bytes(),
        &place.port.to_be_bytes(),
        &[0; 46],
    ]
    .concat();
    let mut found = Found::default();
    netlink.ask(Which::All, &request, |message| {
        // struct inet_diag_msg
        let message: &[u8; 72] = message.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
        let address = |at: usize| {
            let mut address = UNSPECIFIED;
            let length = if place.ipv6 { 16 } else { 4 };
            address[..length].copy_from_slice(&message[at..at + length]);
            address
        };
        let local = address(8);
        if message[1] == STATE_LISTEN {
            found.listening.push(Listening {
                at: Spot {
                    place,
                    addr: local,
                    device: u32_at(message, 40).unwrap_or(0),
                },
                inode: u32_at(message, 68).unwrap_or(0).into(),
            });
        } else {
            let port = u16::from_be_bytes([message[6], message[7]]);
            let remote = (address(24), port);
            found.half_open.push(Handshake { local, remote });
        }
        Ok(())
    })?;
    Ok(found)
}

fn find_in_proc(place: Place) -> io::Result<Found> {
    let path = if place.ipv6 {
        "/proc/thread-self/net/tcp6"
    } else {
        "/proc/thread-self/net/tcp"
    };
    let port = format!(":{:04X}", place.port);
    let mut found = Found::default();
    for line in fs::read_to_string(path)?.lines() {
        // Number, local and remote address, state; queues, timer, retransmissions, user, timeout, inode.
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1);
        let Some(local) = local.and_then(|local| local.strip_suffix(&port)) else {
            continue;
        };
        let (remote, state, inode) = (fields.next(), fields.next(), fields.nth(5));
        if !matches!(state, Some("0A" | "03")) {
            continue;
        }
        let wrong = io::ErrorKind::InvalidData;
        let local = address(local).ok_or(wrong)?;
        let remote = remote.and_then(address_and_port).ok_or(wrong)?;
        match state {
            Some("0A") => found.listening.push(Listening {
                at: Spot {
                    place,
                    addr: local,
                    device: 0,
                },
                inode: inode.and_then(|inode| inode.parse().ok()).ok_or(wrong)?,
            }),
            _ => found.half_open.push(Handshake { local, remote }),
        }
    }
    Ok(found)
}

/// Parses an address and a port as written in `/proc`.
fn address_and_port(text: &str) -> Option<(Address, u16)> {
    let (addr, port) = text.split_once(':')?;
    Some((address(addr)?, u16::from_str_radix(port, 16).ok()?))
}

/// An address in `/proc`: words of 32 bits as the machine has them, in hexadecimal digits.
fn address(digits: &str) -> Option<Address> {
    let mut address = UNSPECIFIED;
    for (word, bytes) in address.chunks_exact_mut(4).enumerate() {
        let Some(digits) = digits.get(8 * word..8 * word + 8) else {
            break;
        };
        let word = u32::from_str_radix(digits, 16).ok()?;
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    Some(address)
}

/// Whether the kernel moves the clients of a closed socket to others of its group. It can do so since Linux 5.14, if a
/// setting says so.
pub(crate) fn migrates() -> bool {
    let setting = fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req");
    setting.is_ok_and(|text| text.trim() != "0")
}

/// The counters' names are in one line, and their values in the next.
fn syn_cookies_sent() -> Option<u64> {
    let counters = fs::read_to_string("/proc/thread-self/net/netstat").ok()?;
    let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt:"));
    let mut names = lines.next()?.split(' ');
    let at = names.position(|name| name == "SyncookiesSent")?;
    lines.next()?.split(' ').nth(at)?.parse().ok()
}
