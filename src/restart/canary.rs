//! One request to a new process, before any client may come to it: whether the application works.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::Party;

/// More of a head than its first line is not looked at, and that is shorter.
const MOST_KEPT: usize = 1024;

/// A request that is under way.
#[derive(Debug)]
pub(super) struct Canary {
    target: String,
    client: UnixStream,
    /// The beginning of the answer.
    got: Vec<u8>,
}

impl Canary {
    /// Sends the request by a socket pair, past TLS and the PROXY protocol. `None` if the server has none.
    pub(super) fn release(party: &dyn Party) -> io::Result<Option<Self>> {
        let Some(target) = party.canary() else {
            return Ok(None);
        };
        let (mut client, server) = UnixStream::pair()?;
        client.set_nonblocking(true)?;
        server.set_nonblocking(true)?;
        // The buffer of a new socket has room for it.
        write!(
            client,
            "GET {target} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: httpdown-canary\r\nConnection: close\r\n\r\n"
        )?;
        party.inject(server)?;
        Ok(Some(Self {
            target: target.to_owned(),
            client,
            got: Vec::new(),
        }))
    }

    /// Whether it is over: with a whole answer whose status is below 400, or not. `None`: not yet.
    pub(super) fn look(&mut self) -> Option<Result<(), String>> {
        let mut buffer = [0; 16 << 10];
        let end = loop {
            match self.client.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(count) => {
                    let room = MOST_KEPT.saturating_sub(self.got.len());
                    self.got.extend_from_slice(&buffer[..count.min(room)]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        let target = &self.target;
        let status = status(&self.got);
        Some(match (status, end) {
            (Some(status), Ok(())) if status < 400 => Ok(()),
            (Some(status), Ok(())) => {
                Err(format!("the canary GET {target} was answered by {status}"))
            }
            (None, Ok(())) => Err(format!("the canary GET {target} was not answered")),
            (_, Err(error)) => Err(format!("the canary GET {target} was cut: {error}")),
        })
    }
}

impl AsFd for Canary {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.client.as_fd()
    }
}

fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.strip_prefix(b"HTTP/1.1 ")?;
    std::str::from_utf8(line.get(..3)?).ok()?.parse().ok()
}
