//! The records of the requests on one connection, if the host wants to be told what became of each.
//!
//! They follow the counts of the [`Conn`](super::Conn): whoever moves a request from one column to another holds the
//! lock that is here, so the records say the same as the report.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::request::Parts;

use crate::conn_info::ConnInfo;
use crate::record::{Beginning, Recording, RequestEnd, RequestRecord};
use crate::shared::Shared;

use super::h1::BodyLength;

#[derive(Debug, Default)]
pub(super) struct Recordings(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The first byte of a head has come, and not its last.
    beginning: Option<Beginning>,
    /// Requests that the service has.
    in_service: Vec<Arc<Recording>>,
    /// Requests whose response hyper has completely, and the kernel does not.
    unflushed: VecDeque<(Arc<Recording>, RequestEnd)>,
    /// Requests that were served in a stop, and whose client may not have the response.
    unacknowledged: Vec<Arc<Recording>>,
    /// Everything has been told.
    is_settled: bool,
}

impl Recordings {
    pub(super) fn open<'a>(&'a self, shared: &'a Shared) -> Opened<'a> {
        Opened {
            state: Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)),
            ended: Vec::new(),
            shared,
        }
    }
}

/// The records, locked. What has ended is told when this value is dropped, after the lock is free: if nobody takes the
/// records, they are dropped, and that may call the host.
pub(super) struct Opened<'a> {
    /// `Some` until it is dropped.
    state: Option<MutexGuard<'a, State>>,
    ended: Vec<RequestRecord>,
    shared: &'a Shared,
}

impl Opened<'_> {
    /// Changes the records. `change` returns those that have ended.
    fn change<I>(&mut self, change: impl FnOnce(&mut State) -> I)
    where
        I: IntoIterator<Item = RequestRecord>,
    {
        if let Some(state) = self.state.as_deref_mut().filter(|state| !state.is_settled) {
            self.ended.extend(change(state));
        }
    }

    /// The first byte of a request has come.
    pub(super) fn head_begins(&mut self) {
        self.change(|state| {
            state.beginning = Some(Beginning::now());
            None
        });
    }

    /// A head has come. Returns the record that the service and the handler write into.
    pub(super) fn request_begins(
        &mut self,
        conn: &Arc<ConnInfo>,
        number: u64,
        head: &Parts,
        body: BodyLength,
    ) -> Option<Arc<Recording>> {
        let mut new = None;
        self.change(|state| {
            let beginning = state.beginning.take().unwrap_or_else(Beginning::now);
            let length = known(body);
            let recording = Recording::new(conn, number, beginning, Some(head), length);
            let recording = Arc::new(recording);
            state.in_service.push(Arc::clone(&recording));
            new = Some(recording);
            None
        });
        new
    }

    /// This much of the body of the last request has not come.
    pub(super) fn body_left(&mut self, left: BodyLength) {
        self.change(|state| {
            if let Some(last) = state.in_service.last() {
                last.has_left(known(left));
            }
            None
        });
    }

    /// The service has given the whole response.
    pub(super) fn response_written(&mut self, end: RequestEnd) {
        self.change(|state| {
            let written = state.in_service.drain(..);
            state
                .unflushed
                .extend(written.map(|recording| (recording, end)));
            None
        });
    }

    /// What the service has is lost.
    pub(super) fn response_failed(&mut self, end: RequestEnd) {
        self.change(|state| finish(state.in_service.drain(..), end));
    }

    /// Nothing that is under way will be finished.
    pub(super) fn requests_failed(&mut self, end: RequestEnd) {
        self.change(|state| state.lose(end));
    }

    /// The kernel has the first `count` unflushed responses. `is_stopping`: those that were served are told later, when
    /// it is known whether the client has them.
    pub(super) fn responses_flushed(&mut self, count: u64, is_stopping: bool) {
        self.change(|state| {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            let count = count.min(state.unflushed.len());
            let mut ended = Vec::new();
            for (recording, end) in state.unflushed.drain(..count) {
                recording.is_flushed();
                if is_stopping && end == RequestEnd::Served {
                    state.unacknowledged.push(recording);
                } else {
                    ended.push(recording.finish(end, false));
                }
            }
            ended
        });
    }

    /// The connection ends in a stop, and the client does not have the last `lost` responses.
    pub(super) fn delivered(&mut self, lost: u64, end: RequestEnd) {
        self.change(|state| {
            let flushed = std::mem::take(&mut state.unacknowledged);
            let lost = usize::try_from(lost).unwrap_or(usize::MAX);
            let delivered = flushed.len().saturating_sub(lost);
            let told = move |(place, recording): (usize, Arc<Recording>)| {
                if place < delivered {
                    recording.finish(RequestEnd::Served, true)
                } else {
                    recording.finish(end, false)
                }
            };
            flushed.into_iter().enumerate().map(told)
        });
    }

    /// The connection is closed. What is left ends like this. `cut_head`: a head that has begun counts as a request,
    /// and has this number.
    pub(super) fn settle(&mut self, end: RequestEnd, cut_head: Option<(&Arc<ConnInfo>, u64)>) {
        self.change(|state| {
            let served = std::mem::take(&mut state.unacknowledged);
            let mut ended = finish(served, RequestEnd::Served);
            ended.extend(state.lose(end));
            ended.extend(cut_head.map(|(conn, number)| {
                let beginning = state.beginning.take().unwrap_or_else(Beginning::now);
                Arc::new(Recording::new(conn, number, beginning, None, None)).finish(end, false)
            }));
            state.is_settled = true;
            ended
        });
    }
}

impl State {
    fn lose(&mut self, end: RequestEnd) -> Vec<RequestRecord> {
        let unflushed = self.unflushed.drain(..).map(|(recording, _)| recording);
        finish(unflushed.chain(self.in_service.drain(..)), end)
    }
}

fn known(length: BodyLength) -> Option<u64> {
    match length {
        BodyLength::Known(length) => Some(length),
        BodyLength::Chunked => None,
    }
}

fn finish(
    recordings: impl IntoIterator<Item = Arc<Recording>>,
    end: RequestEnd,
) -> Vec<RequestRecord> {
    let recordings = recordings.into_iter();
    recordings
        .map(|recording| recording.finish(end, false))
        .collect()
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.state = None;
        for record in self.ended.drain(..) {
            self.shared.tell(record);
        }
    }
}
