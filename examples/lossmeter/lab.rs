//! A long way between client and server, on one machine.
//!
//! Two anonymous network namespaces, each with a TUN device, and between the devices two threads of ours, the wires:
//! one for each direction, which holds each frame back for as long as the way takes, keeps the order, and loses some.
//! The kernel's own means for this (netem) is not built into every kernel; TUN nearly always is. TUN and not TAP: it
//! carries bare IP packets, so there are no link addresses to be resolved first, over the long way, and to be lost.
//!
//! Nothing has a name, so nothing is left behind: when the [`Lab`] is dropped or the process is killed, the kernel
//! takes it all away with the last descriptor, or the last process or socket that lives in it.
#![allow(
    unsafe_code,
    reason = "namespaces and network devices: no dependency of ours wraps their system calls"
)]
#![allow(dead_code, reason = "not everybody who includes this needs all of it")]

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use libc::__c_anonymous_ifr_ifru as Value;

/// What each side has.
#[derive(Clone, Copy)]
struct Addrs(Ipv4Addr, Ipv6Addr);

const CLIENT: Addrs = Addrs(
    Ipv4Addr::new(10, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
);
const SERVER: Addrs = Addrs(
    Ipv4Addr::new(10, 0, 0, 2),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
);

/// As on most ways through the world.
const MTU: libc::c_int = 1500;
/// How many frames may wait in a device until their wire takes them; more are lost. The kernel's default is 500.
const DEVICE_QUEUE: libc::c_int = 10_000;
/// How many frames may be under way in one direction; the others wait in the device.
const WIRE_QUEUE: usize = 100_000;
/// How long a wire sleeps when there is work, so that one waking serves many frames. Adds that much to the way.
const BATCH: Duration = Duration::from_micros(100);

/// A client's and a server's network, and the way between them, until it is dropped.
///
/// Threads and processes enter one side or the other; sockets belong to the side on which they are made, wherever they
/// are used then. On each side the loopback device is up too, and there is nothing else: no way leads out.
#[derive(Debug)]
pub(crate) struct Lab {
    client: File,
    server: File,
    one_way: Duration,
    lost: Arc<AtomicU64>,
    /// The wires run as long as it is open.
    running: Option<PipeWriter>,
    wires: Vec<JoinHandle<()>>,
}

impl Lab {
    /// Makes it possible for somebody who is not root to have a lab: takes the process into a user namespace of its
    /// own, in which it is. Does nothing for root. To be called first in `main`, while there is but one thread.
    ///
    /// # Errors
    /// Where the system refuses user namespaces (or there is a second thread, `EINVAL`). Nothing has changed then.
    pub(crate) fn prepare() -> io::Result<()> {
        // SAFETY: these take no arguments and cannot fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        if uid == 0 {
            return Ok(());
        }
        unshare(libc::CLONE_NEWUSER).map_err(because("a user namespace is not allowed here"))?;
        // Who may not change its groups may map its group.
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
    }

    /// A network in which each frame takes `one_way`, and a `loss` of them (0 to 1), chosen by chance but the same in
    /// each run, does not arrive. A round trip takes two `one_way`, and up to half a millisecond more.
    ///
    /// # Errors
    /// If the kernel or its settings do not allow it: the message says what was refused.
    pub(crate) fn new(one_way: Duration, loss: f64) -> io::Result<Self> {
        Self::with_seed(one_way, loss, 0)
    }

    /// As [`Lab::new`]; another seed loses other frames.
    pub(crate) fn with_seed(one_way: Duration, loss: f64, seed: u64) -> io::Result<Self> {
        let (client, near) = side(CLIENT, SERVER)?;
        let (server, far) = side(SERVER, CLIENT)?;
        let (stop, running) = io::pipe()?;
        let mut lab = Self {
            client,
            server,
            one_way,
            lost: Arc::default(),
            running: Some(running),
            wires: Vec::new(),
        };
        let (near, far) = (Arc::new(near), Arc::new(far));
        for (name, from, to, seed) in [
            ("lab-there", &near, &far, seed),
            ("lab-back", &far, &near, !seed),
        ] {
            let wire = Wire {
                from: Arc::clone(from),
                to: Arc::clone(to),
                stop: stop.try_clone()?,
                one_way,
                loss,
                lost: Arc::clone(&lab.lost),
                random: seed,
            };
            let thread = thread::Builder::new().name(name.into());
            lab.wires.push(thread.spawn(|| wire.run())?);
        }
        Ok(lab)
    }

    /// The server's address.
    #[allow(clippy::unused_self, reason = "who has no lab has no such address")]
    pub(crate) fn server_ip(&self) -> Ipv4Addr {
        SERVER.0
    }

    /// The server's other address.
    #[allow(clippy::unused_self, reason = "who has no lab has no such address")]
    pub(crate) fn server_ip6(&self) -> Ipv6Addr {
        SERVER.1
    }

    /// How long a frame is on its way.
    pub(crate) fn one_way(&self) -> Duration {
        self.one_way
    }

    /// How many frames were lost so far, on purpose, in both directions.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Takes the calling thread to the client's side: it makes its sockets there from now on, and so do the threads
    /// that it starts.
    ///
    /// # Errors
    /// `setns(2)`'s.
    pub(crate) fn enter_client(&self) -> io::Result<()> {
        enter(self.client.as_raw_fd())
    }

    /// Takes the calling thread to the server's side.
    ///
    /// # Errors
    /// `setns(2)`'s.
    pub(crate) fn enter_server(&self) -> io::Result<()> {
        enter(self.server.as_raw_fd())
    }

    /// Starts a program on the server's side. The command stays bound to that side.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub(crate) fn spawn_on_server(&self, command: &mut Command) -> io::Result<Child> {
        let server = self.server.try_clone()?;
        // SAFETY: between fork and exec there is one system call, and the descriptor lives as long as the closure.
        unsafe { command.pre_exec(move || enter(server.as_raw_fd())) };
        command.spawn()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.running = None;
        for wire in self.wires.drain(..) {
            let _ = wire.join();
        }
    }
}

/// One direction.
struct Wire {
    from: Arc<File>,
    to: Arc<File>,
    /// Is at its end when the wire shall stop.
    stop: PipeReader,
    one_way: Duration,
    loss: f64,
    lost: Arc<AtomicU64>,
    /// The state of the generator.
    random: u64,
}

impl Wire {
    fn run(mut self) {
        let mut under_way = VecDeque::<(Instant, Box<[u8]>)>::new();
        let mut frame = [0; MTU as usize];
        while self.wait(under_way.front().map(|(due, _)| *due)) {
            thread::sleep(BATCH);
            while under_way.len() < WIRE_QUEUE
                && let Ok(length) = (&*self.from).read(&mut frame)
            {
                if self.random() < self.loss {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                } else {
                    let due = Instant::now() + self.one_way;
                    under_way.push_back((due, frame[..length].into()));
                }
            }
            let now = Instant::now();
            while let Some((_, frame)) = under_way.front().filter(|(due, _)| *due <= now) {
                // Where the kernel has no memory for it, it is one more that is lost.
                let _ = (&*self.to).write(frame);
                under_way.pop_front();
            }
        }
    }

    /// Sleeps until a frame comes, or one is due. False if the wire shall stop.
    fn wait(&self, due: Option<Instant>) -> bool {
        let poll = |fd: RawFd, events| libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        let mut fds = [
            poll(self.from.as_raw_fd(), libc::POLLIN),
            poll(self.stop.as_raw_fd(), 0),
        ];
        let timeout = due.map(|due| {
            let left = due.saturating_duration_since(Instant::now());
            libc::timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), |t| &raw const *t);
        // SAFETY: the descriptors are open, and all pointers point to what lives here. An error (a signal) is an early
        // waking.
        unsafe { libc::ppoll(fds.as_mut_ptr(), 2, timeout, std::ptr::null()) };
        fds[1].revents == 0
    }

    /// From 0 to 1: `SplitMix64`.
    fn random(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / u64::MAX as f64
    }
}

/// Makes one side: the namespace, and what is at the other end of its device.
fn side(own: Addrs, other: Addrs) -> io::Result<(File, File)> {
    // On a thread of its own, since the one that makes a namespace is in it.
    let make = thread::spawn(move || {
        unshare(libc::CLONE_NEWNET).map_err(because(
            "a network namespace is not allowed here (CAP_SYS_ADMIN)",
        ))?;
        let namespace = File::open("/proc/thread-self/ns/net")?;
        let tun = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(because("/dev/net/tun cannot be opened"))?;
        configure(&tun, own, other)?;
        Ok((namespace, tun))
    });
    let panicked = |_| Err(io::Error::other("making a side of the lab panicked"));
    make.join().unwrap_or_else(panicked)
}

/// Gives this thread's namespace its devices, as `ip` would.
#[allow(
    clippy::cast_possible_truncation,
    reason = "flags that fit into 16 bits"
)]
fn configure(tun: &File, own: Addrs, other: Addrs) -> io::Result<()> {
    const NAME: &str = "lab0";
    const TUN: libc::c_short = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    ask(tun, libc::TUNSETIFF, NAME, Value { ifru_flags: TUN })
        .map_err(because("a TUN device is not allowed here (CAP_NET_ADMIN)"))?;
    // Any socket is good for asking about devices; IPv6 has its own way to set an address.
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let set = |what, name, value| ask(&socket, what, name, value);
    let up = |name| {
        let mut value = set(libc::SIOCGIFFLAGS, name, Value { ifru_flags: 0 })?;
        // SAFETY: the kernel has just written the flags there.
        value.ifru_flags = unsafe { value.ifru_flags } | libc::IFF_UP as libc::c_short;
        set(libc::SIOCSIFFLAGS, name, value)
    };
    up("lo")?;
    set(libc::SIOCSIFMTU, NAME, Value { ifru_mtu: MTU })?;
    let length = Value {
        ifru_metric: DEVICE_QUEUE,
    };
    // The kernel allows that only to the real root: others live with its default.
    let _ = set(libc::SIOCSIFTXQLEN, NAME, length);
    up(NAME)?;
    let ifru_addr = sockaddr(own.0);
    set(libc::SIOCSIFADDR, NAME, Value { ifru_addr })?;
    let ifru_dstaddr = sockaddr(other.0);
    set(libc::SIOCSIFDSTADDR, NAME, Value { ifru_dstaddr })?;
    let index = set(libc::SIOCGIFINDEX, NAME, Value { ifru_ifindex: 0 })?;
    let mut request = libc::in6_ifreq {
        ifr6_addr: libc::in6_addr {
            s6_addr: own.1.octets(),
        },
        ifr6_prefixlen: 64,
        // SAFETY: the kernel has just written the index there.
        ifr6_ifindex: unsafe { index.ifru_ifindex },
    };
    let socket = std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
        .map_err(because("IPv6 is switched off here"))?;
    // SAFETY: the kernel reads an in6_ifreq there.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR, &raw mut request) })
        .map_err(because("IPv6 is switched off here"))
}

/// Asks the kernel about a device, or to change it. Returns its answer, if it has one.
fn ask(fd: &impl AsRawFd, what: libc::Ioctl, name: &str, value: Value) -> io::Result<Value> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: value,
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: all that is asked for in this file reads or writes an ifreq.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), what, &raw mut request) })
        .map_err(because(&format!("request {what:#x} about device {name}")))?;
    Ok(request.ifr_ifru)
}

fn sockaddr(addr: Ipv4Addr) -> libc::sockaddr {
    let mut sa_data = [0; 14];
    // Behind the port.
    for (to, from) in sa_data[2..].iter_mut().zip(addr.octets()) {
        *to = from.cast_signed();
    }
    libc::sockaddr {
        sa_family: 2, // AF_INET
        sa_data,
    }
}

fn unshare(what: libc::c_int) -> io::Result<()> {
    // SAFETY: takes no pointers, and concerns this thread alone.
    check(unsafe { libc::unshare(what) })
}

/// Async-signal-safe.
fn enter(namespace: RawFd) -> io::Result<()> {
    // SAFETY: takes no pointers, and concerns this thread alone.
    check(unsafe { libc::setns(namespace, libc::CLONE_NEWNET) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn because(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}
