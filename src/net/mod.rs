//! Listening sockets: where they come from, who is on the way to them, how they are left.

mod bpf;
pub(crate) mod census;
pub(crate) mod group;
mod listener;

pub(crate) use listener::{Connected, NotAccepted};
pub use listener::{Listener, Listeners};
