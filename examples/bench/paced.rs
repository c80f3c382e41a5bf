//! Requests at a fixed rate, however fast the answers come: some of them to a handler that blocks, and how long the
//! others take meanwhile.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::Timespec;

use crate::client::{PATIENCE, answer};

/// More than are ever in use, unless the server falls behind.
const CONNECTIONS: usize = 512;

/// Two requests are due every so often.
const TICK: Duration = Duration::from_millis(1);

struct Connection {
    socket: TcpStream,
    input: Vec<u8>,
    since: Instant,
    counts: bool,
}

/// Asks COUNT times for `/`, and instead of every hundredth time for SLOW, if there is one. The times of the others, in
/// order; a request that finds all connections in use has its time from when it was due.
pub(crate) fn ask(addr: SocketAddr, count: usize, slow: Option<&str>) -> io::Result<Vec<Duration>> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut connections = Vec::new();
    for place in 0..CONNECTIONS {
        let socket = TcpStream::connect(addr)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        epoll::add(
            &epoll,
            &socket,
            EventData::new_u64(place as u64),
            EventFlags::IN,
        )?;
        connections.push(Connection {
            socket,
            input: Vec::new(),
            since: Instant::now(),
            counts: true,
        });
    }
    let mut free: Vec<usize> = (0..CONNECTIONS).collect();
    let mut times = Vec::with_capacity(count);
    let (mut asked, mut answered, mut usual) = (0, 0, 0);
    let (mut next, mut starved) = (Instant::now(), false);
    let mut last = next;
    let mut events = Vec::with_capacity(CONNECTIONS);
    while answered < count {
        while asked < count && next <= Instant::now() {
            let Some(place) = free.pop() else {
                starved = true;
                break;
            };
            let connection = &mut connections[place];
            let path = slow.filter(|_| asked % 100 == 99);
            let head = format!(
                "GET {} HTTP/1.1\r\nHost: {addr}\r\n\r\n",
                path.unwrap_or("/")
            );
            // A timer that is late is our own affair; a server that is late is not.
            connection.since = if starved { next } else { Instant::now() };
            connection.counts = path.is_none();
            connection.socket.write_all(head.as_bytes())?;
            asked += 1;
            if asked.is_multiple_of(2) {
                next += TICK;
            }
            starved &= next <= Instant::now();
        }
        let tick = Timespec::try_from(TICK).map_err(io::Error::other)?;
        events.clear();
        match epoll::wait(&epoll, spare_capacity(&mut events), Some(&tick)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if last.elapsed() > PATIENCE {
            return Err(ErrorKind::TimedOut.into());
        }
        for event in &events {
            let place = usize::try_from(event.data.u64()).map_err(io::Error::other)?;
            let connection = &mut connections[place];
            let mut buffer = [0; 4096];
            match connection.socket.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => connection.input.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            }
            if answer(&connection.input, &mut usual)? == Some(connection.input.len()) {
                connection.input.clear();
                last = Instant::now();
                if connection.counts {
                    times.push(connection.since.elapsed());
                }
                answered += 1;
                free.push(place);
            }
        }
    }
    times.sort_unstable();
    Ok(times)
}
