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
//! `Router`. The server runs on its own threads. It needs no runtime of the host, but can use the host's runtime
//! ([`Builder::runtime`]). [`Phase`] describes the steps of a stop; [`Report`] has its costs.
//!
//! The C interface is `include/httpdown.h`; without the feature `capi` its symbols are left out.

mod addr;
mod clock;
mod conn;
mod conn_info;
mod contain;
mod content_type;
mod crowd;
mod dispatch;
mod error;
mod events;
#[cfg(feature = "capi")]
mod ffi;
mod forwarded;
mod handover;
mod holdings;
mod inherited;
mod ledger;
mod limits;
mod net;
mod options;
mod orders;
mod origin;
mod outcome;
mod phase;
mod process;
mod query;
mod ranges;
mod record;
mod registry;
mod report;
mod request;
mod restart;
mod server;
mod shared;
mod stats;
mod sync;
mod sys;
mod threads;
mod throttle;
#[cfg(feature = "tls")]
mod tls;
mod trust;
mod validators;

pub use addr::{Addr, UnixAddr};
pub use clock::{Clock, MockClock, Sleep, SystemClock};
pub use conn::Body;
pub use conn_info::{ConnInfo, ConnState, Credentials};
pub use content_type::content_type;
pub use dispatch::{Dispatch, Handler, QueueItem, RequestQueue};
pub use error::{Error, Result};
pub use events::{ConnEvent, Event, LogLevel};
pub use forwarded::{Client, ClientAddr};
pub use hyper_util::service::TowerToHyperService;
pub use net::{Listener, Listeners};
pub use phase::Phase;
pub use query::{Query, QueryPairs, percent_decode};
pub use record::{RequestEnd, RequestRecord};
pub use report::Report;
pub use request::{Cancellation, Exchange, Ready, Stream};
pub use restart::{
    Restart, RestartInfo, RestartState, Restarted, no_notify, restart_info, restart_ready,
    run_ready,
};
pub use server::{Builder, Server, Signals};
pub use stats::{StatKind, Stats};
#[cfg(feature = "tls")]
pub use tls::{ClientAuth, ClientCertificate, Identity, TicketKey, Tls, TlsInfo, TlsVersion};
