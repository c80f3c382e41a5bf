//! `httpdown_clock`: the mock clock.

use std::ffi::c_int;
use std::time::Duration;

use crate::MockClock;
use crate::process;

use super::boundary::{borrow, duration_or, output, status};

/// A clock that stands still until it is moved, to test a stop without waiting for its timeouts. Any thread may use
/// it, several at once.
pub struct httpdown_clock {
    pub(super) clock: MockClock,
}

/// Makes a clock that stands at zero, for the option `clock` of one server or several.
///
/// Returns OK, INVALID_ARGUMENT, FORKED. The clock is yours: httpdown_clock_free.
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

/// Moves the time on by `ms` milliseconds, and fires the timers that are due by then. Does not wait for what they set
/// off.
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

/// Blocks until at least `count` timers are set, that is: until the server waits for its clock. `timeout_ms` is real
/// time. A server with statistics always has one timer set, for the counts of every minute.
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

/// Frees a clock. A server that uses it keeps what it needs. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_clock_free(clock: *mut httpdown_clock) {
    if !clock.is_null() && !process::forked() {
        // SAFETY: it came from httpdown_clock_new_mock, and is freed once.
        drop(unsafe { Box::from_raw(clock) });
    }
}
