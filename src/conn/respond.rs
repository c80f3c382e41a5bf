//! What answers requests, from the view of a connection.

use std::error::Error as StdError;
use std::future::Future;
use std::sync::Arc;

use http::request::Parts;
use http::{Request, Response};
use hyper::service::Service;

use crate::conn_info::ConnInfo;

use super::body::Body;
use super::state::{Conn, Inflight};

pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

/// What answers requests: the host's hyper service, or a handler behind one of the dispatch modes.
pub(crate) trait Respond: Send + 'static {
    type Body: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static;
    type Error: Into<BoxError>;
    type Future: Future<Output = Result<Response<Self::Body>, Self::Error>> + Send + 'static;
    type Outcome: Outcome;

    fn begin(&self, inflight: Inflight) -> Self::Outcome;

    fn respond(&self, head: Parts, body: Body, outcome: &Self::Outcome) -> Self::Future;
}

/// Is told once what becomes of a request: hyper has been given the whole response, or will never have it.
pub(crate) trait Outcome: Send + 'static {
    fn inflight(&self) -> &Inflight;
    fn complete(&self);
    fn lose(&self);
}

/// The host's hyper service.
#[derive(Clone, Debug)]
pub(crate) struct Plain<S>(pub(crate) S);

impl<S, B> Respond for Plain<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
    type Error = S::Error;
    type Future = S::Future;
    type Outcome = Inflight;

    fn begin(&self, inflight: Inflight) -> Inflight {
        inflight
    }

    fn respond(&self, mut head: Parts, body: Body, inflight: &Inflight) -> S::Future {
        if let Some(recording) = inflight.recording() {
            recording.is_called();
        }
        inflight.is_handed_over(&head);
        let conn = inflight.conn();
        if conn.shared().options.conn_info {
            head.extensions.insert(ConnInfo::clone(conn.info()));
        }
        self.0.call(Request::from_parts(head, body))
    }
}

/// Makes a function that clones `respond` for each connection.
pub(crate) fn clones<R: Respond + Clone>(respond: R) -> impl FnMut(&Arc<Conn>) -> R + Send {
    move |_| respond.clone()
}

/// A hyper service learns what becomes of a request when its future or its body is dropped.
impl Outcome for Inflight {
    fn inflight(&self) -> &Inflight {
        self
    }

    fn complete(&self) {}

    fn lose(&self) {}
}
