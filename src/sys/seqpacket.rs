//! Pairs of sockets that keep messages apart, and that pass descriptors along.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recv,
    recvmsg, sendmsg, socketpair,
};

/// Makes a pair. Both ends are close-on-exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        flags,
    )?)
}

/// How many descriptors go with a message.
const MOST_FDS: usize = 2;

/// Sends a message, and descriptors with it, at most [`MOST_FDS`]. Does not block.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = (!fds.is_empty()).then(|| ControlMessage::ScmRights(&fds));
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let (bytes, rights) = ([IoSlice::new(message)], rights.as_slice());
    sendmsg::<()>(socket.as_raw_fd(), &bytes, rights, flags, None)?;
    Ok(())
}

/// How long the next message is, in bytes. 0 at the end. Does not block.
pub(crate) fn next_length(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
    match recv(socket.as_raw_fd(), &mut [], flags) {
        // The other process has ended with messages unread.
        Err(Errno::ECONNRESET) => Ok(0),
        length => Ok(length?),
    }
}

/// Receives a message, and the descriptors that were sent with it; they are close-on-exec. `None` at the end. Does not
/// block.
pub(crate) fn receive<'a>(
    socket: BorrowedFd<'_>,
    buffer: &'a mut [u8],
) -> io::Result<Option<(&'a [u8], Vec<OwnedFd>)>> {
    let mut space = cmsg_space!([RawFd; MOST_FDS]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let mut bytes = [IoSliceMut::new(buffer)];
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut bytes, Some(&mut space), flags);
    let received = match received {
        // The other process has ended with messages unread.
        Err(Errno::ECONNRESET) => return Ok(None),
        received => received?,
    };
    let (length, is_cut) = (received.bytes, received.flags.contains(MsgFlags::MSG_TRUNC));
    let mut fds = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(given) = message {
            // SAFETY: the kernel has just given us these descriptors; nobody else knows them.
            fds.extend(given.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
        }
    }
    if is_cut {
        let why = "the message is too long";
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    // There are no empty messages.
    Ok((length > 0).then(|| (&buffer[..length], fds)))
}
