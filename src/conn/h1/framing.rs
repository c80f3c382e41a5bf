//! Where requests begin and end in the bytes of a connection.
//!
//! hyper reads as much as there is, and does not tell what it holds. So this module gives hyper its bytes request by
//! request. Then hyper holds nothing at the end of each request, and the bytes received behind that request are known
//! here. Heads are not parsed: a head ends with its first empty line, like in hyper's parser, and hyper says what body
//! follows. The rules for chunks are stricter here than in hyper, so that both always agree on where the chunks end.

use std::io;

use memchr::memmem::Finder;
use memchr::{memchr, memchr3, memrchr};
use once_cell::sync::Lazy;

/// How far the bytes of the connection have been followed.
#[derive(Debug, Default)]
pub(super) enum Framing {
    /// Between two requests. Empty lines may come here; they are no request (RFC 9112, 2.2).
    #[default]
    Between,
    /// In a head.
    Head(Line, RequestLine),
    /// Behind a head. The caller says by [`Framing::follow`] what comes next.
    AfterHead,
    /// In a body of known length. The number is the bytes that are left.
    Body(u64),
    /// In a chunked body.
    Chunked(Chunks),
    /// After an upgrade: the bytes are no longer HTTP.
    Opaque,
}

/// How much of a line has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Nothing,
    CarriageReturn,
    Text,
}

/// How much of a head's first line has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestLine {
    /// The space behind the method has not come yet. The method may contain a `#`.
    Method,
    Target,
    /// The line has come to its end.
    Past,
}

/// The length of a body, as the head before it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::conn) enum BodyLength {
    Known(u64),
    Chunked,
}

/// The result of [`Framing::scan`]: how to split the bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scan {
    /// The number of bytes at the beginning that are empty lines between requests.
    pub(super) skip: usize,
    /// The number of bytes behind those that belong to the present request. The rest is to be scanned again.
    pub(super) take: usize,
    /// The head's target contains bytes that no target may have.
    pub(super) is_foreign: bool,
}

impl Framing {
    /// Sets what follows the head that has ended.
    pub(super) fn follow(&mut self, length: BodyLength) {
        *self = match length {
            BodyLength::Known(0) => Self::Between,
            BodyLength::Known(length) => Self::Body(length),
            BodyLength::Chunked => Self::Chunked(Chunks::SIZE),
        };
    }

    /// Whether the bytes are in a body that has not come to its end.
    pub(super) fn is_in_body(&self) -> bool {
        matches!(self, Self::Body(_) | Self::Chunked(_))
    }

    /// How many bytes of the body are still to come; `None` if only the end of the body will tell.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::Body(left) => Some(*left),
            Self::Chunked(Chunks::End) => Some(1),
            Self::Chunked(_) => None,
            _ => Some(0),
        }
    }

    /// Follows the bytes to the end of the head or body that they belong to, or to the end of the bytes.
    ///
    /// # Errors
    /// The chunks are malformed.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> io::Result<Scan> {
        let mut skip = 0;
        if let Self::Between = self {
            skip = empty_lines(bytes);
            if matches!(bytes[skip..], [] | [b'\r']) {
                return Ok(Scan {
                    skip,
                    take: 0,
                    is_foreign: false,
                });
            }
            *self = Self::Head(Line::Nothing, RequestLine::Method);
        }
        let bytes = &bytes[skip..];
        let mut is_foreign = false;
        let take = match self {
            Self::Between | Self::AfterHead => 0,
            Self::Opaque => bytes.len(),
            Self::Head(line, request_line) => {
                is_foreign = request_line.is_foreign(bytes);
                match head_end(line, bytes) {
                    Some(end) => {
                        *self = Self::AfterHead;
                        end
                    }
                    None => bytes.len(),
                }
            }
            Self::Body(left) => {
                let take = at_most(bytes.len(), *left);
                *left -= take as u64;
                if *left == 0 {
                    *self = Self::Between;
                }
                take
            }
            Self::Chunked(chunks) => {
                let (take, is_end) = chunks.follow(bytes)?;
                if is_end {
                    *self = Self::Between;
                }
                take
            }
        };
        Ok(Scan {
            skip,
            take,
            is_foreign,
        })
    }
}

impl RequestLine {
    /// Whether the target contains bytes that hyper lets pass, or that hyper removes (everything from a `#` on). None
    /// of these bytes may stand in a URI (RFC 3986, 2), and a program that treats them differently sees another target.
    #[inline]
    fn is_foreign(&mut self, bytes: &[u8]) -> bool {
        if *self == Self::Past {
            return false;
        }
        // Fast path, for a line that comes in one piece.
        let found = memchr3(b'\n', b'#', b'"', bytes);
        let line = &bytes[..found.unwrap_or(bytes.len())];
        if found.is_some_and(|at| bytes[at] == b'\n') && line.is_ascii() {
            *self = Self::Past;
            return false;
        }
        self.is_foreign_by_bytes(bytes)
    }

    #[cold]
    fn is_foreign_by_bytes(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            match (*self, byte) {
                (_, b'\n') => {
                    *self = Self::Past;
                    return false;
                }
                (Self::Method, b' ') => *self = Self::Target,
                (Self::Target, b'#' | b'"' | 0x80..) => return true,
                _ => {}
            }
        }
        false
    }
}

/// Whether the bytes, received between two requests, are the beginning of a request.
pub(in crate::conn) fn is_request(bytes: &[u8]) -> bool {
    !matches!(bytes[empty_lines(bytes)..], [] | [b'\r'])
}

/// The end of the last empty line. If the bytes begin with a request, its whole head lies before this end (if it is not
/// 0).
pub(super) fn heads_end(bytes: &[u8]) -> usize {
    let mut lines = bytes;
    while let Some(end) = memrchr(b'\n', lines) {
        lines = &lines[..end];
        if let [.., b'\n'] | [.., b'\n', b'\r'] = lines {
            return end + 1;
        }
    }
    0
}

/// The length of the empty lines at the beginning.
fn empty_lines(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let [b'\n', more @ ..] | [b'\r', b'\n', more @ ..] = rest {
        rest = more;
    }
    bytes.len() - rest.len()
}

/// The end of the head, which is the end of its first empty line.
fn head_end(line: &mut Line, bytes: &[u8]) -> Option<usize> {
    // Fast path, for a head that comes in one piece. Most do.
    if *line == Line::Nothing
        && !matches!(bytes, [b'\r' | b'\n', ..])
        && let Some(end) = EMPTY_LINE.find(bytes)
        && BARE_EMPTY_LINE.find(&bytes[..=end]).is_none()
    {
        return Some(end + 3);
    }
    let mut at = 0;
    while let Some(length) = memchr(b'\n', &bytes[at..]) {
        let is_empty = match *line {
            Line::Nothing => matches!(bytes[at..at + length], [] | [b'\r']),
            Line::CarriageReturn => length == 0,
            Line::Text => false,
        };
        at += length + 1;
        *line = Line::Nothing;
        if is_empty {
            return Some(at);
        }
    }
    *line = match (*line, &bytes[at..]) {
        (line, []) => line,
        (Line::Nothing, [b'\r']) => Line::CarriageReturn,
        _ => Line::Text,
    };
    None
}

/// The end of a line, and an empty line behind it.
static EMPTY_LINE: Lazy<Finder<'static>> = Lazy::new(|| Finder::new(b"\n\r\n"));
static BARE_EMPTY_LINE: Lazy<Finder<'static>> = Lazy::new(|| Finder::new(b"\n\n"));

/// How far a chunked body has been followed: each variant says what comes next. A size of 0 is that of the last chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunks {
    /// A digit of a chunk's size, or what follows it.
    Size {
        value: u64,
        digits: u8,
    },
    /// Extensions behind a size. They are ignored, but must be well-formed: another reader might find their end
    /// somewhere else.
    Extensions(u64, Extensions),
    /// The line feed behind a size.
    SizeEnd(u64),
    /// The data of the chunk. The number is the bytes that are left.
    Data(u64),
    /// The carriage return behind a chunk; after it, the line feed.
    DataEnd,
    DataEndLf,
    /// A line of the trailers.
    Trailer,
    /// More of a trailer's name.
    TrailerName,
    /// More of a trailer's value.
    TrailerText,
    /// The line feed behind a trailer.
    TrailerLf,
    /// The line feed of the empty line, which ends the body.
    End,
}

/// How far the extensions of a chunk have been followed: each variant says what comes next (RFC 9112, 7.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extensions {
    /// White space behind a size or a value. It is allowed only before a semicolon.
    Space,
    /// A name, or white space before it.
    Name,
    /// More of a name, or what follows it.
    NameText,
    /// White space behind a name, or what follows it, but not the end of the line.
    NameEnd,
    /// A value, or white space before it.
    Value,
    /// More of a value, or what follows it.
    ValueText,
    /// More of a value in quotes.
    Quoted,
    /// The byte behind a backslash in quotes.
    Escaped,
    /// What follows a value in quotes.
    QuotedEnd,
}

impl Extensions {
    /// `None`: the byte must not come here.
    fn after(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Name | Self::Value, b' ' | b'\t') => self,
            (Self::NameText | Self::NameEnd, b' ' | b'\t') => Self::NameEnd,
            (Self::Space | Self::ValueText | Self::QuotedEnd, b' ' | b'\t') => Self::Space,
            (
                Self::Space | Self::NameText | Self::NameEnd | Self::ValueText | Self::QuotedEnd,
                b';',
            ) => Self::Name,
            (Self::NameText | Self::NameEnd, b'=') => Self::Value,
            (Self::Name | Self::NameText, b) if is_of_name(b) => Self::NameText,
            (Self::Value, b'"') => Self::Quoted,
            (Self::Value | Self::ValueText, b) if is_of_name(b) => Self::ValueText,
            (Self::Quoted, b'"') => Self::QuotedEnd,
            (Self::Quoted, b'\\') => Self::Escaped,
            (Self::Quoted | Self::Escaped, b'\t' | b' '..=b'~' | 0x80..) => Self::Quoted,
            _ => return None,
        })
    }

    /// Whether the line may end here.
    fn may_end(self) -> bool {
        matches!(self, Self::NameText | Self::ValueText | Self::QuotedEnd)
    }
}

impl Chunks {
    const SIZE: Self = Self::Size {
        value: 0,
        digits: 0,
    };

    /// Says how many of these bytes belong to the body, and whether they end it. The last byte of a body is taken by
    /// itself: hyper asks for it only when it has given away all chunks. So it is known whether hyper holds chunks that
    /// nobody has read.
    fn follow(&mut self, bytes: &[u8]) -> io::Result<(usize, bool)> {
        let mut at = 0;
        while at < bytes.len() {
            if let Self::Data(left) = self {
                let take = at_most(bytes.len() - at, *left);
                *left -= take as u64;
                at += take;
                if *left == 0 {
                    *self = Self::DataEnd;
                }
                continue;
            }
            let byte = bytes[at];
            if let (Self::End, b'\n') = (*self, byte) {
                return Ok((at.max(1), at == 0));
            }
            at += 1;
            *self = self.after(byte)?;
        }
        Ok((at, false))
    }

    fn after(self, byte: u8) -> io::Result<Self> {
        const MAX_DIGITS: u8 = 16; // the hexadecimal digits of 64 bits
        Ok(match (self, byte) {
            (Self::Size { value, digits }, b) if b.is_ascii_hexdigit() && digits < MAX_DIGITS => {
                let digit = char::from(b).to_digit(16).unwrap_or(0);
                Self::Size {
                    value: value << 4 | u64::from(digit),
                    digits: digits + 1,
                }
            }
            (Self::Size { value, digits: 1.. }, b'\r') => Self::SizeEnd(value),
            (Self::Extensions(value, extensions), b'\r') if extensions.may_end() => {
                Self::SizeEnd(value)
            }
            (Self::Size { value, digits: 1.. }, b) => {
                Self::Extensions(value, Extensions::Space.after(b).ok_or_else(malformed)?)
            }
            (Self::Extensions(value, extensions), b) => {
                Self::Extensions(value, extensions.after(b).ok_or_else(malformed)?)
            }
            (Self::SizeEnd(0) | Self::TrailerLf, b'\n') => Self::Trailer,
            (Self::SizeEnd(value), b'\n') => Self::Data(value),
            (Self::DataEnd, b'\r') => Self::DataEndLf,
            (Self::DataEndLf, b'\n') => Self::SIZE,
            (Self::Trailer, b'\r') => Self::End,
            (Self::TrailerText, b'\r') => Self::TrailerLf,
            (Self::Trailer | Self::TrailerName, b) if is_of_name(b) => Self::TrailerName,
            (Self::TrailerName, b':') | (Self::TrailerText, b'\t' | b' '..=b'~' | 0x80..) => {
                Self::TrailerText
            }
            _ => return Err(malformed()),
        })
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed chunks")
}

/// Whether the byte may stand in a field's name (RFC 9110, 5.6.2).
fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn at_most(len: usize, left: u64) -> usize {
    usize::try_from(left).map_or(len, |left| left.min(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows the bytes, in pieces of `piece` bytes, and returns the bytes of each request.
    fn requests(bytes: &[u8], piece: usize, mut bodies: &[BodyLength]) -> io::Result<Vec<Vec<u8>>> {
        let mut framing = Framing::default();
        let mut requests = Vec::new();
        let mut held = Vec::new();
        for piece in bytes.chunks(piece) {
            held.extend_from_slice(piece);
            loop {
                if let (Framing::AfterHead, [body, rest @ ..]) = (&framing, bodies) {
                    framing.follow(*body);
                    bodies = rest;
                }
                if let Framing::Between = framing {
                    requests.push(Vec::new());
                }
                let Scan { skip, take, .. } = framing.scan(&held)?;
                requests
                    .last_mut()
                    .unwrap()
                    .extend(&held[skip..skip + take]);
                held.drain(..skip + take);
                requests.retain(|request| !request.is_empty());
                if take == 0 {
                    break;
                }
            }
        }
        Ok(requests)
    }

    #[test]
    fn requests_end_where_they_end_however_their_bytes_come() {
        let cases: [(&str, BodyLength); 7] = [
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", BodyLength::Known(0)),
            (
                "POST / HTTP/1.1\r\ncontent-length: 6\r\n\r\n\r\n\r\n\r\n",
                BodyLength::Known(6),
            ),
            ("GET / HTTP/1.1\nhost: a\n\n", BodyLength::Known(0)),
            (
                "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n\
                 3\r\nab\n\r\nA ;x=\"\";y\r\n0123456789\r\n000\r\na: b\r\n\r\n",
                BodyLength::Chunked,
            ),
            ("GET / HTTP/1.1\r\n\r\n", BodyLength::Known(0)),
            ("POST / HTTP/1.1\r\n\n0;e\r\n\r\n", BodyLength::Chunked),
            ("\rGET \r\r\n\r\n", BodyLength::Known(0)), // hyper is to refuse it
        ];
        for separator in ["", "\r\n", "\n\r\n\n"] {
            let bytes: Vec<_> = cases
                .iter()
                .flat_map(|(text, _)| [text.as_bytes(), separator.as_bytes()].concat())
                .collect();
            let bodies = cases.map(|(_, body)| body);
            for piece in 1..=bytes.len() {
                let found = requests(&bytes, piece, &bodies).unwrap();
                assert_eq!(found, cases.map(|(text, _)| text.as_bytes()), "by {piece}");
            }
        }
    }

    #[test]
    fn loose_chunks_are_refused() {
        for chunks in [
            "\r\n",
            "g\r\n",
            ";\r\n",
            " 1\r\n",
            "1 \r\na",
            "1\na",
            "+1\r\na",
            "0x1\r\na",
            "1\r\nab",
            "1\r\na\n",
            "1;\x01\r\na",
            "1;\r\na",
            "1;a \r\na",
            "1;a=\"\r\na",
            "1;\n",
            "00000000000000001\r\na",
            "1 a\r\n",
            "0\r\na: b\n\r\n",
            "0\r\n\n",
            "0\r\nno colon\r\n",
            "0\r\n: no name\r\n",
            "0\r\na: \x01\r\n",
            "0\r\n\rx",
            "1\r\r\n",
        ] {
            for piece in [1, 1000] {
                let bytes = [b"POST\r\n\r\n", chunks.as_bytes()].concat();
                let error = requests(&bytes, piece, &[BodyLength::Chunked]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{chunks:?}");
            }
        }
    }

    #[test]
    fn heads_end_with_the_last_empty_line() {
        for (bytes, expected) in [
            ("", 0),
            ("\n", 0),
            ("\r\n", 0),
            ("GET / HTTP/1.1\r\nHost: a\r\n", 0),
            ("GET\r\n\r\n", 7),
            ("GET\n\nPOST\n\r\nGET", 12),
            ("GET\r\n\r\nGET\r\n\r", 7),
        ] {
            assert_eq!(heads_end(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }

    #[test]
    fn empty_lines_are_no_request() {
        for (bytes, expected) in [
            ("", false),
            ("\r", false),
            ("\r\n\n\r", false),
            ("\r\n\rx", true),
            ("G", true),
        ] {
            assert_eq!(is_request(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }
}
