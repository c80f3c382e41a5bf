//! Why a thread's last failing call has failed, as text.

use std::cell::UnsafeCell;
use std::ffi::c_char;
use std::fmt::{self, Write};

/// The size of the text in bytes, including the NUL.
const SIZE: usize = 512;

thread_local! {
    /// The text has no destructor, so it exists until the very end of the thread, when other locals are gone. Nothing
    /// is allocated.
    static TEXT: UnsafeCell<[u8; SIZE]> = const { UnsafeCell::new([0; SIZE]) };
}

/// Keeps the reason for [`text`], cut to what fits.
pub(super) fn set(why: &impl fmt::Display) {
    TEXT.with(|text| {
        // SAFETY: the text belongs to this thread, and `why` only formats: it calls nothing that comes here.
        let room = unsafe { &mut *text.get() };
        let mut cut = Cut { room, len: 0 };
        // The part that does not fit is left out.
        let _ = write!(cut, "{why:#}");
        let Cut { room, len } = cut;
        room[len] = 0;
    });
}

/// The last reason, NUL-terminated; empty if no call has failed.
pub(super) fn text() -> *const c_char {
    TEXT.with(|text| text.get().cast_const().cast())
}

/// A text that is being written.
struct Cut<'a> {
    room: &'a mut [u8; SIZE],
    len: usize,
}

impl Write for Cut<'_> {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        // A NUL inside would end the text early.
        let more = more.split('\0').next().unwrap_or("");
        let mut count = more.len().min(SIZE - 1 - self.len);
        while !more.is_char_boundary(count) {
            count -= 1;
        }
        let end = self.len + count;
        self.room[self.len..end].copy_from_slice(&more.as_bytes()[..count]);
        self.len = end;
        if count < more.len() {
            return Err(fmt::Error);
        }
        Ok(())
    }
}
