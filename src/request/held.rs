//! Remembers which threads have taken requests that are not finished. Such a thread must not wait for the server's end,
//! because the server's end waits for these requests.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

thread_local! {
    /// One entry for each server. The entry of a server that is gone stays until another request is taken.
    static HELD: RefCell<Vec<(u64, Weak<()>)>> = const { RefCell::new(Vec::new()) };
}

/// While this value or a clone lives, the thread that made it has taken a request and not finished it.
#[derive(Clone, Debug)]
pub(crate) struct Taken(#[expect(dead_code, reason = "it only has to live")] Arc<()>);

impl Taken {
    /// Notes that the calling thread has taken a request from this server.
    pub(crate) fn here(server: u64) -> Self {
        // A thread that is ending and has no locals any more does not wait for a server.
        let held = HELD.try_with(|all| {
            let mut all = all.borrow_mut();
            all.retain(|(_, held)| held.strong_count() > 0);
            let known = all.iter().find(|(other, _)| *other == server);
            known
                .and_then(|(_, held)| held.upgrade())
                .unwrap_or_else(|| {
                    let held = Arc::new(());
                    all.push((server, Arc::downgrade(&held)));
                    held
                })
        });
        Self(held.unwrap_or_default())
    }
}

/// Whether the calling thread has taken a request of this server and not finished it.
pub(crate) fn is_held_here(server: u64) -> bool {
    let is_held = |held: &RefCell<Vec<(u64, Weak<()>)>>| {
        let held = held.borrow();
        let mut its = held.iter().filter(|(other, _)| *other == server);
        its.any(|(_, held)| held.strong_count() > 0)
    };
    HELD.try_with(is_held).unwrap_or(false)
}
