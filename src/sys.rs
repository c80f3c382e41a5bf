//! The few system calls that std, tokio and socket2 do not offer. All `unsafe` code outside `ffi` is here.
#![allow(
    unsafe_code,
    reason = "system calls without a safe wrapper in our dependencies"
)]

pub(crate) mod seqpacket;
pub(crate) mod shared_memory;
pub(crate) mod spawn;

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use socket2::SockFilter;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A counter in the kernel that can be waited for: `eventfd(2)`, non-blocking, close-on-exec.
#[derive(Debug)]
pub(crate) struct EventFd(File);

impl EventFd {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Makes the descriptor readable, by one `write(2)`. So this may be called in a signal handler. It leaves `errno`
    /// alone unless the write fails. The write fails only when the counter is full, and then the descriptor is readable
    /// anyway.
    pub(crate) fn set(&self) {
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    /// Makes the descriptor unreadable again.
    pub(crate) fn clear(&self) {
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The time since some fixed moment. Async-signal-safe.
pub(crate) fn uptime() -> Duration {
    let mut now = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the kernel writes a whole struct there; all zeroes is one, too.
    let now = unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, now.as_mut_ptr());
        now.assume_init()
    };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// An [`EventFd`] for a signal handler. It is never freed, because the handler may still be running on another thread
/// when nobody else needs the descriptor any more.
#[derive(Debug)]
pub(crate) struct Bell(AtomicPtr<EventFd>);

impl Bell {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// The event descriptor; `None` before it is made. Async-signal-safe.
    pub(crate) fn get(&self) -> Option<&'static EventFd> {
        // SAFETY: the pointer comes from `get_or_make`, which has leaked the value.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    pub(crate) fn get_or_make(&self) -> io::Result<&'static EventFd> {
        if let Some(made) = self.get() {
            return Ok(made);
        }
        let made: &'static EventFd = Box::leak(Box::new(EventFd::new()?));
        self.0
            .store(std::ptr::from_ref(made).cast_mut(), Ordering::Release);
        Ok(made)
    }

    /// For a forked child, whose parent goes on using the descriptor: the next descriptor is the child's own. The old
    /// descriptor is not closed: the child may have closed it already, and its number may belong to somebody else.
    /// Async-signal-safe.
    pub(crate) fn leave(&self) {
        self.0.store(std::ptr::null_mut(), Ordering::Release);
    }
}

/// Gives the free memory of the process's heap back to the system. Other threads that allocate may wait meanwhile.
pub(crate) fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Watches a descriptor for reading, on the runtime of the calling thread.
pub(crate) fn watch<T: AsFd + AsRawFd>(fd: T) -> io::Result<AsyncFd<T>> {
    watch_for(fd, Interest::READABLE)
}

pub(crate) fn watch_for<T: AsFd + AsRawFd>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: an AsFd type owns or borrows its descriptor: it stays the same and open as long as the value lives.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Which signals a thread blocks.
#[derive(Clone, Copy)]
pub(crate) struct SignalMask(libc::sigset_t);

impl SignalMask {
    /// All signals except those that report a fault of the thread itself: these must still reach the host's crash
    /// handler.
    fn all_but_faults() -> Self {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset initialises the whole set.
        let mut set = unsafe {
            libc::sigfillset(set.as_mut_ptr());
            set.assume_init()
        };
        for fault in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGTRAP,
            libc::SIGSYS,
        ] {
            // SAFETY: the set is initialised and the number is a signal's.
            unsafe { libc::sigdelset(&raw mut set, fault) };
        }
        Self(set)
    }

    pub(crate) fn only(signals: impl IntoIterator<Item = libc::c_int>) -> Self {
        let mut set = no_action().sa_mask;
        for signal in signals {
            // SAFETY: the set is initialised and the number is a signal's.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        Self(set)
    }

    /// The signals that the calling thread blocks.
    pub(crate) fn here() -> Self {
        Self::only([]).change(libc::SIG_BLOCK)
    }

    /// This mask with SIGPIPE added.
    pub(crate) fn and_pipe(mut self) -> Self {
        // SAFETY: the set is initialised and the number is a signal's.
        unsafe { libc::sigaddset(&raw mut self.0, libc::SIGPIPE) };
        self
    }

    /// Makes the calling thread block these signals, and no others. Returns the earlier mask.
    pub(crate) fn set(self) -> Self {
        self.change(libc::SIG_SETMASK)
    }

    /// Makes the calling thread block these signals, too. Returns the earlier mask.
    fn block(self) -> Self {
        self.change(libc::SIG_BLOCK)
    }

    /// Makes the calling thread stop blocking these signals. Returns the earlier mask.
    pub(crate) fn unblock(self) -> Self {
        self.change(libc::SIG_UNBLOCK)
    }

    fn change(self, how: libc::c_int) -> Self {
        let mut old = self.0;
        // SAFETY: both sets are initialised.
        unsafe { libc::pthread_sigmask(how, &raw const self.0, &raw mut old) };
        Self(old)
    }
}

impl fmt::Debug for SignalMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: the set is initialised.
        let is_in =
            |signal: &libc::c_int| unsafe { libc::sigismember(&raw const self.0, *signal) } == 1;
        f.debug_set().entries((1..=64).filter(is_in)).finish()
    }
}

unsafe extern "C" {
    /// The crate libc does not have this function for Linux.
    fn pthread_setcancelstate(state: libc::c_int, old: *mut libc::c_int) -> libc::c_int;
}

/// From now on the calling thread, which is ours, cannot be cancelled.
pub(crate) fn never_cancel() {
    set_cancel_state(PTHREAD_CANCEL_DISABLE);
}

pub(crate) const PTHREAD_CANCEL_DISABLE: libc::c_int = 1;

/// Says whether the calling thread can be cancelled, and returns the earlier state. Async-signal-safe.
pub(crate) fn set_cancel_state(state: libc::c_int) -> libc::c_int {
    let mut old = 0;
    // SAFETY: an int is written there; the call fails only for an invalid state.
    unsafe { pthread_setcancelstate(state, &raw mut old) };
    old
}

/// Runs `f` with all signals blocked except those that report a fault of the thread itself. A thread that `f` starts
/// inherits this mask from its first instruction on.
///
/// Signals are left to the host's own threads, because the host's signal handlers expect to run there. A C host leaves
/// SIGPIPE at its default, which ends the process. Our own writes prevent that signal (`MSG_NOSIGNAL`), but those of
/// the host's code on our threads may not. With SIGPIPE blocked, they fail with EPIPE instead.
pub(crate) fn with_signals_blocked<T>(f: impl FnOnce() -> T) -> T {
    let before = SignalMask::all_but_faults().block();
    let result = f();
    before.set();
    result
}

/// Ends a TCP connection at once with a reset, even if others hold a copy of the descriptor, and whatever the thread
/// that drives the connection is doing. Readers and writers of the connection are woken with an error.
///
/// `connect(AF_UNSPEC)` disconnects the socket itself. `shutdown` would send a FIN, which makes a response that ends
/// with its connection look complete; `close` would leave a copy alive.
#[allow(
    clippy::cast_possible_truncation,
    reason = "constants that fit: 0 and 16"
)]
pub(crate) fn reset(fd: BorrowedFd<'_>) {
    let unspec = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let len = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address is a valid sockaddr of that length. An error means that the peer was faster.
    unsafe { libc::connect(fd.as_raw_fd(), &raw const unspec, len) };
}

/// `setsockopt(2)` for options that socket2 does not name.
pub(crate) fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the kernel reads an int there.
    let result = unsafe {
        let value = (&raw const value).cast();
        libc::setsockopt(socket.as_raw_fd(), level, option, value, 4)
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives a group of `SO_REUSEPORT` a classic BPF program. The program returns the index of the member that gets a new
/// connection, or a number beyond the last member to let the kernel choose.
pub(crate) fn attach_group_program(
    socket: BorrowedFd<'_>,
    program: &[SockFilter],
) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        // `SockFilter` is a transparent wrapper of the struct that the kernel reads. The kernel does not write to it.
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    let len = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).unwrap_or(0);
    // SAFETY: the kernel copies a struct of that length, and the number of instructions that the struct says; they are
    // alive.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            len,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a descriptor non-blocking, unless it already is. Another holder of a copy may have changed this, because
/// `O_NONBLOCK` belongs to the open file description that both copies share.
pub(crate) fn ensure_nonblocking(fd: BorrowedFd<'_>) {
    // SAFETY: no pointers; an error leaves everything as it is.
    unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        if flags >= 0 && flags & libc::O_NONBLOCK == 0 {
            libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK);
        }
    }
}

/// Whether there is something to read or, on a listening socket, to accept. True also if the kernel does not say.
pub(crate) fn may_be_readable(fd: BorrowedFd<'_>) -> bool {
    poll_now(fd, libc::POLLIN) != Some(0)
}

/// Whether a socket receives nothing more: its peer or a `shutdown` has ended that. False if the kernel does not say.
pub(crate) fn is_read_shut(socket: BorrowedFd<'_>) -> bool {
    poll_now(socket, libc::POLLRDHUP).is_some_and(|found| found & libc::POLLRDHUP != 0)
}

/// Which of these events are there now, or an error of the descriptor. `None` if the kernel does not say.
fn poll_now(fd: BorrowedFd<'_>, events: libc::c_short) -> Option<libc::c_short> {
    let mut watched = libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one pollfd, which lives as long as the call; it does not wait.
    let result = unsafe { libc::poll(&raw mut watched, 1, 0) };
    (result >= 0).then_some(watched.revents)
}

/// The number of connections that wait in a listening socket's queue to be accepted. For such a socket, `unacked` is
/// this number.
pub(crate) fn accept_queue_len(listener: BorrowedFd<'_>) -> u32 {
    tcp_info(listener).tcpi_unacked
}

/// Whether a TCP connection is over: closed on both sides, or reset.
pub(crate) fn is_over(socket: BorrowedFd<'_>) -> bool {
    const TCP_CLOSE: u8 = 7; // of the kernel's enum
    tcp_info(socket).tcpi_state == TCP_CLOSE
}

/// How many segments the kernel has had to send again on this connection.
pub(crate) fn retransmissions(socket: BorrowedFd<'_>) -> u32 {
    tcp_info(socket).tcpi_total_retrans
}

fn tcp_info(socket: BorrowedFd<'_>) -> libc::tcp_info {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or(0);
    // SAFETY: the kernel writes at most `len` bytes there.
    unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        );
    }
    // SAFETY: all zeroes is valid, and so is what the kernel writes.
    unsafe { info.assume_init() }
}

/// Reads the bytes that a non-blocking socket has received, up to the length of the buffer, without taking them from
/// the socket.
pub(crate) fn peek<'a>(socket: BorrowedFd<'_>, bytes: &'a mut [u8]) -> io::Result<&'a [u8]> {
    // SAFETY: the kernel writes at most that many bytes there.
    let count = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            bytes.as_mut_ptr().cast(),
            bytes.len(),
            // Another holder of a copy of the descriptor may have made it blocking.
            libc::MSG_PEEK | libc::MSG_DONTWAIT,
        )
    };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    Ok(&bytes[..count])
}

/// Reads up to `count` bytes of a file into the room behind `buffer`, if the kernel has them in its memory. Never waits
/// for a disk: then it fails. It may also fail, or give nothing, for other reasons (old kernels, some file systems),
/// so only bytes mean anything. The file's own position is neither used nor changed.
pub(crate) fn read_at_once(
    file: BorrowedFd<'_>,
    offset: u64,
    count: usize,
    buffer: &mut BytesMut,
) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    buffer.reserve(count);
    let room = libc::iovec {
        iov_base: buffer.spare_capacity_mut().as_mut_ptr().cast(),
        iov_len: count,
    };
    // SAFETY: the kernel writes at most `count` bytes there, which are reserved.
    let read = unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            &raw const room,
            1,
            offset,
            libc::RWF_NOWAIT,
        )
    };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has written so many bytes behind the present end.
    unsafe { buffer.set_len(buffer.len() + read) };
    Ok(read)
}

/// Whether a descriptor with this number is open.
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: no pointers; the call refuses a number that is not a descriptor.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// The flags with which a descriptor was opened: `F_GETFL`.
pub(crate) fn open_flags(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: no pointers.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) } {
        flags if flags >= 0 => Ok(flags),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The process that has connected by a Unix socket: `SO_PEERCRED`.
pub(crate) fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<libc::ucred> {
    let mut found = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or(0);
    // SAFETY: the kernel writes at most `len` bytes there, and all numbers are valid.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut len,
        )
    };
    match result {
        0 => Ok(found),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The number of bytes that a socket has received and that have not been read.
pub(crate) fn unread(socket: BorrowedFd<'_>) -> u32 {
    queued(socket, libc::FIONREAD)
}

/// The number of bytes that the peer's kernel has not acknowledged. A FIN that is not acknowledged counts as 1 (Linux:
/// `write_seq - snd_una`).
pub(crate) fn unacked(socket: BorrowedFd<'_>) -> u32 {
    queued(socket, libc::TIOCOUTQ)
}

fn queued(socket: BorrowedFd<'_>, which: libc::Ioctl) -> u32 {
    let mut count: libc::c_int = 0;
    // SAFETY: the kernel writes an int there.
    unsafe { libc::ioctl(socket.as_raw_fd(), which, &raw mut count) };
    u32::try_from(count).unwrap_or(0)
}

/// Runs `f` on a descriptor known by its number.
///
/// The caller keeps the descriptor open during the call (a connection leaves the registry, under the registry's lock,
/// before its socket is closed).
pub(crate) fn with_fd<T>(fd: RawFd, f: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
    // SAFETY: the descriptor is open until `f` has returned: see above.
    f(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// A copy of a descriptor that is known by its number, and may not be open. The copy is close-on-exec.
pub(crate) fn copy_of(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the kernel checks the number.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Takes a descriptor that this process was started with, for itself alone. `None` if it is not open.
pub(crate) fn take_inherited(fd: RawFd) -> Option<OwnedFd> {
    is_open(fd).then(|| {
        close_on_exec(fd);
        // SAFETY: it is open, and nobody else in this process knows it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    })
}

/// A descriptor that tells of a process's end: it is readable then.
pub(crate) fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers. The descriptor is close-on-exec.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a program that is executed has this descriptor, too.
pub(crate) fn outlives_exec(fd: RawFd) -> bool {
    // SAFETY: no pointers; the kernel checks the number.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

/// A copy of standard error. Without one it is /dev/null: a closed descriptor, or one that only this process has, got
/// its number by chance.
pub(crate) fn standard_error() -> io::Result<OwnedFd> {
    if outlives_exec(libc::STDERR_FILENO) {
        copy_of(libc::STDERR_FILENO)
    } else {
        null()
    }
}

/// `/dev/null`, for reading and writing.
pub(crate) fn null() -> io::Result<OwnedFd> {
    let opened = File::options().read(true).write(true).open("/dev/null")?;
    Ok(opened.into())
}

/// Device and number of a file, by its descriptor.
pub(crate) fn identity(fd: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let facts = nix::sys::stat::fstat(fd)?;
    Ok((facts.st_dev, facts.st_ino))
}

/// Puts another file in the place of standard error.
pub(crate) fn replace_stderr(with: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers. The copy stays open at an exec.
    match unsafe { libc::dup2(with.as_raw_fd(), libc::STDERR_FILENO) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Overwrites bytes that are secret. The compiler does not leave it out.
pub(crate) fn wipe(bytes: &mut [u8]) {
    for byte in bytes {
        // SAFETY: the byte is ours to write.
        unsafe { std::ptr::write_volatile(byte, 0) };
    }
}

/// Makes a descriptor close-on-exec that is known by its number, and may not be open.
pub(crate) fn close_on_exec(fd: RawFd) {
    // SAFETY: no pointers; the kernel checks the number.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Removes variables from the environment of this process. Other threads of the host should not use the environment
/// meanwhile, unless they do so by std.
pub(crate) fn remove_variables(names: &[&str]) {
    for name in names {
        // SAFETY: callers of the library are told that the variables go at the first call that may listen, and what
        // that means for other threads (`Listener::bind`).
        unsafe { std::env::remove_var(name) };
    }
}

/// Takes the exclusive lock of `flock(2)`, if nobody has one on this file. Says whether it was free.
pub(crate) fn try_lock(file: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: no pointers.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(true),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
    }
}

/// Gives the lock back. It belongs to the open file: whoever has a copy of the descriptor has it no more either.
pub(crate) fn unlock(file: BorrowedFd<'_>) {
    // SAFETY: no pointers; an error leaves the lock to the end of the open file.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) };
}

/// Closes a descriptor and returns the result, which a drop does not tell.
pub(crate) fn close(fd: OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor was ours alone and is not used again.
    match unsafe { libc::close(fd.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until a thread has ended, including its thread-local destructors, which are the host's. Waits at most until
/// the deadline; after that the thread is left behind. Returns whether the thread has ended.
pub(crate) fn join_until(thread: JoinHandle<()>, deadline: Instant) -> bool {
    // The kernel's deadline is on a clock that can be set, so we wait in short slices.
    const SLICE: Duration = Duration::from_millis(100);
    let thread = thread.into_pthread_t();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let until = SystemTime::now() + left.min(SLICE);
        let until = until.duration_since(UNIX_EPOCH).unwrap_or_default();
        let until = libc::timespec {
            tv_sec: libc::time_t::try_from(until.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: until.subsec_nanos().into(),
        };
        // SAFETY: the handle was ours alone, and the thread is neither joined nor detached yet.
        let error =
            unsafe { libc::pthread_timedjoin_np(thread, std::ptr::null_mut(), &raw const until) };
        if error == 0 {
            return true;
        }
        if error != libc::ETIMEDOUT || left.is_zero() {
            // SAFETY: as above; the thread's handle is not used again.
            unsafe { libc::pthread_detach(thread) };
            return false;
        }
    }
}

/// Arranges that `child` is called in the child of every later fork.
pub(crate) fn at_fork(child: extern "C" fn()) -> io::Result<()> {
    // SAFETY: a plain function that lives as long as the library, which is linked to stay loaded.
    match unsafe { libc::pthread_atfork(None, None, Some(child)) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// A signal that is caught at times, and its earlier action. The fields are atomics, because the signal handler reads
/// them.
#[derive(Debug)]
pub(crate) struct Signal {
    number: libc::c_int,
    old_handler: AtomicUsize,
    old_flags: AtomicI32,
    /// Which signals the old handler blocks: the lowest bit is signal 1.
    old_mask: AtomicU64,
}

impl Signal {
    pub(crate) const fn new(number: libc::c_int) -> Self {
        Self {
            number,
            old_handler: AtomicUsize::new(libc::SIG_DFL),
            old_flags: AtomicI32::new(0),
            old_mask: AtomicU64::new(0),
        }
    }

    pub(crate) fn number(&self) -> libc::c_int {
        self.number
    }

    /// Whether the signal does what it does by default.
    pub(crate) fn is_default(&self) -> io::Result<bool> {
        Ok(self.action()?.sa_sigaction == libc::SIG_DFL)
    }

    /// Whether the signal is ignored.
    pub(crate) fn is_ignored(&self) -> io::Result<bool> {
        Ok(self.action()?.sa_sigaction == libc::SIG_IGN)
    }

    /// Installs `handler`, which may do only what is async-signal-safe. The host's system calls go on (`SA_RESTART`).
    /// If a thread has a stack for signals, the handler runs on it (`SA_ONSTACK`), because some hosts' threads (Go's)
    /// have no room for a handler on their own stack.
    pub(crate) fn catch(&self, handler: extern "C" fn(libc::c_int)) -> io::Result<()> {
        // The earlier action is kept before the handler can run, even in a child that is forked at this time.
        self.keep(&self.action()?);
        let mut new = no_action();
        new.sa_sigaction = handler as *const () as libc::sighandler_t;
        new.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        self.install(&new)
    }

    /// Restores the action that [`Signal::catch`] replaced. Async-signal-safe.
    pub(crate) fn restore(&self) {
        let mut old = no_action();
        old.sa_sigaction = self.old_handler.load(Ordering::Relaxed);
        old.sa_flags = self.old_flags.load(Ordering::Relaxed);
        let mask = self.old_mask.load(Ordering::Relaxed);
        for (bit, signal) in (1..=64).enumerate() {
            if mask & (1 << bit) != 0 {
                // SAFETY: the set is initialised; the call refuses a number that is not a signal.
                unsafe { libc::sigaddset(&raw mut old.sa_mask, signal) };
            }
        }
        let _ = self.install(&old);
    }

    /// Sends the signal to this process. Async-signal-safe.
    pub(crate) fn send_to_self(&self) {
        // SAFETY: neither call takes a pointer.
        unsafe { libc::kill(libc::getpid(), self.number) };
    }

    fn action(&self) -> io::Result<libc::sigaction> {
        let mut action = no_action();
        // SAFETY: the kernel writes a whole struct there.
        match unsafe { libc::sigaction(self.number, std::ptr::null(), &raw mut action) } {
            0 => Ok(action),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn keep(&self, old: &libc::sigaction) {
        // SAFETY: the set is initialised.
        let blocks = |signal| unsafe { libc::sigismember(&raw const old.sa_mask, signal) } == 1;
        let bits = (1..=64).enumerate().filter(|(_, signal)| blocks(*signal));
        let mask = bits.fold(0, |mask, (bit, _)| mask | 1 << bit);
        self.old_handler.store(old.sa_sigaction, Ordering::Relaxed);
        self.old_flags.store(old.sa_flags, Ordering::Relaxed);
        self.old_mask.store(mask, Ordering::Relaxed);
    }

    fn install(&self, action: &libc::sigaction) -> io::Result<()> {
        // SAFETY: the struct is initialised; its handler is ours, which has the right type, or came from the kernel.
        match unsafe { libc::sigaction(self.number, action, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The default action, an empty mask, no flags.
fn no_action() -> libc::sigaction {
    // SAFETY: all zeroes is that.
    unsafe { std::mem::zeroed() }
}
