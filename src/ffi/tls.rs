//! TLS: its settings, and what a handler can ask.

use std::ffi::{c_char, c_int};
use std::mem::offset_of;

use super::boundary::{Sized, borrow, explained, room};
use super::request::{httpdown_request, see};
use super::server::httpdown_server;
use super::types::{httpdown_tls, httpdown_tls_info};

// SAFETY: zero is valid in each field, and the size comes first.
unsafe impl Sized for httpdown_tls {
    const LEAST: usize = offset_of!(httpdown_tls, cert);
}

// SAFETY: as above.
unsafe impl Sized for httpdown_tls_info {
    const LEAST: usize = offset_of!(httpdown_tls_info, cipher_suite);
}

/// From now on, new connections get these certificates and keys, and these checks of clients; open connections keep
/// theirs. All of it is checked first, and changes together or not at all: if the call fails, nothing has changed.
/// `handshake_timeout_ms` and `handshakes` stay as they were when the server began. So do ticket keys, unless `tls`
/// brings some. `error` (may be NULL) gets the reason as text, like in httpdown_serve. Any thread may make this call,
/// but not a signal handler. It blocks only to read the files.
///
/// If `tls` is NULL, the files of the settings that the server has are read again, because they were renewed in their
/// places. What is in memory stays as it is. The log then says what came of it, too. The option `reload_on_hup` has
/// httpdown_run do this on SIGHUP.
///
/// Returns OK, TLS (something cannot be used), INVALID_ARGUMENT, IO or PERMISSION_DENIED (a file cannot be read),
/// OUT_OF_RESOURCES, UNSUPPORTED (the server does not speak TLS; `tls` is NULL, and there are no files), FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_tls_reload(
    server: *const httpdown_server,
    tls: *const httpdown_tls,
    error: *mut c_char,
    error_size: usize,
) -> c_int {
    // SAFETY: the header's preface: NULL or a buffer of that size.
    let error = unsafe { room(error, error_size, "error") };
    explained(error, || {
        // SAFETY: the header's preface: a server.
        let server = unsafe { borrow(server, "server")? };
        // SAFETY: the header's preface: NULL or TLS settings.
        unsafe { reload(server, tls) }
    })
}

/// Writes into `*info` what the TLS handshake of the request's connection has agreed on. Set `info->struct_size` before
/// the call. What it points to is borrowed as long as the request lives. Never blocks.
///
/// Returns OK; NOT_FOUND if the connection has no TLS; INVALID_ARGUMENT, ALREADY_REPLIED, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_request_tls(
    request: *const httpdown_request,
    info: *mut httpdown_tls_info,
) -> c_int {
    super::boundary::status_of_several(|| {
        // SAFETY: the header's preface.
        let (_, request) = unsafe { see(request)? };
        // SAFETY: the header's preface: NULL or a struct.
        unsafe { give_info(request, info) }
    })
}

#[cfg(not(feature = "tls"))]
mod absent {
    use crate::ffi::types::httpdown_status::{self, HTTPDOWN_STATUS_NOT_FOUND};
    use crate::{Builder, Error, Result};

    use super::{httpdown_request, httpdown_server, httpdown_tls, httpdown_tls_info};

    fn unsupported() -> Error {
        Error::Unsupported("this build of httpdown has no TLS".into())
    }

    /// # Safety
    /// None is needed: TLS has it.
    pub(in crate::ffi) unsafe fn set(
        builder: Builder,
        tls: *const httpdown_tls,
    ) -> Result<Builder> {
        if tls.is_null() {
            return Ok(builder);
        }
        Err(unsupported())
    }

    /// # Safety
    /// As above.
    pub(super) unsafe fn reload(_: &httpdown_server, _: *const httpdown_tls) -> Result<()> {
        Err(unsupported())
    }

    /// # Safety
    /// As above.
    #[allow(clippy::unnecessary_wraps, reason = "with TLS, it may fail")]
    pub(super) unsafe fn give_info(
        _: &httpdown_request,
        _: *mut httpdown_tls_info,
    ) -> Result<httpdown_status> {
        Ok(HTTPDOWN_STATUS_NOT_FOUND)
    }
}

#[cfg(not(feature = "tls"))]
pub(super) use absent::set;
#[cfg(not(feature = "tls"))]
use absent::{give_info, reload};

#[cfg(feature = "tls")]
pub(super) use super::tls_settings::set;
#[cfg(feature = "tls")]
use super::tls_settings::{give_info, reload};
