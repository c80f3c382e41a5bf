//! Just enough HTTP/1.1 to know whether an answer is whole, and right.

use bytes::Bytes;

/// What a body is measured against.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// Keep it: it is to be the measure of others.
    Keep,
    /// It must be this.
    Same(Bytes),
    /// Only its end matters.
    Any,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The server closes the connection behind it, and has said so.
    pub(crate) closes: bool,
    /// The body is what it should be.
    pub(crate) same: bool,
    /// The body, if it was to be kept.
    pub(crate) kept: Vec<u8>,
}

/// What cannot be part of any answer.
#[derive(Debug)]
pub(crate) struct Malformed;

/// Where the parser is in an answer.
#[derive(Clone, Copy, Debug)]
enum At {
    Head,
    /// So many bytes of the body are missing.
    Length(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailer,
    /// The body ends with the connection.
    UntilFin,
    Complete,
}

/// Takes an answer's bytes as they come.
#[derive(Debug)]
pub(crate) struct Parser {
    body: Body,
    /// Of the answer that is under way, and of those behind it.
    buf: Vec<u8>,
    at: At,
    status: u16,
    closes: bool,
    /// How much of the body has come.
    got: usize,
    same: bool,
    kept: Vec<u8>,
}

/// A head that is longer is none.
const MAX_HEAD: usize = 64 << 10;

impl Parser {
    pub(crate) fn new(body: Body) -> Self {
        Self {
            body,
            buf: Vec::new(),
            at: At::Head,
            status: 0,
            closes: false,
            got: 0,
            same: true,
            kept: Vec::new(),
        }
    }

    /// Whether some bytes of an answer are here, but not all.
    pub(crate) fn has_begun(&self) -> bool {
        !matches!(self.at, At::Head) || !self.buf.is_empty()
    }

    /// What the connection has brought.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// The connection has ended, with a FIN: for some answers that is the end.
    pub(crate) fn fin(&mut self) {
        if let At::UntilFin = self.at {
            self.at = At::Complete;
        }
    }

    /// The next whole answer; `None` if more must come.
    pub(crate) fn next(&mut self) -> Result<Option<Answer>, Malformed> {
        loop {
            match self.at {
                At::Head => {
                    let Some(at) = self.head()? else {
                        return Ok(None);
                    };
                    self.at = at;
                }
                At::Length(0) => self.at = At::Complete,
                At::Length(left) => match self.take_body(left) {
                    0 => return Ok(None),
                    taken => self.at = At::Length(left - taken),
                },
                At::UntilFin => {
                    self.take_body(u64::MAX);
                    return Ok(None);
                }
                At::ChunkSize => {
                    let Some(line) = self.line()? else {
                        return Ok(None);
                    };
                    let size = line.split(';').next().unwrap_or_default().trim();
                    self.at = match u64::from_str_radix(size, 16).map_err(|_| Malformed)? {
                        0 => At::Trailer,
                        size => At::Chunk(size),
                    };
                }
                At::Chunk(0) => self.at = At::ChunkEnd,
                At::Chunk(left) => match self.take_body(left) {
                    0 => return Ok(None),
                    taken => self.at = At::Chunk(left - taken),
                },
                At::ChunkEnd => match self.line()? {
                    None => return Ok(None),
                    Some(line) if line.is_empty() => self.at = At::ChunkSize,
                    Some(_) => return Err(Malformed),
                },
                At::Trailer => match self.line()? {
                    None => return Ok(None),
                    Some(line) if line.is_empty() => self.at = At::Complete,
                    Some(_) => {}
                },
                At::Complete => return Ok(Some(self.complete())),
            }
        }
    }

    fn head(&mut self) -> Result<Option<At>, Malformed> {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut fields);
        let Ok(status) = head.parse(&self.buf) else {
            return Err(Malformed);
        };
        let httparse::Status::Complete(end) = status else {
            return if self.buf.len() > MAX_HEAD {
                Err(Malformed)
            } else {
                Ok(None)
            };
        };
        self.status = head.code.unwrap_or_default();
        let field = |name: &str| {
            let field = head
                .headers
                .iter()
                .find(|field| field.name.eq_ignore_ascii_case(name));
            field.map(|field| String::from_utf8_lossy(field.value).to_ascii_lowercase())
        };
        let connection = field("connection").unwrap_or_default();
        let has = |option: &str| connection.split(',').any(|token| token.trim() == option);
        self.closes = has("close") || (head.version == Some(0) && !has("keep-alive"));
        let at = if (100..200).contains(&self.status) {
            At::Head // An interim answer.
        } else if matches!(self.status, 204 | 304) {
            At::Complete
        } else if field("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            At::ChunkSize
        } else if let Some(length) = field("content-length") {
            At::Length(length.parse().map_err(|_| Malformed)?)
        } else {
            self.closes = true;
            At::UntilFin
        };
        self.buf.drain(..end);
        // Behind an interim answer the final one may be here already.
        if let At::Head = at {
            return self.head();
        }
        Ok(Some(at))
    }

    /// A line without its end.
    fn line(&mut self) -> Result<Option<String>, Malformed> {
        let Some(end) = self.buf.iter().position(|&byte| byte == b'\n') else {
            return if self.buf.len() > MAX_HEAD {
                Err(Malformed)
            } else {
                Ok(None)
            };
        };
        let line: Vec<_> = self.buf.drain(..=end).collect();
        let line = line.strip_suffix(b"\r\n").ok_or(Malformed)?;
        String::from_utf8(line.to_vec())
            .map(Some)
            .map_err(|_| Malformed)
    }

    /// Takes at most `most` bytes of the body; how many there were.
    fn take_body(&mut self, most: u64) -> u64 {
        let count = usize::try_from(most).map_or(self.buf.len(), |most| most.min(self.buf.len()));
        match &self.body {
            Body::Keep => self.kept.extend_from_slice(&self.buf[..count]),
            Body::Same(expected) => {
                let expected = expected.get(self.got..self.got + count);
                self.same &= expected == Some(&self.buf[..count]);
            }
            Body::Any => {}
        }
        self.got += count;
        self.buf.drain(..count);
        count as u64
    }

    fn complete(&mut self) -> Answer {
        if let Body::Same(expected) = &self.body {
            self.same &= expected.len() == self.got;
        }
        self.at = At::Head;
        self.got = 0;
        Answer {
            status: self.status,
            closes: self.closes,
            same: std::mem::replace(&mut self.same, true),
            kept: std::mem::take(&mut self.kept),
        }
    }
}
