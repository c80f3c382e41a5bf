//! Rules of RFC 9112 for a request that hyper does not check. This module checks only what can be seen in the request
//! that hyper gives to the service; what hyper removes before is checked in [`super::framing`].

use std::net::Ipv6Addr;

use http::header::{CONNECTION, EXPECT, HOST, HeaderValue, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, StatusCode, Uri, Version};
use memchr::memchr;

/// What the fields of a request's head say about its connection and its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wishes {
    /// The client wants the connection to go on after this request (RFC 9112, 9.3).
    pub(super) keep_alive: bool,
    /// The client sends the body when it is asked by a 100 (RFC 9110, 10.1.1).
    pub(super) waits: bool,
}

/// Checks whether the request may be answered; if not, returns the status to refuse it with. If the target is absolute,
/// its host replaces `Host` (RFC 9112, 3.2.2). `is_target_foreign`: the framing has found bytes in the target that no
/// target may have.
#[inline]
pub(super) fn validate(request: &mut Parts, is_target_foreign: bool) -> Result<Wishes, StatusCode> {
    let is_http11 = request.version >= Version::HTTP_11;
    let mut has_host = false;
    let mut codings = 0;
    let (mut says_close, mut says_keep_alive, mut waits) = (false, false, false);
    // Looking at each field is quicker than looking up four.
    for (name, value) in &request.headers {
        if name == HOST {
            if has_host || !is_host(value.as_bytes()) {
                return Err(StatusCode::BAD_REQUEST);
            }
            has_host = true;
        } else if name == CONNECTION {
            says_close |= has_option(value, b"close");
            // hyper ignores a field that contains unreadable bytes.
            says_keep_alive |= has_option(value, b"keep-alive") && value.to_str().is_ok();
        } else if name == TRANSFER_ENCODING {
            codings += 1;
            // hyper has found that the last coding is `chunked`, and decodes no other.
            if codings > 1 || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return Err(StatusCode::NOT_IMPLEMENTED);
            }
        } else if name == EXPECT && is_http11 {
            waits = is_continue(value)?;
        }
    }
    if is_http11 && !has_host {
        return Err(StatusCode::BAD_REQUEST);
    }
    if !is_path(&request.uri) || request.method == Method::CONNECT {
        unusual_target(request)?;
    }
    if is_target_foreign {
        return Err(StatusCode::BAD_REQUEST);
    }
    Ok(Wishes {
        keep_alive: !says_close && (is_http11 || says_keep_alive),
        waits,
    })
}

/// Whether the `Expect` field asks for a 100. There is no other expectation that could be met.
#[cold]
fn is_continue(field: &HeaderValue) -> Result<bool, StatusCode> {
    match field.as_bytes() {
        // hyper, which sends the 100, knows no other form, such as a list.
        field if field.eq_ignore_ascii_case(b"100-continue") => Ok(true),
        [] => Ok(false),
        _ => Err(StatusCode::EXPECTATION_FAILED),
    }
}

/// Whether a `Connection` field names this option.
pub(super) fn has_option(field: &HeaderValue, option: &[u8]) -> bool {
    options(field).any(|it| it.eq_ignore_ascii_case(option))
}

/// The options that a `Connection` field names. Some may be empty.
pub(super) fn options(field: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    let options = field.as_bytes().split(|byte| *byte == b',');
    options.map(<[u8]>::trim_ascii)
}

/// Whether the target is a path. Mostly it is.
fn is_path(target: &Uri) -> bool {
    target.authority().is_none() && target.path().starts_with('/')
}

/// Handles the other forms of a target (RFC 9112, 3.2).
#[cold]
fn unusual_target(request: &mut Parts) -> Result<(), StatusCode> {
    let is_connect = request.method == Method::CONNECT;
    let target = &request.uri;
    let authority = target
        .authority()
        .map(|authority| authority.as_str().as_bytes());
    let is_absolute = target.scheme().is_some();
    let is_allowed = match authority {
        // `*`, or a path.
        None => request.method == Method::OPTIONS,
        // The target must name a host and, for a tunnel, a port (RFC 9110, 4.2.1 and 9.3.6).
        Some(authority) => {
            let is_whole = !matches!(authority, [] | [b':', ..]) && is_host(authority);
            let has_port = matches!(authority, [.., b'0'..=b'9']) && target.port().is_some();
            is_whole && is_connect != is_absolute && (is_absolute || has_port)
        }
    };
    if !is_allowed {
        return Err(StatusCode::BAD_REQUEST);
    }
    if let (true, Some(authority)) = (is_absolute, authority) {
        let host = HeaderValue::from_bytes(authority).map_err(|_| StatusCode::BAD_REQUEST)?;
        request.headers.insert(HOST, host);
    }
    Ok(())
}

/// Whether the bytes are a valid value of `Host`: a host, perhaps with a port, or nothing.
#[inline]
fn is_host(bytes: &[u8]) -> bool {
    // Mostly the host is a name without escapes, or an IPv4 address.
    match name_end(bytes) {
        None => true,
        Some(end) if bytes[end] == b':' => is_port(&bytes[end + 1..]),
        Some(_) => is_unusual_host(bytes),
    }
}

/// Like [`is_host`], for a host that is no simple name.
#[cold]
fn is_unusual_host(host: &[u8]) -> bool {
    if let [b'[', inner @ ..] = host {
        let end = memchr(b']', inner);
        return end.is_some_and(|end| {
            is_address(&inner[..end])
                && match &inner[end + 1..] {
                    [] => true,
                    [b':', port @ ..] => is_port(port),
                    _ => false,
                }
        });
    }
    let mut rest = host;
    while let Some(end) = name_end(rest) {
        rest = match &rest[end..] {
            [b':', port @ ..] => return is_port(port),
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                rest
            }
            _ => return false,
        };
    }
    true
}

/// Whether the bytes may stand in brackets: an IPv6 address, or an address of a future version (RFC 3986, 3.2.2).
fn is_address(bytes: &[u8]) -> bool {
    if let [b'v' | b'V', rest @ ..] = bytes {
        let Some(dot) = memchr(b'.', rest) else {
            return false;
        };
        let (version, address) = (&rest[..dot], &rest[dot + 1..]);
        let is_foreign = |byte: &u8| !is_in_name(*byte) && *byte != b':';
        return dot > 0
            && version.iter().all(u8::is_ascii_hexdigit)
            && !address.is_empty()
            && !address.iter().any(is_foreign);
    }
    str::from_utf8(bytes).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

/// Whether the bytes are a port number, or empty.
fn is_port(bytes: &[u8]) -> bool {
    let digits = bytes.iter().all(u8::is_ascii_digit);
    let number = bytes.iter().fold(0_u32, |number, digit| {
        let digit = u32::from(digit.wrapping_sub(b'0'));
        number.saturating_mul(10).saturating_add(digit)
    });
    digits && number <= u16::MAX.into()
}

/// Where the name at the beginning of the bytes ends; `None` if all bytes are part of it.
fn name_end(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| !is_in_name(*byte))
}

fn is_in_name(byte: u8) -> bool {
    IN_NAME[usize::from(byte)]
}

/// The bytes of a name, apart from escapes (RFC 3986, 3.2.2). A name may contain a comma, too; but where there is one,
/// somebody has probably made a list of several names, so it is not in this table.
static IN_NAME: [bool; 256] = {
    let mut table = [false; 256];
    let bytes = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+;=";
    let mut at = 0;
    while at < bytes.len() {
        table[bytes[at] as usize] = true;
        at += 1;
    }
    table
};
