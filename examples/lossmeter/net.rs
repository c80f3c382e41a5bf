//! Where the servers and the clients are: on the loopback device, or at both ends of a long way.

use std::env;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::lab::Lab;

/// The network of a run.
#[derive(Debug, Default)]
pub(crate) struct Net {
    /// The long way; without it, loopback.
    lab: Option<Arc<Lab>>,
    /// How many addresses have been given out.
    given: AtomicU32,
}

/// What a long way is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) round_trip: Duration,
    /// The part of all frames that is lost, from 0 to 1.
    pub(crate) loss: f64,
    /// Chooses which.
    pub(crate) seed: u64,
}

/// Below the ports that the kernel gives to clients, so that no client's port is in a server's way.
const PORTS: std::ops::Range<u32> = 10_000..32_000;

impl Net {
    /// To be called while there is but one thread, if there is a way: who is not root becomes that of a namespace.
    pub(crate) fn new(way: Option<Way>) -> io::Result<Self> {
        let mut net = Self::default();
        if let Some(way) = way {
            Lab::prepare()?;
            let lab = Lab::with_seed(way.round_trip / 2, way.loss, way.seed)?;
            net.lab = Some(Arc::new(lab));
        }
        Ok(net)
    }

    /// An address for a server, new each time: what a stop leaves behind must not meet the next one's clients, and each
    /// server has all of the clients' ports to itself. `own_ip`: the server lets us choose its IP address too.
    pub(crate) fn server_addr(&self, own_ip: bool) -> io::Result<SocketAddr> {
        let pid = std::process::id();
        for _ in 0..1000 {
            let given = self.given.fetch_add(1, Ordering::Relaxed);
            let port = PORTS.start + (pid.wrapping_mul(251) + given) % (PORTS.end - PORTS.start);
            let own = (pid % 8_000) << 11 | (given % 2_000 + 1);
            let ip = match &self.lab {
                Some(lab) => lab.server_ip(),
                None if own_ip => Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 0, 0).to_bits() | own),
                None => Ipv4Addr::LOCALHOST,
            };
            let port = u16::try_from(port).map_err(io::Error::other)?;
            let addr = SocketAddr::new(IpAddr::V4(ip), port);
            // Somebody else may have it. Not by listening: a server that is started at this moment would have a copy of
            // the listening socket between its fork and its exec, and the next one would find the port taken.
            let bind = || {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.set_reuse_address(true)?;
                socket.bind(&addr.into())
            };
            if self.at_server(bind)?.is_ok() {
                return Ok(addr);
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    /// A path for a server's Unix socket, new each time.
    pub(crate) fn server_path(&self) -> PathBuf {
        let given = self.given.fetch_add(1, Ordering::Relaxed);
        env::temp_dir().join(format!("lossmeter-{}-{given}.sock", std::process::id()))
    }

    /// Calls `f` on the server's side; what it starts and what sockets it makes are there.
    pub(crate) fn at_server<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        let Some(lab) = &self.lab else {
            return Ok(f());
        };
        let runtime = Handle::current();
        thread::scope(|scope| {
            let on_its_side = || {
                lab.enter_server()?;
                let _runtime = runtime.enter();
                Ok(f())
            };
            let thread = thread::Builder::new().spawn_scoped(scope, on_its_side)?;
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// What clients run on. Only its own threads are on their side.
    pub(crate) fn runtime(&self) -> io::Result<Runtime> {
        let mut builder = Builder::new_multi_thread();
        if let Some(lab) = &self.lab {
            let lab = Arc::clone(lab);
            builder.on_thread_start(move || {
                // A client on the wrong side could reach no server: that would be seen.
                if let Err(error) = lab.enter_client() {
                    eprintln!("a thread cannot get to the clients' side: {error}");
                }
            });
        }
        builder.enable_all().build()
    }
}
