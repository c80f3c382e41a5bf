//! How listening sockets leave a group of `SO_REUSEPORT` in which others stay (ADR 0015).
//!
//! The kernel gives each new handshake to one member of the group. Who closed its socket would reset what is half open there.
//! So the group is given a program first, which chooses among the others; the handshakes that have begun come to their end;
//! and then the socket is closed. The program wants the members' numbers, which the kernel tells nobody. They are found by
//! connecting to each of them.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use crate::addr::Addr;

use super::bpf;
use super::census::{Group, Handshake, Spot, View};
use super::tcp;

/// How long handshakes that have begun are waited for: a round trip to nearly anywhere. Not longer, because they may be
/// those of the others.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long probes may take to arrive. They go from us to us.
const PROBE_TIMEOUT: Duration = Duration::from_millis(100);
const PROBE_INTERVAL: Duration = Duration::from_micros(200);
/// Of a larger group the members are not probed.
const MOST_MEMBERS: usize = 64;
/// When the kernel has been given the program, another processor may still be at work by the one before; by this look it
/// is not.
const SETTLED: u32 = 2;
/// How often the members are looked for. A group may change between the kernel's list of it and the probes.
const TRIES: u32 = 5;

/// Takes what waits at a socket; `take` says of each client's address whether it has taken that connection itself.
pub(crate) type Empty<'a> = dyn Fn(&tcp::Listener, &mut dyn FnMut(&Addr) -> bool) + 'a;

/// The leaving of one group.
#[derive(Debug, Default)]
pub(crate) struct Leaving {
    /// Only one server at a time leaves a group: their programs would replace each other.
    turn: Option<Turn>,
    /// As the group was when its program was made, and when that was.
    steered: Option<(Group, Instant)>,
    /// Since then.
    looks: u32,
    awaited: BTreeSet<Handshake>,
    /// How often it was tried in vain.
    failures: u32,
    /// New clients cannot be sent to the others.
    given_up: bool,
}

impl Leaving {
    /// Does what is to be done now to leave with these sockets, which are all that are ours. Says whether clients of ours
    /// are still to be waited for.
    pub(crate) fn go_on(
        &mut self,
        group: &Group,
        view: &View,
        ours: &[&tcp::Listener],
        empty: &Empty<'_>,
        warn: &dyn Fn(&str),
    ) -> bool {
        if self.given_up {
            return false;
        }
        if self.turn.is_none() {
            self.turn = Turn::take(group.at);
            // Whoever had it before may have left since the kernel listed the members.
            return true;
        }
        if self
            .steered
            .as_ref()
            .is_none_or(|(made_for, _)| made_for != group)
        {
            let is_first = self.steered.is_none();
            let replaced = || {
                if is_first {
                    warn("the program of its group was another's, and is gone");
                }
            };
            match steer(group, ours, empty, &replaced) {
                Ok(()) => {}
                Err(_) if self.failures + 1 < TRIES => {
                    self.failures += 1;
                    return true;
                }
                Err(error) => {
                    self.given_up = true;
                    warn(&format!(
                        "who connects while it leaves its group may be lost: {error}"
                    ));
                    return false;
                }
            }
            self.steered = Some((group.clone(), Instant::now()));
            self.looks = 0;
        }
        self.looks += 1;
        let half_open = ours.first().map(|listener| view.half_open(listener));
        let half_open: BTreeSet<_> = half_open.into_iter().flatten().collect();
        if self.looks <= SETTLED {
            self.awaited = half_open;
            return true;
        }
        self.awaited
            .retain(|handshake| half_open.contains(handshake));
        let patient = self
            .steered
            .as_ref()
            .is_some_and(|(_, since)| since.elapsed() < PATIENCE);
        patient && !self.awaited.is_empty()
    }
}

/// Has new clients sent to the others. `replaced` is called if the group had a program before.
fn steer(
    group: &Group,
    ours: &[&tcp::Listener],
    empty: &Empty<'_>,
    replaced: &dyn Fn(),
) -> io::Result<()> {
    let [first, ..] = ours else { return Ok(()) };
    let count = group.members.len();
    if count > MOST_MEMBERS {
        return Err(io::Error::other(format!("it has {count} members")));
    }
    // Where that cannot be done at the end, nothing must be begun.
    if first.take_group_program_away()? {
        replaced();
    }
    let found = find(count, ours, empty);
    let steered = found.and_then(|numbers| first.steer(&choose_others(count, &numbers)));
    if steered.is_err() {
        first.steer_no_more();
    }
    steered
}

/// The numbers that these sockets have in their group.
fn find(count: usize, ours: &[&tcp::Listener], empty: &Empty<'_>) -> io::Result<BTreeSet<usize>> {
    let [first, ..] = ours else {
        return Ok(BTreeSet::new());
    };
    let probes: Vec<_> = (0..count)
        .map(|_| Probe::to(first))
        .collect::<io::Result<_>>()?;
    first.steer(&choose_by_probe(&probes))?;
    for probe in &probes {
        probe.send();
    }
    let deadline = Instant::now() + PROBE_TIMEOUT;
    let mut found = BTreeSet::new();
    loop {
        let all = probes.iter().all(Probe::has_arrived);
        for listener in ours {
            empty(listener, &mut |peer| {
                let number = probes.iter().position(|probe| probe.is(peer));
                found.extend(number);
                number.is_some()
            });
        }
        if all && found.len() >= ours.len() {
            break;
        }
        if Instant::now() >= deadline {
            break;
        }
        thread::sleep(PROBE_INTERVAL);
    }
    // More, if there are fewer members than the kernel lists: what is sent to one that does not exist comes to any.
    if found.len() == ours.len() {
        Ok(found)
    } else {
        Err(io::Error::other(
            "which of its members are ours cannot be found",
        ))
    }
}

/// The n-th probe goes to the n-th member; others' clients where they would go without us.
fn choose_by_probe(probes: &[Probe]) -> Vec<SockFilter> {
    let Some(first) = probes.first() else {
        return Vec::new();
    };
    let source_port = if first.from.is_ipv4() { 20 } else { 40 };
    let mut program = vec![bpf::load_half_from_network_header(source_port)];
    for (number, probe) in (0..).zip(probes) {
        program.extend(bpf::return_if_equal(probe.from.port().into(), number));
    }
    program.push(bpf::ret(u32::MAX));
    program
}

/// A new client goes to any member but these.
fn choose_others(count: usize, ours: &BTreeSet<usize>) -> Vec<SockFilter> {
    let others = (0..)
        .zip(0..count)
        .filter(|(_, number)| !ours.contains(number));
    let others: Vec<u32> = others.map(|(number, _)| number).collect();
    let mut program = vec![bpf::load_random()];
    let choices = (0..).zip(&others);
    program.push(bpf::modulo(others.len().try_into().unwrap_or(1)));
    program.extend(choices.flat_map(|(choice, number)| bpf::return_if_equal(choice, *number)));
    program.push(bpf::ret(u32::MAX));
    program
}

/// A connection from us to a member of the group, to see who it is. Another sees a client that says nothing and goes.
#[derive(Debug)]
struct Probe {
    socket: Socket,
    from: SocketAddr,
    to: SocketAddr,
}

impl Probe {
    fn to(listener: &tcp::Listener) -> io::Result<Self> {
        let mut to = listener.addr();
        if to.ip().is_unspecified() {
            let is_ipv4 = to.is_ipv4() || !listener.is_only_ipv6();
            to.set_ip(if is_ipv4 {
                IpAddr::from(Ipv4Addr::LOCALHOST)
            } else {
                IpAddr::from(Ipv6Addr::LOCALHOST)
            });
        }
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP))?;
        let mut from = to;
        from.set_port(0);
        socket.bind(&from.into())?;
        let from = socket.local_addr()?.as_socket().unwrap_or(from);
        Ok(Self { socket, from, to })
    }

    fn send(&self) {
        // In progress, or it will not arrive.
        let _ = self.socket.connect(&self.to.into());
    }

    fn has_arrived(&self) -> bool {
        self.socket.peer_addr().is_ok()
    }

    fn is(&self, peer: &Addr) -> bool {
        let own = (self.from.ip(), self.from.port());
        peer.as_ip().map(|peer| (peer.ip(), peer.port())) == Some(own)
    }
}

/// The right to leave a group: a name that only one can have at a time, in the network namespace that the group is of. The
/// kernel takes it from a process that ends.
#[derive(Debug)]
pub(crate) struct Turn {
    /// None where there are no Unix sockets: then it is not known whether another one leaves.
    _name: Option<Socket>,
}

impl Turn {
    /// None if another one leaves.
    fn take(spot: Spot) -> Option<Self> {
        let name = || {
            let socket = Socket::new(Domain::UNIX, Type::DGRAM.cloexec(), None)?;
            socket.bind(&SockAddr::unix(format!("\0httpdown leaves {spot}"))?)?;
            Ok(socket)
        };
        match name() {
            Err(error) if io::Error::kind(&error) == io::ErrorKind::AddrInUse => None,
            name => Some(Self { _name: name.ok() }),
        }
    }
}
