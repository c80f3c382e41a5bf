//! The conversions between C and Rust: panics, errors, pointers, buffers, caller-sized structs.

use std::ffi::{CStr, c_char, c_int};
use std::io::ErrorKind;
use std::mem::{MaybeUninit, size_of};
use std::time::{Duration, Instant};

use crate::contain::contain;
use crate::error::{Error, Result};
use crate::{process, sys};

use super::last_error;
use super::types::httpdown_status::{self, *};
use super::types::{HTTPDOWN_FOREVER, HTTPDOWN_NOW, httpdown_bytes};

/// The body of every function that returns a status.
pub(super) fn status(body: impl FnOnce() -> Result<()>) -> c_int {
    status_of_several(|| body().map(|()| HTTPDOWN_STATUS_OK))
}

/// Like `status`, for calls that have several ways to succeed.
pub(super) fn status_of_several(body: impl FnOnce() -> Result<httpdown_status>) -> c_int {
    if process::forked() {
        last_error::set(&Error::Forked);
        return HTTPDOWN_STATUS_FORKED as c_int;
    }
    status_anywhere(body)
}

/// Like `status`, for calls that must tidy up even in a forked child.
pub(super) fn status_in_child_too(body: impl FnOnce() -> Result<()>) -> c_int {
    status_anywhere(|| body().map(|()| HTTPDOWN_STATUS_OK))
}

/// Like `status_of_several`, for calls that also work in a forked child.
pub(super) fn status_anywhere(body: impl FnOnce() -> Result<httpdown_status>) -> c_int {
    let call = || {
        body().unwrap_or_else(|error| {
            last_error::set(&error);
            status_of(&error)
        })
    };
    let status = without_cancellation(|| contain(call)).unwrap_or_else(|| {
        last_error::set(&"a bug in httpdown");
        HTTPDOWN_STATUS_PANIC
    });
    status as c_int
}

/// Runs `f`. During `f` the calling thread cannot be cancelled (`pthread_cancel`), because that would unwind the thread
/// through our frames, where std aborts. A cancellation takes effect after `f` has returned, at the next cancellation
/// point. Async-signal-safe.
pub(super) fn without_cancellation<T>(f: impl FnOnce() -> T) -> T {
    /// Restores the earlier state, even if `f` panics.
    struct Before(c_int);
    impl Drop for Before {
        fn drop(&mut self) {
            sys::set_cancel_state(self.0);
        }
    }
    let _before = Before(sys::set_cancel_state(sys::PTHREAD_CANCEL_DISABLE));
    f()
}

/// The body of every function that returns a value. The result is `fallback` after a NULL argument, a fork or a panic.
/// Code that may reach a cancellation point runs in [`without_cancellation`].
pub(super) fn value<T: Copy>(fallback: T, body: impl FnOnce() -> Result<T>) -> T {
    if process::forked() {
        return fallback;
    }
    value_anywhere(fallback, body)
}

/// Like `value`, for calls that also work in a forked child.
pub(super) fn value_anywhere<T: Copy>(fallback: T, body: impl FnOnce() -> Result<T>) -> T {
    contain(|| body().unwrap_or(fallback)).unwrap_or(fallback)
}

/// Like `status`, and writes the reason of a failure into the caller's buffer.
pub(super) fn explained(
    buffer: Result<&mut [MaybeUninit<c_char>]>,
    body: impl FnOnce() -> Result<()>,
) -> c_int {
    let mut why = None;
    let code = status_in_child_too(|| {
        let result = body();
        why = result.as_ref().err().map(|error| format!("{error:#}"));
        result
    });
    if let Ok(buffer) = buffer {
        let fallback = || status_text(code).to_str().unwrap_or("").to_owned();
        write_text(
            buffer,
            &match code {
                0 => String::new(),
                _ => why.unwrap_or_else(fallback),
            },
        );
    }
    code
}

pub(super) fn status_of(error: &Error) -> httpdown_status {
    match error {
        Error::InvalidArgument(_) => HTTPDOWN_STATUS_INVALID_ARGUMENT,
        Error::Unsupported(_) => HTTPDOWN_STATUS_UNSUPPORTED,
        Error::Address(_) => HTTPDOWN_STATUS_ADDR_INVALID,
        Error::Io(_, error) => match error.kind() {
            ErrorKind::AddrInUse => HTTPDOWN_STATUS_ADDR_IN_USE,
            ErrorKind::PermissionDenied => HTTPDOWN_STATUS_PERMISSION_DENIED,
            _ => HTTPDOWN_STATUS_IO,
        },
        Error::OutOfResources(..) => HTTPDOWN_STATUS_OUT_OF_RESOURCES,
        Error::Killed(_) => HTTPDOWN_STATUS_KILLED,
        Error::TimedOut(_) => HTTPDOWN_STATUS_TIMED_OUT,
        Error::Stopped => HTTPDOWN_STATUS_STOPPED,
        Error::WouldDeadlock => HTTPDOWN_STATUS_WOULD_DEADLOCK,
        Error::AlreadyReplied => HTTPDOWN_STATUS_ALREADY_REPLIED,
        Error::WouldBlock => HTTPDOWN_STATUS_WOULD_BLOCK,
        Error::Gone => HTTPDOWN_STATUS_GONE,
        Error::TooLarge => HTTPDOWN_STATUS_TOO_LARGE,
        Error::BadBody => HTTPDOWN_STATUS_BAD_BODY,
        Error::TooSlow => HTTPDOWN_STATUS_TOO_SLOW,
        Error::Tls(_) => HTTPDOWN_STATUS_TLS,
        Error::RestartFailed(_) => HTTPDOWN_STATUS_RESTART_FAILED,
        Error::Busy(_) => HTTPDOWN_STATUS_BUSY,
        Error::Panicked => HTTPDOWN_STATUS_PANIC,
        Error::Forked => HTTPDOWN_STATUS_FORKED,
    }
}

/// A status as text: static.
pub(super) fn status_text(status: c_int) -> &'static CStr {
    match status {
        0 => c"ok",
        1 => c"invalid argument",
        2 => c"not supported by this version of httpdown",
        3 => c"invalid address",
        4 => c"address in use",
        5 => c"permission denied",
        6 => c"operating system error",
        7 => c"timed out: handlers were abandoned",
        8 => c"the server has stopped",
        9 => c"the call would wait for itself",
        10 => c"the request has been answered already",
        11 => c"out of resources",
        12 => c"the call would have to wait",
        13 => c"the client has left",
        14 => c"killed: requests were cut",
        15 => c"the server lives in the parent of this forked process",
        16 => c"longer than the limit",
        17 => c"not found",
        18 => c"the body of the request is malformed",
        19 => c"the TLS settings cannot be used",
        20 => c"the client is too slow",
        21 => c"the program could not be restarted",
        22 => c"busy",
        99 => c"a bug in httpdown",
        _ => c"unknown status",
    }
}

/// Borrows from a pointer that must not be NULL.
///
/// # Safety
/// If the pointer is not NULL, it is valid for `'a`, as the header says of the function's argument.
pub(super) unsafe fn borrow<'a, T>(pointer: *const T, name: &str) -> Result<&'a T> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(name))
}

/// The place for a result. The pointer must not be NULL.
///
/// # Safety
/// If the pointer is not NULL, it may be written to.
pub(super) unsafe fn output<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut MaybeUninit<T>> {
    // SAFETY: the caller's promise; MaybeUninit accepts any earlier content.
    unsafe { pointer.cast::<MaybeUninit<T>>().as_mut() }.ok_or_else(|| null(name))
}

/// An array; NULL is fine if it is empty.
///
/// # Safety
/// If `count` is not 0 and the pointer not NULL, there are `count` elements.
pub(super) unsafe fn slice<'a, T>(pointer: *const T, count: usize, name: &str) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(null(name));
    }
    if count > isize::MAX as usize / size_of::<T>() {
        return Err(Error::InvalidArgument(format!("{name}: absurd length")));
    }
    // SAFETY: not NULL, not longer than memory can be, and the caller promises the rest.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// Memory to be filled; NULL is fine if it is empty.
///
/// # Safety
/// If `count` is not 0 and the pointer not NULL, there is room for `count` elements.
pub(super) unsafe fn room<'a, T>(
    pointer: *mut T,
    count: usize,
    name: &str,
) -> Result<&'a mut [MaybeUninit<T>]> {
    // SAFETY: the same promise; checked in the same way.
    let memory = unsafe { slice(pointer.cast::<MaybeUninit<T>>().cast_const(), count, name)? };
    let start = memory.as_ptr().cast_mut();
    // SAFETY: checked above; the caller lets us write there, and nobody else reads the memory at this time.
    Ok(unsafe { std::slice::from_raw_parts_mut(start, memory.len()) })
}

/// A text; NULL is `None`.
///
/// # Safety
/// If the pointer is not NULL, the text is NUL-terminated.
pub(super) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer) }.to_bytes();
    // This check is quicker, and enough for ASCII.
    if text.is_ascii() {
        // SAFETY: ASCII is UTF-8.
        return Ok(Some(unsafe { std::str::from_utf8_unchecked(text) }));
    }
    str::from_utf8(text)
        .map(Some)
        .map_err(|_| Error::InvalidArgument(format!("{name} is not UTF-8")))
}

pub(super) fn null(name: &str) -> Error {
    Error::InvalidArgument(format!("{name} is NULL"))
}

impl httpdown_bytes {
    pub(super) const NONE: Self = Self {
        data: std::ptr::null(),
        len: 0,
    };

    pub(super) fn of(bytes: &[u8]) -> Self {
        Self {
            data: bytes.as_ptr().cast(),
            len: bytes.len(),
        }
    }

    /// # Safety
    /// If `len` is not 0 and `data` not NULL, there are `len` bytes.
    pub(super) unsafe fn as_slice<'a>(self, name: &str) -> Result<&'a [u8]> {
        // SAFETY: the same promise.
        unsafe { slice(self.data.cast(), self.len, name) }
    }
}

/// Writes a text into a caller's buffer, NUL-terminated. A text that is too long is cut between two characters.
pub(super) fn write_text(buffer: &mut [MaybeUninit<c_char>], text: &str) {
    let Some(room) = buffer.len().checked_sub(1) else {
        return;
    };
    // A NUL inside would end the text early.
    let text = text.split('\0').next().unwrap_or("");
    let mut end = room.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    for (to, from) in buffer.iter_mut().zip(&text.as_bytes()[..end]) {
        to.write(c_char::from_ne_bytes([*from]));
    }
    buffer[end].write(0);
}

/// Writes either all bytes and a NUL into a caller's buffer, or just the NUL. Writes the number of bytes into `len`.
pub(super) fn write_bytes(
    buffer: &mut [MaybeUninit<c_char>],
    len: &mut MaybeUninit<usize>,
    bytes: &[u8],
) -> Result<()> {
    len.write(bytes.len());
    let fits = bytes.len() < buffer.len();
    let bytes = if fits { bytes } else { &[] };
    for (to, from) in buffer.iter_mut().zip(bytes.iter().chain(&[0])) {
        to.write(c_char::from_ne_bytes([*from]));
    }
    if fits { Ok(()) } else { Err(Error::TooLarge) }
}

/// Makes a text for an array in a struct, like [`write_text`].
pub(super) fn text_array<const N: usize>(text: &str) -> [c_char; N] {
    let mut array = [MaybeUninit::new(0); N];
    write_text(&mut array, text);
    // Every element was initialised, with zero or with a byte of the text.
    // SAFETY: see above.
    array.map(|byte| unsafe { byte.assume_init() })
}

/// A caller's timeout as a duration; 0 is `default`.
pub(super) fn duration_or(ms: u32, default: Duration) -> Duration {
    match ms {
        0 => default,
        HTTPDOWN_NOW => Duration::ZERO,
        HTTPDOWN_FOREVER => Duration::MAX,
        ms => Duration::from_millis(ms.into()),
    }
}

/// The moment when a call with this timeout gives up.
pub(super) fn deadline(timeout_ms: u32) -> Option<Instant> {
    Instant::now().checked_add(duration_or(timeout_ms, Duration::ZERO))
}

/// A `#[repr(C)]` struct whose first field is its own size, a `usize`, and for which all zeroes is valid.
///
/// # Safety
/// Everything above must hold.
pub(super) unsafe trait Sized: Copy {
    /// The least size that makes sense.
    const LEAST: usize;
}

/// No struct has a larger size than this. A larger value is most likely a field that was not set.
const GREATEST: usize = 4096;

/// Reads a struct of the size that its caller knows. Fields that an older caller does not have become zero. Fields that
/// only a newer caller has must be zero; the second value tells whether they are.
///
/// # Safety
/// The pointer is NULL, or readable for the number of bytes that its first field says.
pub(super) unsafe fn read_sized<T: Sized>(
    pointer: *const T,
    name: &str,
) -> Result<(T, Result<()>)> {
    // SAFETY: at least the size is readable.
    let size = unsafe { size_of_callers(pointer, name)? };
    // SAFETY: that many bytes are readable, and callers initialise all of them: there is no padding.
    let bytes = unsafe { slice(pointer.cast::<u8>(), size, name)? };
    let (known, newer) = bytes.split_at(size.min(size_of::<T>()));
    let understood = if newer.iter().any(|byte| *byte != 0) {
        Err(Error::Unsupported(format!(
            "{name}: something is set that this version of httpdown does not know"
        )))
    } else {
        Ok(())
    };
    let mut copy = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` is not longer than `T`, and a local does not overlap it.
    unsafe { std::ptr::copy_nonoverlapping(known.as_ptr(), copy.as_mut_ptr().cast(), known.len()) };
    // SAFETY: zeroes are valid for `T`, and so is what a caller of any version puts there.
    Ok((unsafe { copy.assume_init() }, understood))
}

/// Writes the part of a struct that its caller knows, and writes zeroes where the caller's struct is longer.
///
/// # Safety
/// The pointer is NULL, or writable for the number of bytes that its first field says.
pub(super) unsafe fn write_sized<T: Sized>(pointer: *mut T, value: T, name: &str) -> Result<()> {
    // SAFETY: the same promise.
    let size = unsafe { size_of_callers(pointer, name)? };
    let known = size.min(size_of::<T>());
    let field = size_of::<usize>();
    let from = (&raw const value).cast::<u8>();
    let to = pointer.cast::<u8>();
    // SAFETY: both are at least `known` bytes long; the size itself stays as the caller set it.
    unsafe { std::ptr::copy_nonoverlapping(from.add(field), to.add(field), known - field) };
    // SAFETY: the caller says that there are `size` bytes.
    unsafe { to.add(known).write_bytes(0, size - known) };
    Ok(())
}

/// The size that a caller has set in its struct.
///
/// # Safety
/// The pointer is NULL, or its first field is readable.
pub(super) unsafe fn size_of_callers<T: Sized>(pointer: *const T, name: &str) -> Result<usize> {
    // SAFETY: the same promise.
    let size = *unsafe { borrow(pointer.cast::<usize>(), name)? };
    if size < T::LEAST || size > GREATEST {
        return Err(Error::InvalidArgument(format!(
            "{name}: struct_size is {size}; set it to sizeof the struct"
        )));
    }
    Ok(size)
}
