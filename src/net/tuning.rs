//! How a listening socket of TCP is set up. The connections that it accepts inherit most of it, so that no connection
//! pays for it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Socket, TcpKeepalive};

use super::listener::BACKLOG;
use super::tcp;

/// How often the kernel asks a silent client whether it is there, before it gives the connection up.
const PROBES: u32 = 4;

/// What the host has set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tuning {
    pub(crate) reuse_port: bool,
    pub(crate) v6_only: bool,
    /// `None`: [`BACKLOG`].
    pub(crate) backlog: Option<usize>,
    /// `None`: never.
    pub(crate) keepalive: Option<Duration>,
    /// `None`: the system's.
    pub(crate) user_timeout: Option<Duration>,
    pub(crate) receive_buffer: Option<usize>,
    pub(crate) send_buffer: Option<usize>,
}

impl Tuning {
    /// Sets what must be set before the socket listens: a buffer decides how much a client may send at first.
    pub(super) fn apply(&self, socket: &Socket, addr: SocketAddr) -> io::Result<()> {
        // A restart must not wait for connections of the last run to leave TIME_WAIT.
        socket.set_reuse_address(true)?;
        if self.reuse_port {
            socket.set_reuse_port(true)?;
        }
        if addr.is_ipv6() {
            socket.set_only_v6(self.v6_only || !addr.ip().is_unspecified())?;
        }
        self.apply_to_clients(socket)
    }

    /// Sets a socket up anew that a predecessor has set up.
    pub(super) fn renew(&self, socket: &Socket) -> io::Result<()> {
        self.apply_to_clients(socket)?;
        socket.listen(self.backlog())
    }

    /// Sets what the accepted connections inherit.
    fn apply_to_clients(&self, socket: &Socket) -> io::Result<()> {
        if let Some(after) = self.keepalive {
            let interval = (after / PROBES).max(Duration::from_secs(1));
            let keepalive = TcpKeepalive::new().with_time(after);
            let keepalive = keepalive.with_interval(interval).with_retries(PROBES);
            socket.set_tcp_keepalive(&keepalive)?;
        }
        if self.user_timeout.is_some() {
            socket.set_tcp_user_timeout(self.user_timeout)?;
        }
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(bytes) = self.send_buffer {
            socket.set_send_buffer_size(bytes)?;
        }
        Ok(())
    }

    /// What the host has set, and an inherited socket is not.
    pub(super) fn amiss(&self, inherited: &tcp::Listener) -> Option<String> {
        let mut amiss = Vec::new();
        let is_everywhere = inherited.is_ipv6() && inherited.addr().ip().is_unspecified();
        if self.v6_only && is_everywhere && !inherited.is_only_ipv6() {
            amiss.push("takes IPv4, though v6_only is set");
        }
        if self.reuse_port && !inherited.socket().reuse_port().unwrap_or(false) {
            amiss.push("has no SO_REUSEPORT, though reuse_port is set");
        }
        let addr = inherited.addr();
        let amiss = amiss.join(", and ");
        (!amiss.is_empty()).then(|| format!("{addr} was inherited, and {amiss}"))
    }

    pub(super) fn backlog(&self) -> i32 {
        let most = self.backlog.map(i32::try_from);
        most.map_or(BACKLOG, |most| most.unwrap_or(i32::MAX))
    }
}
