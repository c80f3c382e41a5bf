//! The body of an answer on its way from the writer to the connection: a queue of bytes that holds only so many.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::error::{Error, Result};
use crate::shared::Shared;

/// The body is passed to the connection in pieces of at most this many bytes: as many as hyper is given at once.
const PIECE: usize = 16 << 10;

/// Makes both ends.
pub(super) fn pipe(shared: &Arc<Shared>) -> (Writing, Written) {
    let state = Arc::new(Mutex::new(State {
        shared: Arc::clone(shared),
        pieces: VecDeque::new(),
        waiting: 0,
        end: End::NotYet,
        trailers: None,
        is_closed: false,
        reader: None,
        writer: None,
    }));
    (Writing(Arc::clone(&state)), Written(state))
}

#[derive(Debug)]
struct State {
    shared: Arc<Shared>,
    pieces: VecDeque<Bytes>,
    /// How many bytes the pieces have.
    waiting: usize,
    end: End,
    trailers: Option<HeaderMap>,
    /// The connection takes no more.
    is_closed: bool,
    reader: Option<Waker>,
    /// Waits until there is room again.
    writer: Option<Waker>,
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
        self.shared
            .limits
            .reserve
            .room()
            .saturating_sub(self.waiting)
    }

    /// Whether it is worth while to write: a writer who has had to wait is told when half of the room is free, not for
    /// each byte.
    fn has_room_again(&self) -> bool {
        self.is_closed || self.waiting <= self.shared.limits.reserve.room() / 2
    }

    fn set_waiting(&mut self, bytes: usize) {
        self.shared.limits.reserve.changes(self.waiting, bytes);
        self.waiting = bytes;
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
        let state = lock(&self.0);
        state.is_closed || state.waiting == 0 || state.free() >= len
    }

    /// How many of `len` bytes may be added now.
    pub(super) fn room_for(&self, len: usize) -> usize {
        lock(&self.0).free().min(len)
    }

    /// Waits until a write is worth while.
    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.0);
        if state.has_room_again() {
            return Poll::Ready(());
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Adds bytes, whether there is room for them or not.
    pub(super) fn add(&self, mut data: Bytes) -> Result<(), NotTaken> {
        let mut state = lock(&self.0);
        if state.is_closed {
            return Err(NotTaken);
        }
        let waiting = state.waiting + data.len();
        state.set_waiting(waiting);
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
            let waiting = state.waiting - piece.len();
            state.set_waiting(waiting);
            let writer = if state.has_room_again() {
                state.writer.take()
            } else {
                None
            };
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
        state.set_waiting(0);
        let writer = state.writer.take();
        drop(state);
        drop(pieces);
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}
