//! The body of an answer on its way from the writer to the connection: a queue of bytes that holds only so many.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::error::{Error, Result};

/// The body is passed to the connection in pieces of at most this many bytes.
pub(super) const PIECE: usize = 64 << 10;

/// At most this many bytes may wait for the connection. So a slow client makes the writer wait, and does not fill the
/// memory.
const ROOM: usize = 4 * PIECE;

/// A writer who waits for any room is told when there is room for a piece, not for each byte.
const ENOUGH: usize = PIECE;

/// Makes both ends.
pub(super) fn pipe() -> (Writing, Written) {
    let state = Arc::new(Mutex::new(State::default()));
    (Writing(Arc::clone(&state)), Written(state))
}

#[derive(Debug, Default)]
struct State {
    pieces: VecDeque<Bytes>,
    /// How many bytes the pieces have.
    waiting: usize,
    end: End,
    trailers: Option<HeaderMap>,
    /// The connection takes no more.
    is_closed: bool,
    reader: Option<Waker>,
    /// Waits until there is so much room.
    writer: Option<(usize, Waker)>,
}

#[derive(Clone, Copy, Debug, Default)]
enum End {
    #[default]
    NotYet,
    Complete,
    /// The writer has gone without an end.
    Cut,
    Told,
}

impl State {
    fn free(&self) -> usize {
        ROOM.saturating_sub(self.waiting)
    }

    /// Whether `len` bytes may be added. When nothing waits, there is room for any length.
    fn has_room(&self, len: usize) -> bool {
        self.is_closed || self.waiting == 0 || self.free() >= len
    }

    fn take_writer(&mut self) -> Option<Waker> {
        let has_room = self
            .writer
            .as_ref()
            .is_some_and(|(len, _)| self.has_room(*len));
        let (_, waker) = self.writer.take_if(|_| has_room)?;
        Some(waker)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The connection takes no more pieces.
#[derive(Debug)]
pub(super) struct NotTaken;

/// The writer's end.
pub(super) struct Writing(Arc<Mutex<State>>);

impl Writing {
    /// Whether `len` bytes may be added now. When nothing waits, there is room for any length.
    pub(super) fn has_room(&self, len: usize) -> bool {
        lock(&self.0).has_room(len)
    }

    /// How many of `len` bytes may be added now.
    pub(super) fn room_for(&self, len: usize) -> usize {
        lock(&self.0).free().min(len)
    }

    /// Waits until `len` bytes may be added, or the connection takes no more.
    pub(super) fn poll_room(&self, len: usize, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.0);
        if state.has_room(len) {
            return Poll::Ready(());
        }
        state.writer = Some((len, cx.waker().clone()));
        Poll::Pending
    }

    /// Waits until a write is worth while.
    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_room(ENOUGH, cx)
    }

    /// Adds bytes, whether there is room for them or not.
    pub(super) fn add(&self, mut data: Bytes) -> Result<(), NotTaken> {
        let mut state = lock(&self.0);
        if state.is_closed {
            return Err(NotTaken);
        }
        state.waiting += data.len();
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            state.pieces.push_back(piece);
        }
        wake_reader(state);
        Ok(())
    }

    /// What follows the end.
    pub(super) fn set_trailers(&self, trailers: HeaderMap) {
        lock(&self.0).trailers = Some(trailers);
    }

    /// Says that this is the end.
    pub(super) fn end(self) -> Result<(), NotTaken> {
        let mut state = lock(&self.0);
        if state.is_closed {
            return Err(NotTaken);
        }
        state.end = End::Complete;
        wake_reader(state);
        Ok(())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.writer = None;
        if let End::NotYet = state.end {
            state.end = End::Cut;
            wake_reader(state);
        }
    }
}

fn wake_reader(mut state: MutexGuard<'_, State>) {
    let reader = state.reader.take();
    drop(state);
    if let Some(reader) = reader {
        reader.wake();
    }
}

/// The connection's end.
#[derive(Debug)]
pub(crate) struct Written(Arc<Mutex<State>>);

impl Body for Written {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>>>> {
        let mut state = lock(&self.0);
        if let Some(piece) = state.pieces.pop_front() {
            state.waiting -= piece.len();
            let writer = state.take_writer();
            drop(state);
            if let Some(writer) = writer {
                writer.wake();
            }
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match state.end {
            End::NotYet => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            End::Complete => {
                state.end = End::Told;
                let trailers = state.trailers.take();
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            End::Cut => Poll::Ready(Some(Err(Error::Gone))),
            End::Told => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(lock(&self.0).end, End::Told)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.is_closed = true;
        // Dropped without the lock, because a piece may be the host's memory.
        let pieces = std::mem::take(&mut state.pieces);
        state.waiting = 0;
        let writer = state.writer.take();
        drop(state);
        drop(pieces);
        if let Some((_, writer)) = writer {
            writer.wake();
        }
    }
}
