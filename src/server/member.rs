//! A server, as a restart sees it.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};

use socket2::SockRef;

use crate::addr::Addr;
use crate::error::{Error, Result};
use crate::events::LogLevel;
use crate::net::Connected;
use crate::net::plain::Stream;
use crate::orders::Order;
use crate::restart::{Handed, Party};
use crate::shared::Shared;
use crate::stats::StatKind;
use crate::threads::{Executor, Spawn as _};

use super::accept::Entrance;

/// The name of a socket that no supervisor has given one.
const NAME: &str = "httpdown";

pub(super) struct Member {
    shared: Arc<Shared>,
    entrance: Weak<Entrance>,
    executor: Executor,
}

impl Member {
    pub(super) fn new(shared: &Arc<Shared>, entrance: Weak<Entrance>, executor: &Executor) -> Self {
        Self {
            shared: Arc::clone(shared),
            entrance,
            executor: executor.clone(),
        }
    }
}

impl Party for Member {
    fn id(&self) -> u64 {
        self.shared.id
    }

    fn sockets(&self) -> Result<Vec<Handed>> {
        let Some(entrance) = self.entrance.upgrade() else {
            return Ok(Vec::new());
        };
        let listeners = entrance.listeners().iter();
        listeners
            .map(|listener| {
                let copied = listener.as_fd().try_clone_to_owned();
                let addr = listener.local_addr();
                let mut passed = listener.passed();
                passed.tickets = self.shared.ticket_keys();
                Ok(Handed {
                    order: listener.number(),
                    copy: copied.map_err(|error| Error::io(format!("copying {addr}"), error))?,
                    name: listener.inherited_name().unwrap_or(NAME),
                    passed,
                    tenure: Some(Arc::clone(listener.tenure())),
                })
            })
            .collect()
    }

    fn is_stopping(&self) -> bool {
        self.shared.orders.given(Order::Stop)
    }

    fn borrows(&self) -> bool {
        let entrance = self.entrance.upgrade();
        entrance.is_some_and(|entrance| {
            let mut listeners = entrance.listeners().iter();
            listeners.any(|listener| listener.tenure().is_borrowed())
        })
    }

    fn leave(&self, successor: Option<u32>) {
        self.shared.leave(successor);
    }

    fn canary(&self) -> Option<&str> {
        self.shared.options.canary.as_deref()
    }

    fn inject(&self, stream: UnixStream) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the server stops");
        let entrance = self.entrance.upgrade().ok_or_else(gone)?;
        let peer = SockRef::from(&stream).peer_addr()?;
        let peer = Addr::from_kernel(&peer).ok_or_else(gone)?;
        entrance.serve(Connected {
            local: peer.clone(),
            peer,
            stream: Stream::Unix(stream),
            is_ours: true,
        });
        Ok(())
    }

    fn ask_threads(&self, given: &Arc<dyn Send + Sync>) {
        for worker in self.executor.workers() {
            let given = Arc::clone(given);
            worker.spawn(async move { drop(given) });
        }
    }

    fn log(&self, level: LogLevel, text: String) {
        self.shared.events.log(level, text);
    }

    fn stat(&self, kind: StatKind, key: &'static str, value: f64) {
        self.shared.events.stat(kind, key, value);
    }
}
