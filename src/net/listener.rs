//! Listening sockets: where they come from, and whose they are.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::error::{Error, Result};
use crate::sys;

use super::bpf;

/// How many connections may wait to be accepted: the kernel caps it at `net.core.somaxconn` (4,096 since Linux 5.4).
const BACKLOG: i32 = 4096;
/// The option that binds a socket to an interface by its number.
const SO_BINDTOIFINDEX: i32 = 62;

/// A listening TCP socket.
///
/// It may be in a group of `SO_REUSEPORT`, in which other servers or processes listen on the same address. A stop then has the
/// kernel send new clients to the others before it closes the socket. To that end it connects to each of them once, and
/// replaces the program of the group, if they have set one by `SO_ATTACH_REUSEPORT_CBPF` or `SO_ATTACH_REUSEPORT_EBPF`: a
/// warning in the log says so.
///
/// ```
/// use std::net::{Ipv4Addr, TcpListener};
///
/// use httpdown::Listener;
///
/// // Port 0: the system chooses one that is free.
/// let first = Listener::bind("127.0.0.1:0")?;
/// println!("listening on http://{}/", first.local_addr());
///
/// // A socket that comes from elsewhere: from systemd, or from another library.
/// let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
/// let second = Listener::from_fd(socket.into())?;
/// assert_ne!(first.local_addr(), second.local_addr());
/// # Ok::<(), httpdown::Error>(())
/// ```
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// As [`plain`] has it.
    local: SocketAddr,
    /// As the kernel sees it: also of an address of IPv4 that is mapped.
    ipv6: bool,
    /// What the kernel calls it in its lists of sockets.
    inode: u64,
    shared: bool,
    /// New handshakes are refused.
    refuses: AtomicBool,
    /// It has had a filter, which is inherited by what is accepted.
    filtered: AtomicBool,
    /// Others listen on its address, in a group of `SO_REUSEPORT`.
    grouped: AtomicBool,
    /// It has given its group a program that sends new handshakes to the others.
    steers: AtomicBool,
}

/// A connection fresh from the kernel: non-blocking; the client's address, and ours.
pub(crate) type Connected = (TcpStream, SocketAddr, SocketAddr);

/// Why a try to accept brought no connection.
#[derive(Debug)]
pub(crate) enum NotAccepted {
    /// It was gone before it could be accepted, or belongs to no one: try the next.
    Gone,
    /// None waits.
    Empty,
    /// No descriptors or no memory: try later, when connections have ended.
    Exhausted(io::Error),
    /// The kernel, or a filter of system calls, does not let us: try later.
    Refused(io::Error),
    /// The socket itself is unusable.
    Failed(io::Error),
}

impl Listener {
    /// Listens on `HOST:PORT`. Blocks while a host name is looked up.
    ///
    /// An IPv6 address stands in brackets (`[::1]:8080`). Without a host (`:8080`) it listens on every address, IPv4
    /// and IPv6. Port 0 lets the kernel choose: see [`Listener::local_addr`]. Of a name with several addresses it
    /// takes the first IPv4 one, or else the first.
    ///
    /// ```
    /// # fn main() -> httpdown::Result<()> {
    /// let listener = httpdown::Listener::bind("127.0.0.1:0")?;
    /// println!("port {}", listener.local_addr().port());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Address`] if it cannot be parsed or resolved; [`Error::Io`] if the system refuses (in use, no
    /// permission, not an address of this machine).
    pub fn bind(addr: &str) -> Result<Self> {
        Self::bind_as(addr, false)
    }

    /// As [`Listener::bind`], with `SO_REUSEPORT`: several processes of the same user can each listen on the address,
    /// with a socket of its own, if all of them bind so; the kernel spreads new clients over them. A stop has it send
    /// them to the others before it closes the socket, so that workers can be restarted one by one, and none is lost.
    /// Nobody is told any more that the address is in use.
    ///
    /// # Errors
    /// As [`Listener::bind`]; in use if somebody listens there who has bound otherwise, or is another user.
    pub fn bind_reuse_port(addr: &str) -> Result<Self> {
        Self::bind_as(addr, true)
    }

    fn bind_as(addr: &str, reuse_port: bool) -> Result<Self> {
        let mut refused = None;
        for candidate in resolve(addr)? {
            let error = match listen(candidate, reuse_port) {
                Ok(socket) => {
                    let number = socket.as_raw_fd();
                    return Self::new(socket, number);
                }
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

    /// Takes a descriptor that listens already. A server that accepts from it sets `O_NONBLOCK`: on the open file
    /// description, so for whoever else has a copy too.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it is not a listening TCP socket; it is closed then.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let number = fd.as_raw_fd();
        Self::from_copy(fd, number)
    }

    /// As [`Listener::from_fd`], of a copy: errors name the descriptor that the host knows.
    pub(crate) fn from_copy(copy: OwnedFd, given: RawFd) -> Result<Self> {
        Self::new(Socket::from(copy), given)
    }

    /// Declares that the socket outlives this server (systemd, or workers restarted one by one). Whoever keeps it must
    /// go on accepting, or waiting clients are reset. A stop then closes our copy and leaves the connections that wait
    /// in it to the others. Where all may stop together, let each have a socket of its own:
    /// [`Listener::bind_reuse_port`].
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// The address that it listens on; one of IPv4 is shown as such, also where the socket is of IPv6.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn new(socket: Socket, fd: RawFd) -> Result<Self> {
        let wrong = |what: &str| Error::InvalidArgument(format!("descriptor {fd} {what}"));
        let listens = socket
            .is_listener()
            .map_err(|error| wrong(&format!("cannot be asked whether it listens: {error}")))?;
        if !listens {
            return Err(wrong("is not a listening socket"));
        }
        let bound = socket
            .local_addr()
            .ok()
            .and_then(|addr| addr.as_socket())
            .ok_or_else(|| wrong("is not a TCP socket"))?;
        let file = File::from(OwnedFd::from(socket));
        let inode = file
            .metadata()
            .map_err(|error| wrong(&format!("cannot be identified: {error}")))?
            .ino();
        Ok(Self {
            socket: Socket::from(OwnedFd::from(file)),
            local: plain(bound),
            ipv6: bound.is_ipv6(),
            inode,
            shared: false,
            refuses: AtomicBool::new(false),
            filtered: AtomicBool::new(false),
            grouped: AtomicBool::new(false),
            steers: AtomicBool::new(false),
        })
    }

    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// Whether it still does: a host may have shut it down behind our back.
    pub(crate) fn listens(&self) -> bool {
        self.socket.is_listener().unwrap_or(false)
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    pub(crate) fn accept(&self) -> std::result::Result<Connected, NotAccepted> {
        // Each time: another process may have made it blocking since.
        sys::ensure_nonblocking(self.socket.as_fd());
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let (socket, peer) = self.socket.accept4(flags).map_err(NotAccepted::from)?;
        if self.filtered.load(Ordering::Relaxed) {
            let _ = socket.detach_filter();
        }
        let stream = TcpStream::from(socket);
        let local = if self.local.ip().is_unspecified() {
            stream.local_addr().map_or(self.local, plain)
        } else {
            self.local
        };
        let peer = peer.as_socket().ok_or(NotAccepted::Gone)?;
        Ok((stream, plain(peer), local))
    }

    /// Whether the kernel counts it, and all its clients, to IPv6.
    pub(crate) fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// Whether it takes no client of IPv4.
    pub(crate) fn is_only_ipv6(&self) -> bool {
        self.socket.only_v6().unwrap_or(false)
    }

    /// Whether it was in a group with others when a stop looked last.
    pub(crate) fn is_grouped(&self) -> bool {
        self.grouped.load(Ordering::Relaxed)
    }

    /// A stop has seen whether others listen on its address. Who does refuses nobody: the kernel sends to no other socket
    /// what a filter drops.
    ///
    /// # Errors
    /// As [`Listener::refuse_new`].
    pub(crate) fn found_grouped(&self, grouped: bool) -> io::Result<()> {
        self.grouped.store(grouped, Ordering::Relaxed);
        if grouped {
            self.hear_new_again();
            return Ok(());
        }
        self.steer_no_more();
        self.refuse_new()
    }

    /// Keeps those out who want to connect from now on, but not those whose handshake has begun.
    ///
    /// With a filter it looks to them like a lost segment: they try again after a second, and are refused cleanly when
    /// the socket is closed. Newer kernels want `CAP_NET_ADMIN` for that, multipath sockets take no filter, and a host may
    /// have locked one of its own. Then the socket is bound to an interface that does not exist, and they are refused at
    /// once. The kernel finds a handshake that has begun before it looks for a listening socket; but not one by SYN
    /// cookie, which is why this comes second.
    ///
    /// # Errors
    /// Neither is possible: EPERM if the host has bound the socket to an interface, and before Linux 5.7. It is said once.
    fn refuse_new(&self) -> io::Result<()> {
        if self.refuses.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let socket = self.socket.as_fd();
        // A deferred accept would leave clients that are established and silent half-way in the handshake.
        let _ = sys::set_option(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 0);
        if self.socket.attach_filter(&drop_new_handshakes()).is_ok() {
            self.filtered.store(true, Ordering::Relaxed);
            return Ok(());
        }
        sys::set_option(socket, libc::SOL_SOCKET, SO_BINDTOIFINDEX, i32::MAX)
    }

    /// Undoes the filter of [`Listener::refuse_new`]. A socket that refuses by its interface is in no group with a newcomer.
    fn hear_new_again(&self) {
        if self.refuses.swap(false, Ordering::Relaxed) {
            let _ = self.socket.detach_filter();
        }
    }

    /// Gives the group this program, which chooses the member that a new handshake comes to.
    ///
    /// # Errors
    /// The kernel does not take it: `ENOMEM`; `EPERM` if the host has locked the filter of the socket.
    pub(crate) fn steer(&self, program: &[SockFilter]) -> io::Result<()> {
        sys::attach_group_program(self.socket.as_fd(), program)?;
        self.steers.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Takes the group's program away. Says whether there was one.
    ///
    /// # Errors
    /// `ENOPROTOOPT`: the kernel knows no such thing, before Linux 5.3.
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
    pub(crate) fn queued(&self) -> u32 {
        sys::accept_queue_len(self.socket.as_fd())
    }

    /// Unless it is shared, nobody can connect to it any more, whoever has a copy.
    pub(crate) fn shut(&self) -> io::Result<()> {
        if self.shared {
            return Ok(());
        }
        if self.steers.load(Ordering::Relaxed) {
            // Right before: a program that stayed would choose among the others as they are numbered now. Whoever comes to
            // ours in between is not heard, and tries again after a second; else it would be reset.
            let _ = self.refuse_new();
            self.steer_no_more();
        }
        match self.socket.shutdown(std::net::Shutdown::Read) {
            // Somebody shut it down before us.
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(()),
            result => result,
        }
    }

    /// Shuts it, and closes it.
    pub(crate) fn close(self) -> io::Result<()> {
        let shut = self.shut();
        if let Err(error) = &shut
            && let Some(libc::EBADF | libc::ENOTSOCK) = error.raw_os_error()
        {
            // The number is no longer ours: closing it might close something of the host's.
            let _ = self.socket.into_raw_fd();
            return shut;
        }
        sys::close(OwnedFd::from(self.socket)).and(shut)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl fmt::Display for NotAccepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the connection has gone"),
            Self::Empty => f.write_str("no connection waits"),
            Self::Exhausted(error) | Self::Refused(error) | Self::Failed(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for NotAccepted {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error().unwrap_or(0) {
            libc::EAGAIN => Self::Empty,
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => Self::Exhausted(error),
            libc::EBADF
            | libc::EINVAL
            | libc::ENOTSOCK
            | libc::EOPNOTSUPP
            | libc::EFAULT
            | libc::ENOSYS => Self::Failed(error),
            // accept(2): errors of the network that wait on the new connection are reported here; go on.
            libc::EINTR
            | libc::ECONNABORTED
            | libc::ECONNRESET
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENONET
            | libc::ETIMEDOUT => Self::Gone,
            // EPERM, above all. It may be for good: whoever tried again at once might do so for ever.
            _ => Self::Refused(error),
        }
    }
}

impl TryFrom<TcpListener> for Listener {
    type Error = Error;

    fn try_from(listener: TcpListener) -> Result<Self> {
        Self::from_fd(listener.into())
    }
}

/// The listening sockets of a server.
///
/// ```
/// # use httpdown::{Dispatch, Exchange, Listener, Server};
/// # fn main() -> httpdown::Result<()> {
/// let listeners = vec![Listener::bind("127.0.0.1:0")?, Listener::bind("127.0.0.1:0")?];
/// let handler = |exchange: Exchange| drop(exchange);
/// let server = Server::builder().handle(listeners, Dispatch::default(), handler)?;
/// assert_eq!(server.local_addrs().len(), 2);
/// server.stop_blocking()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Listeners(pub(crate) Vec<Listener>);

impl From<Listener> for Listeners {
    fn from(listener: Listener) -> Self {
        Self(vec![listener])
    }
}

impl From<Vec<Listener>> for Listeners {
    fn from(listeners: Vec<Listener>) -> Self {
        Self(listeners)
    }
}

/// Drops the segments that have SYN and not ACK. A socket's filter sees a segment from its TCP header on.
fn drop_new_handshakes() -> [SockFilter; 5] {
    const FLAGS: u32 = 13; // the byte that has them
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

fn listen(addr: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(addr),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for connections of the last run to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// An address of IPv4 as such, where the kernel has it mapped into IPv6 (`::ffff:127.0.0.1`), as it does for clients of
/// a socket that takes both.
fn plain(mut addr: SocketAddr) -> SocketAddr {
    addr.set_ip(addr.ip().to_canonical());
    addr
}

/// The addresses to try, in order.
fn resolve(addr: &str) -> Result<Vec<SocketAddr>> {
    let wrong = |why: &str| Error::Address(format!("address {addr:?}: {why}"));
    let (host, port) = addr
        .rsplit_once(':')
        .ok_or_else(|| wrong("no port; write HOST:PORT"))?;
    if host.contains(':') && !host.starts_with('[') {
        return Err(wrong("an IPv6 address must stand in brackets"));
    }
    let digits = Some(port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    let port: u16 = digits
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| wrong("the port is not a number from 0 to 65535"))?;
    if host.is_empty() {
        // Where IPv6 is switched off, the second is all there is.
        return Ok(vec![
            (Ipv6Addr::UNSPECIFIED, port).into(),
            (Ipv4Addr::UNSPECIFIED, port).into(),
        ]);
    }
    let mut found: Vec<_> = addr
        .to_socket_addrs()
        .map_err(|error| wrong(&error.to_string()))?
        .map(plain)
        .collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    found.truncate(1);
    Ok(found)
}
