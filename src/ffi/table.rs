//! Where requests are that C knows, and the numbers that C has for pointers to them.
//!
//! A pointer that is used again when its request is gone would find another client's request in the same memory. So C
//! gets a number that stands for one request alone: a slot of this table, and how often the slot had been used before.
//! Slots are never given back to the allocator, and who finds one by an old number is told so.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the halves of 64 bits are 32, and a number has no more"
)]

use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use http::HeaderMap;
use once_cell::sync::OnceCell;

use super::request::httpdown_request;

/// Who has a request. It lives as long as one of the first four is set.
pub(super) type Holders = u32;
/// The handler that it was lent to has not returned.
pub(super) const LENT: Holders = 1;
/// It has still to be ended.
pub(super) const OPEN: Holders = 2;
/// It is being ended.
pub(super) const ENDING: Holders = 4;
/// Somebody wants to read its head, also behind its end.
pub(super) const RETAINED: Holders = 8;
/// Somebody will end it, be it behind the handler.
pub(super) const OWNED: Holders = 16;

const ANY: Holders = LENT | OPEN | ENDING | RETAINED;

/// How many bits of a number say which slot it is. The others say which of its requests.
const SLOT_BITS: u32 = if usize::BITS >= 64 { 32 } else { 20 };
/// As much of that as there is room for.
const TURNS: u32 = u32::MAX >> (32 - (if usize::BITS >= 64 { 64 } else { 32 } - SLOT_BITS));
/// The first slot has this number, and the first chunk as many slots. Each further one has twice as many.
const FIRST: usize = 64;
const CHUNKS: usize = SLOT_BITS as usize - FIRST.ilog2() as usize;
/// Threads keep their free slots apart, as far as possible.
const SHARDS: usize = 16;
/// Slots up to here keep the memory of a header map of at most so many fields.
const SLOTS_WITH_SPARE: usize = 4096;
const FIELDS_OF_SPARE: usize = 32;

static CHUNK: [OnceCell<Box<[Slot]>>; CHUNKS] = [const { OnceCell::new() }; CHUNKS];
static MADE: AtomicUsize = AtomicUsize::new(0);
static FREE: [Free; SHARDS] = [const { Free(AtomicU64::new(0)) }; SHARDS];

/// A stack of free slots: the first, and, so that no two states look alike, how often it has changed.
#[repr(align(128))]
struct Free(AtomicU64);

#[repr(align(64))]
struct Slot {
    /// How often it has been used, and the holders.
    state: AtomicU64,
    /// The next free one.
    next: AtomicU32,
    /// Whose free slots it belongs to.
    shard: AtomicU32,
    /// Written by whoever takes the slot from the free ones, or puts it back; read by the holders.
    request: UnsafeCell<Option<httpdown_request>>,
    /// An empty map. As `request`, but among the holders only who ends the request has it.
    spare: UnsafeCell<HeaderMap>,
}

// SAFETY: requests may go to any thread; who may use what, and when, is said at the fields.
unsafe impl Sync for Slot {}
// SAFETY: as above.
unsafe impl Send for Slot {}

impl Slot {
    fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
            next: AtomicU32::new(0),
            shard: AtomicU32::new(0),
            request: UnsafeCell::new(None),
            spare: UnsafeCell::default(),
        }
    }

    /// Of what [`make`] has given out, or something like it.
    fn at(number: usize) -> Option<&'static Self> {
        let size = number.checked_ilog2()?;
        let chunk = (size as usize).checked_sub(FIRST.ilog2() as usize)?;
        CHUNK.get(chunk)?.get()?.get(number - (1 << size))
    }
}

/// A request that a number stands for, or stood for.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    slot: &'static Slot,
    number: usize,
    /// Which of the slot's requests.
    turn: u32,
}

/// Puts a request into the table. `None` if that is full, of as many requests as no memory could hold.
#[inline]
pub(super) fn insert(
    request: impl FnOnce() -> httpdown_request,
    holders: Holders,
) -> Option<Entry> {
    let shard = my_shard();
    let number = FREE[shard].pop().or_else(|| make(shard))?;
    let slot = Slot::at(number)?;
    // SAFETY: nobody else has the slot.
    let place = unsafe { &mut *slot.request.get() };
    // Made where it is to be.
    *place = Some(request());
    let turn = (slot.state.load(Ordering::Relaxed) >> 32) as u32;
    slot.state.store(
        u64::from(turn) << 32 | u64::from(holders),
        Ordering::Release,
    );
    Some(Entry {
        slot,
        number,
        turn: turn & TURNS,
    })
}

/// What C calls a pointer. `None` if it is no number of ours.
pub(super) fn find(pointer: *const httpdown_request) -> Option<Entry> {
    let value = pointer.addr();
    let number = value & (1_usize << SLOT_BITS).wrapping_sub(1);
    Some(Entry {
        slot: Slot::at(number)?,
        number,
        turn: u32::try_from(value >> SLOT_BITS).unwrap_or(u32::MAX),
    })
}

impl Entry {
    /// What C gets.
    pub(super) fn pointer(self) -> *mut httpdown_request {
        std::ptr::without_provenance_mut((self.turn as usize) << SLOT_BITS | self.number)
    }

    /// None if it does not live any more.
    pub(super) fn holders(self) -> Holders {
        self.holders_in(self.slot.state.load(Ordering::Acquire))
    }

    fn holders_in(self, state: u64) -> Holders {
        let turn = (state >> 32) as u32;
        if turn & TURNS == self.turn {
            state as u32
        } else {
            0
        }
    }

    /// Has `old` holders replaced by `new` ones, if all `old` ones are there. Says who they were before. Behind the last
    /// holder the slot is free for another request.
    pub(super) fn replace(self, old: Holders, new: Holders) -> Option<Holders> {
        let state = &self.slot.state;
        let mut before = state.load(Ordering::Relaxed);
        loop {
            let holders = self.holders_in(before);
            if holders & ANY == 0 || holders & old != old {
                return None;
            }
            let left = holders & !old | new;
            let after = before & !u64::from(u32::MAX) | u64::from(left);
            match state.compare_exchange_weak(before, after, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if left & ANY == 0 => self.free(),
                Ok(_) => {}
                Err(now) => {
                    before = now;
                    continue;
                }
            }
            return Some(holders);
        }
    }

    /// # Safety
    /// As long as this is used, a holder of it stays.
    pub(super) unsafe fn request(self) -> Option<&'static httpdown_request> {
        // SAFETY: as long as there is a holder nobody writes it.
        unsafe { &*self.slot.request.get() }.as_ref()
    }

    /// An empty map, which has memory if one was given back before.
    ///
    /// # Safety
    /// The caller has set [`ENDING`], and nobody else.
    pub(super) unsafe fn spare(self) -> HeaderMap {
        // SAFETY: the caller's promise.
        std::mem::take(unsafe { &mut *self.slot.spare.get() })
    }

    fn free(self) {
        let Self { slot, number, .. } = self;
        // SAFETY: the last holder is gone, and until it is among the free ones, nobody else comes to it.
        let request = unsafe { &mut *slot.request.get() };
        if number < SLOTS_WITH_SPARE
            && let Some(mut headers) = request.as_mut().map(httpdown_request::take_headers)
            && headers.capacity() <= FIELDS_OF_SPARE
        {
            headers.clear();
            // SAFETY: as above.
            unsafe { *slot.spare.get() = headers };
        }
        *request = None;
        let turn = (slot.state.load(Ordering::Relaxed) >> 32) + 1;
        slot.state.store(turn << 32, Ordering::Release);
        let shard = slot.shard.load(Ordering::Relaxed) as usize;
        FREE[shard % SHARDS].push(slot, number);
    }
}

/// A slot that has not been there before.
fn make(shard: usize) -> Option<usize> {
    let number = MADE.fetch_add(1, Ordering::Relaxed) + FIRST;
    let size = number.ilog2();
    let chunk = CHUNK.get(size as usize - FIRST.ilog2() as usize)?;
    let slots = chunk.get_or_init(|| (0..1_usize << size).map(|_| Slot::new()).collect());
    let slot = slots.get(number - (1 << size))?;
    slot.shard.store(shard as u32, Ordering::Relaxed);
    Some(number)
}

impl Free {
    fn pop(&self) -> Option<usize> {
        let mut head = self.0.load(Ordering::Acquire);
        loop {
            let number = head as u32 as usize;
            let next = Slot::at(number)?.next.load(Ordering::Relaxed);
            match self.change(head, next) {
                Ok(()) => return Some(number),
                Err(now) => head = now,
            }
        }
    }

    fn push(&self, slot: &Slot, number: usize) {
        let mut head = self.0.load(Ordering::Acquire);
        loop {
            slot.next.store(head as u32, Ordering::Relaxed);
            match self.change(head, number as u32) {
                Ok(()) => return,
                Err(now) => head = now,
            }
        }
    }

    fn change(&self, head: u64, first: u32) -> Result<(), u64> {
        let changed = (head >> 32).wrapping_add(1) << 32 | u64::from(first);
        let exchange =
            self.0
                .compare_exchange_weak(head, changed, Ordering::AcqRel, Ordering::Acquire);
        exchange.map(drop)
    }
}

/// Each thread has one; no thread has it alone. Its local has no destructor, and so is there until the thread's end.
fn my_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<Option<usize>> = const { Cell::new(None) };
    }
    MINE.get().unwrap_or_else(|| {
        let shard = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
        MINE.set(Some(shard));
        shard
    })
}
