//! A request and its answer, from the view of the code that answers: independent of the thread, and of how the
//! connection is driven.

mod exchange;
mod file;
mod file_body;
mod held;
mod pipe;
mod ready;
mod reply_slot;
mod stream;

pub use exchange::Exchange;
pub(crate) use exchange::ReplyBody;
#[cfg(feature = "capi")]
pub(crate) use file::FileAnswer;
pub(crate) use held::{Taken, is_held_here};
pub use ready::Ready;
pub(crate) use ready::{Inbox, Notice, Tell, Token};
pub use reply_slot::Cancellation;
pub(crate) use reply_slot::ReplySlot;
pub use stream::Stream;
