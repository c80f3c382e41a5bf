//! All interleavings of what the stop rests on: the library's own files, with loom's locks in the place of std's.
//!
//! loom runs each model again and again, once for each order in which its threads can take their locks. It was chosen
//! before shuttle because these are small: every order can be gone through, not only random ones.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "files of the library, of which the models use a part; a test that fails panics"
)]

/// What `src/sync.rs` is to the library.
mod sync {
    pub(crate) use loom::sync::{Mutex, MutexGuard};
    pub(crate) use std::sync::PoisonError;
}

#[path = "../src/server/door.rs"]
mod door;
#[path = "../src/conn/driver.rs"]
mod driver;
#[path = "../src/conn/number.rs"]
mod number;
#[path = "../src/registry/register.rs"]
mod register;

use std::sync::Arc as StdArc;
use std::task::{Wake, Waker};

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

use door::{Door, Quiet};
use driver::{Driver, Resume};
use number::Number;
use register::Register;

/// A kernel's queue of connections, and those that are in the registry.
#[derive(Default)]
struct Takeover {
    door: Door,
    queue: Mutex<Vec<u32>>,
    registry: Mutex<Vec<u32>>,
}

impl Takeover {
    /// Two steps, as it is with the kernel.
    fn accept(&self) -> bool {
        let taken = self.queue.lock().unwrap().pop();
        let Some(conn) = taken else { return false };
        self.registry.lock().unwrap().push(conn);
        true
    }
}

#[test]
fn when_the_stop_has_emptied_the_queue_every_connection_is_in_the_registry() {
    loom::model(|| {
        let takeover = Arc::new(Takeover::default());
        takeover.queue.lock().unwrap().extend([1, 2]);
        let accepting = Arc::clone(&takeover);
        let task = thread::spawn(move || {
            for _ in 0..2 {
                if accepting.door.pass(|| accepting.accept()).is_none() {
                    break;
                }
            }
        });
        // The stop: it waits for who is passing, and from then on it is alone.
        takeover.door.close();
        while takeover.accept() {}
        assert_eq!(takeover.registry.lock().unwrap().len(), 2);
        task.join().unwrap();
        assert_eq!(takeover.registry.lock().unwrap().len(), 2);
    });
}

#[test]
fn nobody_passes_a_door_that_is_closed() {
    loom::model(|| {
        let door = Arc::new(Door::default());
        let closed = Arc::new(AtomicBool::new(false));
        let (through, seen) = (Arc::clone(&door), Arc::clone(&closed));
        let task = thread::spawn(move || {
            through.pass(|| assert!(!seen.load(Ordering::SeqCst)));
        });
        door.close();
        closed.store(true, Ordering::SeqCst);
        task.join().unwrap();
        assert!(door.pass(|| ()).is_none());
    });
}

/// A client on its way through the kernel: in the handshake, and then in the queue.
struct Arriving {
    in_handshake: Mutex<bool>,
    waits: Mutex<bool>,
}

#[test]
fn a_client_that_ends_its_handshake_during_a_look_is_seen() {
    loom::model(|| {
        let arriving = Arc::new(Arriving {
            in_handshake: Mutex::new(true),
            waits: Mutex::new(false),
        });
        let kernel = Arc::clone(&arriving);
        let arrives = thread::spawn(move || {
            let mut in_handshake = kernel.in_handshake.lock().unwrap();
            *kernel.waits.lock().unwrap() = true;
            *in_handshake = false;
        });
        let mut quiet = Quiet::default();
        quiet.look(|| false, || false);
        quiet.look(
            || *arriving.in_handshake.lock().unwrap(),
            || *arriving.waits.lock().unwrap(),
        );
        assert!(!quiet.is_certain());
        arrives.join().unwrap();
    });
}

#[test]
fn nobody_is_outside_when_two_looks_after_each_other_have_found_nobody() {
    let mut quiet = Quiet::default();
    // A client in the handshake; then on its way to the queue, and not to be seen; then there; and gone.
    for (in_handshake, waits) in [(true, false), (false, false), (false, true), (false, false)] {
        quiet.look(|| in_handshake, || waits);
        assert!(!quiet.is_certain());
    }
    quiet.look(|| false, || false);
    assert!(quiet.is_certain());
}

/// A socket with a number, which the next socket may get.
struct Numbered {
    number: Number,
    is_open: AtomicBool,
    closed_books: AtomicUsize,
}

impl Numbered {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            number: Number::new(7),
            is_open: AtomicBool::new(true),
            closed_books: AtomicUsize::new(0),
        })
    }

    fn close_books(&self) {
        self.closed_books.fetch_add(1, Ordering::SeqCst);
    }

    /// As its owner does, and as a kill does that abandons it.
    fn forget(&self) {
        self.number.forget(|_| self.close_books());
    }

    fn reset(&self) {
        let is_open = self.number.with(|_| self.is_open.load(Ordering::SeqCst));
        assert_ne!(is_open, Some(false), "another's socket");
    }
}

#[test]
fn a_kill_resets_no_socket_that_is_closed_and_the_books_are_closed_once() {
    loom::model(|| {
        let numbered = Numbered::new();
        let (closing, killing) = (Arc::clone(&numbered), Arc::clone(&numbered));
        let owner = thread::spawn(move || {
            closing.forget();
            closing.is_open.store(false, Ordering::SeqCst);
        });
        let kill = thread::spawn(move || {
            killing.reset();
            killing.forget();
        });
        owner.join().unwrap();
        kill.join().unwrap();
        assert_eq!(numbered.closed_books.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn a_kill_resets_no_socket_that_was_closed_because_it_could_not_be_driven() {
    loom::model(|| {
        let numbered = Numbered::new();
        let (closing, killing) = (Arc::clone(&numbered), Arc::clone(&numbered));
        let owner = thread::spawn(move || {
            let failed = closing.number.forget_if_err(|| {
                closing.is_open.store(false, Ordering::SeqCst);
                Err::<(), _>(())
            });
            assert!(failed.is_err());
            closing.close_books();
            closing.forget();
        });
        let kill = thread::spawn(move || killing.reset());
        owner.join().unwrap();
        kill.join().unwrap();
        assert_eq!(numbered.closed_books.load(Ordering::SeqCst), 1);
    });
}

/// A connection's account, and the sum of those that are settled.
#[derive(Default)]
struct Account {
    is_settled: AtomicBool,
}

#[derive(Default)]
struct Books {
    register: Register<Account>,
    settled: AtomicUsize,
}

impl Books {
    fn settle(&self, account: &Account) {
        self.register.settle(|| {
            self.settled.fetch_add(1, Ordering::SeqCst);
            account.is_settled.store(true, Ordering::SeqCst);
        });
    }

    fn count(&self) -> usize {
        let mut settled = 0;
        let unsettled = self.register.unsettled(
            |account| account.is_settled.load(Ordering::SeqCst),
            || settled = self.settled.load(Ordering::SeqCst),
        );
        settled + unsettled.len()
    }
}

#[test]
fn a_report_counts_a_connection_once_that_is_being_closed() {
    loom::model(|| {
        let books = Arc::new(Books::default());
        let account = StdArc::new(Account::default());
        books.register.insert(1, &account);
        let closing = Arc::clone(&books);
        let owner = thread::spawn(move || {
            closing.settle(&account);
            // What holds it last lets it go.
            closing.register.remove(1, || ());
        });
        assert_eq!(books.count(), 1);
        owner.join().unwrap();
        assert!(books.register.is_empty());
        assert_eq!(books.count(), 1);
    });
}

/// A connection with one thing that may happen to it.
#[derive(Default)]
struct Parking {
    driver: Driver,
    happened: AtomicBool,
    seen: AtomicUsize,
    resumed: AtomicUsize,
}

struct Parked(Arc<Parking>);

impl Resume for Parked {
    fn resume(self: Box<Self>) {
        self.0.resumed.fetch_add(1, Ordering::SeqCst);
        look(&self.0);
    }
}

/// As a connection's task does: from the look on, nothing is missed.
fn look(parking: &Arc<Parking>) {
    parking.driver.look();
    if parking.happened.load(Ordering::SeqCst) {
        parking.seen.fetch_add(1, Ordering::SeqCst);
    } else {
        parking.driver.park(Box::new(Parked(Arc::clone(parking))));
    }
}

#[test]
fn what_happens_while_a_connection_is_being_parked_is_seen() {
    loom::model(|| {
        let parking = Arc::new(Parking::default());
        let happens = Arc::clone(&parking);
        let wakes = thread::spawn(move || {
            happens.happened.store(true, Ordering::SeqCst);
            happens.driver.wake();
        });
        look(&parking);
        wakes.join().unwrap();
        assert_eq!(parking.seen.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn a_parked_connection_is_resumed_once_however_many_wake_it() {
    loom::model(|| {
        let parking = Arc::new(Parking::default());
        let wakers: Vec<_> = (0..2)
            .map(|_| {
                let happens = Arc::clone(&parking);
                thread::spawn(move || {
                    happens.happened.store(true, Ordering::SeqCst);
                    happens.driver.wake();
                })
            })
            .collect();
        look(&parking);
        for waker in wakers {
            waker.join().unwrap();
        }
        assert_eq!(parking.seen.load(Ordering::SeqCst), 1);
        assert!(parking.resumed.load(Ordering::SeqCst) <= 1);
    });
}

struct Task(AtomicUsize);

impl Wake for Task {
    fn wake(self: StdArc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn what_happens_while_a_connection_gets_a_task_is_seen_by_the_task_or_wakes_it() {
    loom::model(|| {
        let parking = Arc::new(Parking::default());
        let happens = Arc::clone(&parking);
        let wakes = thread::spawn(move || {
            happens.happened.store(true, Ordering::SeqCst);
            happens.driver.wake();
        });
        parking.driver.look();
        let task = StdArc::new(Task(AtomicUsize::new(0)));
        parking.driver.driven_by(&Waker::from(StdArc::clone(&task)));
        // The task looks for the first time.
        let seen = parking.happened.load(Ordering::SeqCst);
        wakes.join().unwrap();
        assert!(seen || task.0.load(Ordering::SeqCst) > 0);
    });
}
