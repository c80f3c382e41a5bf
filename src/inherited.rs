//! The listening sockets that this process was started with, by systemd's protocol (`sd_listen_fds(3)`): descriptors
//! from 3 on, `LISTEN_FDS` (how many), `LISTEN_PID` (for which process), `LISTEN_FDNAMES`.
//!
//! Whoever would listen somewhere looks here first. The descriptors themselves stay open, and are not owned: the host
//! may know them by their numbers, too. So a server gets a copy, and a server that could not start can be tried again.
//!
//! If the program was started by a restart (ADR 0029), its predecessor says more of the sockets, in its first message.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::parent_id;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use once_cell::sync::OnceCell;
use socket2::{Socket, Type};

use crate::addr::Addr;
use crate::error::{Error, Result};
use crate::handover::{self, Channel, Hello, Message, Passed};
use crate::origin::Origin;
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
/// How long a predecessor may take to say what it passes on. It says so before anything else.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

static SOCKETS: OnceCell<Sockets> = OnceCell::new();
static ORIGIN: OnceCell<Origin> = OnceCell::new();

/// How this process was started. It is noted when the program first listens somewhere.
pub(crate) fn origin() -> &'static Origin {
    ORIGIN.get_or_init(Origin::note)
}

/// Whose a listening socket is. It is asked for at the stop, because it may change until then.
#[derive(Debug, Default)]
pub(crate) struct Tenure {
    /// The host has declared that others have the socket, too, or a supervisor has passed it on.
    declared: AtomicBool,
    /// A successor has it.
    lent: AtomicBool,
    /// The predecessor, which has passed it on, may still take it back.
    borrowed: AtomicBool,
}

impl Tenure {
    /// Whether others accept from the socket, and a stop leaves it to them.
    pub(crate) fn is_shared(&self) -> bool {
        [&self.declared, &self.lent, &self.borrowed]
            .iter()
            .any(|others| others.load(Ordering::Acquire))
    }

    pub(crate) fn is_declared(&self) -> bool {
        self.declared.load(Ordering::Acquire)
    }

    pub(crate) fn is_borrowed(&self) -> bool {
        self.borrowed.load(Ordering::Acquire)
    }

    pub(crate) fn declare(&self) {
        self.declared.store(true, Ordering::Release);
    }

    /// From now on, the socket is a successor's.
    pub(crate) fn lend(&self) {
        self.lent.store(true, Ordering::Release);
    }
}

/// The sockets that were passed on. Reads the variables at the first call, removes them, and makes the descriptors
/// close-on-exec: no program that this process starts should take the sockets for its own.
///
/// # Errors
/// [`Error::InvalidArgument`] if the variables make no sense; the errors of copying a descriptor.
pub(crate) fn take() -> Result<&'static Sockets> {
    let sockets = read()?;
    if !sockets.given.is_empty() && !sockets.taken.swap(true, Ordering::Relaxed) {
        for given in &sockets.given {
            sys::close_on_exec(given.fd);
        }
        sys::remove_variables(&[COUNT, PROCESS, NAMES, PIDFD, handover::VARIABLE]);
    }
    Ok(sockets)
}

fn read() -> Result<&'static Sockets> {
    origin();
    SOCKETS.get_or_try_init(Sockets::read)
}

/// A host that binds nothing here may read the variables itself, so they stay. `None` if they make no sense.
pub(crate) fn look() -> Option<&'static Sockets> {
    read().ok()
}

/// The sockets that were passed on, if there are any, and somebody has looked.
pub(crate) fn known() -> Option<&'static Sockets> {
    SOCKETS.get().filter(|sockets| !sockets.given.is_empty())
}

/// The process that has started this one to replace it, if there is one, and somebody has looked.
pub(crate) fn predecessor() -> Option<&'static Predecessor> {
    let predecessor = SOCKETS.get()?.predecessor.as_ref()?;
    // A forked child has none.
    (predecessor.for_process == process::id()).then_some(predecessor)
}

/// What this process was started with.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    given: Vec<Given>,
    predecessor: Option<Predecessor>,
    /// The variables are meant for this other process.
    for_other: Option<u32>,
    /// The variables are gone.
    taken: AtomicBool,
    /// The host knows which sockets nobody listens on.
    told: AtomicBool,
}

/// The process that this one replaces.
#[derive(Debug)]
pub(crate) struct Predecessor {
    pub(crate) channel: Channel,
    /// It is readable when the process has ended. `None`: it had ended before we looked.
    pub(crate) process: Option<OwnedFd>,
    pub(crate) generation: u64,
    /// All that may still drain, with those before it.
    pub(crate) pids: Vec<u32>,
    pub(crate) drops_unclaimed: bool,
    /// Which file has the process ID of the program.
    pub(crate) pid_file: Option<PathBuf>,
    detour: Mutex<Option<Detour>>,
    for_process: u32,
}

impl Predecessor {
    /// Reads what the predecessor says first.
    fn meet(channel: Channel) -> Result<(Self, Vec<Passed>)> {
        let met = wait_for_hello(&channel).and_then(|(hello, fds)| {
            let process = watch(&hello)?;
            Ok((hello, fds, process))
        });
        let (hello, fds, process) = met.inspect_err(|error| {
            let _ = channel.send(&Message::Failed(format!("{error:#}")));
        })?;
        let mut fds = fds.into_iter();
        let detour = fds.next().zip(fds.next());
        let detour = detour.map(|(stderr, pipe)| Detour { stderr, pipe });
        let predecessor = Self {
            channel,
            process,
            generation: hello.generation,
            pids: hello.predecessors,
            drops_unclaimed: hello.drop_unclaimed,
            pid_file: hello.pid_file,
            detour: Mutex::new(detour),
            for_process: process::id(),
        };
        Ok((predecessor, hello.sockets))
    }

    /// Something has failed in this process; there may be another try.
    pub(crate) fn note(&self, what: &dyn fmt::Display) {
        let _ = self.channel.send(&Message::Note(what.to_string()));
    }

    /// This process does not take over.
    pub(crate) fn fail(&self, why: String) -> Error {
        let _ = self.channel.send(&Message::Failed(why.clone()));
        Error::RestartFailed(why)
    }

    /// Ceases to write errors to the predecessor. If the host has chosen another standard error meanwhile, it stays.
    pub(crate) fn restore_stderr(&self) {
        let detour = self.detour.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Detour { stderr, pipe }) = &*detour
            && sys::with_fd(libc::STDERR_FILENO, sys::identity).ok()
                == sys::identity(pipe.as_fd()).ok()
        {
            let _ = sys::replace_stderr(stderr.as_fd());
        }
    }

    /// What others may still write to, at the first call.
    pub(crate) fn take_detour(&self) -> Option<Detour> {
        let mut detour = self.detour.lock().unwrap_or_else(PoisonError::into_inner);
        detour.take()
    }
}

/// Until a new process is ready, its standard error is a pipe to its predecessor.
#[derive(Debug)]
pub(crate) struct Detour {
    /// Where standard error belongs.
    pub(crate) stderr: OwnedFd,
    /// The end that is read. While it is open here, the death of the predecessor does not break the pipe.
    pub(crate) pipe: OwnedFd,
}

/// A descriptor that tells of the predecessor's end. `None`: it has ended.
fn watch(hello: &Hello) -> Result<Option<OwnedFd>> {
    let Some(pid) = hello.predecessors.first() else {
        return Err(broken("the other process did not say which it is"));
    };
    match sys::pidfd(*pid) {
        Ok(process) => Ok(Some(process)),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(Error::io(format!("watching process {pid}"), error)),
    }
}

fn broken(why: impl fmt::Display) -> Error {
    Error::InvalidArgument(format!("{}: {why}", handover::VARIABLE))
}

fn wait_for_hello(channel: &Channel) -> Result<(Hello, Vec<OwnedFd>)> {
    let mut watched = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(HELLO_TIMEOUT).unwrap_or(PollTimeout::MAX);
    // An interruption counts as the end of the wait: a message is there, or it is not.
    let _ = poll(&mut watched, timeout);
    match channel.receive() {
        Ok(Some((Message::Hello(hello), fds))) => Ok((hello, fds)),
        Ok(Some(_)) => Err(broken("the other process did not begin with HELLO")),
        Ok(None) => Err(broken("the other process has gone")),
        Err(error) => Err(broken(error)),
    }
}

/// A descriptor that was passed on.
#[derive(Debug)]
struct Given {
    fd: RawFd,
    name: String,
    /// What the predecessor has said of it, if there is one.
    passed: Option<Passed>,
    tenure: Arc<Tenure>,
    /// The descriptor is closed: the socket is the listener's alone.
    is_over: AtomicBool,
    /// The host has given away this very descriptor, so it is not ours to close.
    is_given_away: AtomicBool,
    /// The number by which the kernel knows the socket. `None`: the descriptor was not open.
    inode: Option<u64>,
    /// `None`: not a listening socket that we could serve; it is meant for somebody else in this process.
    addr: Option<Addr>,
    /// A listener has a copy.
    is_claimed: AtomicBool,
    /// A server has accepted from the socket since the last claim.
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

/// A descriptor that was passed on, and that no listener has: it goes on to the next process.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) copy: OwnedFd,
    pub(crate) name: &'static str,
    pub(crate) passed: Passed,
}

/// While this value lives, nobody else gets the socket.
#[derive(Debug)]
pub(crate) struct Kept(&'static Given);

impl Kept {
    /// A server accepts from the socket.
    pub(crate) fn serves(&self) {
        self.0.is_served.store(true, Ordering::Release);
        self.0.settle();
    }

    pub(crate) fn name(&self) -> &'static str {
        &self.0.name
    }

    pub(crate) fn tenure(&self) -> &'static Arc<Tenure> {
        &self.0.tenure
    }

    /// What a predecessor has said of the socket.
    pub(crate) fn passed(&self) -> Option<&'static Passed> {
        self.0.passed.as_ref()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.is_claimed.store(false, Ordering::Release);
    }
}

impl Sockets {
    fn read() -> Result<Self> {
        let mut sockets = Self::read_variables()?;
        if let Some(channel) = channel()? {
            let (predecessor, passed) = Predecessor::meet(channel)?;
            for (given, passed) in sockets.given.iter_mut().zip(passed) {
                given.tenure = Arc::new(Tenure {
                    declared: AtomicBool::new(passed.is_declared),
                    lent: AtomicBool::new(false),
                    borrowed: AtomicBool::new(true),
                });
                given.passed = Some(passed);
            }
            sockets.predecessor = Some(predecessor);
        }
        Ok(sockets)
    }

    fn read_variables() -> Result<Self> {
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

    /// Takes the socket for which the predecessor had asked by the same text.
    ///
    /// # Errors
    /// The socket cannot be copied.
    pub(crate) fn claim_asked(&'static self, text: &str) -> Result<Option<Claim>> {
        let asked = |given: &&Given| {
            let passed = given.passed.as_ref();
            passed.and_then(|passed| passed.asked.as_deref()) == Some(text)
        };
        Self::claim_first(self.given.iter().filter(asked))
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
            let there = |given: &&Given| given.addr.as_ref() == Some(&addr);
            if let Some(claim) = Self::claim_first(self.given.iter().filter(there))? {
                return Ok(Some(claim));
            }
        }
        Ok(None)
    }

    fn claim_first(all: impl Iterator<Item = &'static Given>) -> Result<Option<Claim>> {
        for given in all {
            match given.claim() {
                // Somebody has it, or the host has closed the descriptor meanwhile.
                Ok(None) | Err(Error::InvalidArgument(_)) => {}
                claimed => return claimed,
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
        let is_named = |given: &&Given| given.name == name && !given.is_over();
        let named = self.given.iter().filter(is_named);
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

    /// The host has given a socket by this descriptor: nobody else gets the same one. `None` if it was not inherited.
    pub(crate) fn claim_inode(&'static self, inode: u64, fd: RawFd) -> Option<Kept> {
        let mut same = self.given.iter().filter(|given| given.inode == Some(inode));
        let kept = same.find_map(Given::keep)?;
        if kept.0.fd == fd {
            kept.0.is_given_away.store(true, Ordering::Release);
        }
        Some(kept)
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

    /// The sockets that must be served in this process, and are not.
    pub(crate) fn unserved(&self) -> Vec<String> {
        let unserved = self.needed().filter(|given| !given.is_served());
        unserved.map(ToString::to_string).collect()
    }

    /// What the predecessor has passed on to be served.
    fn needed(&self) -> impl Iterator<Item = &Given> {
        self.given.iter().filter(|given| given.is_needed())
    }

    /// Closes the sockets that nobody serves, and so gives them back. Returns which they are.
    pub(crate) fn drop_unserved(&self) -> Vec<usize> {
        let given = self.given.iter().enumerate();
        let unserved = given.filter(|(_, given)| given.is_needed() && !given.is_served());
        unserved
            .map(|(place, given)| {
                given.close();
                place
            })
            .collect()
    }

    /// The predecessor has left the sockets: those that it had bound are this process's now.
    pub(crate) fn succeed(&self) {
        for given in self.given.iter().filter(|given| given.passed.is_some()) {
            given.tenure.borrowed.store(false, Ordering::Release);
            given.settle();
        }
    }

    /// What no listener has of the descriptors that were passed on, for the next process.
    pub(crate) fn spares(&'static self) -> Vec<Spare> {
        let free = self.given.iter().filter(|given| !given.is_claimed());
        let spare = |given: &'static Given| {
            Some(Spare {
                copy: given.copy().ok()?,
                name: &given.name,
                // The next process may ask for it like those before. But it need not serve what this one does not.
                passed: Passed {
                    is_needed: false,
                    is_declared: given.tenure.is_declared(),
                    ..given.passed.clone().unwrap_or_default()
                },
            })
        };
        free.filter_map(spare).collect()
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
            passed: None,
            tenure: Arc::new(Tenure {
                declared: AtomicBool::new(true),
                ..Tenure::default()
            }),
            is_over: AtomicBool::new(false),
            is_given_away: AtomicBool::new(false),
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

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    fn is_needed(&self) -> bool {
        let passed = self.passed.as_ref();
        passed.is_some_and(|passed| passed.is_needed) && !self.is_over()
    }

    /// Whether a server accepts from the socket now.
    fn is_served(&self) -> bool {
        self.is_served.load(Ordering::Acquire) && self.is_claimed()
    }

    fn is_claimed(&self) -> bool {
        self.is_claimed.load(Ordering::Acquire)
    }

    /// Leaves the only descriptor to the listener, which closes the socket; if the socket is this process's, and is
    /// served. A predecessor that has died may have left it before that. What a supervisor keeps can be taken again.
    fn settle(&self) {
        // Of two threads, one that says that it is served, and one that says whose it is, one sees both.
        fence(Ordering::SeqCst);
        if self.passed.is_some() && self.is_served() && !self.tenure.is_shared() {
            self.close();
        }
    }

    /// Closes the descriptor, if it still is the socket that was passed on, and nobody else will close it.
    fn close(&self) {
        if self.is_given_away.load(Ordering::Acquire) {
            return;
        }
        if self.copy().is_ok() && !self.is_over.swap(true, Ordering::AcqRel) {
            drop(sys::take_inherited(self.fd));
        }
    }

    /// A copy, if the descriptor still is the socket that was passed on.
    fn copy(&self) -> Result<OwnedFd> {
        if self.is_over() {
            return Err(self.gone());
        }
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
        (!was_claimed).then(|| {
            self.is_served.store(false, Ordering::Release);
            Kept(self)
        })
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

/// The socket to the predecessor, if this process has one.
fn channel() -> Result<Option<Channel>> {
    let Some(text) = env::var_os(handover::VARIABLE) else {
        return Ok(None);
    };
    let parts = text.to_str().and_then(|text| text.split_once(':'));
    let numbers = parts.and_then(|(fd, process)| Some((digits(fd)?, digits(process)?)));
    let Some((fd, process)) = numbers else {
        let (name, text) = (handover::VARIABLE, text.to_string_lossy());
        let why = format!("{name} is {text:?}, not a descriptor and a process, with a colon");
        return Err(Error::InvalidArgument(why));
    };
    if process.unsigned_abs() != process::id() {
        // It was left over from a parent.
        return Ok(None);
    }
    // Without its predecessor, this process would be in its way.
    let gone = || broken(format_args!("descriptor {fd} is not open"));
    let channel = sys::take_inherited(fd).ok_or_else(gone)?;
    Ok(Some(Channel::of(channel)))
}

fn digits(text: &str) -> Option<RawFd> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// The number in a variable.
fn number(variable: &str, text: &OsStr, most: RawFd) -> Result<RawFd> {
    let number = text.to_str().and_then(digits);
    number.filter(|number| *number <= most).ok_or_else(|| {
        let text = text.to_string_lossy();
        let why = format!("{variable} is {text:?}, not a number from 0 to {most}");
        Error::InvalidArgument(why)
    })
}
