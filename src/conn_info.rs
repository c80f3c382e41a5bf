//! What the host may know of a connection.

use crate::addr::Addr;

/// The connection that a request came on: [`Exchange::conn`](crate::Exchange::conn), or, if
/// [`Builder::conn_info`](crate::Builder::conn_info) says so, among the extensions of a service's request.
///
/// ```
/// use httpdown::Exchange;
///
/// fn whoami(exchange: Exchange) {
///     let text = format!("you are {}\n", exchange.conn().peer);
///     let _ = exchange.reply(http::Response::new(text.into()));
/// }
/// # let _ = whoami;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnInfo {
    /// The connection's number, unique within its server.
    pub id: u64,
    /// The client's address.
    pub peer: Addr,
    /// The server's address that the client connected to.
    pub local: Addr,
    /// Which process has connected; none, if not by a Unix socket.
    pub credentials: Option<Credentials>,
}

/// The process that has connected by a Unix socket, as the kernel knew it at that moment (`SO_PEERCRED`, `unix(7)`). The
/// connection may have been handed to another process since.
///
/// ```
/// # let info: Option<httpdown::ConnInfo> = None;
/// # let Some(info) = info else { return };
/// let is_root = info.credentials.is_some_and(|client| client.uid == 0);
/// # let _ = is_root;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Credentials {
    /// Its number; none if it is of another PID namespace, which ours does not see.
    pub pid: Option<u32>,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum ConnState {
    /// Accepted; no byte has come yet.
    New = 0,
    /// From the first byte of a request to the last byte of its response.
    Active = 1,
    /// Between two requests.
    Idle = 2,
    /// Taken over by a handler (an upgrade): no longer HTTP.
    Hijacked = 3,
    /// Gone.
    Closed = 4,
}

impl ConnState {
    pub(crate) fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::New,
            1 => Self::Active,
            2 => Self::Idle,
            3 => Self::Hijacked,
            _ => Self::Closed,
        }
    }
}
