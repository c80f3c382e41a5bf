//! The body of an answer that comes from a file: read piece by piece, when the client takes it.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::Uri;
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::events::LogLevel;
use crate::shared::Shared;
use crate::sys;

/// A file is read in pieces of at most this many bytes.
const PIECE: usize = 64 << 10;

/// A part of a body.
#[derive(Debug)]
pub(super) enum Part {
    Bytes(Bytes),
    /// These bytes of the file.
    File(Range<u64>),
}

/// Parts of a file, and bytes between them.
///
/// What the kernel has in its memory is read on the thread that drives the connection, because that takes no longer
/// than a copy. For the rest, which may have to wait for a disk, there are threads ([`crate::threads::Readers`]).
pub(crate) struct FileBody {
    file: Arc<File>,
    parts: VecDeque<Part>,
    /// The number of bytes that are still to come.
    left: u64,
    /// The memory of the last piece, if nobody needs that any more.
    buffer: BytesMut,
    reading: Option<oneshot::Receiver<io::Result<Vec<u8>>>>,
    shared: Arc<Shared>,
    /// For the log.
    uri: Uri,
}

impl FileBody {
    pub(super) fn new(file: File, parts: VecDeque<Part>, shared: &Arc<Shared>, uri: &Uri) -> Self {
        let len = |part: &Part| match part {
            Part::Bytes(bytes) => bytes.len() as u64,
            Part::File(range) => range.end - range.start,
        };
        Self {
            file: Arc::new(file),
            left: parts.iter().map(len).sum(),
            parts,
            buffer: BytesMut::new(),
            reading: None,
            shared: Arc::clone(shared),
            uri: uri.clone(),
        }
    }

    /// The number of bytes that are still to come.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// The next piece; `None` behind the last.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        loop {
            if let Some(reading) = &mut self.reading {
                let read = ready!(Pin::new(reading).poll(cx));
                self.reading = None;
                return Poll::Ready(Some(match read {
                    Ok(Ok(piece)) if !piece.is_empty() => Ok(self.took(piece.into())),
                    Ok(Ok(_)) => Err(self.cut(io::ErrorKind::UnexpectedEof.into())),
                    Ok(Err(error)) => Err(self.cut(error)),
                    Err(_) => Err(self.cut(io::Error::other("no thread could read it"))),
                }));
            }
            let range = match self.parts.front_mut() {
                None => return Poll::Ready(None),
                Some(Part::File(range)) if range.is_empty() => {
                    self.parts.pop_front();
                    continue;
                }
                Some(Part::Bytes(bytes)) => {
                    let bytes = std::mem::take(bytes);
                    self.parts.pop_front();
                    self.left -= bytes.len() as u64;
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Some(Part::File(range)) => range.clone(),
            };
            let most = range.end - range.start;
            let count = usize::try_from(most).map_or(PIECE, |most| most.min(PIECE));
            let at_once =
                sys::read_at_once(self.file.as_fd(), range.start, count, &mut self.buffer);
            if let Ok(1..) = at_once {
                let piece = self.buffer.split().freeze();
                return Poll::Ready(Some(Ok(self.took(piece))));
            }
            // Even the end of the file is believed only when a read that may wait has seen it: some kernels say so when
            // they would have to wait (Linux 5.9 and 5.10).
            let file = Arc::clone(&self.file);
            let job = move || read(&file, range.start, count);
            self.reading = Some(self.shared.readers.run(self.shared.id, job));
        }
    }

    /// Notes that the file's next bytes are these.
    fn took(&mut self, piece: Bytes) -> Bytes {
        let len = piece.len() as u64;
        if let Some(Part::File(range)) = self.parts.front_mut() {
            range.start += len;
        }
        self.left -= len;
        piece
    }

    /// The answer ends here, though its head has promised more.
    fn cut(&mut self, why: io::Error) -> Error {
        let events = &self.shared.events;
        events.sum("file.error", 1.0);
        let uri = &self.uri;
        let line = match why.kind() {
            io::ErrorKind::UnexpectedEof => {
                format!("the answer to {uri} was cut: its file has become shorter meanwhile")
            }
            _ => format!("the answer to {uri} was cut: its file cannot be read: {why}"),
        };
        events.log(LogLevel::Error, line);
        Error::io("reading a file", why)
    }
}

/// Reads a piece of a file; waits for a disk, if it must. No bytes: the file ends there.
fn read(file: &File, offset: u64, count: usize) -> io::Result<Vec<u8>> {
    let mut piece = vec![0; count];
    loop {
        match file.read_at(&mut piece, offset) {
            Ok(count) => {
                piece.truncate(count);
                return Ok(piece);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl fmt::Debug for FileBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileBody")
            .field("file", &self.file)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}
