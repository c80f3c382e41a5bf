//! The body of an answer, as hyper takes it: in small pieces. It is known when hyper has the last of them.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use pin_project_lite::pin_project;

use crate::conn::respond::{BoxError, Outcome};
use crate::contain::contain;

use super::service::Answering;

/// hyper is given a body in pieces of at most this many bytes, because it copies each piece.
const PIECE: usize = 16 << 10;

/// When hyper has been given so many bytes of a body, it gets the next ones after it has written these. By itself it
/// would keep 400 KB for a client that takes nothing.
const UNWRITTEN: u32 = 32 << 10;

pin_project! {
    // The body of an answer: the host's body, or our own.
    #[project = SourceProjection]
    pub(super) enum Source<B: Body> {
        Host {
            #[pin]
            body: B,
            // The part of the body's last frame that hyper has not been given.
            rest: Option<B::Data>,
        },
        Own { #[pin] body: Full<Bytes> },
    }
}

impl<B: Body> Source<B> {
    pub(super) fn host(body: B) -> Self {
        Self::Host { body, rest: None }
    }

    pub(super) fn own(body: Bytes) -> Self {
        let body = Full::new(body);
        Self::Own { body }
    }
}

impl<B: Body> Body for Source<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let (mut body, rest) = match self.project() {
            SourceProjection::Host { body, rest } => (body, rest),
            SourceProjection::Own { body } => {
                return body.poll_frame(cx).map_err(|never| match never {});
            }
        };
        loop {
            if let Some(data) = rest {
                let piece = data.copy_to_bytes(data.remaining().min(PIECE));
                if !data.has_remaining() {
                    *rest = None;
                }
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let Some(frame) = ready!(body.as_mut().poll_frame(cx)?) else {
                return Poll::Ready(None);
            };
            match frame.into_data() {
                Ok(mut data) if data.remaining() <= PIECE => {
                    let all = data.copy_to_bytes(data.remaining());
                    return Poll::Ready(Some(Ok(Frame::data(all))));
                }
                Ok(data) => *rest = Some(data),
                Err(frame) => {
                    let trailers = frame.into_trailers().ok();
                    return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Host { body, rest } => rest.is_none() && body.is_end_stream(),
            Self::Own { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Host { body, .. } => body.size_hint(),
            Self::Own { body } => body.size_hint(),
        }
    }
}

pin_project! {
    pub(super) struct TrackedBody<B: Body, O: Outcome> {
        #[pin]
        pub(super) body: Source<B>,
        // How many bytes hyper will still take, if that is known. hyper does not ask for the end after the last byte.
        pub(super) remaining: Option<u64>,
        pub(super) answering: Option<Answering<O>>,
    }

    impl<B: Body, O: Outcome> PinnedDrop for TrackedBody<B, O> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            // The answer is completed before the body is dropped. So the body's writer is told what has become of the
            // body, not only that nobody takes more.
            if let Some(answering) = this.answering.take()
                && *this.remaining == Some(0)
            {
                answering.complete();
            }
        }
    }
}

impl<B, O> Body for TrackedBody<B, O>
where
    B: Body<Error: Into<BoxError>>,
    O: Outcome,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        let mut body = this.body;
        if let Some(answering) = this.answering
            && !answering.conn().h1.may_give(UNWRITTEN)
        {
            return Poll::Pending;
        }
        let poll = || {
            let poll = body.as_mut().poll_frame(cx);
            let is_last = matches!(poll, Poll::Ready(Some(Ok(_)))) && body.is_end_stream();
            (poll, is_last)
        };
        let failure = match contain(poll) {
            Some((poll, is_last)) => match ready!(poll) {
                Some(Ok(frame)) => {
                    if let (Some(remaining), Some(data)) = (&mut *this.remaining, frame.data_ref())
                    {
                        *remaining = remaining.saturating_sub(data.len() as u64);
                    }
                    if let Some(answering) = this.answering
                        && let Some(recording) = answering.recording()
                    {
                        let sent = frame.data_ref().map_or(0, Bytes::len);
                        recording.has_sent(sent);
                    }
                    if is_last {
                        *this.remaining = Some(0);
                    } else if let (Some(answering), Some(data)) = (this.answering, frame.data_ref())
                    {
                        answering.conn().h1.gives(data.len());
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                None if this.remaining.is_none_or(|remaining| remaining == 0) => {
                    *this.remaining = Some(0);
                    return Poll::Ready(None);
                }
                None => "the body ended before its Content-Length".into(),
                Some(Err(error)) => error.into(),
            },
            None => "the body panicked".into(),
        };
        if let Some(answering) = this.answering.take() {
            answering.conn().response_failed();
        }
        Poll::Ready(Some(Err(failure)))
    }

    fn is_end_stream(&self) -> bool {
        contain(|| self.body.is_end_stream()).unwrap_or(false)
    }

    fn size_hint(&self) -> SizeHint {
        contain(|| self.body.size_hint()).unwrap_or_default()
    }
}
