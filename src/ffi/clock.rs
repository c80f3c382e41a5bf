//! `httpdown_clock`: the mock clock.

use std::ffi::c_int;
use std::time::Duration;

use crate::MockClock;
use crate::process;

use super::boundary::{borrow, duration_or, output, status};

/// A clock for tests. Its time stands still until you move it, so a test of a stop need not wait for timeouts. Any
/// thread may use the clock, several at once.
pub struct httpdown_clock {
    pub(super) clock: MockClock,
}

/// Makes a clock whose time is zero, for the option `clock` of one server or several.
///
/// Returns OK, INVALID_ARGUMENT, FORKED. You own the clock; free it with httpdown_clock_free.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_clock_new_mock(clock: *mut *mut httpdown_clock) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or writable.
        let clock = unsafe { output(clock, "clock")? };
        clock.write(Box::into_raw(Box::new(httpdown_clock {
            clock: MockClock::new(),
        })));
        Ok(())
    })
}

/// Moves the clock's time forward by `ms` milliseconds, and fires the timers that are due by then. Does not wait for
/// the effects of these timers.
///
/// Returns OK, INVALID_ARGUMENT, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_clock_advance(clock: *const httpdown_clock, ms: u64) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a clock.
        let clock = unsafe { borrow(clock, "clock")? };
        clock.clock.advance(Duration::from_millis(ms));
        Ok(())
    })
}

/// Blocks until at least `count` timers are set, that is: until the server waits for its clock. `timeout_ms` is in real
/// time. A server with statistics always has one timer set, for the counts that come once a minute.
///
/// Returns OK, INVALID_ARGUMENT, WOULD_BLOCK (at the timeout), FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_clock_wait_for_timers(
    clock: *const httpdown_clock,
    count: usize,
    timeout_ms: u32,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a clock.
        let clock = unsafe { borrow(clock, "clock")? };
        let timeout = duration_or(timeout_ms, Duration::ZERO);
        clock.clock.wait_for_timers(count, timeout)
    })
}

/// Frees a clock. A server that uses the clock keeps its own reference. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_clock_free(clock: *mut httpdown_clock) {
    if !clock.is_null() && !process::forked() {
        // SAFETY: it came from httpdown_clock_new_mock, and is freed once.
        drop(unsafe { Box::from_raw(clock) });
    }
}
