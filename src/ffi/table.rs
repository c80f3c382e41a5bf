//! The table of the requests that C knows, and the numbers that C gets as pointers to them.
//!
//! A real pointer that is used after the end of its request could find another client's request in the same memory. So
//! C gets a number that stands for one request alone: a slot of this table, and how often the slot had been used
//! before. Slots are never given back to the allocator. A caller with an old number is told that the request is gone.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the halves of 64 bits are 32, and a number has no more"
)]

use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use http::HeaderMap;
use once_cell::sync::OnceCell;

use super::request::httpdown_request;

/// The holders of a request. The request lives as long as one of the first four bits is set.
pub(super) type Holders = u32;
/// The handler that the request was lent to has not returned.
pub(super) const LENT: Holders = 1;
/// The request has still to be ended.
pub(super) const OPEN: Holders = 2;
/// The request is being ended.
pub(super) const ENDING: Holders = 4;
/// Somebody wants to read the request's head even after its end.
pub(super) const RETAINED: Holders = 8;
/// Somebody will end the request, perhaps after the handler has returned.
pub(super) const OWNED: Holders = 16;

const ANY: Holders = LENT | OPEN | ENDING | RETAINED;

/// The number of bits that say which slot is meant. The other bits say which of the slot's requests is meant.
const SLOT_BITS: u32 = if usize::BITS >= 64 { 32 } else { 20 };
/// The largest number that fits into the other bits.
const TURNS: u32 = u32::MAX >> (32 - (if usize::BITS >= 64 { 64 } else { 32 } - SLOT_BITS));
/// The first slot has this number, and the first chunk has this many slots. Each further chunk has twice as many.
const FIRST: usize = 64;
const CHUNKS: usize = SLOT_BITS as usize - FIRST.ilog2() as usize;
/// The number of lists of free slots, so that threads share a list as rarely as possible.
const SHARDS: usize = 16;
/// Slots with numbers up to this one keep the memory of a header map of at most `FIELDS_OF_SPARE` fields.
const SLOTS_WITH_SPARE: usize = 4096;
const FIELDS_OF_SPARE: usize = 32;

static CHUNK: [OnceCell<Box<[Slot]>>; CHUNKS] = [const { OnceCell::new() }; CHUNKS];
static MADE: AtomicUsize = AtomicUsize::new(0);
static FREE: [Free; SHARDS] = [const { Free(AtomicU64::new(0)) }; SHARDS];

/// A stack of free slots: the first slot, and how often the stack has changed, so that no two states look alike.
#[repr(align(128))]
struct Free(AtomicU64);

#[repr(align(64))]
struct Slot {
    /// How often the slot has been used, and the holders.
    state: AtomicU64,
    /// The next free slot.
    next: AtomicU32,
    /// The shard whose free slots this slot belongs to.
    shard: AtomicU32,
    /// Written by the thread that takes the slot from the free slots or puts it back; read by the holders.
    request: UnsafeCell<Option<httpdown_request>>,
    /// An empty map. The rules of `request` apply, but among the holders, only the thread that ends the request uses
    /// the map.
    spare: UnsafeCell<HeaderMap>,
}

// SAFETY: requests may go to any thread; the comments at the fields say who may use them, and when.
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

    /// The slot with this number, if [`make`] has made its chunk.
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
    /// The number of the request among the slot's requests.
    turn: u32,
}

/// Puts a request into the table. `None` if the table is full; memory could not hold that many requests.
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
    // The request is made in its final place.
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

/// Finds the entry for a pointer of C. `None` if the pointer is not a number that we gave out.
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
    /// The pointer that C gets.
    pub(super) fn pointer(self) -> *mut httpdown_request {
        std::ptr::without_provenance_mut((self.turn as usize) << SLOT_BITS | self.number)
    }

    /// The holders; none if the request does not live any more.
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

    /// Replaces the `old` holders by the `new` ones, if all `old` holders are there. Returns the holders from before.
    /// After the last holder, the slot is free for another request.
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
    /// While the result is used, the request keeps a holder.
    pub(super) unsafe fn request(self) -> Option<&'static httpdown_request> {
        // SAFETY: as long as there is a holder, nobody writes the request.
        unsafe { &*self.slot.request.get() }.as_ref()
    }

    /// An empty map, which has memory if one was given back before.
    ///
    /// # Safety
    /// The caller, and nobody else, has set [`ENDING`].
    pub(super) unsafe fn spare(self) -> HeaderMap {
        // SAFETY: the caller's promise.
        std::mem::take(unsafe { &mut *self.slot.spare.get() })
    }

    fn free(self) {
        let Self { slot, number, .. } = self;
        // SAFETY: the last holder is gone, and until the slot is among the free slots, nobody else uses it.
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

/// Makes a new slot.
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

/// The shard of this thread. Several threads share a shard. The thread-local has no destructor, and so exists until the
/// thread's end.
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
