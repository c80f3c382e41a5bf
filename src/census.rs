//! Which handshakes have begun and are not done: the kernel's own list of them, and a sign of those that it forgets.

use std::fs;
use std::io::{self, Read};

use socket2::{Domain, Protocol, Socket, Type};

use crate::listener::Listener;

const STATE_LISTEN: u8 = 10;
/// A half-open handshake, in the kernel's table of sockets. Shown to us as `SYN_RECV`. What `SYN_RECV` itself selects
/// has a socket already (TCP Fast Open), and waits to be accepted as others do.
const STATE_NEW_SYN_RECV: u8 = 12;
/// What the kernel writes at most at a time into a netlink socket.
const NETLINK_CHUNK: usize = 32 << 10;

/// Looks at the kernel's list of sockets.
///
/// It is made before there is a stop: then there may be no descriptor left, and cookies may have been sent.
#[derive(Debug)]
pub(crate) struct Census {
    /// `sock_diag(7)`: a walk through the table of sockets, and none of `/proc/net/tcp`'s text.
    netlink: Option<Socket>,
    cookies: Option<u64>,
}

impl Census {
    /// For the network namespace of the calling thread.
    pub(crate) fn new() -> Self {
        let family = Type::RAW.nonblocking().cloexec();
        let protocol = Protocol::from(libc::NETLINK_SOCK_DIAG);
        Self {
            netlink: Socket::new(Domain::from(libc::AF_NETLINK), family, Some(protocol)).ok(),
            cookies: syn_cookies_sent(),
        }
    }

    /// Whether a handshake on one of these sockets has begun and is not done. One that may be another's does not count: the
    /// kernel tells of it where it came to, but not to which socket.
    ///
    /// # Errors
    /// The kernel does not say. A list in which a listening socket is not found itself is none: it is of another
    /// network namespace.
    pub(crate) fn any_half_open<'a>(
        &mut self,
        listeners: impl Iterator<Item = &'a Listener>,
    ) -> io::Result<bool> {
        let mut any = false;
        self.look(listeners, |found, ours| any |= found.any_half_open(ours))?;
        Ok(any)
    }

    /// Those of these sockets, by inode, that share their address with a socket that is not among them: a group of
    /// `SO_REUSEPORT`, in which another process, a successor perhaps, has members.
    ///
    /// # Errors
    /// As [`Census::any_half_open`].
    pub(crate) fn in_groups_with_others<'a>(
        &mut self,
        listeners: impl Iterator<Item = &'a Listener>,
    ) -> io::Result<Vec<u64>> {
        let mut grouped = Vec::new();
        self.look(listeners, |found, ours| {
            let has_others = |inode: &&u64| found.has_others(**inode, ours);
            grouped.extend(ours.iter().filter(has_others));
        })?;
        Ok(grouped)
    }

    /// Has `see` look at what is found at each place of these sockets, beside their inodes.
    fn look<'a>(
        &mut self,
        listeners: impl Iterator<Item = &'a Listener>,
        mut see: impl FnMut(&Found, &[u64]),
    ) -> io::Result<()> {
        let mut listeners: Vec<_> = listeners
            .map(|listener| (Place::of(listener), listener.inode()))
            .collect();
        listeners.sort_unstable();
        for group in listeners.chunk_by(|(a, _), (b, _)| a == b) {
            let found = self.find(group[0].0)?;
            let ours: Vec<_> = group.iter().map(|(_, inode)| *inode).collect();
            let is_found = |ours: &u64| found.listening.iter().any(|(_, inode)| inode == ours);
            if !ours.iter().all(is_found) {
                let why = "not among the sockets of this network namespace";
                return Err(io::Error::new(io::ErrorKind::NotFound, why));
            }
            see(&found, &ours);
        }
        Ok(())
    }

    /// Whether the kernel may have answered a SYN with a cookie since this was made: it then knows nothing of the
    /// handshake until it is done. Of the whole network namespace, because nothing tells it of one socket.
    pub(crate) fn any_cookies(&self) -> bool {
        self.cookies.is_none() || self.cookies != syn_cookies_sent()
    }

    fn find(&mut self, place: Place) -> io::Result<Found> {
        if let Some(netlink) = self.netlink.take()
            && let Ok(found) = find_by_netlink(&netlink, place)
        {
            // Put back only now: after a failure there might be something left in it to be read.
            self.netlink = Some(netlink);
            return Ok(found);
        }
        // A service may be denied netlink: systemd's `RestrictAddressFamilies=AF_INET AF_INET6` is common.
        find_in_proc(place)
    }
}

/// Where sockets listen. IPv4 clients of a dual-stack socket are of IPv6 to the kernel, as the socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    ipv6: bool,
    port: u16,
}

impl Place {
    fn of(listener: &Listener) -> Self {
        let addr = listener.local_addr();
        Self {
            ipv6: addr.is_ipv6(),
            port: addr.port(),
        }
    }
}

/// What the kernel lists at a place.
#[derive(Debug, Default)]
struct Found {
    /// The listening sockets: where, and their inodes. (A multipath socket has a cookie of its own, but the inode of its TCP
    /// socket.)
    listening: Vec<(Address, u64)>,
    /// Where half-open handshakes came to.
    half_open: Vec<Address>,
}

/// As the kernel has it: of IPv4, the first four bytes.
type Address = [u8; 16];

/// Any address.
const UNSPECIFIED: Address = [0; 16];

impl Found {
    fn any_half_open(&self, ours: &[u64]) -> bool {
        self.half_open.iter().any(|local| {
            // The socket of this very address is chosen before one of any.
            let at = |addr: Address| self.listening.iter().filter(move |(at, _)| *at == addr);
            let addr = if at(*local).next().is_some() {
                *local
            } else {
                UNSPECIFIED
            };
            let mut candidates = at(addr).peekable();
            candidates.peek().is_some() && candidates.all(|(_, inode)| ours.contains(inode))
        })
    }

    fn has_others(&self, inode: u64, ours: &[u64]) -> bool {
        let mine = self.listening.iter().find(|(_, other)| *other == inode);
        mine.is_some_and(|(mine, _)| {
            let mut others = self.listening.iter();
            others.any(|(addr, other)| addr == mine && !ours.contains(other))
        })
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "constants that fit"
)]
fn find_by_netlink(mut netlink: &Socket, place: Place) -> io::Result<Found> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const DONE: u16 = libc::NLMSG_DONE as u16;
    const ERROR: u16 = libc::NLMSG_ERROR as u16;
    const HEADER: usize = 16; // struct nlmsghdr
    const FLAGS: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    const STATES: u32 = 1 << STATE_LISTEN | 1 << STATE_NEW_SYN_RECV;
    let family = if place.ipv6 {
        libc::AF_INET6
    } else {
        libc::AF_INET
    };
    // struct inet_diag_req_v2; the kernel sends only what has this port.
    let body = [
        &[family as u8, libc::IPPROTO_TCP as u8, 0, 0][..],
        &STATES.to_ne_bytes(),
        &place.port.to_be_bytes(),
        &[0; 46],
    ]
    .concat();
    let length = (HEADER + body.len()) as u32;
    let header = [
        &length.to_ne_bytes()[..],
        &SOCK_DIAG_BY_FAMILY.to_ne_bytes(),
        &FLAGS.to_ne_bytes(),
        &[0; 8],
    ];
    netlink.send(&[header.concat(), body].concat())?;

    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    let mut found = Found::default();
    let mut chunk = vec![0; NETLINK_CHUNK];
    loop {
        // The kernel has the next chunk ready when it has been asked, and when the last one is read.
        let length = netlink.read(&mut chunk)?;
        let mut rest = &chunk[..length];
        while let Some(length) = u32_at(rest, 0) {
            let length = (length as usize).max(HEADER);
            let message = rest.get(..length).ok_or_else(wrong)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            let kind = u16::from_ne_bytes([message[4], message[5]]);
            let message = &message[HEADER..];
            if kind == DONE || kind == ERROR {
                return match u32_at(message, 0).ok_or_else(wrong)?.cast_signed() {
                    0 => Ok(found),
                    error => Err(io::Error::from_raw_os_error(-error)),
                };
            }
            // struct inet_diag_msg
            let local = message.get(8..).and_then(<[u8]>::first_chunk);
            let mut local: Address = *local.ok_or_else(wrong)?;
            if !place.ipv6 {
                local[4..].fill(0);
            }
            match message.get(1) {
                Some(&STATE_LISTEN) => {
                    let inode = u32_at(message, 68).ok_or_else(wrong)?;
                    found.listening.push((local, inode.into()));
                }
                _ => found.half_open.push(local),
            }
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn find_in_proc(place: Place) -> io::Result<Found> {
    let path = if place.ipv6 {
        "/proc/thread-self/net/tcp6"
    } else {
        "/proc/thread-self/net/tcp"
    };
    let port = format!("{:04X}", place.port);
    let mut found = Found::default();
    for line in fs::read_to_string(path)?.lines() {
        // Number, local and remote address, state; queues, timer, retransmissions, user, timeout, inode.
        let mut fields = line.split_ascii_whitespace();
        let (local, state, inode) = (fields.nth(1), fields.nth(1), fields.nth(5));
        let Some((local, at)) = local.and_then(|local| local.split_once(':')) else {
            continue;
        };
        if at != port {
            continue;
        }
        let local = address(local).ok_or(io::ErrorKind::InvalidData)?;
        match state {
            Some("0A") => {
                let inode = inode.and_then(|inode| inode.parse().ok());
                found.listening.extend(inode.map(|inode| (local, inode)));
            }
            Some("03") => found.half_open.push(local),
            _ => {}
        }
    }
    Ok(found)
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

/// Whether the kernel moves the clients of a socket that is closed to others of its group: since Linux 5.14, if told to.
pub(crate) fn migrates() -> bool {
    let setting = fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req");
    setting.is_ok_and(|text| text.trim() != "0")
}

/// The names of these counters are in one line, and their values in the next.
fn syn_cookies_sent() -> Option<u64> {
    let counters = fs::read_to_string("/proc/thread-self/net/netstat").ok()?;
    let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt:"));
    let mut names = lines.next()?.split(' ');
    let at = names.position(|name| name == "SyncookiesSent")?;
    lines.next()?.split(' ').nth(at)?.parse().ok()
}
