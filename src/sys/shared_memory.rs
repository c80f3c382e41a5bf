//! Counters that another process can read, also after this one has ended.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Makes counters that are 0, and the descriptor by which [`read`] finds them. They are there until the process ends.
pub(crate) fn counters<const N: usize>() -> io::Result<(&'static [AtomicU64; N], OwnedFd)> {
    let name = c"httpdown";
    // Linux 6.3 and later want to be told that this is no program, and can be set up to refuse other files.
    let no_program = MFdFlags::from_bits_retain(libc::MFD_CLOEXEC | libc::MFD_NOEXEC_SEAL);
    let fd = match memfd_create(name, no_program) {
        Err(Errno::EINVAL) => memfd_create(name, MFdFlags::MFD_CLOEXEC),
        made => made,
    }?;
    let size = size_of::<[AtomicU64; N]>();
    let file = File::from(fd);
    file.set_len(size as u64)?;
    // SAFETY: a new mapping, at a place that the kernel chooses.
    let at = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(
            ptr::null_mut(),
            size,
            protection,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping has this size, begins with a page, and stays. The file does not get shorter: only this
    // function changes its size. All zeroes are such numbers.
    let counters = unsafe { &*at.cast::<[AtomicU64; N]>() };
    Ok((counters, file.into()))
}

/// Reads the counters of another process.
pub(crate) fn read<const N: usize>(fd: BorrowedFd<'_>) -> io::Result<[u64; N]> {
    let file = File::from(fd.try_clone_to_owned()?);
    let mut values = [0; N];
    for (value, at) in values.iter_mut().zip((0..).step_by(size_of::<u64>())) {
        let mut bytes = [0; size_of::<u64>()];
        file.read_exact_at(&mut bytes, at)?;
        *value = u64::from_ne_bytes(bytes);
    }
    Ok(values)
}
