//! What a new process, and those that it starts, write to its standard error before it is ready.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::inherited::Detour;
use crate::sys;

/// How much of it is kept for the error of the restart, in bytes.
const KEPT: usize = 4096;

/// The standard error of the new process, until it is ready: copied to the real one, and its end is kept.
#[derive(Debug, Default)]
pub(super) struct Errors {
    /// Where they come from, and where they go.
    way: Option<(File, File)>,
    kept: Vec<u8>,
}

impl Errors {
    pub(super) fn by(Detour { stderr, pipe }: Detour) -> Self {
        sys::ensure_nonblocking(pipe.as_fd());
        Self {
            way: Some((pipe.into(), stderr.into())),
            kept: Vec::new(),
        }
    }

    /// Errors that go to our standard error, as it is now. Also returns the end at which a new process writes.
    pub(super) fn to_ours() -> io::Result<(Self, OwnedFd)> {
        let (reads, writes) = io::pipe()?;
        let (stderr, pipe) = (sys::standard_error()?, reads.into());
        Ok((Self::by(Detour { stderr, pipe }), writes.into()))
    }

    /// What the new process needs to do without this one: where they go, and where they come from.
    pub(super) fn ends(&self) -> Vec<BorrowedFd<'_>> {
        let ends = self.way.iter();
        ends.flat_map(|(pipe, stderr)| [stderr.as_fd(), pipe.as_fd()])
            .collect()
    }

    /// The end of all that was written, as text. In C, a zero byte in it would be its end.
    pub(super) fn kept(&self) -> String {
        String::from_utf8_lossy(&self.kept).replace('\0', "\u{fffd}")
    }

    /// Leaves the rest to others.
    pub(super) fn leave(&mut self) {
        self.way = None;
    }

    /// Copies until nobody can write any more.
    pub(super) fn copy_all(&mut self) {
        while self.way.is_some() {
            self.poll_with(&[], Duration::MAX);
        }
    }

    /// Waits until one of these can be read, or something has come by the pipe, which is copied.
    pub(super) fn poll_with(&mut self, others: &[BorrowedFd<'_>], time: Duration) {
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        let pipe = self.way.as_ref().map(|(pipe, _)| pipe.as_fd());
        let mut watched: Vec<_> = others
            .iter()
            .copied()
            .chain(pipe)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        // An interruption only makes the caller look once more.
        let _ = poll(&mut watched, timeout);
        self.read_some();
    }

    /// Copies what is there, but not for ever.
    pub(super) fn read_all(&mut self) {
        for _ in 0..64 {
            if !self.read_some() {
                break;
            }
        }
    }

    /// Returns whether there may be more.
    fn read_some(&mut self) -> bool {
        let Some((pipe, stderr)) = &mut self.way else {
            return false;
        };
        // A pipe that says that it can be written takes so much (PIPE_BUF).
        let mut buffer = [0; 4096];
        match pipe.read(&mut buffer) {
            Ok(0) => self.way = None,
            Ok(count) => {
                let bytes = &buffer[..count];
                write_now(stderr, bytes);
                self.kept.extend_from_slice(bytes);
                let too_many = self.kept.len().saturating_sub(KEPT);
                self.kept.drain(..too_many);
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(_) => self.way = None,
        }
        false
    }
}

/// Leaves out what cannot be written at once: a reader that hangs must not hold up the restart.
fn write_now(to: &mut File, bytes: &[u8]) {
    let takes = {
        let mut watched = [PollFd::new(to.as_fd(), PollFlags::POLLOUT)];
        poll(&mut watched, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    };
    if takes {
        let _ = to.write_all(bytes);
    }
}
