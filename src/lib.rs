//! An HTTP server that stops without dropping a request.
mod clock;
mod conn;
mod dispatch;
mod error;
mod events;
mod exchange;
#[cfg(feature = "capi")]
mod ffi;
mod ledger;
mod lifecycle;
mod listener;
mod process;
mod runtime;
mod server;
mod stats;
mod sys;

pub use clock::{Clock, MockClock, Sleep, SystemClock};
pub use conn::{ConnInfo, ConnState};
pub use dispatch::{Dispatch, Handler, RequestQueue, Taken};
pub use error::{Error, Result};
pub use events::{ConnEvent, Event, LogLevel};
pub use exchange::{Cancellation, Exchange};
pub use ledger::Report;
pub use lifecycle::Phase;
pub use listener::{Listener, Listeners};
pub use server::{Builder, Server};
pub use stats::{StatKind, Stats};
