//! Answers that are files.

use std::ffi::{CStr, OsStr, c_char, c_int};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use http::HeaderMap;

use crate::content_type::content_type;
use crate::request::FileAnswer;
use crate::{Error, Result, sys};

use super::boundary::null;
use super::request::{end, httpdown_request, response};
use super::table::Entry;
use super::types::{HTTPDOWN_TO_END, httpdown_bytes, httpdown_header};

/// Answers with bytes of an open file, and ends the request, whatever this function returns: `length` bytes from
/// `offset` on, or all of them to the end with HTTPDOWN_TO_END. Does not wait for the client, nor for the disk; but on
/// a network file system, to ask for the file's size may take a while.
///
/// `fd` must be a regular file that is open for reading. The library takes it over, whatever this function returns: it
/// closes `fd` when it needs it no more, perhaps before it returns. If you want to keep the file open, give a copy
/// (dup(2)): the file's position is neither used nor changed.
///
/// The file is read in pieces of 64 KiB, when the client takes them, so the answer takes no more memory than any other.
/// The library sets Content-Length, to HEAD too. If the file becomes shorter meanwhile, or cannot be read, the client
/// sees the answer cut, the request counts as failed, and the log says why (statistic: file.error). So replace a file
/// by renaming another one to its name.
///
/// Returns as httpdown_reply. INVALID_ARGUMENT also means that `fd` is not such a file, or that it does not have all
/// these bytes; IO, that the file's size is not known. In these cases the client gets a 500.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_reply_fd(
    request: *mut httpdown_request,
    status_code: c_int,
    headers: *const httpdown_header,
    header_count: usize,
    fd: c_int,
    offset: u64,
    length: u64,
) -> c_int {
    // SAFETY: the caller gives the descriptor to us.
    let file = unsafe { take(fd) };
    // SAFETY: the header's preface.
    unsafe {
        answer(request, |_| {
            let head = response(status_code, headers, header_count)?;
            if length == HTTPDOWN_TO_END {
                return FileAnswer::of_bytes(head, file?, offset..);
            }
            let end = offset.checked_add(length);
            let end = end.ok_or_else(|| Error::InvalidArgument("no file is so long".into()))?;
            FileAnswer::of_bytes(head, file?, offset..end)
        })
    }
}

/// Answers a GET or HEAD with a file: all of it, or what the client asks for. Ends the request, whatever this function
/// returns. `headers` are sent, too. This function opens the file and looks at its metadata, which may take a while
/// where the disk is slow. Otherwise the file is sent as by httpdown_reply_fd.
///
/// The client gets
///
///   206 if it has asked for a part, or several (Range), and for this state of the file, if it says (If-Range);
///   304 if it has this state of the file (If-None-Match, If-Modified-Since);
///   403 if the file may not be read; 404 if there is no such file, or it is no regular file;
///   405 if the method is not GET or HEAD;
///   412 if it wants another state (If-Match, If-Unmodified-Since);
///   416 if the part that it has asked for lies behind the end;
///   200 otherwise.
///
/// All these are answers: then this function returns OK. To answer in another way if there is no file, open it, and
/// call httpdown_reply_open_file.
///
/// An ETag and Last-Modified are sent, unless `headers` have their own, which then are compared. The tag is made from
/// the file's size, its time of change (in nanoseconds) and its inode. It is a weak one as long as the last change is
/// less than 2 s old. The Content-Type is that of httpdown_content_type, unless `headers` have another. A Range of more
/// than 16 parts, or of more bytes than the file has, is ignored.
///
/// The path is NUL-terminated, need not be UTF-8, and is used as it is. Never make it from a request's target without a
/// check that it stays in its folder: the example files.c shows one.
///
/// Returns as httpdown_reply. INVALID_ARGUMENT also means that `headers` have a Content-Length or Content-Range, or an
/// ETag or Last-Modified that is malformed; IO and OUT_OF_RESOURCES, that the file cannot be opened for another reason.
/// In these cases the client gets a 500.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_reply_file(
    request: *mut httpdown_request,
    path: *const c_char,
    headers: *const httpdown_header,
    header_count: usize,
) -> c_int {
    // SAFETY: the header's preface.
    unsafe {
        answer(request, |entry| {
            let path = to_path(path)?;
            let request = entry.request().ok_or(Error::AlreadyReplied)?;
            FileAnswer::for_path(request.head(), path, fields(headers, header_count)?)
        })
    }
}

/// Like httpdown_reply_file, for a file that is open already. Its name is not known, so there is no Content-Type,
/// unless
/// `headers` have one. The library takes `fd` over, as in httpdown_reply_fd.
///
/// Returns as httpdown_reply_file. INVALID_ARGUMENT also means that `fd` is not a regular file that is open for
/// reading.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_reply_open_file(
    request: *mut httpdown_request,
    fd: c_int,
    headers: *const httpdown_header,
    header_count: usize,
) -> c_int {
    // SAFETY: the caller gives the descriptor to us.
    let file = unsafe { take(fd) };
    // SAFETY: the header's preface.
    unsafe {
        answer(request, |entry| {
            let request = entry.request().ok_or(Error::AlreadyReplied)?;
            FileAnswer::for_open(request.head(), file?, fields(headers, header_count)?)
        })
    }
}

/// Returns the content type of a file, by the extension of its name (NUL-terminated), in upper or lower case:
/// "text/html; charset=utf-8". The types are those that web sites mostly need; all other files are
/// "application/octet-stream". Text is taken for UTF-8. Only the name is looked at: the file need not exist. Static.
/// Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_content_type(path: *const c_char) -> httpdown_bytes {
    // SAFETY: the header's preface: NULL or NUL-terminated.
    let path = unsafe { to_path(path) };
    path.map_or(httpdown_bytes::NONE, |path| {
        httpdown_bytes::of(content_type(path).as_bytes())
    })
}

/// Ends a request with the answer that `make` makes.
///
/// # Safety
/// During the call, other threads use the request only where the header allows it.
unsafe fn answer(
    request: *mut httpdown_request,
    make: impl FnOnce(Entry) -> Result<FileAnswer>,
) -> c_int {
    // SAFETY: the same promise.
    unsafe {
        end(request, |entry, exchange| {
            let answer = make(entry)?;
            let request = entry.request().ok_or(Error::AlreadyReplied)?;
            exchange.try_reply_file(answer, &request.head().uri)
        })
    }
}

/// A descriptor that is ours from now on.
///
/// # Safety
/// If it is open, the caller gives it to us.
unsafe fn take(fd: c_int) -> Result<OwnedFd> {
    if !sys::is_open(fd) {
        return Err(Error::InvalidArgument(format!(
            "{fd} is not an open descriptor"
        )));
    }
    // SAFETY: it is open, and nobody else uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// NULL or NUL-terminated.
unsafe fn to_path<'a>(path: *const c_char) -> Result<&'a Path> {
    if path.is_null() {
        return Err(null("path"));
    }
    // SAFETY: the caller's promise.
    let path = unsafe { CStr::from_ptr(path) };
    Ok(Path::new(OsStr::from_bytes(path.to_bytes())))
}

/// # Safety
/// NULL or an array of that length.
unsafe fn fields(headers: *const httpdown_header, header_count: usize) -> Result<HeaderMap> {
    // SAFETY: the same promise.
    let head = unsafe { response(200, headers, header_count)? };
    Ok(head.into_parts().0.headers)
}
