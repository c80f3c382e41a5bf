//! `sock_diag(7)`: the kernel's list of sockets, by netlink.

use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};

use socket2::{Domain, Protocol, Socket, Type};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `struct nlmsghdr`
const HEADER: usize = 16;
/// The most that the kernel writes at a time into a netlink socket, in bytes.
const CHUNK: usize = 32 << 10;

/// Asks for sockets in the network namespace of the thread that has made this value.
///
/// There is no socket to ask by if a service is denied netlink, as by systemd's `RestrictAddressFamilies=AF_INET
/// AF_INET6`, which is common; or after an error, because unread data may be left in it.
#[derive(Debug)]
pub(super) struct SockDiag(Mutex<Option<Socket>>);

/// Whether the request asks for all sockets that fit the description, or for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    All,
    One,
}

impl SockDiag {
    pub(super) fn new() -> Self {
        let kind = Type::RAW.nonblocking().cloexec();
        let protocol = Protocol::from(libc::NETLINK_SOCK_DIAG);
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), kind, Some(protocol));
        Self(Mutex::new(socket.ok()))
    }

    /// Sends a request, and calls `each` for each socket that the kernel reports.
    ///
    /// # Errors
    /// There is no socket to ask by; or the kernel's answer is an error, or malformed. From then on, there is none.
    pub(super) fn ask(
        &self,
        which: Which,
        request: &[u8],
        each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = held.take().ok_or(io::ErrorKind::Unsupported)?;
        Self::ask_by(&socket, which, request, each)?;
        *held = Some(socket);
        Ok(())
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "constants that fit"
    )]
    fn ask_by(
        mut socket: &Socket,
        which: Which,
        request: &[u8],
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        const DONE: u16 = libc::NLMSG_DONE as u16;
        const ERROR: u16 = libc::NLMSG_ERROR as u16;
        let flags = libc::NLM_F_REQUEST
            | match which {
                Which::All => libc::NLM_F_DUMP,
                // So that the kernel reports the end, as it does for a list.
                Which::One => libc::NLM_F_ACK,
            };
        let length = (HEADER + request.len()) as u32;
        let header = [
            &length.to_ne_bytes()[..],
            &SOCK_DIAG_BY_FAMILY.to_ne_bytes(),
            &(flags as u16).to_ne_bytes(),
            &[0; 8],
        ];
        socket.send(&[&header.concat(), request].concat())?;

        let wrong = || io::Error::from(io::ErrorKind::InvalidData);
        let mut chunk = vec![0; CHUNK];
        loop {
            // The kernel has the first chunk ready when it has got the request, and the next chunk when the last one
            // has been read.
            let length = socket.read(&mut chunk)?;
            let mut rest = &chunk[..length];
            while let Some(length) = u32_at(rest, 0) {
                let length = (length as usize).max(HEADER);
                let message = rest.get(..length).ok_or_else(wrong)?;
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                let kind = u16::from_ne_bytes([message[4], message[5]]);
                let message = &message[HEADER..];
                if kind == DONE || kind == ERROR {
                    return match u32_at(message, 0).ok_or_else(wrong)?.cast_signed() {
                        0 => Ok(()),
                        error => Err(io::Error::from_raw_os_error(-error)),
                    };
                }
                each(message)?;
            }
        }
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}
