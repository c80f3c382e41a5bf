//! `sock_diag(7)`: the kernel's list of sockets, by netlink.

use std::io::{self, Read};

use socket2::{Domain, Protocol, Socket, Type};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `struct nlmsghdr`
const HEADER: usize = 16;
/// The most that the kernel writes at a time into a netlink socket, in bytes.
const CHUNK: usize = 32 << 10;

/// Asks for sockets in the network namespace of the thread that has made this value.
#[derive(Debug)]
pub(super) struct SockDiag(Socket);

/// Whether the request asks for all sockets that fit the description, or for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    All,
    One,
}

impl SockDiag {
    /// # Errors
    /// A service may be denied netlink: systemd's `RestrictAddressFamilies=AF_INET AF_INET6` is common.
    pub(super) fn new() -> io::Result<Self> {
        let kind = Type::RAW.nonblocking().cloexec();
        let protocol = Protocol::from(libc::NETLINK_SOCK_DIAG);
        Socket::new(Domain::from(libc::AF_NETLINK), kind, Some(protocol)).map(Self)
    }

    /// Sends a request, and calls `each` for each socket that the kernel reports.
    ///
    /// # Errors
    /// The kernel's answer is an error, or malformed. Unread data may then be left in the socket, so it must not be
    /// used again.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "constants that fit"
    )]
    pub(super) fn ask(
        &self,
        which: Which,
        request: &[u8],
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        const DONE: u16 = libc::NLMSG_DONE as u16;
        const ERROR: u16 = libc::NLMSG_ERROR as u16;
        let mut socket = &self.0;
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
