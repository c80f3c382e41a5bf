//! What a host asks of a running server, from any thread, and even from a signal handler.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::io::unix::AsyncFd;

use crate::error::{Error, Result};
use crate::sys::{self, EventFd};

/// What a host can ask of a running server. A later order includes the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Order {
    Stop = 1,
    Kill = 2,
}

/// The place where orders are left, from any thread, and even from a signal handler.
#[derive(Debug)]
pub(crate) struct Orders {
    given: AtomicU8,
    wake: EventFd,
}

impl Orders {
    pub(crate) fn new() -> Result<Self> {
        let wake = EventFd::new().map_err(|error| Error::io("eventfd", error))?;
        Ok(Self {
            given: AtomicU8::new(0),
            wake,
        })
    }

    /// Gives an order. Async-signal-safe: an atomic operation and a `write(2)`.
    pub(crate) fn give(&self, order: Order) {
        self.given.fetch_max(order as u8, Ordering::Release);
        self.wake.set();
    }

    pub(crate) fn given(&self, order: Order) -> bool {
        self.given.load(Ordering::Acquire) >= order as u8
    }
}

/// Reads the orders, on the control thread's runtime.
pub(crate) struct Inbox<'a> {
    orders: &'a Orders,
    wake: AsyncFd<BorrowedFd<'a>>,
}

impl<'a> Inbox<'a> {
    pub(crate) fn new(orders: &'a Orders) -> Result<Self> {
        let wake = sys::watch(orders.wake.as_fd())
            .map_err(|error| Error::io("watching for orders", error))?;
        Ok(Self { orders, wake })
    }

    pub(crate) async fn at_least(&self, order: Order) {
        while !self.orders.given(order) {
            match self.wake.readable().await {
                Ok(mut ready) => {
                    self.orders.wake.clear();
                    ready.clear_ready();
                }
                Err(_) => return, // The runtime is going away, and this task with it.
            }
        }
    }
}
