//! Why a thread's last failing call has failed, as text.

use std::cell::UnsafeCell;
use std::ffi::c_char;
use std::fmt::{self, Write};

/// With the NUL.
const SIZE: usize = 512;

thread_local! {
    /// Without a destructor: it is there until the thread's very end, when other locals are gone. Nothing is allocated.
    static TEXT: UnsafeCell<[u8; SIZE]> = const { UnsafeCell::new([0; SIZE]) };
}

/// Keeps it for [`text`], cut to what fits.
pub(super) fn set(why: &impl fmt::Display) {
    TEXT.with(|text| {
        // SAFETY: it is this thread's own, and what `why` does is format: it calls nothing that comes here.
        let room = unsafe { &mut *text.get() };
        let mut cut = Cut { room, len: 0 };
        // What does not fit is left out.
        let _ = write!(cut, "{why:#}");
        let Cut { room, len } = cut;
        room[len] = 0;
    });
}

/// NUL-terminated; empty if no call has failed.
pub(super) fn text() -> *const c_char {
    TEXT.with(|text| text.get().cast_const().cast())
}

/// A text in the making.
struct Cut<'a> {
    room: &'a mut [u8; SIZE],
    len: usize,
}

impl Write for Cut<'_> {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        // A NUL within would end it early.
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
