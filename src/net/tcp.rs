//! Listening sockets of TCP: how they keep new clients out, alone or in a group of `SO_REUSEPORT`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::addr::Addr;
use crate::error::{Error, Result};
use crate::sys;

use super::bpf;
use super::listener::{Connected, NotAccepted};
use super::plain::Stream;
use super::tuning::Tuning;

/// The option that binds a socket to an interface by its number.
const SO_BINDTOIFINDEX: i32 = 62;

#[derive(Debug)]
pub(crate) struct Listener {
    socket: Socket,
    /// The address. An IPv4 address is stored as IPv4, even if the socket is of IPv6.
    addr: SocketAddr,
    /// Whether the kernel sees the socket as IPv6. It does so even if the address is a mapped IPv4 address.
    ipv6: bool,
    /// The number of this socket in the kernel's lists of sockets.
    inode: u64,
    /// New handshakes are refused.
    refuses: AtomicBool,
    /// The socket has had a filter, which accepted connections inherit.
    filtered: AtomicBool,
    /// Others listen on the socket's address, in a group of `SO_REUSEPORT`.
    grouped: AtomicBool,
    /// The socket has given its group a program that sends new handshakes to the others.
    steers: AtomicBool,
}

impl Listener {
    /// Listens on the first of these addresses, which `addr` may stand for, that this machine has.
    pub(super) fn bind(addr: &str, candidates: &[SocketAddr], tuning: &Tuning) -> Result<Socket> {
        let mut refused = None;
        for candidate in candidates {
            let error = match listen(*candidate, tuning) {
                Ok(socket) => return Ok(socket),
                Err(error) => error,
            };
            let no_such_family = matches!(
                error.raw_os_error(),
                Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
            );
            let error = Error::io(format!("listening on {addr}"), error);
            if !no_such_family {
                return Err(error);
            }
            refused.get_or_insert(error);
        }
        Err(refused.unwrap_or_else(|| Error::Address(format!("{addr:?} has no address"))))
    }

    /// `ipv6`: whether the kernel counts the socket as IPv6.
    pub(super) fn new(socket: Socket, addr: SocketAddr, ipv6: bool, inode: u64) -> Self {
        Self {
            socket,
            addr,
            ipv6,
            inode,
            refuses: AtomicBool::new(false),
            filtered: AtomicBool::new(false),
            grouped: AtomicBool::new(false),
            steers: AtomicBool::new(false),
        }
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(super) fn into_socket(self) -> Socket {
        self.socket
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(super) fn inode(&self) -> u64 {
        self.inode
    }

    pub(crate) fn accept(&self) -> std::result::Result<Connected, NotAccepted> {
        let (socket, peer) = super::listener::accept(&self.socket)?;
        if self.filtered.load(Ordering::Relaxed) {
            let _ = socket.detach_filter();
        }
        let local = if self.addr.ip().is_unspecified() {
            let local = socket.local_addr().ok();
            local.and_then(|local| Addr::from_kernel(&local))
        } else {
            None
        };
        Ok(Connected {
            stream: Stream::Tcp(TcpStream::from(socket)),
            peer: Addr::from_kernel(&peer).ok_or(NotAccepted::Gone)?,
            local: local.unwrap_or(self.addr.into()),
            is_ours: false,
        })
    }

    /// Whether the kernel counts the socket, and all its clients, as IPv6.
    pub(crate) fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// Whether the socket takes no IPv4 clients.
    pub(crate) fn is_only_ipv6(&self) -> bool {
        self.socket.only_v6().unwrap_or(false)
    }

    /// Whether the socket was in a group with others when a stop last looked.
    pub(crate) fn is_grouped(&self) -> bool {
        self.grouped.load(Ordering::Relaxed)
    }

    /// A stop has seen whether others listen on the socket's address. If they do, the socket refuses nobody: what a
    /// filter drops, the kernel sends to no other socket.
    ///
    /// # Errors
    /// The errors of [`Listener::refuse_new`].
    pub(crate) fn found_grouped(&self, grouped: bool) -> io::Result<()> {
        self.grouped.store(grouped, Ordering::Relaxed);
        if grouped {
            self.hear_new_again();
            return Ok(());
        }
        self.steer_no_more();
        self.refuse_new()
    }

    /// Keeps out clients that connect from now on, but not those whose handshake has begun.
    ///
    /// To new clients, a filter looks like a lost segment: they try again after a second, and are refused cleanly when
    /// the socket is closed. Newer kernels want `CAP_NET_ADMIN` for a filter, multipath sockets take none, and a host
    /// may have locked its own. Then the socket is bound to an interface that does not exist, and new clients are
    /// refused at once. The kernel finds a handshake that has begun before it looks for a listening socket; but it does
    /// not find one by SYN cookie, so this method comes second.
    ///
    /// # Errors
    /// Neither method is possible: EPERM if the host has bound the socket to an interface, and before Linux 5.7. Only
    /// the first call returns the error.
    fn refuse_new(&self) -> io::Result<()> {
        if self.refuses.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let socket = self.socket.as_fd();
        // A deferred accept would leave clients half-way in the handshake that have connected and say nothing.
        let _ = sys::set_option(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 0);
        if self.socket.attach_filter(&drop_new_handshakes()).is_ok() {
            self.filtered.store(true, Ordering::Relaxed);
            return Ok(());
        }
        sys::set_option(socket, libc::SOL_SOCKET, SO_BINDTOIFINDEX, i32::MAX)
    }

    /// The socket is about to be closed, with others of its group. When the first of them is closed, the kernel numbers
    /// the members anew, and the group's program must go: then new clients may come to any socket that is still open.
    /// To clients that come to this one, that looks like a lost segment. After a second they come to another.
    ///
    /// The group still chooses a socket that is bound to an interface that does not exist. But its answer to the SYN
    /// finds no way out, so that looks the same. If neither method is possible, such a client may be lost.
    pub(crate) fn hear_nobody(&self) {
        let _ = self.refuse_new();
    }

    /// Undoes the filter of [`Listener::refuse_new`]. A socket that refuses by its interface cannot be in a group with
    /// a newcomer.
    fn hear_new_again(&self) {
        if self.refuses.swap(false, Ordering::Relaxed) {
            let _ = self.socket.detach_filter();
        }
    }

    /// Gives the group this program, which chooses the member that gets a new handshake.
    ///
    /// # Errors
    /// The kernel does not take the program: `ENOMEM`; `EPERM` if the host has locked the filter of the socket.
    pub(crate) fn steer(&self, program: &[SockFilter]) -> io::Result<()> {
        sys::attach_group_program(self.socket.as_fd(), program)?;
        self.steers.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Takes the group's program away. Returns whether there was one.
    ///
    /// # Errors
    /// `ENOPROTOOPT`: before Linux 5.3, the kernel has no such option.
    pub(crate) fn take_group_program_away(&self) -> io::Result<bool> {
        const SO_DETACH_REUSEPORT_BPF: i32 = 68;
        let socket = self.socket.as_fd();
        match sys::set_option(socket, libc::SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn steer_no_more(&self) {
        if self.steers.swap(false, Ordering::Relaxed) {
            let _ = self.take_group_program_away();
        }
    }

    /// How many connections wait to be accepted.
    pub(super) fn queued(&self) -> u32 {
        sys::accept_queue_len(self.socket.as_fd())
    }

    /// Makes the socket refuse all new clients, even if somebody has a copy of it.
    pub(super) fn shut(&self) -> io::Result<()> {
        if self.steers.load(Ordering::Relaxed) {
            // This comes right before the shutdown: a program that stayed would choose among the others by their
            // present numbers. A client that comes to our socket in between is not heard.
            self.hear_nobody();
            self.steer_no_more();
        }
        match self.socket.shutdown(Shutdown::Read) {
            // Somebody shut it down before us.
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(()),
            result => result,
        }
    }
}

/// Drops segments that have SYN and not ACK. A socket's filter sees a segment from its TCP header on.
fn drop_new_handshakes() -> [SockFilter; 5] {
    const FLAGS: u32 = 13; // the byte that has the flags
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let [if_new, drop] = bpf::return_if_equal(SYN, 0);
    [
        bpf::load_byte(FLAGS),
        bpf::and(SYN | ACK),
        if_new,
        drop,
        bpf::ret(u32::MAX),
    ]
}

fn listen(addr: SocketAddr, tuning: &Tuning) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(addr),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    tuning.apply(&socket, addr)?;
    socket.bind(&addr.into())?;
    socket.listen(tuning.backlog())?;
    Ok(socket)
}

/// The IP addresses that `HOST:PORT` may stand for, in the order in which to try them.
pub(super) fn resolve(addr: &str) -> Result<Vec<SocketAddr>> {
    let wrong = |why: &str| Error::Address(format!("address {addr:?}: {why}"));
    let (host, port) = addr
        .rsplit_once(':')
        .ok_or_else(|| wrong("no port; write HOST:PORT, or unix:PATH"))?;
    if host.contains(':') && !host.starts_with('[') {
        return Err(wrong("an IPv6 address must stand in brackets"));
    }
    let digits = Some(port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    let port: u16 = digits
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| wrong("the port is not a number from 0 to 65535"))?;
    if host.is_empty() {
        // Where IPv6 is switched off, only the second address works.
        return Ok(vec![
            (Ipv6Addr::UNSPECIFIED, port).into(),
            (Ipv4Addr::UNSPECIFIED, port).into(),
        ]);
    }
    let mut found: Vec<SocketAddr> = addr
        .to_socket_addrs()
        .map_err(|error| wrong(&error.to_string()))?
        .collect();
    for addr in &mut found {
        addr.set_ip(addr.ip().to_canonical());
    }
    found.sort_by_key(SocketAddr::is_ipv6);
    found.truncate(1);
    Ok(found)
}
