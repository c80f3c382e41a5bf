//! What can happen to a request, and who is told.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Wake;

use crate::conn::Conn;
use crate::contain::contain;

/// What can happen to a request: a set.
///
/// ```
/// use httpdown::Ready;
///
/// let ready = Ready::READABLE | Ready::GONE;
/// assert!(ready.contains(Ready::GONE));
/// assert!(!ready.contains(Ready::WRITABLE));
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Ready(u8);

impl Ready {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Reading the body would not wait: there are bytes, or the end, or the reason why no more bytes come.
    pub const READABLE: Self = Self(1);
    /// Writing would take at least some of the bytes, or fail. Before an answer begins, this is so.
    pub const WRITABLE: Self = Self(1 << 1);
    /// An answer has become useless: [`Exchange::cancelled`](crate::Exchange::cancelled) says why.
    pub const GONE: Self = Self(1 << 2);
    /// The server drains: an answer without an end should end now.
    pub const DRAINING: Self = Self(1 << 3);
    /// The program has had the request for longer than it should
    /// ([`Builder::handler_timeout`](crate::Builder::handler_timeout)). An answer is as useful as before.
    // For C, the bit in between says that a request is new.
    pub const OVERDUE: Self = Self(1 << 5);

    const ALL: [(Self, &'static str); 5] = [
        (Self::READABLE, "READABLE"),
        (Self::WRITABLE, "WRITABLE"),
        (Self::GONE, "GONE"),
        (Self::DRAINING, "DRAINING"),
        (Self::OVERDUE, "OVERDUE"),
    ];

    /// The bits, as C has them.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The set with these bits; `None` if one of them means nothing.
    #[must_use]
    pub fn from_bits(bits: u8) -> Option<Self> {
        let all = Self::ALL.iter().fold(0, |all, (one, _)| all | one.0);
        (bits & !all == 0).then_some(Self(bits))
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for Ready {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Ready {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Self::ALL.iter().filter(|(one, _)| self.contains(*one));
        let names: Vec<_> = names.map(|(_, name)| *name).collect();
        f.write_str(if names.is_empty() { "NONE" } else { "" })?;
        f.write_str(&names.join(" | "))
    }
}

/// Who is told what has happened to a request.
pub(crate) enum Tell {
    /// This is called in the connection's task.
    Call(Box<dyn FnOnce(Ready) + Send>),
    /// An item with this token comes out of the queue.
    Queue(Arc<dyn Inbox>, Token),
}

/// What an item of the queue stands for, in the host's own terms.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Token {
    Request(u128),
    Stream(u128),
}

/// A queue, as those see it who tell something by it.
pub(crate) trait Inbox: Send + Sync {
    /// There is something to tell: [`Notice::take`].
    fn tell(self: Arc<Self>, notice: Arc<Notice>);

    /// So many more things, or fewer, are to be told.
    fn expects(&self, more: isize);
}

/// What something happens to: a request, or a connection that was taken over.
pub(crate) trait Subject: Send + Sync {
    fn conn(&self) -> &Arc<Conn>;

    /// What has happened, except that it can be read or written.
    fn happened(&self) -> Ready;

    /// A callback has failed.
    fn complain(&self, line: &str);
}

/// The order of a request's owner to be told once. It is the waker that the sources of what can happen know.
pub(crate) struct Notice {
    /// Not an `Arc`: a socket may know this as a waker, and belong to what the notice is about.
    subject: Weak<dyn Subject>,
    state: Mutex<State>,
    /// A call has returned.
    returned: Condvar,
}

#[derive(Default)]
struct State {
    tell: Option<Tell>,
    wanted: Ready,
    /// What was there when the order was given.
    there: Ready,
    /// The connection's task, or the queue, knows that it is to tell.
    is_due: bool,
    /// On this thread, the owner is being told.
    telling: Option<usize>,
}

impl Notice {
    pub(super) fn new(subject: Weak<dyn Subject>) -> Arc<Self> {
        Arc::new(Self {
            subject,
            state: Mutex::default(),
            returned: Condvar::new(),
        })
    }

    /// Takes an order, instead of the one before.
    pub(super) fn order(&self, wanted: Ready, tell: Tell) {
        if let Tell::Queue(queue, _) = &tell {
            queue.expects(1);
        }
        let mut state = self.lock();
        let before = state.tell.replace(tell);
        state.wanted = wanted;
        state.there = Ready::NONE;
        // It may still stand in the queue for the order before. It then comes too early, in vain.
        drop(state);
        forget(before);
    }

    /// Part of what was ordered is there already.
    pub(super) fn is_there(self: &Arc<Self>, there: Ready) {
        self.lock().there = there;
        self.wake_by_ref();
    }

    /// The request ends: nobody is told any more. Waits for a call on another thread.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        let before = state.tell.take();
        while state.telling.is_some_and(|on| on != here()) {
            let waited = self.returned.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        forget(before);
    }

    /// Tells a callback, in the connection's task.
    pub(super) fn call(&self) {
        let mut state = self.lock();
        if !state.is_due {
            return;
        }
        let ready = self.what_happened(&mut state);
        let is_to_tell = |tell: &mut Tell| matches!(tell, Tell::Call(_)) && !ready.is_empty();
        let Some(Tell::Call(call)) = state.tell.take_if(is_to_tell) else {
            return;
        };
        state.telling = Some(here());
        drop(state);
        if contain(|| call(ready)).is_none()
            && let Some(subject) = self.subject.upgrade()
        {
            subject.complain("a callback of a request panicked");
        }
        self.lock().telling = None;
        self.returned.notify_all();
    }

    /// What an item of the queue is to tell, and its token. `None` if the request has ended, or another order stands.
    pub(crate) fn take(&self) -> Option<(Token, Ready)> {
        let mut state = self.lock();
        let ready = self.what_happened(&mut state);
        let is_to_tell = |tell: &mut Tell| matches!(tell, Tell::Queue(..)) && !ready.is_empty();
        match state.tell.take_if(is_to_tell) {
            Some(Tell::Queue(_, token)) => Some((token, ready)),
            _ => None,
        }
    }

    /// What is to be told; nothing if an order has come too late for what it was called for.
    fn what_happened(&self, state: &mut State) -> Ready {
        state.is_due = false;
        let subject = self.subject.upgrade();
        let happened = state.there | subject.map_or(Ready::NONE, |subject| subject.happened());
        let happened = happened.and(state.wanted | Ready::GONE);
        if happened.is_empty() {
            // It was a piece of the body, or room in the answer. That may be in vain.
            state.wanted.and(Ready::READABLE | Ready::WRITABLE)
        } else {
            happened
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What tells the calling thread from all others that live. (`thread::current` would allocate in a thread of the
/// host's.)
fn here() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

impl Wake for Notice {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = self.lock();
        let queue = match &state.tell {
            None => return,
            Some(Tell::Call(_)) => None,
            Some(Tell::Queue(queue, _)) => Some(Arc::clone(queue)),
        };
        if std::mem::replace(&mut state.is_due, true) {
            return;
        }
        drop(state);
        match queue {
            Some(queue) => queue.tell(Arc::clone(self)),
            None => {
                if let Some(subject) = self.subject.upgrade()
                    && !subject.conn().call_soon()
                {
                    let notice = Arc::clone(self);
                    let runtime = &subject.conn().shared().runtime;
                    runtime.spawn(async move { notice.call() });
                }
            }
        }
    }
}

impl fmt::Debug for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notice").finish_non_exhaustive()
    }
}

/// An order that is not carried out. To drop it may call the host.
fn forget(tell: Option<Tell>) {
    if let Some(Tell::Queue(queue, _)) = &tell {
        queue.expects(-1);
    }
    contain(|| drop(tell));
}
