//! Addresses of IP and Unix sockets.

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::option;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use socket2::SockAddr;

/// The beginning of the text of a Unix socket's address.
pub(crate) const UNIX: &str = "unix:";

/// The address of a socket: of a server's listening socket, or of a client.
///
/// The address's text has the form that [`Listener::bind`](crate::Listener::bind) takes: `127.0.0.1:8080`,
/// `[::1]:8080`, `unix:/run/app.sock`, `unix:@name`. A client of a Unix socket mostly has no address; its text is
/// `unix:`.
///
/// ```
/// use httpdown::{Addr, Listener};
///
/// let listener = Listener::bind("127.0.0.1:0")?;
/// match listener.local_addr() {
///     Addr::Ip(addr) => println!("port {}", addr.port()),
///     Addr::Unix(addr) => println!("path {:?}", addr.path()),
///     other => println!("{other}"),
/// }
/// # Ok::<(), httpdown::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Addr {
    /// The address of a TCP socket. An IPv4 address is shown as IPv4, even if the socket is an IPv6 socket that takes
    /// both.
    Ip(SocketAddr),
    /// The address of a Unix socket.
    Unix(UnixAddr),
}

/// The address of a Unix socket: a path, an abstract name, or none. See `unix(7)`.
///
/// ```
/// let listener = httpdown::Listener::bind("unix:@an example")?;
/// let addr = listener.local_addr().as_unix().unwrap();
/// assert_eq!(addr.abstract_name(), Some(&b"an example"[..]));
/// assert_eq!(addr.path(), None);
/// assert_eq!(addr.to_string(), "unix:@an example");
/// # Ok::<(), httpdown::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct UnixAddr(Name);

/// The name in the kernel's form.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Name {
    Unnamed,
    Path(Arc<Path>),
    Abstract(Arc<[u8]>),
}

impl Addr {
    /// Takes the address that the kernel gives. `None` if the address family is one that no server listens with.
    pub(crate) fn from_kernel(addr: &SockAddr) -> Option<Self> {
        if let Some(mut addr) = addr.as_socket() {
            // If a socket takes IPv4 and IPv6, its IPv4 clients are mapped into IPv6 (`::ffff:127.0.0.1`).
            addr.set_ip(addr.ip().to_canonical());
            return Some(Self::Ip(addr));
        }
        if !addr.is_unix() {
            return None;
        }
        let name = if let Some(path) = addr.as_pathname() {
            Name::Path(path.into())
        } else if let Some(name) = addr.as_abstract_namespace() {
            Name::Abstract(name.into())
        } else {
            Name::Unnamed
        };
        Some(Self::Unix(UnixAddr(name)))
    }

    pub(crate) fn of_path(path: &Path) -> Self {
        Self::Unix(UnixAddr(Name::Path(path.into())))
    }

    pub(crate) fn of_abstract(name: &[u8]) -> Self {
        Self::Unix(UnixAddr(Name::Abstract(name.into())))
    }

    /// The address and port, if this is an IP address.
    #[must_use]
    pub fn as_ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(addr) => Some(*addr),
            Self::Unix(_) => None,
        }
    }

    /// The path or name, if this is the address of a Unix socket.
    #[must_use]
    pub fn as_unix(&self) -> Option<&UnixAddr> {
        match self {
            Self::Unix(addr) => Some(addr),
            Self::Ip(_) => None,
        }
    }

    /// The port; `None` for a Unix socket.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.as_ip().map(|addr| addr.port())
    }
}

impl UnixAddr {
    /// The path as it was bound. A relative path is relative to the working directory that the process had then.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Name::Path(path) => Some(path),
            _ => None,
        }
    }

    /// The abstract name, without the NUL that it begins with in the kernel.
    #[must_use]
    pub fn abstract_name(&self) -> Option<&[u8]> {
        match &self.0 {
            Name::Abstract(name) => Some(name),
            _ => None,
        }
    }

    /// Whether the address has neither path nor name, like the address of a client that did not bind its socket.
    #[must_use]
    pub fn is_unnamed(&self) -> bool {
        matches!(self.0, Name::Unnamed)
    }
}

/// Writes the address as text. Bytes of a path or a name that are not UTF-8 are replaced. A NUL inside a name is shown
/// as `@`, like in the kernel's own list (`/proc/net/unix`).
impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Unix(addr) => addr.fmt(f),
        }
    }
}

impl fmt::Display for UnixAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(UNIX)?;
        match &self.0 {
            Name::Unnamed => Ok(()),
            Name::Path(path) => {
                // Not to be taken for an abstract name.
                if path.as_os_str().as_bytes().first() == Some(&b'@') {
                    f.write_str("./")?;
                }
                write_safely(f, path.as_os_str())
            }
            Name::Abstract(name) => {
                f.write_char('@')?;
                write_safely(f, OsStr::from_bytes(name))
            }
        }
    }
}

/// Writes what a client may have chosen, so that it stays in one line of a log.
fn write_safely(f: &mut fmt::Formatter<'_>, name: &OsStr) -> fmt::Result {
    for character in name.to_string_lossy().chars() {
        match character {
            '\0' => f.write_char('@')?,
            control if control.is_control() => write!(f, "{}", control.escape_default())?,
            other => f.write_char(other)?,
        }
    }
    Ok(())
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for UnixAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<SocketAddr> for Addr {
    fn from(addr: SocketAddr) -> Self {
        Self::Ip(addr)
    }
}

impl PartialEq<SocketAddr> for Addr {
    fn eq(&self, other: &SocketAddr) -> bool {
        self.as_ip().as_ref() == Some(other)
    }
}

/// For [`TcpStream::connect`](std::net::TcpStream::connect). For a Unix socket this is an error: connect to its path.
impl ToSocketAddrs for Addr {
    type Iter = option::IntoIter<SocketAddr>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        let addr = self.as_ip().ok_or_else(|| {
            let why = format!("{self} is not an address of IP");
            io::Error::new(io::ErrorKind::InvalidInput, why)
        })?;
        Ok(Some(addr).into_iter())
    }
}
