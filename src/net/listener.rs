//! Listening sockets: where they come from, and who owns them.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use socket2::{SockAddr, Socket, Type};

use crate::addr::{Addr, UNIX};
use crate::error::{Error, Result};
use crate::handover::Passed;
use crate::inherited::{self, BY_NAME, Claim, Kept, Sockets, Tenure};
use crate::sys;

use super::plain::Stream;
use super::tuning::Tuning;
use super::unix::SocketFile;
use super::{tcp, unix};

/// How many connections may wait to be accepted. The kernel caps the number at `net.core.somaxconn` (4,096 since Linux
/// 5.4).
pub(super) const BACKLOG: i32 = 4096;

/// A listening socket: a TCP socket, or a Unix stream socket.
///
/// A TCP socket may be in a group of `SO_REUSEPORT`, in which other servers or processes listen on its address. A stop
/// then makes the kernel send new clients to the others before it closes the socket. For that, the stop connects to
/// each of them once, and replaces the group's program, if they have set one by `SO_ATTACH_REUSEPORT_CBPF` or
/// `SO_ATTACH_REUSEPORT_EBPF`: a warning in the log says so.
///
/// If a Unix socket was bound here, its file is removed when the socket is closed, unless another file has taken its
/// place by then.
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
    local: Addr,
    tenure: Arc<Tenure>,
    /// The text by which it was asked for.
    asked: Option<String>,
    /// The later a listener was made, the larger.
    number: u64,
    kind: Kind,
    /// If the socket was inherited: nobody else gets it meanwhile.
    kept: Option<Kept>,
    /// What the host has asked for, and an inherited socket is not.
    amiss: Option<String>,
}

#[derive(Debug)]
enum Kind {
    Tcp(tcp::Listener),
    Unix(unix::Listener),
}

/// A new connection from the kernel, which is non-blocking, with the client's address and ours.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) stream: Stream,
    pub(crate) peer: Addr,
    pub(crate) local: Addr,
    /// The other end is in this library: no TLS, and no PROXY protocol.
    pub(crate) is_ours: bool,
}

/// Why a try to accept brought no connection.
#[derive(Debug)]
pub(crate) enum NotAccepted {
    /// The connection was gone before it could be accepted, or belongs to no one: try the next.
    Gone,
    /// No connection waits.
    Empty,
    /// There are no descriptors or no memory: try later, when connections have ended.
    Exhausted(io::Error),
    /// The kernel, or a filter of system calls, does not allow it: try later.
    Refused(io::Error),
    /// The socket itself is unusable.
    Failed(io::Error),
}

impl Listener {
    /// Listens on `HOST:PORT`, or on a Unix socket. Blocks while a host name, a user or a group is looked up. Also
    /// blocks while another process holds a lock on the directory of a Unix socket, for at most a second.
    ///
    /// An IPv6 address stands in brackets (`[::1]:8080`). Without a host (`:8080`), the socket listens on every
    /// address, IPv4 and IPv6. With port 0, the kernel chooses the port: see [`Listener::local_addr`]. If a name has
    /// several addresses, the first IPv4 address is used, or else the first address.
    ///
    /// `unix:/run/app.sock` is a Unix stream socket at that path. If a socket is there on which nobody listens, it is
    /// replaced. If somebody listens on it, or if the file is no socket, the address is in use. A `?` is followed by
    /// who may connect, which on Linux takes the permission to write to the file:
    /// `unix:/run/app.sock?mode=0660&group=www-data`. `mode` is octal, as for chmod(1); `user` and `group` are names or
    /// numbers. Without a mode, the umask decides. `unix:@name` is an abstract socket (`unix(7)`): it has no file, and
    /// everybody in its network namespace may connect. A path may have 107 bytes. A path that contains a `?` can be
    /// bound elsewhere, and the socket given by
    /// [`TryFrom<UnixListener>`](Listener#impl-TryFrom<UnixListener>-for-Listener).
    ///
    /// # Inherited sockets
    ///
    /// If the program was started with listening sockets by systemd's protocol (`LISTEN_FDS`, `LISTEN_PID`,
    /// `LISTEN_FDNAMES`; see `sd_listen_fds(3)`), this function looks there first. An inherited socket that listens at
    /// the address is taken, and nothing is bound. Without a host, both `[::]` and `0.0.0.0` match. `fd:NAME` takes the
    /// inherited socket of that name (`FileDescriptorName=` in a `.socket` unit), whatever its address, and never
    /// binds; of several sockets with the name, each call takes the next. The mode and the owner of a Unix socket stay
    /// as they are. An inherited socket is [shared](Listener::shared): whoever has passed it on keeps it for the next
    /// process. When the listener is dropped, the socket can be taken again.
    ///
    /// The first call removes the variables from the environment, and makes the descriptors close-on-exec, so that no
    /// child takes the sockets for its own. Other threads should not use the environment at that moment, except by
    /// `std::env`. A server whose program has inherited a socket on which nobody listens says so in its
    /// [log](crate::Builder::on_log), 10 seconds after the first server has started. Sockets that no server can use,
    /// such as those of UDP, are left to others, and so are variables that are meant for another process.
    ///
    /// ```
    /// # fn main() -> httpdown::Result<()> {
    /// let listener = httpdown::Listener::bind("127.0.0.1:0")?;
    /// println!("port {:?}", listener.local_addr().port());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Address`] if the address cannot be parsed or resolved, or if no inherited socket has the name;
    /// [`Error::Io`] if the system refuses (in use, no permission, not an address of this machine), or if the inherited
    /// socket is in use already; [`Error::InvalidArgument`] if a named socket does not listen, or if `LISTEN_FDS` or
    /// `LISTEN_PID` makes no sense.
    pub fn bind(addr: &str) -> Result<Self> {
        Self::bind_tuned(addr, &Tuning::default())
    }

    /// Like [`Listener::bind`], with `SO_REUSEPORT`: several processes of one user can each listen on the address, each
    /// with its own socket, if all of them bind like this. The kernel spreads new clients over them. Before a stop
    /// closes its socket, it makes the kernel send new clients to the others; so workers can be restarted one by one,
    /// and no client is lost. A process that binds like this is no longer told that the address is in use.
    ///
    /// # Errors
    /// The errors of [`Listener::bind`]; in use if another user listens there, or somebody who has bound in another
    /// way. [`Error::InvalidArgument`] for a Unix socket: the kernel has no such groups of them.
    pub fn bind_reuse_port(addr: &str) -> Result<Self> {
        let tuning = Tuning {
            reuse_port: true,
            ..Tuning::default()
        };
        Self::bind_tuned(addr, &tuning)
    }

    pub(crate) fn bind_tuned(addr: &str, tuning: &Tuning) -> Result<Self> {
        let inherited = inherited::take()?;
        let bound = if let Some(claim) = inherited.claim_asked(addr)? {
            Self::inherit(claim, tuning)
        } else if addr.starts_with(BY_NAME) {
            inherited
                .claim_name(addr)
                .and_then(|claim| Self::inherit(claim, tuning))
        } else {
            let bound = match addr.strip_prefix(UNIX) {
                Some(place) => Self::bind_unix(addr, place, tuning, inherited),
                None => Self::bind_tcp(addr, tuning, inherited),
            };
            bound.map_err(|error| inherited.explain(error))
        };
        match bound {
            Ok(mut listener) => {
                listener.asked = Some(addr.to_owned());
                Ok(listener)
            }
            Err(error) => {
                if let Some(predecessor) = inherited::predecessor() {
                    predecessor.note(&format_args!("{error:#}"));
                }
                Err(error)
            }
        }
    }

    fn bind_tcp(addr: &str, tuning: &Tuning, inherited: &'static Sockets) -> Result<Self> {
        let candidates = tcp::resolve(addr)?;
        let addrs = candidates.iter().copied().map(Addr::from);
        if let Some(claim) = inherited.claim_addr(addrs)? {
            return Self::inherit(claim, tuning);
        }
        let socket = tcp::Listener::bind(addr, &candidates, tuning)?;
        let number = socket.as_raw_fd();
        Self::new(socket, number)
    }

    fn bind_unix(
        addr: &str,
        place: &str,
        tuning: &Tuning,
        inherited: &'static Sockets,
    ) -> Result<Self> {
        if tuning.reuse_port {
            let why = format!("{addr:?}: Unix sockets cannot share an address by SO_REUSEPORT");
            return Err(Error::InvalidArgument(why));
        }
        let place = unix::Place::parse(addr, place)?;
        if let Some(claim) = inherited.claim_addr(place.addr())? {
            return Self::inherit(claim, tuning);
        }
        let tenure = Arc::default();
        let unix::Bound { socket, file } = unix::bind(addr, &place, &tenure)?;
        let number = socket.as_raw_fd();
        let mut listener = Self::new(socket, number)?;
        listener.tenure = tenure;
        if let (Kind::Unix(unix), Some(file)) = (&mut listener.kind, file) {
            listener.local = file.addr().unwrap_or(listener.local);
            unix.own(file);
        }
        Ok(listener)
    }

    /// A supervisor that has passed the socket on keeps it for the next process, so it is shared. A predecessor gives it
    /// up in the end.
    fn inherit(claim: Claim, tuning: &Tuning) -> Result<Self> {
        let Claim { copy, fd, kept } = claim;
        let mut listener = Self::new(Socket::from(copy), fd)?;
        listener.tenure = Arc::clone(kept.tenure());
        listener.amiss = listener.as_tcp().and_then(|tcp| tuning.amiss(tcp));
        let file = kept.passed().and_then(|passed| passed.file.clone());
        if let (Kind::Unix(unix), Some(file)) = (&mut listener.kind, file) {
            let file = SocketFile::inherit(file, Arc::clone(&listener.tenure));
            listener.local = file.addr().unwrap_or(listener.local);
            unix.own(file);
        }
        if kept.passed().is_some()
            && let Some(tcp) = listener.as_tcp()
        {
            let retuned = tuning.renew(tcp.socket());
            retuned.map_err(|error| Error::io(format!("setting up {}", listener.local), error))?;
        }
        listener.kept = Some(kept);
        Ok(listener)
    }

    /// Takes a descriptor that listens already. A server that accepts from it sets `O_NONBLOCK` on the open file
    /// description, so also for everybody else who has a copy. The file of a Unix socket remains the caller's: the
    /// caller may remove or keep it. If the program has inherited the same socket (see [`Listener::bind`]), nobody else
    /// gets it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the descriptor is not a listening TCP or Unix stream socket; it is closed then.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let number = fd.as_raw_fd();
        Self::from_copy(fd, number)
    }

    /// Like [`Listener::from_fd`], for a copy: errors name the descriptor that the host knows.
    pub(crate) fn from_copy(copy: OwnedFd, given: RawFd) -> Result<Self> {
        let mut listener = Self::new(Socket::from(copy), given)?;
        let inherited = inherited::look();
        listener.kept =
            inherited.and_then(|inherited| inherited.claim_inode(listener.inode(), given));
        // Of what a supervisor has passed on, the host says itself whether it is shared.
        if let Some(kept) = listener.kept.as_ref().filter(|it| it.passed().is_some()) {
            listener.tenure = Arc::clone(kept.tenure());
        }
        Ok(listener)
    }

    /// Declares that the socket outlives this server (systemd, or workers restarted one by one). The process that keeps
    /// the socket must go on accepting, or waiting clients are reset. A stop then closes only our copy, and leaves the
    /// connections that wait in the socket to the others. If all of them may stop together, let each have its own
    /// socket: [`Listener::bind_reuse_port`]. The file of a Unix socket stays, too: the process that closes the last
    /// copy removes it.
    #[must_use]
    pub fn shared(self) -> Self {
        self.tenure.declare();
        self
    }

    /// The address that the socket listens on. The path of a Unix socket that was bound here is absolute, if an
    /// absolute path fits into an address.
    #[must_use]
    pub fn local_addr(&self) -> &Addr {
        &self.local
    }

    fn new(socket: Socket, fd: RawFd) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let wrong = |what: &str| Error::InvalidArgument(format!("descriptor {fd} {what}"));
        let listens = socket
            .is_listener()
            .map_err(|error| wrong(&format!("cannot be asked whether it listens: {error}")))?;
        if !listens {
            return Err(wrong("is not a listening socket"));
        }
        let bound = socket.local_addr().ok();
        let bound = bound.filter(|_| socket.r#type().is_ok_and(|kind| kind == Type::STREAM));
        let local = bound.as_ref().and_then(Addr::from_kernel);
        let local = local.ok_or_else(|| wrong("is neither a TCP nor a Unix stream socket"))?;
        let ipv6 = bound.is_some_and(|bound| bound.is_ipv6());
        let file = File::from(OwnedFd::from(socket));
        let inode = file
            .metadata()
            .map_err(|error| wrong(&format!("cannot be identified: {error}")))?
            .ino();
        let socket = Socket::from(OwnedFd::from(file));
        let kind = match &local {
            Addr::Ip(addr) => Kind::Tcp(tcp::Listener::new(socket, *addr, ipv6, inode)),
            Addr::Unix(_) => Kind::Unix(unix::Listener::new(socket, inode)),
        };
        Ok(Self {
            local,
            tenure: Arc::default(),
            asked: None,
            number: COUNT.fetch_add(1, Ordering::Relaxed),
            kind,
            kept: None,
            amiss: None,
        })
    }

    fn socket(&self) -> &Socket {
        match &self.kind {
            Kind::Tcp(tcp) => tcp.socket(),
            Kind::Unix(unix) => unix.socket(),
        }
    }

    /// The number of this socket in the kernel's lists of sockets.
    fn inode(&self) -> u64 {
        match &self.kind {
            Kind::Tcp(tcp) => tcp.inode(),
            Kind::Unix(unix) => unix.inode().into(),
        }
    }

    /// A server accepts from this socket. Returns what the host must be told of it.
    pub(crate) fn serves(&self) -> Option<&str> {
        if let Some(kept) = &self.kept {
            kept.serves();
        }
        self.amiss.as_deref()
    }

    /// The TCP socket, if this is one.
    pub(crate) fn as_tcp(&self) -> Option<&tcp::Listener> {
        match &self.kind {
            Kind::Tcp(tcp) => Some(tcp),
            Kind::Unix(_) => None,
        }
    }

    /// The Unix socket, if this is one.
    pub(crate) fn as_unix(&self) -> Option<&unix::Listener> {
        match &self.kind {
            Kind::Unix(unix) => Some(unix),
            Kind::Tcp(_) => None,
        }
    }

    /// Whether the socket still listens. The host may have shut it down without telling us.
    pub(crate) fn listens(&self) -> bool {
        match &self.kind {
            Kind::Tcp(tcp) => tcp.socket().is_listener().unwrap_or(false),
            Kind::Unix(unix) => unix.listens(),
        }
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.tenure.is_shared()
    }

    pub(crate) fn tenure(&self) -> &Arc<Tenure> {
        &self.tenure
    }

    /// Its place in the order in which the listeners of this process were made. The next process asks in this order.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The name by which it was passed on to this process, if it was.
    pub(crate) fn inherited_name(&self) -> Option<&'static str> {
        self.kept.as_ref().map(Kept::name)
    }

    /// What a successor must know of the socket.
    pub(crate) fn passed(&self) -> Passed {
        let file = match &self.kind {
            Kind::Unix(unix) => unix.file(),
            Kind::Tcp(_) => None,
        };
        Passed {
            asked: self.asked.clone(),
            is_needed: true,
            is_declared: self.tenure.is_declared(),
            file,
            tickets: None,
        }
    }

    /// The keys of TLS session tickets with which a predecessor has served the socket.
    #[cfg(feature = "tls")]
    pub(crate) fn inherited_tickets(&self) -> Option<&'static str> {
        self.kept.as_ref()?.passed()?.tickets.as_deref()
    }

    pub(crate) fn accept(&self) -> std::result::Result<Connected, NotAccepted> {
        match &self.kind {
            Kind::Tcp(tcp) => tcp.accept(),
            Kind::Unix(unix) => unix.accept(&self.local),
        }
    }

    /// How many connections wait to be accepted.
    pub(crate) fn queued(&self) -> u32 {
        match &self.kind {
            Kind::Tcp(tcp) => tcp.queued(),
            Kind::Unix(unix) => unix.queued(),
        }
    }

    /// Makes the socket refuse all new clients, even if somebody has a copy of it. Does nothing if the socket is
    /// shared.
    pub(crate) fn shut(&self) -> io::Result<()> {
        match &self.kind {
            _ if self.is_shared() => Ok(()),
            Kind::Tcp(tcp) => tcp.shut(),
            Kind::Unix(unix) => unix.shut(),
        }
    }

    /// Shuts the socket, and closes it.
    pub(crate) fn close(mut self) -> io::Result<()> {
        let shut = self.shut();
        let error = shut.as_ref().err().and_then(io::Error::raw_os_error);
        let is_ours = !matches!(error, Some(libc::EBADF | libc::ENOTSOCK));
        if !is_ours && let Kind::Unix(unix) = &mut self.kind {
            // Without the socket, another file may have the number of its inode.
            unix.keep_file();
        }
        // The file of a Unix socket is removed before the socket is closed.
        let socket = match self.kind {
            Kind::Tcp(tcp) => tcp.into_socket(),
            Kind::Unix(unix) => unix.into_socket(),
        };
        if !is_ours {
            // The number is no longer ours: to close it might close a descriptor of the host.
            let _ = socket.into_raw_fd();
            return shut;
        }
        sys::close(OwnedFd::from(socket)).and(shut)
    }
}

/// Takes a connection from a socket's queue. The connection is non-blocking.
pub(super) fn accept(socket: &Socket) -> std::result::Result<(Socket, SockAddr), NotAccepted> {
    // Set before each accept: another process may have made the socket blocking since.
    sys::ensure_nonblocking(socket.as_fd());
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    socket.accept4(flags).map_err(NotAccepted::from)
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket().as_raw_fd()
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
            // accept(2) also reports network errors that wait on the new connection. They are no reason to stop
            // accepting.
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
            // EPERM, above all. It may last for ever: a server that tried again at once might never stop trying.
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

impl TryFrom<UnixListener> for Listener {
    type Error = Error;

    fn try_from(listener: UnixListener) -> Result<Self> {
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
