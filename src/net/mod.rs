//! Sockets: where we listen, which clients are on the way there, how listening ends; and the links to clients.

mod bpf;
pub(crate) mod census;
pub(crate) mod group;
pub(crate) mod link;
mod listener;
pub(crate) mod plain;
pub(crate) mod proxy;
mod sock_diag;
pub(crate) mod tcp;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod tuning;
mod unix;

pub(crate) use listener::{Connected, NotAccepted};
pub use listener::{Listener, Listeners};
