//! The information about a connection that the host can get.

use std::sync::Arc;

use http::HeaderMap;
#[cfg(feature = "tls")]
use once_cell::sync::OnceCell;

use crate::addr::Addr;
use crate::forwarded::{Client, Forwarding};
#[cfg(feature = "tls")]
use crate::tls::TlsInfo;

/// The connection that a request came on. Get it by [`Exchange::conn`](crate::Exchange::conn), or, if
/// [`Builder::conn_info`](crate::Builder::conn_info) says so, from the extensions of a service's request.
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
    /// The client's address. If a header of the PROXY protocol says it
    /// ([`proxy_protocol_from`](crate::Builder::proxy_protocol_from)), it is the one in the header.
    pub peer: Addr,
    /// The server's address that the client connected to: the proxy's, if a header says that.
    pub local: Addr,
    /// The process that has connected; `None` if the connection is not by a Unix socket.
    pub credentials: Option<Credentials>,
    pub(crate) proxy: Option<Arc<Addr>>,
    pub(crate) forwarding: Option<Arc<Forwarding>>,
    #[cfg(feature = "tls")]
    pub(crate) tls: OnceCell<Arc<TlsInfo>>,
}

impl ConnInfo {
    /// The address from which the connection comes, if that is a proxy which has said by the PROXY protocol whose
    /// connection it is.
    #[must_use]
    pub fn proxy(&self) -> Option<&Addr> {
        self.proxy.as_deref()
    }

    /// Who has sent the request with these headers on this connection, as far as that is to be believed.
    #[must_use]
    pub fn client(&self, headers: &HeaderMap) -> Client {
        let forwarding = self.forwarding.as_deref();
        Client::of(&self.peer, self.is_secure(), forwarding, headers)
    }

    /// Whether the connection speaks TLS: the scheme of its requests is `https` then.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.get().is_some();
        #[cfg(not(feature = "tls"))]
        false
    }

    /// What the TLS handshake has agreed on; `None` without TLS.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(&self) -> Option<&TlsInfo> {
        self.tls.get().map(Arc::as_ref)
    }
}

/// The process that has connected by a Unix socket, as the kernel knew it at the time of the connect (`SO_PEERCRED`,
/// `unix(7)`). That process may have passed the connection to another process since.
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
    /// The process ID; `None` if the process is in another PID namespace that ours does not see.
    pub pid: Option<u32>,
    /// The process's effective user ID.
    pub uid: u32,
    /// The process's effective group ID.
    pub gid: u32,
}

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum ConnState {
    /// The connection was accepted; the header of the PROXY protocol has come, and the TLS handshake is done, if there
    /// are such; no byte of a request has come yet.
    New = 0,
    /// A request is under way: from its first byte to the last byte of its response.
    Active = 1,
    /// The connection is between two requests.
    Idle = 2,
    /// A handler has taken the connection over (an upgrade); it no longer carries HTTP.
    Hijacked = 3,
    /// The connection is closed.
    Closed = 4,
    /// The connection was accepted, and the header of the PROXY protocol has not come, or the TLS handshake is not
    /// done. It becomes new.
    Handshaking = 5,
}

impl ConnState {
    pub(crate) fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::New,
            1 => Self::Active,
            2 => Self::Idle,
            3 => Self::Hijacked,
            4 => Self::Closed,
            _ => Self::Handshaking,
        }
    }
}
