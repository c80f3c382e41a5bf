//! How listening sockets leave a group of `SO_REUSEPORT` in which others stay (ADR 0015).
//!
//! The kernel gives each new handshake to one member of the group. If a member simply closed its socket, it would reset
//! its half-open handshakes. So the group is first given a program, which chooses among the others; then the handshakes
//! that have begun come to their end; and then the socket is closed. The program needs the members' numbers, which the
//! kernel tells nobody. They are found by connecting to each member.

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

/// How long to wait for handshakes that have begun: a round trip to nearly anywhere. Not longer, because they may be
/// handshakes of the other members.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long probes may take to arrive. They go from this host to this host.
const PROBE_TIMEOUT: Duration = Duration::from_millis(100);
const PROBE_INTERVAL: Duration = Duration::from_micros(200);
/// The members of a larger group are not probed.
const MOST_MEMBERS: usize = 64;
/// From this look on, every processor uses the new program. Before it, another processor may still be at work by the
/// previous program.
const SETTLED: u32 = 2;
/// How often to try to find the members. A group may change between the kernel's list of it and the probes.
const TRIES: u32 = 5;

/// Takes the connections that wait at a socket. `take` gets each client's address, and returns whether it has taken
/// that connection itself.
pub(crate) type Empty<'a> = dyn Fn(&tcp::Listener, &mut dyn FnMut(&Addr) -> bool) + 'a;

/// The state of leaving one group.
#[derive(Debug, Default)]
pub(crate) struct Leaving {
    /// Only one server at a time leaves a group: their programs would replace each other.
    turn: Option<Turn>,
    /// The group for which the program was made, and when it was made.
    steered: Option<(Group, Instant)>,
    /// How often the group was looked at since then.
    looks: u32,
    awaited: BTreeSet<Handshake>,
    /// How many tries have failed.
    failures: u32,
    /// New clients cannot be sent to the others.
    given_up: bool,
}

impl Leaving {
    /// Does the next step to leave the group with the sockets `ours`, which are all of ours in it. Returns whether we
    /// must still wait for clients of ours.
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
            // The server that had the turn before may have left since the kernel listed the members.
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

/// Makes the kernel send new clients to the other members. `replaced` is called if the group had a program before.
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
    // The program must be taken away at the end. Where that is impossible, nothing must be begun.
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

/// Finds the numbers that our sockets have in their group.
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
    // More probes than sockets arrive here if the group has fewer members than the kernel lists: a probe to a member
    // that does not exist comes to any member.
    if found.len() == ours.len() {
        Ok(found)
    } else {
        Err(io::Error::other(
            "which of its members are ours cannot be found",
        ))
    }
}

/// A program that sends the n-th probe to the n-th member, and other clients where they would go without it.
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

/// A program that sends a new client to any member except ours.
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

/// A connection from us to a member of the group, to see whether the member is ours. If not, the other process sees a
/// client that says nothing and goes.
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
        // The connection is in progress now. After a failure, it will never arrive.
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

/// The right to leave a group: a name that only one server can have at a time, in the network namespace of the group.
/// When a process ends, the kernel takes the name from it.
#[derive(Debug)]
pub(crate) struct Turn {
    /// None where there are no Unix sockets: then it is not known whether another server is leaving.
    _name: Option<Socket>,
}

impl Turn {
    /// Takes the turn. Returns `None` if another server is leaving the group.
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
