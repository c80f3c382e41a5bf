//! The clients: one thread, one epoll, as little work as possible, because client and server share a core.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::link::Link;
use crate::tls::Tls;

/// What every server answers: the end of the head, and the body.
const END: &[u8] = b"\r\n\r\nHello, World!";

/// What takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What to ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) connections: usize,
    /// Requests in one write; the next ones follow when all of them have been answered.
    pub(crate) depth: usize,
    pub(crate) lives: Lives,
}

/// How long a connection lives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Lives {
    /// As long as the clients do.
    Long,
    /// For one request; then the client closes it.
    Short,
    /// For one request, which says `Connection: close`; then the server closes it.
    Closed,
}

impl Load {
    /// One request after the other, on one connection.
    pub(crate) const SEQUENTIAL: Self = Self::keep_alive(1, 1);
    /// The same, 16 in a write.
    pub(crate) const PIPELINED: Self = Self::keep_alive(1, 16);

    pub(crate) const fn keep_alive(connections: usize, depth: usize) -> Self {
        Self {
            connections,
            depth,
            lives: Lives::Long,
        }
    }

    pub(crate) const fn one_request(connections: usize, lives: Lives) -> Self {
        Self {
            connections,
            depth: 1,
            lives,
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) elapsed: Duration,
    /// The CPU time of the clients themselves.
    pub(crate) cpu: Duration,
    /// From the write to the whole answer, in order.
    pub(crate) latencies: Vec<Duration>,
}

/// The part of all that is below the result: 0.99 for the 99th percentile.
pub(crate) fn percentile(sorted: &[Duration], part: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the part is between 0 and 1"
    )]
    let place = (last as f64 * part).round() as usize;
    sorted.get(place).copied().unwrap_or_default()
}

/// Clients of one server.
#[derive(Debug)]
pub(crate) struct Clients {
    addr: SocketAddr,
    tls: Option<Tls>,
    load: Load,
    /// `depth` requests.
    message: Vec<u8>,
    /// The length of an answer, once one has been read closely.
    length: usize,
    epoll: rustix::fd::OwnedFd,
    connections: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    /// None between two lives.
    link: Option<Link>,
    input: Vec<u8>,
    /// Requests without a whole answer.
    open: usize,
    since: Instant,
}

impl Clients {
    /// Connects, unless each request brings its own connection.
    pub(crate) fn new(addr: SocketAddr, load: Load) -> io::Result<Self> {
        Self::over(None, addr, load)
    }

    /// The same, with TLS. The handshakes come with the first requests.
    pub(crate) fn with_tls(tls: &Tls, addr: SocketAddr, load: Load) -> io::Result<Self> {
        Self::over(Some(tls.clone()), addr, load)
    }

    fn over(tls: Option<Tls>, addr: SocketAddr, load: Load) -> io::Result<Self> {
        let close = ["", "Connection: close\r\n"][usize::from(load.lives == Lives::Closed)];
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {addr}\r\nUser-Agent: bench\r\nAccept: */*\r\n{close}\r\n"
        );
        let mut clients = Self {
            addr,
            tls,
            load,
            message: request.repeat(load.depth).into_bytes(),
            length: 0,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            connections: Vec::new(),
        };
        for place in 0..load.connections {
            clients.connections.push(Connection {
                link: None,
                input: Vec::new(),
                open: 0,
                since: Instant::now(),
            });
            if load.lives == Lives::Long {
                clients.connect(place)?;
            }
        }
        Ok(clients)
    }

    /// How many connections they have at a time.
    pub(crate) fn count(&self) -> usize {
        self.connections.len()
    }

    /// Asks COUNT times, rounded up to whole writes. Each answer is whole, has the status 200 and the right body, or
    /// this is an error.
    pub(crate) fn ask(&mut self, count: usize) -> io::Result<Outcome> {
        let count = count.next_multiple_of(self.load.depth);
        let mut latencies = Vec::with_capacity(count);
        let (begin, cpu) = (Instant::now(), own_cpu());
        let mut unsent = count;
        for place in 0..self.connections.len() {
            self.send(place, &mut unsent)?;
        }
        let mut events = Vec::with_capacity(self.connections.len());
        // No connection is half closed when the next call comes.
        while latencies.len() < count || self.is_closing() {
            events.clear();
            let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&patience)) {
                Ok(0) => return Err(ErrorKind::TimedOut.into()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let place = usize::try_from(event.data.u64()).map_err(io::Error::other)?;
                if self.receive(place, &mut latencies)? {
                    self.send(place, &mut unsent)?;
                }
            }
        }
        let (elapsed, cpu) = (begin.elapsed(), own_cpu().saturating_sub(cpu));
        latencies.sort_unstable();
        Ok(Outcome {
            elapsed,
            cpu,
            latencies,
        })
    }

    /// Whether the server has yet to close a connection.
    fn is_closing(&self) -> bool {
        let there = |connection: &Connection| connection.link.is_some();
        self.load.lives == Lives::Closed && self.connections.iter().any(there)
    }

    fn connect(&mut self, place: usize) -> io::Result<()> {
        let link = Link::connect(self.addr, self.tls.as_ref())?;
        let data = EventData::new_u64(place as u64);
        epoll::add(&self.epoll, &link, data, EventFlags::IN)?;
        self.connections[place].link = Some(link);
        Ok(())
    }

    /// Sends the next requests, if there are any left.
    fn send(&mut self, place: usize, unsent: &mut usize) -> io::Result<()> {
        if *unsent == 0 {
            return Ok(());
        }
        *unsent -= self.load.depth;
        let since = Instant::now();
        if self.connections[place].link.is_none() {
            self.connect(place)?;
        }
        let connection = &mut self.connections[place];
        connection.open = self.load.depth;
        connection.since = since;
        match connection.link.as_mut() {
            Some(link) => link.write_all(&self.message),
            None => Err(ErrorKind::NotConnected.into()),
        }
    }

    /// Reads what is there. Whether nothing is to be waited for any more.
    fn receive(&mut self, place: usize, latencies: &mut Vec<Duration>) -> io::Result<bool> {
        let connection = &mut self.connections[place];
        let Some(link) = connection.link.as_mut() else {
            return Ok(false);
        };
        let mut buffer = [0; 16384];
        let count = match link.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        if count == 0 {
            if connection.open > 0 || self.load.lives != Lives::Closed {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            connection.link = None;
            return Ok(true);
        }
        // Answers that come whole are looked at where they are.
        let mut input = &buffer[..count];
        let kept = !connection.input.is_empty();
        if kept {
            connection.input.extend_from_slice(input);
            input = &connection.input;
        }
        let mut rest = input;
        while let Some(length) = answer(rest, &mut self.length)? {
            rest = &rest[length..];
            connection.open = connection
                .open
                .checked_sub(1)
                .ok_or_else(|| io::Error::other("an answer that nobody asked for"))?;
            latencies.push(connection.since.elapsed());
        }
        let read = input.len() - rest.len();
        if kept {
            connection.input.drain(..read);
        } else {
            connection.input.extend_from_slice(&buffer[read..count]);
        }
        if connection.open > 0 {
            return Ok(false);
        }
        match self.load.lives {
            Lives::Long => Ok(true),
            Lives::Short => {
                connection.link.take().map_or(Ok(()), Link::close)?;
                Ok(true)
            }
            // The server closes it: its FIN is part of what a client waits for.
            Lives::Closed => Ok(false),
        }
    }
}

/// The length of the first answer in the input; `None` if it is not all there.
pub(crate) fn answer(input: &[u8], usual: &mut usize) -> io::Result<Option<usize>> {
    if input.is_empty() {
        return Ok(None);
    }
    // Nearly always an answer is as long as the one before: then its status, the end of its head, and its body tell
    // that all is well, at a small part of the cost.
    if *usual > 0
        && input.len() >= *usual
        && input.starts_with(b"HTTP/1.1 200")
        && input[..*usual].ends_with(END)
    {
        return Ok(Some(*usual));
    }
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(input) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(wrong(format!("no answer: {error}"))),
    };
    let length = body_length(&response)?;
    if input.len() < head + length {
        return Ok(None);
    }
    if input[head..head + length] != END[4..] {
        return Err(wrong("an answer with another body".into()));
    }
    *usual = head + length;
    Ok(Some(*usual))
}

/// The length of the body. Only answers with the status 200 are good.
pub(crate) fn body_length(response: &httparse::Response<'_, '_>) -> io::Result<usize> {
    if response.code != Some(200) {
        let status = response.code;
        return Err(wrong(format!("an answer with the status {status:?}")));
    }
    let named = |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case("content-length");
    let length = response.headers.iter().find(named);
    length
        .and_then(|header| str::from_utf8(header.value).ok()?.parse().ok())
        .ok_or_else(|| wrong("an answer without Content-Length".into()))
}

pub(crate) fn wrong(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

/// The CPU time of this thread: of the clients.
pub(crate) fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
