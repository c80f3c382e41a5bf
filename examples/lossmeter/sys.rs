//! The one system call that no dependency offers.
#![allow(
    unsafe_code,
    reason = "no dependency wraps this request of ioctl for sockets"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// How many of the bytes written to a TCP socket the other side's kernel has not acknowledged.
pub(crate) fn unacknowledged(socket: &impl AsFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the kernel writes one int.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(count).map_err(io::Error::other)
}
