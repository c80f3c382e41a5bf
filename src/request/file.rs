//! Answers that are files: a part that the handler names, or what the client asks for.

use std::collections::VecDeque;
use std::fs::{File, Metadata, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, LAST_MODIFIED, RANGE, TRANSFER_ENCODING,
};
use http::request::Parts;
use http::{Method, Response, StatusCode, Uri};
use httpdate::{fmt_http_date, parse_http_date};

use crate::content_type::content_type;
use crate::error::{Error, Result};
use crate::ranges::{self, Wanted};
use crate::sys;
use crate::validators::{self, Validators, Verdict, single};

use super::exchange::{Exchange, ReplyBody};
use super::file_body::{FileBody, Part};

impl Exchange {
    /// Answers with bytes of an open file: `..` for all, or `first..end`. Does not wait for the client, nor for the
    /// disk; but on a network file system, to ask for the file's size may take a while.
    ///
    /// The file is read in pieces of 64 KiB, when the client takes them, so the answer takes no more memory than any
    /// other, however long it is. Its length is sent as the Content-Length. The descriptor's own position is neither
    /// used nor changed. If the file becomes shorter meanwhile, or cannot be read, the client sees the answer cut, the
    /// request counts as failed, and the log says why (statistic: `file.error`). So replace a file by renaming another
    /// one to its name; then an answer that is under way still sends the old one.
    ///
    /// [`Exchange::reply_open_file`] looks at what part of the file the client asks for.
    ///
    /// ```
    /// use std::fs::File;
    ///
    /// use http::Response;
    /// use httpdown::{Error, Exchange, Result};
    ///
    /// fn log(exchange: Exchange) -> Result<()> {
    ///     let file = File::open("/var/log/syslog").map_err(|_| Error::Gone)?;
    ///     exchange.reply_fd(Response::new(()), file, ..)
    /// }
    /// # let _ = log;
    /// ```
    ///
    /// # Errors
    /// The errors of [`Exchange::reply`]; [`Error::InvalidArgument`] also if the descriptor is not a regular file that
    /// is open for reading, or the file does not have all these bytes; [`Error::Io`] if the file's size is not known.
    /// In both cases the client gets a 500.
    pub fn reply_fd(
        mut self,
        response: Response<()>,
        file: impl Into<OwnedFd>,
        range: impl RangeBounds<u64>,
    ) -> Result<()> {
        let file = file.into();
        self.answer_by(|exchange| {
            let answer = FileAnswer::of_bytes(response, file, range)?;
            let uri = exchange.uri().clone();
            exchange.try_reply_file(answer, &uri)
        })
    }

    /// Answers a GET or HEAD with a file: all of it, or what the client asks for. `headers` are sent, too.
    ///
    /// This call opens the file and looks at its metadata, which may take a while where the disk is slow. Otherwise the
    /// file is sent like by [`Exchange::reply_fd`].
    ///
    /// | the client gets | when |
    /// | --- | --- |
    /// | 200 | otherwise |
    /// | 206 | it has asked for a part, or several (`Range`), and for this state of the file, if it says (`If-Range`) |
    /// | 304 | it has this state of the file (`If-None-Match`, `If-Modified-Since`) |
    /// | 403 | the file may not be read |
    /// | 404 | there is no such file, or it is no regular file |
    /// | 405 | the method is not GET or HEAD |
    /// | 412 | it wants another state (`If-Match`, `If-Unmodified-Since`) |
    /// | 416 | the part that it has asked for lies behind the end |
    ///
    /// All these are answers, and no errors. To answer in another way if there is no file, open it, and use
    /// [`Exchange::reply_open_file`].
    ///
    /// An `ETag` and `Last-Modified` are sent, unless `headers` have their own, which then are compared. The tag is
    /// made from the file's size, its time of change (in nanoseconds) and its inode. It is a weak one as long as the
    /// last change is less than 2 s old. The `Content-Type` is [`content_type`](crate::content_type)'s, unless
    /// `headers` have another. A `Range` of more than 16 parts, or of more bytes than the file has, is ignored.
    ///
    /// The path is used as it is. Never make it from a request's target without a check that it stays in its folder:
    /// the example `files.c` shows one.
    ///
    /// ```
    /// use http::HeaderMap;
    /// use httpdown::Exchange;
    ///
    /// fn logo(exchange: Exchange) {
    ///     let mut headers = HeaderMap::new();
    ///     headers.insert("cache-control", "max-age=3600".parse().unwrap());
    ///     let _ = exchange.reply_file("assets/logo.svg", headers);
    /// }
    /// # let _ = logo;
    /// ```
    ///
    /// # Errors
    /// The errors of [`Exchange::reply`]; [`Error::InvalidArgument`] also if `headers` have a `Content-Length` or
    /// `Content-Range`, or an `ETag` or `Last-Modified` that is malformed; [`Error::Io`] or [`Error::OutOfResources`]
    /// if the file cannot be opened for another reason. In these cases the client gets a 500.
    pub fn reply_file(mut self, path: impl AsRef<Path>, headers: HeaderMap) -> Result<()> {
        self.answer_by(|exchange| {
            let answer = FileAnswer::for_path(exchange.head(), path.as_ref(), headers)?;
            let uri = exchange.uri().clone();
            exchange.try_reply_file(answer, &uri)
        })
    }

    /// Like [`Exchange::reply_file`], for a file that is open already. Its name is not known, so there is no
    /// `Content-Type`, unless `headers` have one.
    ///
    /// # Errors
    /// The errors of [`Exchange::reply_file`]; [`Error::InvalidArgument`] also if the descriptor is not a regular file
    /// that is open for reading.
    pub fn reply_open_file(mut self, file: impl Into<OwnedFd>, headers: HeaderMap) -> Result<()> {
        let file = file.into();
        self.answer_by(|exchange| {
            let answer = FileAnswer::for_open(exchange.head(), file, headers)?;
            let uri = exchange.uri().clone();
            exchange.try_reply_file(answer, &uri)
        })
    }

    /// Like [`Exchange::reply`]. The caller drops the exchange afterwards. `uri` is the request's, which may have been
    /// taken from here.
    pub(crate) fn try_reply_file(&mut self, answer: FileAnswer, uri: &Uri) -> Result<()> {
        let FileAnswer { mut head, content } = answer;
        match content {
            Content::Text(text) => {
                let length = text.len() as u64;
                self.try_reply_with(ReplyBody::whole(head.map(|()| text)), length)
            }
            Content::File(file, parts) => {
                let body = FileBody::new(file, parts, self.shared(), uri);
                let length = body.left();
                // hyper would not state a length of 0 to HEAD.
                let fields = head.headers_mut().entry(CONTENT_LENGTH);
                fields.or_insert(HeaderValue::from(length));
                let body = ReplyBody::File(Box::new(body));
                self.try_reply_with(head.map(|()| body), length)
            }
        }
    }
}

/// An answer that is a file or parts of one, or says why it is not.
pub(crate) struct FileAnswer {
    head: Response<()>,
    content: Content,
}

enum Content {
    Text(Bytes),
    File(File, VecDeque<Part>),
}

impl FileAnswer {
    /// These bytes of a file.
    pub(crate) fn of_bytes(
        head: Response<()>,
        file: OwnedFd,
        range: impl RangeBounds<u64>,
    ) -> Result<Self> {
        let file = File::from(file);
        let size = check(&file)?.size();
        let range = bounds(&range, size).ok_or_else(|| {
            let (start, end) = (range.start_bound(), range.end_bound());
            let text = format!("the file has {size} bytes, not those from {start:?} to {end:?}");
            Error::InvalidArgument(text)
        })?;
        let content = Content::File(file, [Part::File(range)].into());
        Ok(Self { head, content })
    }

    /// What a request asks for of the file with this name.
    pub(crate) fn for_path(request: &Parts, path: &Path, mut fields: HeaderMap) -> Result<Self> {
        check_fields(&fields)?;
        if let Some(refused) = Self::unless_got(request) {
            return Ok(refused);
        }
        // Not to wait for somebody at the other end of a FIFO.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = match opened {
            Ok(file) => file,
            Err(error) => match error.raw_os_error() {
                Some(
                    libc::ENOENT
                    | libc::ENOTDIR
                    | libc::ELOOP
                    | libc::ENAMETOOLONG
                    | libc::ENXIO
                    | libc::ENODEV,
                ) => return Ok(Self::not_found()),
                Some(libc::EACCES | libc::EPERM) => {
                    return Ok(Self::text(StatusCode::FORBIDDEN, "forbidden\n"));
                }
                None => {
                    return Err(Error::InvalidArgument(format!(
                        "{}: {error}",
                        path.display()
                    )));
                }
                _ => return Err(Error::io(format!("opening {}", path.display()), error)),
            },
        };
        let facts = metadata(&file)?;
        if !facts.is_file() {
            return Ok(Self::not_found());
        }
        let kind = content_type(path);
        fields
            .entry(CONTENT_TYPE)
            .or_insert(HeaderValue::from_static(kind));
        Self::asked_for(request, file, &facts, fields)
    }

    /// What a request asks for of an open file.
    pub(crate) fn for_open(request: &Parts, file: OwnedFd, fields: HeaderMap) -> Result<Self> {
        let file = File::from(file);
        let facts = check(&file)?;
        check_fields(&fields)?;
        match Self::unless_got(request) {
            Some(refused) => Ok(refused),
            None => Self::asked_for(request, file, &facts, fields),
        }
    }

    fn asked_for(
        request: &Parts,
        file: File,
        facts: &Metadata,
        mut fields: HeaderMap,
    ) -> Result<Self> {
        let now = SystemTime::now();
        let size = facts.size();
        let changed = facts.modified().ok();
        let mut state = Validators::new(facts.ino(), size, changed, now);
        match fields.get(ETAG) {
            Some(own) => state.etag = own.clone(),
            None => drop(fields.insert(ETAG, state.etag.clone())),
        }
        if let Some(own) = fields.get(LAST_MODIFIED) {
            state.modified = Some(date(own)?);
            state.is_settled = state
                .modified
                .is_some_and(|own| validators::is_settled(own, now));
        } else if let Some(modified) = state.modified {
            let text = HeaderValue::try_from(fmt_http_date(modified));
            text.ok()
                .and_then(|text| fields.insert(LAST_MODIFIED, text));
        }
        let range = match state.judge(&request.headers) {
            Verdict::Failed => {
                let status = StatusCode::PRECONDITION_FAILED;
                return Ok(Self::text(status, "the file is in another state\n"));
            }
            Verdict::NotModified => return Ok(Self::not_modified(fields)),
            // For HEAD, a range has no meaning (RFC 9110, 14.2).
            Verdict::Go if request.method == Method::GET => single(&request.headers, RANGE),
            Verdict::Go | Verdict::GoWhole => None,
        };
        let wanted = range.map_or(Wanted::Whole, |range| {
            ranges::wanted(range.as_bytes(), size)
        });
        fields
            .entry(ACCEPT_RANGES)
            .or_insert(HeaderValue::from_static("bytes"));
        let mut head = Response::new(());
        let parts = match wanted {
            Wanted::Nothing => return Ok(Self::not_satisfiable(size)),
            Wanted::Whole => [Part::File(0..size)].into(),
            Wanted::Parts(parts) => {
                *head.status_mut() = StatusCode::PARTIAL_CONTENT;
                match &*parts {
                    [part] => {
                        fields.insert(CONTENT_RANGE, content_range(part, size)?);
                        [Part::File(part.clone())].into()
                    }
                    several => multipart(several, size, &mut fields)?,
                }
            }
        };
        *head.headers_mut() = fields;
        let content = Content::File(file, parts);
        Ok(Self { head, content })
    }

    /// The answer to a method that is not for files.
    fn unless_got(request: &Parts) -> Option<Self> {
        (request.method != Method::GET && request.method != Method::HEAD).then(|| {
            let mut answer = Self::text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
            let allowed = HeaderValue::from_static("GET, HEAD");
            answer.head.headers_mut().insert(ALLOW, allowed);
            answer
        })
    }

    fn not_found() -> Self {
        Self::text(StatusCode::NOT_FOUND, "not found\n")
    }

    /// Says only what a cache may need (RFC 9110, 15.4.5).
    fn not_modified(mut fields: HeaderMap) -> Self {
        for name in [
            CONTENT_TYPE,
            CONTENT_ENCODING,
            CONTENT_LANGUAGE,
            LAST_MODIFIED,
        ] {
            fields.remove(name);
        }
        let mut answer = Self::text(StatusCode::NOT_MODIFIED, "");
        *answer.head.headers_mut() = fields;
        answer
    }

    fn not_satisfiable(size: u64) -> Self {
        let status = StatusCode::RANGE_NOT_SATISFIABLE;
        let mut answer = Self::text(status, "the file is shorter\n");
        if let Ok(range) = HeaderValue::try_from(format!("bytes */{size}")) {
            answer.head.headers_mut().insert(CONTENT_RANGE, range);
        }
        answer
    }

    fn text(status: StatusCode, text: &'static str) -> Self {
        let mut head = Response::new(());
        *head.status_mut() = status;
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        head.headers_mut().insert(CONTENT_TYPE, plain);
        let content = Content::Text(Bytes::from_static(text.as_bytes()));
        Self { head, content }
    }
}

/// Several parts of a file as one body: `multipart/byteranges` (RFC 9110, 14.6).
fn multipart(ranges: &[Range<u64>], size: u64, fields: &mut HeaderMap) -> Result<VecDeque<Part>> {
    // Nobody who has written the file can have known these numbers.
    let random = || RandomState::new().hash_one(());
    let boundary = format!("{:016x}{:016x}", random(), random());
    let whole = format!("multipart/byteranges; boundary={boundary}");
    let whole = HeaderValue::try_from(whole).map_err(|_| Error::Panicked)?;
    let own = fields.insert(CONTENT_TYPE, whole);
    let mut parts = VecDeque::new();
    let mut line_end = "";
    for range in ranges {
        let mut head = format!("{line_end}--{boundary}\r\n").into_bytes();
        if let Some(kind) = &own {
            head.extend([b"content-type: ", kind.as_bytes(), b"\r\n"].concat());
        }
        let range_field = content_range(range, size)?;
        head.extend([b"content-range: ", range_field.as_bytes(), b"\r\n\r\n"].concat());
        parts.extend([Part::Bytes(head.into()), Part::File(range.clone())]);
        line_end = "\r\n";
    }
    parts.push_back(Part::Bytes(format!("\r\n--{boundary}--\r\n").into()));
    Ok(parts)
}

fn content_range(range: &Range<u64>, size: u64) -> Result<HeaderValue> {
    let last = range.end.saturating_sub(1);
    let text = format!("bytes {}-{last}/{size}", range.start);
    HeaderValue::try_from(text).map_err(|_| Error::Panicked)
}

/// Checks that the bytes of this file can be sent.
fn check(file: &File) -> Result<Metadata> {
    let wrong = |why: &str| Err(Error::InvalidArgument(format!("the descriptor {why}")));
    let facts = metadata(file)?;
    if !facts.is_file() {
        return wrong("is not a regular file");
    }
    let flags = sys::open_flags(file.as_fd());
    let flags = flags.map_err(|error| Error::io("looking at a descriptor", error))?;
    if flags & libc::O_PATH != 0 || flags & libc::O_ACCMODE == libc::O_WRONLY {
        return wrong("is not open for reading");
    }
    if flags & libc::O_DIRECT != 0 {
        return wrong("is open for direct input (O_DIRECT)");
    }
    Ok(facts)
}

fn metadata(file: &File) -> Result<Metadata> {
    file.metadata()
        .map_err(|error: io::Error| match error.raw_os_error() {
            Some(libc::EBADF) => Error::InvalidArgument("the descriptor is not open".into()),
            _ => Error::io("looking at a file", error),
        })
}

/// Checks the host's header fields.
fn check_fields(fields: &HeaderMap) -> Result<()> {
    let wrong = |why: String| Err(Error::InvalidArgument(why));
    for name in [CONTENT_LENGTH, CONTENT_RANGE, TRANSFER_ENCODING] {
        if fields.contains_key(&name) {
            return wrong(format!("{name} is not the handler's to set for a file"));
        }
    }
    if let Some(tag) = fields.get(ETAG)
        && !validators::is_tag(tag.as_bytes())
    {
        return wrong(format!("{tag:?} is not an entity tag: it needs quotes"));
    }
    fields
        .get(LAST_MODIFIED)
        .map_or(Ok(()), |own| date(own).map(drop))
}

fn date(value: &HeaderValue) -> Result<SystemTime> {
    let date = value
        .to_str()
        .ok()
        .and_then(|text| parse_http_date(text).ok());
    date.ok_or_else(|| Error::InvalidArgument(format!("{value:?} is not a date of HTTP")))
}

/// The bytes that a range means in a file of `size` bytes; `None` if the file does not have them all.
fn bounds(range: &impl RangeBounds<u64>, size: u64) -> Option<Range<u64>> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.checked_add(1)?,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.checked_add(1)?,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => size,
    };
    (start <= end && end <= size).then_some(start..end)
}
