//! Where the servers and the clients are: addresses, and the threads from which sockets are made.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::runtime::{Builder, Runtime};

/// The loopback device.
#[derive(Debug, Default)]
pub(crate) struct Net {
    /// How many addresses have been given out.
    given: AtomicU32,
}

/// Below the ports that the kernel gives to clients, so that no client's port is in a server's way.
const PORTS: std::ops::Range<u32> = 10_000..32_000;

impl Net {
    /// An address for a server, new each time: what a stop leaves behind must not meet the next one's clients, and each
    /// server has all of the clients' ports to itself. `own_ip`: the server lets us choose its IP address too.
    pub(crate) fn server_addr(&self, own_ip: bool) -> io::Result<SocketAddr> {
        let pid = std::process::id();
        for _ in 0..1000 {
            let given = self.given.fetch_add(1, Ordering::Relaxed);
            let port = PORTS.start + (pid.wrapping_mul(251) + given) % (PORTS.end - PORTS.start);
            let own = (pid % 8_000) << 11 | (given % 2_000 + 1);
            let ip = if own_ip {
                Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 0, 0).to_bits() | own)
            } else {
                Ipv4Addr::LOCALHOST
            };
            let port = u16::try_from(port).map_err(io::Error::other)?;
            let addr = SocketAddr::new(IpAddr::V4(ip), port);
            // Somebody else may have it.
            if TcpListener::bind(addr).is_ok() {
                return Ok(addr);
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    /// Has a command start where servers are.
    #[allow(clippy::unused_self, reason = "there is one place so far")]
    pub(crate) fn place(&self, command: Command) -> Command {
        command
    }

    /// What clients run on.
    #[allow(clippy::unused_self, reason = "there is one place so far")]
    pub(crate) fn runtime(&self) -> io::Result<Runtime> {
        Builder::new_multi_thread().enable_all().build()
    }
}
