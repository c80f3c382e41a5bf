//! The locks of what `tests/models.rs` goes through in all its interleavings: it puts others in their place.

pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError};
