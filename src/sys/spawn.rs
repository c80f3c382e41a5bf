//! Starting a program, so that its environment has its own process ID, and so that it does not matter how large this
//! process is (ADR 0029). Neither std nor `posix_spawn(3)` does the first.
//!
//! The child begins on a stack of its own, in our memory, while the calling thread is suspended (`vfork(2)`). Until it
//! executes the program it makes system calls, and writes where nobody else reads or writes. It allocates nothing, and
//! takes no lock.

use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use super::{
    PTHREAD_CANCEL_DISABLE, identity, no_action, null, outlives_exec, poll_now, set_cancel_state,
    with_fd,
};

/// The first descriptor that a program is given, behind its standard ones.
const FIRST: RawFd = 3;
/// What the child needs is far less, even without optimization.
const STACK: usize = 128 << 10;
/// Larger than any page.
const GUARD: usize = 64 << 10;
/// Where the kernel does not close a range of descriptors (before Linux 5.9), those up to this number are closed.
const MOST_CLOSED: RawFd = 1 << 16;
/// A process ID has at most ten digits. The zero behind them ends the text.
const DIGITS: usize = 11;

/// What is to be started, and how.
#[derive(Debug)]
pub(crate) struct Spawn<'a> {
    pub(crate) program: &'a CStr,
    pub(crate) args: &'a [CString],
    pub(crate) env: Env,
    /// The working directory; `None`: that of this process.
    pub(crate) dir: Option<&'a CStr>,
    /// The descriptors that the program has from 3 on.
    pub(crate) fds: &'a [BorrowedFd<'a>],
    /// Its standard error; `None`: that of this process. What this process lacks of 0 to 2 is `/dev/null`.
    pub(crate) stderr: Option<BorrowedFd<'a>>,
    /// Leaves it all other descriptors of this process that are not close-on-exec. None of them may have a number of
    /// `fds`.
    pub(crate) keep_fds: bool,
    /// The program becomes a child of our parent.
    pub(crate) sibling: bool,
}

/// The environment of a program.
#[derive(Debug, Default)]
pub(crate) struct Env {
    plain: Vec<CString>,
    /// Entries that end with the program's process ID, and where that begins.
    with_pid: Vec<(Vec<u8>, usize)>,
}

impl Env {
    /// Adds `NAME=VALUE`.
    pub(crate) fn add(&mut self, entry: CString) {
        self.plain.push(entry);
    }

    /// Adds an entry that consists of this text and the program's process ID.
    pub(crate) fn add_pid(&mut self, text: &CStr) {
        let mut entry = text.to_bytes().to_vec();
        let digits = entry.len();
        entry.resize(digits + DIGITS, 0);
        self.with_pid.push((entry, digits));
    }
}

#[cfg(test)]
impl Env {
    /// What the program would see if this were its process ID.
    pub(crate) fn texts(mut self, pid: u64) -> Vec<String> {
        for (entry, at) in &mut self.with_pid {
            write_digits(pid, entry[*at..].as_mut_ptr());
        }
        let with_pid = self.with_pid.iter();
        let with_pid =
            with_pid.map(|(entry, _)| CStr::from_bytes_until_nul(entry).unwrap_or_default());
        let all = self.plain.iter().map(CString::as_c_str).chain(with_pid);
        all.map(|entry| entry.to_string_lossy().into_owned())
            .collect()
    }
}

/// Why a program was not started.
#[derive(Debug)]
pub(crate) struct NotSpawned {
    /// What has failed, in words that a path may follow.
    pub(crate) what: &'static str,
    /// The directory, if it is about that.
    pub(crate) dir: Option<CString>,
    pub(crate) why: io::Error,
    /// The program is there, but not what it needs to run.
    pub(crate) is_there: bool,
}

impl fmt::Display for NotSpawned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        if let Some(dir) = &self.dir {
            write!(f, " {}", dir.to_string_lossy())?;
        }
        write!(f, ": {}", self.why)?;
        if self.is_there {
            f.write_str(": the file is there, but not its interpreter (\"#!\"), or the loader that it names")?;
        }
        Ok(())
    }
}

/// The steps of the child that can fail.
const CHANGE_DIR: i32 = 1;
const COPY: i32 = 2;
const EXECUTE: i32 = 3;

fn step(step: i32) -> &'static str {
    match step {
        CHANGE_DIR => "changing to the directory",
        COPY => "giving descriptors their numbers",
        _ => "executing the program",
    }
}

/// What the child works with. All of it is prepared; the pointers are valid until the child has executed the program.
struct Plan {
    program: *const libc::c_char,
    args: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    /// Where the process ID is to be written: [`DIGITS`] bytes each.
    digits: Vec<*mut u8>,
    dir: *const libc::c_char,
    /// Which descriptor gets which number. The first of each pair is larger than all of the second.
    copies: Vec<(RawFd, RawFd)>,
    /// Descriptors from this one on are closed.
    close_from: Option<RawFd>,
    failed_step: AtomicI32,
    errno: AtomicI32,
}

/// Starts the program. Returns when it is executed, or cannot be. So it blocks as long as the file system takes to open
/// the program.
///
/// # Errors
/// The system has no room for the copies of the descriptors, or for a process; there is no such directory, or no such
/// program, or it cannot be executed; a descriptor cannot be kept.
pub(crate) fn spawn(spawn: Spawn<'_>) -> Result<Child, NotSpawned> {
    let failed = |what| {
        move |why| NotSpawned {
            what,
            dir: None,
            why,
            is_there: false,
        }
    };
    let mut env = spawn.env;
    let count = RawFd::try_from(spawn.fds.len()).unwrap_or(RawFd::MAX - FIRST - 1);
    // The copies are above all numbers that will be given, so that none of them is overwritten before its turn.
    let end = FIRST + count;
    if spawn.keep_fds
        && let Some(number) = (FIRST..end).find(|&number| would_be_lost(number, spawn.fds))
    {
        return Err(failed("keeping descriptors")(in_the_way(number, end - 1)));
    }
    let targets = (FIRST..).zip(spawn.fds).map(|(to, from)| (*from, to));
    let stderr = spawn.stderr.iter();
    let targets = targets.chain(stderr.map(|from| (*from, libc::STDERR_FILENO)));
    // Without a standard descriptor, the program would get any file for it that it opens.
    let mut missing = (0..FIRST).filter(|&fd| !outlives_exec(fd)).peekable();
    let null = missing.peek().map(|_| null()).transpose();
    let null = null.map_err(failed("opening /dev/null"))?;
    let targets = missing
        .filter_map(|to| Some((null.as_ref()?.as_fd(), to)))
        .chain(targets);
    let copied = targets.map(|(from, to)| Ok((copy_above(from, end)?, to)));
    let copied: Vec<(OwnedFd, RawFd)> = copied
        .collect::<io::Result<_>>()
        .map_err(failed("copying descriptors"))?;
    let stack = Stack::new().map_err(failed("making a stack"))?;

    let terminated = |texts: &mut dyn Iterator<Item = *const libc::c_char>| {
        texts.chain([ptr::null()]).collect::<Vec<_>>()
    };
    let digits = env.with_pid.iter_mut();
    let digits = digits
        .map(|(entry, at)| entry[*at..].as_mut_ptr())
        .collect();
    let with_pid = env.with_pid.iter().map(|(entry, _)| entry.as_ptr().cast());
    let mut all = env.plain.iter().map(|entry| entry.as_ptr()).chain(with_pid);
    let plan = Plan {
        program: spawn.program.as_ptr(),
        args: terminated(&mut spawn.args.iter().map(|arg| arg.as_ptr())),
        env: terminated(&mut all),
        digits,
        dir: spawn.dir.map_or(ptr::null(), CStr::as_ptr),
        copies: copied
            .iter()
            .map(|(from, to)| (from.as_raw_fd(), *to))
            .collect(),
        close_from: (!spawn.keep_fds).then_some(end),
        failed_step: AtomicI32::new(0),
        errno: AtomicI32::new(0),
    };
    let child = start(&plan, &stack, spawn.sibling).map_err(failed("making a process"))?;
    match plan.failed_step.load(Ordering::Acquire) {
        0 => Ok(child),
        number => {
            // It has ended by itself.
            child.wait();
            let why = io::Error::from_raw_os_error(plan.errno.load(Ordering::Relaxed));
            let file = Path::new(OsStr::from_bytes(spawn.program.to_bytes()));
            let is_there =
                number == EXECUTE && why.kind() == io::ErrorKind::NotFound && file.exists();
            Err(NotSpawned {
                what: step(number),
                dir: spawn
                    .dir
                    .filter(|_| number == CHANGE_DIR)
                    .map(CStr::to_owned),
                why,
                is_there,
            })
        }
    }
}

/// Whether the program should have the descriptor with this number, and would not, because one of `fds` gets the number.
fn would_be_lost(number: RawFd, fds: &[BorrowedFd<'_>]) -> bool {
    if !outlives_exec(number) {
        return false;
    }
    let file = with_fd(number, identity).ok();
    // What is one of them is not lost.
    !fds.iter().any(|fd| identity(*fd).ok() == file)
}

fn in_the_way(number: RawFd, last: RawFd) -> io::Error {
    let file = fs::read_link(format!("/proc/self/fd/{number}"));
    let file = file.map_or_else(|_| "in use".into(), |file| file.display().to_string());
    io::Error::other(format!(
        "the sockets get the numbers from {FIRST} to {last}, and {number} is {file}: give that a higher number, or \
         make it close-on-exec"
    ))
}

/// A copy of a descriptor whose number is larger than `end`. It is close-on-exec.
fn copy_above(fd: BorrowedFd<'_>, end: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, end + 1) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Makes the child, and returns when it has executed its program or has ended.
fn start(plan: &Plan, stack: &Stack, sibling: bool) -> io::Result<Child> {
    let mut flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    if sibling {
        flags |= libc::CLONE_PARENT;
    }
    let mut pidfd: libc::c_int = -1;
    // Until it has its own actions, a signal to the child would run the host's handler, in our memory.
    let mask = set_mask(u64::MAX);
    let cancel = set_cancel_state(PTHREAD_CANCEL_DISABLE);
    // SAFETY: the stack is the child's alone. The plan lives until this call has returned, which it does when the child
    // needs neither any more. The kernel writes the descriptor to `pidfd`.
    let pid = unsafe {
        libc::clone(
            in_child,
            stack.top(),
            flags,
            ptr::from_ref(plan).cast_mut().cast(),
            &raw mut pidfd,
        )
    };
    let error = io::Error::last_os_error();
    set_cancel_state(cancel);
    set_mask(mask);
    if pid < 0 {
        return Err(error);
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child {
        pid,
        pidfd,
        sibling,
    })
}

/// The life of the child: never returns to our code.
extern "C" fn in_child(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the pointer is from `start`, whose thread waits.
    let plan = unsafe { &*plan.cast::<Plan>() };
    let failed = prepare(plan).err().unwrap_or_else(|| {
        // Last of all, because only now nothing is left that a signal must not interrupt.
        set_mask(0);
        // SAFETY: the program and the two lists end with a zero, and live.
        unsafe { libc::execve(plan.program, plan.args.as_ptr(), plan.env.as_ptr()) };
        EXECUTE
    });
    plan.errno.store(errno(), Ordering::Relaxed);
    plan.failed_step.store(failed, Ordering::Release);
    // SAFETY: ends the child at once: what the host runs at exit belongs to this process.
    unsafe { libc::_exit(127) }
}

/// All steps but the last. Fails with the number of a step.
fn prepare(plan: &Plan) -> Result<(), i32> {
    forget_handlers();
    // SAFETY: NULL, or a text that ends with a zero.
    if !plan.dir.is_null() && unsafe { libc::chdir(plan.dir) } != 0 {
        return Err(CHANGE_DIR);
    }
    for &(from, to) in &plan.copies {
        // SAFETY: no pointers. The numbers differ, so the copy is not close-on-exec.
        if unsafe { libc::dup2(from, to) } < 0 {
            return Err(COPY);
        }
    }
    if let Some(first) = plan.close_from {
        close_from(first);
    }
    // SAFETY: no pointers. Not getpid(3), which some versions of the C library answer from memory, which is ours.
    let pid = unsafe { libc::syscall(libc::SYS_getpid) };
    for &digits in &plan.digits {
        write_digits(pid.unsigned_abs(), digits);
    }
    Ok(())
}

/// Signals that are caught get their default action, because the handlers are not the program's. Those that are ignored
/// stay ignored, as always at an execve(2).
fn forget_handlers() {
    let default = no_action();
    for signal in 1..=64 {
        let mut action = no_action();
        // SAFETY: the structs are initialised. An error means that there is no such signal for us.
        unsafe {
            if libc::sigaction(signal, ptr::null(), &raw mut action) == 0
                && action.sa_sigaction != libc::SIG_DFL
                && action.sa_sigaction != libc::SIG_IGN
            {
                libc::sigaction(signal, &raw const default, ptr::null_mut());
            }
        }
    }
}

fn close_from(first: RawFd) {
    // SAFETY: no pointers. The table of descriptors is the child's own.
    if unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) } == 0 {
        return;
    }
    for fd in first..MOST_CLOSED {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}

/// Writes a number as text, at most ten digits. The place is filled with zeroes.
fn write_digits(number: u64, to: *mut u8) {
    let mut unit = 1;
    while number / unit >= 10 {
        unit *= 10;
    }
    for at in 0..DIGITS - 1 {
        if unit == 0 {
            return;
        }
        #[allow(clippy::cast_possible_truncation, reason = "less than ten")]
        let digit = b'0' + (number / unit % 10) as u8;
        // SAFETY: the place has so many bytes (`Env::add_pid`), and the thread whose they are waits.
        unsafe { to.add(at).write(digit) };
        unit /= 10;
    }
}

/// Sets which signals the calling thread blocks: the lowest bit is signal 1. Returns the earlier set. Unlike
/// `pthread_sigmask(3)`, this does not except the signals of the C library.
fn set_mask(mask: u64) -> u64 {
    let mut old = 0_u64;
    // SAFETY: the kernel reads and writes eight bytes.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            &raw mut old,
            size_of::<u64>(),
        );
    }
    old
}

fn errno() -> i32 {
    // SAFETY: the thread's own, which is that of the thread that waits.
    unsafe { *libc::__errno_location() }
}

/// The stack of the child, which grows down to a page that nobody may touch.
struct Stack(*mut libc::c_void);

impl Stack {
    const SIZE: usize = GUARD + STACK;

    fn new() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        // SAFETY: new memory, wherever there is room.
        let bottom =
            unsafe { libc::mmap(ptr::null_mut(), Self::SIZE, libc::PROT_NONE, flags, -1, 0) };
        if bottom == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self(bottom);
        let usable = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the upper part of that memory.
        match unsafe { libc::mprotect(bottom.byte_add(GUARD), STACK, usable) } {
            0 => Ok(stack),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn top(&self) -> *mut libc::c_void {
        // SAFETY: the end of that memory. It is a multiple of a page, so it is aligned.
        unsafe { self.0.byte_add(Self::SIZE) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: all of that memory, and nobody uses it any more.
        unsafe { libc::munmap(self.0, Self::SIZE) };
    }
}

/// A program that was started.
#[derive(Debug)]
pub(crate) struct Child {
    pid: libc::pid_t,
    /// Readable when the process has ended.
    pidfd: OwnedFd,
    sibling: bool,
}

impl Child {
    pub(crate) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// A descriptor that is readable when the process has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether the process has ended. It may not have been waited for.
    pub(crate) fn has_ended(&self) -> bool {
        poll_now(self.pidfd(), libc::POLLIN).is_some_and(|found| found & libc::POLLIN != 0)
    }

    /// Waits for the end, and leaves no zombie behind. `None` if the status is not ours to know: the process is our
    /// sibling, or the host has taken the status by waiting for any child.
    pub(crate) fn wait(&self) -> Option<ExitStatus> {
        if self.sibling {
            self.wait_readable();
            return None;
        }
        let id = self.pidfd.as_raw_fd().unsigned_abs();
        loop {
            // SAFETY: all zeroes is valid, and the kernel writes a whole struct.
            let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
            // SAFETY: as above.
            let result = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED) };
            if result == 0 {
                // SAFETY: waitid fills in these fields.
                let status = unsafe { info.si_status() };
                return Some(ExitStatus::from_raw(match info.si_code {
                    libc::CLD_EXITED => status << 8,
                    libc::CLD_DUMPED => status | 0x80,
                    _ => status,
                }));
            }
            if errno() != libc::EINTR {
                return None;
            }
        }
    }

    fn wait_readable(&self) {
        let mut watched = libc::pollfd {
            fd: self.pidfd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, which lives as long as the call.
        while unsafe { libc::poll(&raw mut watched, 1, -1) } < 0 && errno() == libc::EINTR {}
    }

    /// Ends the process (SIGKILL). An error means that it has ended already, or that a filter of system calls does not
    /// allow it.
    pub(crate) fn kill(&self) {
        let fd = self.pidfd.as_raw_fd();
        let nothing = ptr::null::<libc::siginfo_t>();
        // SAFETY: the kernel reads no struct if there is none.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, nothing, 0) };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

    use std::fs::File;
    use std::io::{PipeReader, PipeWriter, Read, pipe};
    use std::os::fd::AsFd;
    use std::os::unix::process::parent_id;
    use std::process;

    use super::*;

    fn text(text: &str) -> CString {
        CString::new(text).unwrap()
    }

    /// A shell that runs this script; and where it writes to, as its descriptor 3.
    struct Shell {
        args: Vec<CString>,
        out: (PipeReader, PipeWriter),
    }

    impl Shell {
        fn new(script: &str) -> Self {
            let args = ["sh", "-c", script].map(text);
            Self {
                args: args.to_vec(),
                out: pipe().unwrap(),
            }
        }

        /// Starts it, changed like this, and reads what it writes until nobody writes any more.
        fn run(self, change: impl FnOnce(&mut Spawn<'_>)) -> (Child, String) {
            self.run_with(&[], None, change)
        }

        /// With more descriptors, behind its 3.
        fn run_with(
            self,
            more: &[BorrowedFd<'_>],
            stderr: Option<BorrowedFd<'_>>,
            change: impl FnOnce(&mut Spawn<'_>),
        ) -> (Child, String) {
            let Self {
                args,
                out: (mut reader, writer),
            } = self;
            let mut env = Env::default();
            env.add(text("PATH=/usr/bin:/bin"));
            let fds = [&[writer.as_fd()], more].concat();
            let mut what = Spawn {
                program: c"/bin/sh",
                args: &args,
                env,
                dir: None,
                fds: &fds,
                stderr,
                keep_fds: false,
                sibling: false,
            };
            change(&mut what);
            let child = spawn(what).unwrap();
            drop(writer);
            let mut said = String::new();
            reader.read_to_string(&mut said).unwrap();
            (child, said)
        }
    }

    /// Why nothing was started.
    fn refusal(program: &CStr, dir: Option<&CStr>) -> (&'static str, Option<i32>) {
        let args = [text("it")];
        let not = spawn(Spawn {
            program,
            args: &args,
            env: Env::default(),
            dir,
            fds: &[],
            stderr: None,
            keep_fds: false,
            sibling: false,
        });
        let not = not.unwrap_err();
        (not.what, not.why.raw_os_error())
    }

    fn open_fds() -> usize {
        fs::read_dir("/proc/self/fd").unwrap().count()
    }

    fn maps() -> usize {
        fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .count()
    }

    /// How many children have ended, and were not waited for.
    fn zombies() -> usize {
        let own = process::id().to_string();
        let processes = fs::read_dir("/proc")
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let stats = processes.filter_map(|path| fs::read_to_string(path.join("stat")).ok());
        let is_ours = |stat: &String| {
            let behind_name = stat.rsplit_once(") ").unwrap().1;
            let mut fields = behind_name.split(' ');
            fields.next() == Some("Z") && fields.next() == Some(&*own)
        };
        stats.filter(is_ours).count()
    }

    #[test]
    fn its_environment_is_what_was_asked_for_and_knows_its_process() {
        let shell = Shell::new("echo $$ $PPID $LISTEN_PID $HTTPDOWN_RESTART >&3; env >&3; exit 7");
        let (child, said) = shell.run(|what| {
            what.env.add_pid(c"LISTEN_PID=");
            what.env.add_pid(c"HTTPDOWN_RESTART=4:");
        });
        let (pid, parent) = (child.pid(), process::id());
        let (first, env) = said.split_once('\n').unwrap();
        assert_eq!(first, format!("{pid} {parent} {pid} 4:{pid}"));
        assert!(!env.contains("CARGO"), "{env}");
        let status = child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(7), None));
        assert!(child.has_ended());
        assert!(child.wait().is_none(), "its status was taken");
    }

    #[test]
    fn digits_of_every_length_are_written() {
        for number in [
            0,
            7,
            10,
            99,
            100,
            4_194_304,
            999_999_999,
            2_147_483_647,
            4_294_967_295,
        ] {
            let mut place = [0; DIGITS];
            write_digits(number, place.as_mut_ptr());
            let written = CStr::from_bytes_until_nul(&place).unwrap();
            assert_eq!(written.to_str().unwrap(), number.to_string());
        }
    }

    #[test]
    fn caught_signals_do_their_default_ignored_ones_stay_so_and_none_is_blocked() {
        extern "C" fn caught(_: libc::c_int) {}
        let handler = caught as *const () as libc::sighandler_t;
        // SAFETY: nobody else here uses these signals; and the thread is the test's.
        unsafe {
            libc::signal(libc::SIGUSR1, handler);
            libc::signal(libc::SIGUSR2, libc::SIG_IGN);
        }
        let before = set_mask(1 << (libc::SIGWINCH - 1));
        let (child, said) = Shell::new("exec cat /proc/self/status >&3").run(|_| {});
        let here = set_mask(before);
        assert_eq!(here, 1 << (libc::SIGWINCH - 1), "as it was");
        assert!(child.wait().unwrap().success());
        let mask = |name: &str| {
            let line = said
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        let bit = |signal| 1_u64 << (signal - 1);
        assert_eq!((mask("SigBlk:"), mask("SigCgt:")), (0, 0));
        assert_ne!(mask("SigIgn:") & bit(libc::SIGUSR2), 0);
        assert_eq!(mask("SigIgn:") & bit(libc::SIGUSR1), 0);
        // SAFETY: as above.
        unsafe { assert_eq!(libc::signal(libc::SIGUSR1, libc::SIG_DFL), handler) };
    }

    #[test]
    fn it_has_the_descriptors_that_it_was_given_and_no_others() {
        let zero = File::open("/dev/zero").unwrap();
        // SAFETY: no pointers. Not close-on-exec.
        let leak = unsafe { libc::fcntl(zero.as_raw_fd(), libc::F_DUPFD, 60) };
        let script = "ls /proc/self/fd >&3; readlink /proc/self/fd/4 /proc/self/fd/2 >&3";
        for keep_fds in [false, true] {
            let null = File::open("/dev/null").unwrap();
            let shell = Shell::new(script);
            let (child, said) = shell.run_with(&[zero.as_fd()], Some(null.as_fd()), |what| {
                what.keep_fds = keep_fds;
            });
            child.wait();
            let mut lines: Vec<_> = said.lines().collect();
            assert_eq!(lines.split_off(lines.len() - 2), ["/dev/zero", "/dev/null"]);
            let leak = leak.to_string();
            if keep_fds {
                assert!(lines.contains(&&*leak), "{said}");
            } else {
                // The last one is the folder that ls reads.
                assert_eq!(lines, ["0", "1", "2", "3", "4", "5"]);
            }
        }
        // SAFETY: nobody else knows it.
        unsafe { libc::close(leak) };
    }

    #[test]
    fn its_directory_is_what_was_asked_for() {
        let (child, said) = Shell::new("pwd >&3").run(|what| what.dir = Some(c"/usr/bin"));
        child.wait();
        // On some systems, that is a link.
        let expected = fs::canonicalize("/usr/bin").unwrap();
        assert_eq!(fs::canonicalize(said.trim()).unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_started_says_why_and_leaves_nothing_behind() {
        let program = "executing the program";
        let dir = "changing to the directory";
        assert_eq!(refusal(c"/nowhere/it", None), (program, Some(libc::ENOENT)));
        assert_eq!(refusal(c"/etc/passwd", None), (program, Some(libc::EACCES)));
        assert_eq!(refusal(c"/usr", None), (program, Some(libc::EACCES)));
        assert_eq!(
            refusal(c"/bin/sh", Some(c"/nowhere")),
            (dir, Some(libc::ENOENT))
        );
        assert_eq!(
            refusal(c"/bin/sh", Some(c"/etc/passwd")),
            (dir, Some(libc::ENOTDIR))
        );
        let (fds, maps_before) = (open_fds(), maps());
        for _ in 0..300 {
            refusal(c"/nowhere/it", None);
        }
        // Other tests have some meanwhile.
        assert!(zombies() < 100, "{}", zombies());
        assert!(open_fds() < fds + 100, "{fds} before, {} now", open_fds());
        assert!(
            maps() < maps_before + 100,
            "{maps_before} before, {} now",
            maps()
        );
    }

    #[test]
    fn many_leave_nothing_behind() {
        let (fds, maps_before) = (open_fds(), maps());
        for _ in 0..300 {
            let (child, _) = Shell::new("exit 0").run(|_| {});
            assert!(child.wait().unwrap().success());
        }
        assert!(zombies() < 100, "{}", zombies());
        assert!(open_fds() < fds + 100, "{fds} before, {} now", open_fds());
        assert!(
            maps() < maps_before + 100,
            "{maps_before} before, {} now",
            maps()
        );
    }

    #[test]
    fn a_sibling_is_our_parents_child_and_its_end_is_seen() {
        let (child, said) = Shell::new("echo $PPID >&3; read line <&4").run(|what| {
            what.sibling = true;
            // There is no descriptor 4, so it ends at once.
        });
        assert_eq!(said.trim(), parent_id().to_string());
        assert!(child.wait().is_none());
        assert!(child.has_ended());
    }

    #[test]
    fn one_that_hangs_is_killed() {
        let (child, said) = Shell::new("echo goes >&3; exec 3>&-; exec sleep 100").run(|_| {});
        assert_eq!(said, "goes\n");
        assert!(!child.has_ended());
        child.kill();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        assert!(child.has_ended());
    }
}
