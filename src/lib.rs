//! An HTTP server that a program embeds, and that stops gracefully: it refuses new connections, finishes every request
//! that has begun, and says what became of each.
//!
//! ```
//! use httpdown::{Dispatch, Exchange, Listener, Server};
//!
//! # fn main() -> Result<(), httpdown::Error> {
//! let hello = |exchange: Exchange| {
//!     let _ = exchange.reply(http::Response::new("Hello, World!".into()));
//! };
//! let listener = Listener::bind("127.0.0.1:0")?;
//! let server = Server::builder().handle(listener, Dispatch::default(), hello)?;
//! println!("serving on {}", server.local_addrs()[0]);
//! server.stop_blocking()?; // or: server.run()? until SIGTERM or SIGINT
//! # Ok(())
//! # }
//! ```
//!
//! [`Builder::serve`] takes any hyper service instead, [`Builder::serve_tower`] any tower service, such as an axum
//! `Router`. The server runs on threads of its own; nothing here needs a runtime of the host's, but it can have one
//! ([`Builder::runtime`]). What a stop does, step by step, is told by [`Phase`]; what it has cost, by [`Report`].
//!
//! The C interface is `include/httpdown.h`; without the feature `capi` its symbols are left out.
mod accept;
mod bpf;
mod census;
mod clock;
mod conn;
mod contain;
mod dispatch;
mod door;
mod error;
mod events;
mod exchange;
mod fate;
#[cfg(feature = "capi")]
mod ffi;
mod group;
mod helper;
mod home;
mod ledger;
mod lent;
mod lifecycle;
mod listener;
mod outcome;
mod process;
mod pulse;
mod query;
mod rarely;
mod runtime;
mod server;
mod stats;
mod sync;
mod sys;

pub use clock::{Clock, MockClock, Sleep, SystemClock};
pub use conn::{ConnInfo, ConnState};
pub use dispatch::{Dispatch, Handler, RequestQueue};
pub use error::{Error, Result};
pub use events::{ConnEvent, Event, LogLevel};
pub use exchange::Exchange;
pub use fate::Cancellation;
pub use hyper_util::service::TowerToHyperService;
pub use ledger::Report;
pub use lifecycle::Phase;
pub use listener::{Listener, Listeners};
pub use query::{Query, QueryPairs, percent_decode};
pub use server::{Builder, Server, Signals};
pub use stats::{StatKind, Stats};
