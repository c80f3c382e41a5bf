//! The listening sockets that this process was started with, by systemd's protocol (`sd_listen_fds(3)`): descriptors
//! from 3 on, `LISTEN_FDS` (how many), `LISTEN_PID` (for which process), `LISTEN_FDNAMES`.
//!
//! Whoever would listen somewhere looks here first. The descriptors themselves stay open, and are not owned: the host
//! may know them by their numbers, too. So a server gets a copy, and a server that could not start can be tried again.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::parent_id;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use once_cell::sync::OnceCell;
use socket2::{Socket, Type};

use crate::addr::Addr;
use crate::error::{Error, Result};
use crate::sys;

/// The beginning of the text that asks for a socket by its name.
pub(crate) const BY_NAME: &str = "fd:";

const COUNT: &str = "LISTEN_FDS";
const PROCESS: &str = "LISTEN_PID";
const NAMES: &str = "LISTEN_FDNAMES";
/// What newer versions of systemd pass, too.
const PIDFD: &str = "LISTEN_PIDFDID";

/// The first descriptor that is passed on.
const FIRST: RawFd = 3;
/// More sockets than this are a mistake.
const MOST: RawFd = 1024;
/// The name of a socket that was given none, as `sd_listen_fds_with_names(3)` has it.
const UNNAMED: &str = "unknown";

static SOCKETS: OnceCell<Sockets> = OnceCell::new();

/// The sockets that were passed on. Reads the variables at the first call, removes them, and makes the descriptors
/// close-on-exec: no program that this process starts should take the sockets for its own.
///
/// # Errors
/// [`Error::InvalidArgument`] if the variables make no sense; the errors of copying a descriptor.
pub(crate) fn take() -> Result<&'static Sockets> {
    let sockets = SOCKETS.get_or_try_init(Sockets::read)?;
    if !sockets.given.is_empty() && !sockets.taken.swap(true, Ordering::Relaxed) {
        for given in &sockets.given {
            sys::close_on_exec(given.fd);
        }
        sys::remove_variables(&[COUNT, PROCESS, NAMES, PIDFD]);
    }
    Ok(sockets)
}

/// A host that binds nothing here may read the variables itself, so they stay. `None` if they make no sense.
pub(crate) fn look() -> Option<&'static Sockets> {
    SOCKETS.get_or_try_init(Sockets::read).ok()
}

/// The sockets that were passed on, if there are any, and somebody has looked.
pub(crate) fn known() -> Option<&'static Sockets> {
    SOCKETS.get().filter(|sockets| !sockets.given.is_empty())
}

/// What this process was started with.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    given: Vec<Given>,
    /// The variables are meant for this other process.
    for_other: Option<u32>,
    /// The variables are gone.
    taken: AtomicBool,
    /// The host knows which sockets nobody listens on.
    told: AtomicBool,
}

/// A descriptor that was passed on.
#[derive(Debug)]
struct Given {
    fd: RawFd,
    name: String,
    /// The number by which the kernel knows the socket. `None`: the descriptor was not open.
    inode: Option<u64>,
    /// `None`: not a listening socket that we could serve; it is meant for somebody else in this process.
    addr: Option<Addr>,
    /// A listener has a copy.
    is_claimed: AtomicBool,
    /// A server has accepted from the socket.
    is_served: AtomicBool,
}

/// A copy of an inherited socket, for whoever listens on it.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) copy: OwnedFd,
    /// The descriptor that was passed on.
    pub(crate) fd: RawFd,
    pub(crate) kept: Kept,
}

/// While this value lives, nobody else gets the socket.
#[derive(Debug)]
pub(crate) struct Kept(&'static Given);

impl Kept {
    /// A server accepts from the socket.
    pub(crate) fn serves(&self) {
        self.0.is_served.store(true, Ordering::Relaxed);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.is_claimed.store(false, Ordering::Release);
    }
}

impl Sockets {
    fn read() -> Result<Self> {
        let (Some(count), Some(process)) = (env::var_os(COUNT), env::var_os(PROCESS)) else {
            return Ok(Self::default());
        };
        let process = number(PROCESS, &process, RawFd::MAX)?.unsigned_abs();
        if process != process::id() {
            return Ok(Self {
                for_other: Some(process),
                ..Self::default()
            });
        }
        let count = number(COUNT, &count, MOST)?;
        let names = env::var_os(NAMES).unwrap_or_default();
        let names = names.to_string_lossy();
        let mut names = names.split(':');
        let given = (FIRST..FIRST + count).map(|fd| {
            let name = names.next().filter(|name| !name.is_empty());
            Given::look_at(fd, name.unwrap_or(UNNAMED))
        });
        Ok(Self {
            given: given.collect::<Result<_>>()?,
            ..Self::default()
        })
    }

    /// Takes the socket that listens at one of these addresses; the first of them that has one.
    ///
    /// # Errors
    /// The socket cannot be copied.
    pub(crate) fn claim_addr(
        &'static self,
        addrs: impl IntoIterator<Item = Addr>,
    ) -> Result<Option<Claim>> {
        for addr in addrs {
            for given in &self.given {
                if given.addr.as_ref() != Some(&addr) {
                    continue;
                }
                match given.claim() {
                    // Somebody has it, or the host has closed the descriptor meanwhile.
                    Ok(None) | Err(Error::InvalidArgument(_)) => {}
                    claimed => return claimed,
                }
            }
        }
        Ok(None)
    }

    /// Takes the socket that `text` asks for: `fd:` and its name. If several sockets have the name, it is the first
    /// that nobody has.
    ///
    /// # Errors
    /// [`Error::Address`] without such a socket, [`Error::Io`] if others have it already; the errors of copying.
    pub(crate) fn claim_name(&'static self, text: &str) -> Result<Claim> {
        let name = text.strip_prefix(BY_NAME).unwrap_or(text);
        let named = self.given.iter().filter(|given| given.name == name);
        let mut is_there = false;
        for given in named {
            is_there = true;
            if let Some(claim) = given.claim()? {
                return Ok(claim);
            }
        }
        if !is_there {
            let why = self.why_not();
            return Err(Error::Address(format!("address {text:?}: {why}")));
        }
        let why = "somebody in this process has the inherited socket";
        let why = io::Error::new(io::ErrorKind::AddrInUse, why);
        Err(Error::Io(format!("listening on {text}"), Arc::new(why)))
    }

    /// The host has given a copy of a socket: nobody else gets the same one. `None` if it was not inherited.
    pub(crate) fn claim_inode(&'static self, inode: u64) -> Option<Kept> {
        let mut same = self.given.iter().filter(|given| given.inode == Some(inode));
        same.find_map(Given::keep)
    }

    /// Why there is no socket of a name.
    fn why_not(&self) -> String {
        match self.for_other {
            None if self.given.is_empty() => {
                format!("no socket was inherited ({COUNT} and {PROCESS} are not set)")
            }
            None => {
                let names: Vec<_> = self
                    .given
                    .iter()
                    .map(|given| format!("{:?}", given.name))
                    .collect();
                let names = names.join(", ");
                format!("no inherited socket has this name; there are {names}")
            }
            Some(other) if other == parent_id() => format!(
                "the inherited sockets are for the parent process {other} ({PROCESS}); what starts this program must \
                 do so by exec, without a fork"
            ),
            Some(other) => {
                format!(
                    "the inherited sockets are for process {other} ({PROCESS}), not for this one"
                )
            }
        }
    }

    /// Adds to the error of an address in use what is known of inherited sockets: one of them may be in the way.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match error {
            Error::Io(what, why) if why.kind() == io::ErrorKind::AddrInUse => {
                let Some(hint) = self.hint() else {
                    return Error::Io(what, why);
                };
                Error::Io(format!("{what} ({hint})"), why)
            }
            other => other,
        }
    }

    fn hint(&self) -> Option<String> {
        if self.for_other.is_some() {
            // The variables may be left over from long ago. But then there are no sockets.
            let first = Given::look_at(FIRST, UNNAMED);
            let came_along = first.is_ok_and(|first| first.addr.is_some());
            return came_along.then(|| self.why_not());
        }
        let free: Vec<_> = self.unclaimed().map(ToString::to_string).collect();
        (!free.is_empty()).then(|| format!("inherited, and not asked for: {}", free.join(", ")))
    }

    /// The sockets that nobody in this process has, or has had.
    fn unclaimed(&self) -> impl Iterator<Item = &Given> {
        let free = |flag: &AtomicBool| !flag.load(Ordering::Relaxed);
        let free = move |given: &&Given| free(&given.is_claimed) && free(&given.is_served);
        let listens = |given: &&Given| given.addr.is_some() && given.copy().is_ok();
        self.given.iter().filter(free).filter(listens)
    }

    /// Says which sockets nobody listens on; only to the first who asks.
    pub(crate) fn complaints(&self) -> Vec<String> {
        if self.told.swap(true, Ordering::Relaxed) {
            return Vec::new();
        }
        let complaint = |given| format!("nobody listens on the inherited socket {given}");
        self.unclaimed().map(complaint).collect()
    }
}

impl Given {
    fn look_at(fd: RawFd, name: &str) -> Result<Self> {
        let mut given = Self {
            fd,
            name: name.to_owned(),
            inode: None,
            addr: None,
            is_claimed: AtomicBool::new(false),
            is_served: AtomicBool::new(false),
        };
        match given.open() {
            Ok((copy, inode)) => {
                let socket = Socket::from(copy);
                given.inode = Some(inode);
                if socket.is_listener().unwrap_or(false)
                    && socket.r#type().is_ok_and(|kind| kind == Type::STREAM)
                {
                    let addr = socket.local_addr().ok();
                    given.addr = addr.and_then(|addr| Addr::from_kernel(&addr));
                }
                Ok(given)
            }
            Err(Error::InvalidArgument(_)) => Ok(given),
            Err(error) => Err(error),
        }
    }

    /// A copy of the descriptor, and the number of what it stands for.
    fn open(&self) -> Result<(OwnedFd, u64)> {
        let fd = self.fd;
        let copied = sys::copy_of(fd).and_then(|copy| {
            let file = File::from(copy);
            let inode = file.metadata()?.ino();
            Ok((OwnedFd::from(file), inode))
        });
        copied.map_err(|error| match error.raw_os_error() {
            Some(libc::EBADF) => self.gone(),
            _ => Error::io(format!("copying descriptor {fd}"), error),
        })
    }

    /// A copy, if the descriptor still is the socket that was passed on.
    fn copy(&self) -> Result<OwnedFd> {
        let (copy, inode) = self.open()?;
        if self.inode == Some(inode) {
            Ok(copy)
        } else {
            Err(self.gone())
        }
    }

    fn gone(&self) -> Error {
        let Self { fd, name, .. } = self;
        Error::InvalidArgument(format!("descriptor {fd} ({name:?} in {NAMES}) is not open"))
    }

    /// `None` if somebody has the socket.
    fn claim(&'static self) -> Result<Option<Claim>> {
        let Some(kept) = self.keep() else {
            return Ok(None);
        };
        let (copy, fd) = (self.copy()?, self.fd);
        Ok(Some(Claim { copy, fd, kept }))
    }

    /// `None` if somebody has the socket.
    fn keep(&'static self) -> Option<Kept> {
        let was_claimed = self.is_claimed.swap(true, Ordering::Acquire);
        (!was_claimed).then(|| Kept(self))
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(addr) = &self.addr {
            write!(f, "{addr} ")?;
        }
        write!(f, "(descriptor {}, {:?})", self.fd, self.name)
    }
}

/// The number in a variable.
fn number(variable: &str, text: &OsStr, most: RawFd) -> Result<RawFd> {
    let digits = text.to_str();
    let digits = digits.filter(|_| text.as_bytes().iter().all(u8::is_ascii_digit));
    let number = digits.and_then(|digits| digits.parse().ok());
    number.filter(|number| *number <= most).ok_or_else(|| {
        let text = text.to_string_lossy();
        let why = format!("{variable} is {text:?}, not a number from 0 to {most}");
        Error::InvalidArgument(why)
    })
}
