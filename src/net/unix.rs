//! Unix stream sockets: how a new socket replaces a file on which nobody listens any more, and how a socket is closed.
//!
//! To connect to a Unix socket is a single step in the kernel: a connected client waits in the queue, and no client is
//! half-way.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, lchown};
use std::os::unix::net::UnixStream;
use std::path::{self, Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{Group, User};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::addr::Addr;
use crate::error::{Error, Result};
use crate::handover;
use crate::inherited::Tenure;
use crate::sys;

use super::listener::{self, BACKLOG, Connected, NotAccepted};
use super::plain::Stream;
use super::sock_diag::{SockDiag, Which, u32_at};

/// `sun_path` has 108 bytes, including the NUL at the end.
const LONGEST_PATH: usize = 107;
/// How long another process may hold the lock on a directory. It holds the lock only while it binds a socket, or
/// removes a file.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait for that lock during a stop. If that is not enough, the stop does not wait: the file stays, and the
/// next server replaces it.
const LOCK_TIMEOUT_AT_END: Duration = Duration::from_millis(50);
const LOCK_INTERVAL: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub(crate) struct Listener {
    // Dropped before the socket is closed: see `SocketFile`.
    file: Option<SocketFile>,
    socket: Socket,
    /// The number of this socket in the kernel's lists of sockets.
    inode: u32,
    /// Made in advance: when the number of waiting clients is asked for, there may be no descriptors left.
    diag: SockDiag,
    /// A stop has shut the socket down.
    refuses: AtomicBool,
    /// No client waits, and none will.
    is_empty: AtomicBool,
    /// Nobody accepts from this socket any more.
    is_over: AtomicBool,
}

impl Listener {
    pub(super) fn new(socket: Socket, inode: u64) -> Self {
        Self {
            file: None,
            socket,
            inode: u32::try_from(inode).unwrap_or(0),
            diag: SockDiag::new(),
            refuses: AtomicBool::new(false),
            is_empty: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        }
    }

    /// The file was made here, and is removed with the socket.
    pub(super) fn own(&mut self, file: SocketFile) {
        self.file = Some(file);
    }

    /// The file, if a successor may have to remove it.
    pub(super) fn file(&self) -> Option<handover::File> {
        let file = self.file.as_ref()?;
        Some(handover::File {
            path: file.path.to_str()?.to_owned(),
            device: file.device,
            inode: file.inode,
        })
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(super) fn inode(&self) -> u32 {
        self.inode
    }

    /// Leaves the file where it is.
    pub(super) fn keep_file(&mut self) {
        if let Some(file) = self.file.take() {
            file.keep();
        }
    }

    pub(super) fn into_socket(self) -> Socket {
        if let Some(file) = self.file {
            file.remove();
        }
        self.socket
    }

    /// Whether the socket still listens. A shutdown by somebody who has a copy is not an error of `accept`, and leaves
    /// the socket readable for ever.
    pub(super) fn listens(&self) -> bool {
        let is_shut = || sys::is_read_shut(self.socket.as_fd());
        !self.is_over.load(Ordering::Relaxed)
            && self.socket.is_listener().unwrap_or(false)
            && (self.refuses.load(Ordering::Relaxed) || !is_shut())
    }

    pub(super) fn accept(&self, local: &Addr) -> std::result::Result<Connected, NotAccepted> {
        let (socket, peer) = match listener::accept(&self.socket) {
            Err(NotAccepted::Empty) if self.refuses.load(Ordering::Relaxed) => {
                self.is_empty.store(true, Ordering::Relaxed);
                return Err(NotAccepted::Empty);
            }
            // This is the error that `accept` gives if somebody has shut a TCP socket down.
            Err(NotAccepted::Empty) if sys::is_read_shut(self.socket.as_fd()) => {
                return Err(io::Error::from_raw_os_error(libc::EINVAL).into());
            }
            accepted => accepted?,
        };
        Ok(Connected {
            stream: Stream::Unix(UnixStream::from(socket)),
            peer: Addr::from_kernel(&peer).ok_or(NotAccepted::Gone)?,
            local: local.clone(),
            is_ours: false,
        })
    }

    /// Refuses all clients that connect from now on, even if somebody has a copy of the socket. Clients that wait can
    /// still be accepted.
    ///
    /// The kernel checks for the shutdown and puts a client into the queue under one lock: no client is lost in
    /// between.
    pub(crate) fn refuse_new(&self) -> io::Result<()> {
        // Done at each call, not only at the first. An error shows that the number means something else by now, and
        // that the socket must not be closed by it.
        self.socket.shutdown(Shutdown::Read)?;
        self.refuses.store(true, Ordering::Relaxed);
        // A client that waits in `connect`, because the queue is full, does not notice the shutdown. It is woken when
        // the queue becomes longer, and is refused then.
        let _ = self.socket.listen(0);
        let _ = self.socket.listen(BACKLOG);
        Ok(())
    }

    /// Refuses all clients; nobody accepts those that wait.
    pub(super) fn shut(&self) -> io::Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        self.refuse_new()
    }

    /// How many connections wait to be accepted; 1 if it is not known whether there is one.
    pub(super) fn queued(&self) -> u32 {
        if self.is_empty.load(Ordering::Relaxed) {
            return 0;
        }
        self.ask_queued().unwrap_or(1)
    }

    fn ask_queued(&self) -> Option<u32> {
        const SHOW_QUEUES: u32 = 0x10;
        let mut queued = None;
        // struct unix_diag_req: any state, this inode, the lengths of the queues, without a cookie.
        #[allow(clippy::cast_possible_truncation, reason = "1")]
        let family = libc::AF_UNIX as u8;
        let request = [
            &[family, 0, 0, 0][..],
            &u32::MAX.to_ne_bytes(),
            &self.inode.to_ne_bytes(),
            &SHOW_QUEUES.to_ne_bytes(),
            &[0xff; 8],
        ];
        let asked = self.diag.ask(Which::One, &request.concat(), |message| {
            queued = queue_in(message);
            Ok(())
        });
        asked.ok().and(queued)
    }
}

/// Reads from a `struct unix_diag_msg` how many clients wait in the queue: the number is in an attribute behind it.
fn queue_in(message: &[u8]) -> Option<u32> {
    const QUEUES: u16 = 4; // UNIX_DIAG_RQLEN
    let mut rest = message.get(16..)?;
    loop {
        let length = u16::from_ne_bytes(*rest.first_chunk()?);
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        if kind == QUEUES {
            return u32_at(rest, 4);
        }
        rest = rest.get(usize::from(length).max(4).next_multiple_of(4)..)?;
    }
}

/// A socket that listens, and its file, if it has one.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) socket: Socket,
    pub(super) file: Option<SocketFile>,
}

/// Listens there. `addr` is the text that the host has given.
pub(super) fn bind(addr: &str, place: &Place<'_>, tenure: &Arc<Tenure>) -> Result<Bound> {
    let Place { name, access } = place;
    let failed = |error| Error::io(format!("listening on {addr}"), error);
    if let Some(name) = name.strip_prefix('@') {
        let socket = socket().map_err(failed)?;
        let at = SockAddr::unix(format!("\0{name}")).map_err(failed)?;
        socket.bind(&at).map_err(failed)?;
        socket.listen(BACKLOG).map_err(failed)?;
        return Ok(Bound { socket, file: None });
    }
    // The path is made absolute, because the process may change its directory.
    let path = path::absolute(name).map_err(failed)?;
    let fits = path.as_os_str().len() <= LONGEST_PATH;
    let at = SockAddr::unix(if fits { &*path } else { Path::new(name) }).map_err(failed)?;
    // If something fails, the file is dropped after the lock, and takes the lock itself.
    let file;
    let directory = path.parent().unwrap_or(&path);
    // A lock that is held for longer is not another server's: it says nothing of the socket.
    let _lock = lock(directory, LOCK_TIMEOUT).ok();
    clear(&path).map_err(failed)?;
    let socket = socket().map_err(failed)?;
    socket.bind(&at).map_err(failed)?;
    file = SocketFile::at(path.clone(), Arc::clone(tenure)).map_err(failed)?;
    // Nobody can connect before the socket listens.
    access.give(&path).map_err(|error| {
        let what = format!("setting mode and owner of {}", path.display());
        Error::io(what, error)
    })?;
    socket.listen(BACKLOG).map_err(failed)?;
    let file = Some(file);
    Ok(Bound { socket, file })
}

fn socket() -> io::Result<Socket> {
    Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)
}

/// Where to bind a Unix socket, and who may connect to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place<'a> {
    /// A path, or `@` and a name.
    name: &'a str,
    access: Access,
}

/// Who may connect to a Unix socket.
#[derive(Debug, Default, PartialEq, Eq)]
struct Access {
    mode: Option<u32>,
    user: Option<u32>,
    group: Option<u32>,
}

impl<'a> Place<'a> {
    /// `place` is the part of `addr` behind `unix:`.
    pub(super) fn parse(addr: &str, place: &'a str) -> Result<Self> {
        let wrong = |why: &str| Error::Address(format!("address {addr:?}: {why}"));
        let (name, parameters) = match place.split_once('?') {
            Some((name, parameters)) => (name, Some(parameters)),
            None => (place, None),
        };
        if name.is_empty() || name == "@" {
            return Err(wrong("no path; write unix:PATH or unix:@NAME"));
        }
        if name.len() > LONGEST_PATH {
            return Err(wrong("the path is longer than 107 bytes"));
        }
        if name.contains('\0') {
            return Err(wrong("there is a NUL in the path"));
        }
        if name.starts_with('@') && parameters.is_some() {
            return Err(wrong("an abstract socket has neither mode nor owner"));
        }
        let mut access = Access::default();
        for parameter in parameters.into_iter().flat_map(|all| all.split('&')) {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let (slot, found) = match key {
                "mode" => (&mut access.mode, mode(value)),
                "user" => (&mut access.user, user(value)),
                "group" => (&mut access.group, group(value)),
                _ => {
                    return Err(wrong(&format!(
                        "{key:?} is not known; mode, user and group are"
                    )));
                }
            };
            let found = found.map_err(|why| wrong(&why))?;
            if slot.replace(found).is_some() {
                return Err(wrong(&format!("{key} is given twice")));
            }
        }
        Ok(Self { name, access })
    }

    /// The address of a socket that listens there.
    pub(super) fn addr(&self) -> Option<Addr> {
        match self.name.strip_prefix('@') {
            Some(name) => Some(Addr::of_abstract(name.as_bytes())),
            None => path::absolute(self.name)
                .ok()
                .map(|path| Addr::of_path(&path)),
        }
    }
}

fn mode(digits: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(digits, 8).ok();
    let mode = mode.filter(|mode| *mode <= 0o777 && !digits.starts_with('+'));
    mode.ok_or_else(|| format!("the mode {digits:?} is not an octal number up to 0777"))
}

fn user(user: &str) -> Result<u32, String> {
    id("user", user, || {
        Ok(User::from_name(user)?.map(|user| user.uid.as_raw()))
    })
}

fn group(group: &str) -> Result<u32, String> {
    id("group", group, || {
        Ok(Group::from_name(group)?.map(|group| group.gid.as_raw()))
    })
}

fn id(
    what: &str,
    text: &str,
    find: impl FnOnce() -> nix::Result<Option<u32>>,
) -> Result<u32, String> {
    // The highest number means "as it is" to chown(2).
    let number = text.parse().ok().filter(|id| *id != u32::MAX);
    if let Some(id) = number.filter(|_| text.bytes().all(|byte| byte.is_ascii_digit())) {
        return Ok(id);
    }
    match find() {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(format!("there is no {what} {text:?}")),
        Err(error) => Err(format!("the {what} {text:?} cannot be looked up: {error}")),
    }
}

impl Access {
    fn give(&self, path: &Path) -> io::Result<()> {
        // Neither follows a symbolic link that somebody has put in the place of the socket. The mode comes first: who
        // gives a file away may not change it any more.
        if let Some(mode) = self.mode {
            let mode = Mode::from_bits_truncate(mode);
            fchmodat(AT_FDCWD, path, mode, FchmodatFlags::NoFollowSymlink)?;
        }
        if self.user.is_some() || self.group.is_some() {
            lchown(path, self.user, self.group)?;
        }
        Ok(())
    }
}

/// Makes room for a socket: removes a socket that is there, if nobody listens on it.
fn clear(path: &Path) -> io::Result<()> {
    let in_use = |why| Err(io::Error::new(io::ErrorKind::AddrInUse, why));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(there) if !there.file_type().is_socket() => {
            return in_use("what is there is not a socket");
        }
        Ok(_) => {}
    }
    // If somebody listens there, it sees a client that comes and goes.
    match socket()?.connect(&SockAddr::unix(path)?) {
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
        _ => return in_use("somebody listens there"),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The file of a socket that was bound here. When this value is dropped in the process whose it is, the file is removed,
/// unless others have the socket, or another file has taken its place.
///
/// While the socket is open, the kernel keeps the inode of the file that it was bound to, even if the file is gone. So
/// until the socket is closed, no other file has that inode number.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// The process that removes the file; none does, if it is not known what the file is.
    process: Option<u32>,
    tenure: Arc<Tenure>,
}

impl SocketFile {
    fn at(path: PathBuf, tenure: Arc<Tenure>) -> io::Result<Self> {
        let there = fs::symlink_metadata(&path)?;
        if !there.file_type().is_socket() {
            let why = "something else has taken the socket's place";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
        }
        Ok(Self {
            path,
            device: there.dev(),
            inode: there.ino(),
            process: Some(process::id()),
            tenure,
        })
    }

    /// A file that a predecessor has made.
    pub(super) fn inherit(file: handover::File, tenure: Arc<Tenure>) -> Self {
        Self {
            path: file.path.into(),
            device: file.device,
            inode: file.inode,
            process: Some(process::id()),
            tenure,
        }
    }

    /// The absolute path of the file; none if it is longer than any path that can be bound.
    pub(super) fn addr(&self) -> Option<Addr> {
        let fits = self.path.as_os_str().len() <= LONGEST_PATH;
        fits.then(|| Addr::of_path(&self.path))
    }

    fn is(&self, there: &Metadata) -> bool {
        (there.dev(), there.ino()) == (self.device, self.inode)
    }

    /// Removes the file even in another process: the one that bound the socket may have forked and ended.
    fn remove(mut self) {
        self.process = Some(process::id());
    }

    fn keep(mut self) {
        self.process = None;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.process != Some(process::id()) || self.tenure.is_shared() {
            return;
        }
        let directory = self.path.parent().unwrap_or(&self.path);
        // While we hold the lock, no other server of ours replaces the file between the check and the removal. If
        // something fails, a file is left that the next server replaces.
        if let Ok(_lock) = lock(directory, LOCK_TIMEOUT_AT_END)
            && fs::symlink_metadata(&self.path).is_ok_and(|there| self.is(&there))
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The right to replace or remove sockets in a directory, which one process has at a time: `flock(2)` on the directory
/// itself, so that no other file is needed.
struct Lock(File);

/// Another process has held the lock until the timeout.
struct Busy;

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child that was forked meanwhile has a copy.
        sys::unlock(self.0.as_fd());
    }
}

/// Waits for the lock on a directory. None if the directory cannot be read or locked.
fn lock(directory: &Path, timeout: Duration) -> Result<Option<Lock>, Busy> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_DIRECTORY);
    let Ok(file) = options.open(directory) else {
        return Ok(None);
    };
    let deadline = Instant::now() + timeout;
    loop {
        match sys::try_lock(file.as_fd()) {
            Ok(true) => return Ok(Some(Lock(file))),
            Ok(false) if Instant::now() >= deadline => return Err(Busy),
            Ok(false) => thread::sleep(LOCK_INTERVAL),
            Err(_) => return Ok(None),
        }
    }
}
