//! A memory file that shrinks must not end the process.
//!
//! Whoever holds the descriptor of shared memory can truncate it, and every access behind the new end then raises
//! `SIGBUS`. All our mappings of guest memory stand in a fixed table of atomics. The handler looks the address up: in
//! a mapping of ours it puts zero pages over everything from the hole on (one kernel mapping more, however much is
//! touched: the number of those is limited), marks the mapping *poisoned*, and the access is repeated and succeeds.
//! Queues look at [`faults`] once per burst and stop their port. A fault anywhere else goes to the handler
//! that was there before. The handler allocates nothing, takes no lock and calls nothing but `mmap`.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Guest mappings of the whole process.
pub const MAPPINGS_MAX: usize = 65_536;

/// One line of the table.
struct Slot {
    /// First octet; zero while the slot is free. Written last, cleared first.
    start: AtomicUsize,
    end: AtomicUsize,
    page: AtomicUsize,
    poisoned: AtomicBool,
}

static SLOTS: [Slot; MAPPINGS_MAX] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        page: AtomicUsize::new(0),
        poisoned: AtomicBool::new(false),
    }
}; MAPPINGS_MAX];

/// Slots that were ever used: the handler looks no further.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Faults that were repaired, of all mappings.
static FAULTS: AtomicU32 = AtomicU32::new(0);
/// Free slots below [`USED`]; never touched by the handler.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// How many faults were repaired so far, in the whole process. When it moves, ask [`Registration::poisoned`].
#[inline]
pub fn faults() -> u32 {
    FAULTS.load(Ordering::Acquire)
}

/// A mapping's place in the table; leaves it on drop. Drop it before `munmap`.
#[derive(Debug)]
pub struct Registration(usize);

impl Registration {
    /// Registers `len` octets at `start`, mapped with pages of `page` octets, and installs the handler if this is
    /// the first one. `None` when the table is full.
    pub fn new(start: usize, len: usize, page: usize) -> Option<Self> {
        install();
        let index = {
            let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
            match free.pop() {
                Some(index) => index,
                None => {
                    let index = USED.load(Ordering::Relaxed);
                    if index == MAPPINGS_MAX {
                        return None;
                    }
                    USED.store(index + 1, Ordering::Release);
                    index
                }
            }
        };
        let slot = &SLOTS[index];
        // A handler that reads what follows also sees that the slot was given away before.
        fence(Ordering::Release);
        slot.poisoned.store(false, Ordering::Relaxed);
        slot.end.store(start + len, Ordering::Relaxed);
        slot.page.store(page, Ordering::Relaxed);
        slot.start.store(start, Ordering::Release);
        Some(Self(index))
    }

    /// Whether an access to the mapping hit a hole.
    #[inline]
    pub fn poisoned(&self) -> bool {
        SLOTS[self.0].poisoned.load(Ordering::Relaxed)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        SLOTS[self.0].start.store(0, Ordering::Release);
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
    }
}

fn install() {
    PREVIOUS.get_or_init(|| {
        // SAFETY: all-zero is a valid `sigaction`. JUSTIFICATION: C structure.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: as above. JUSTIFICATION: C structure, filled by the kernel.
        let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: both structures are valid, and the handler is async-signal-safe (see the module's comment).
        // JUSTIFICATION: there is no other way to survive a truncated memory file.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut previous) };
        previous
    });
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` to an `SA_SIGINFO` handler; errno is this thread's own.
    // JUSTIFICATION: signal handler.
    let (address, errno) = unsafe { ((*info).si_addr() as usize, *libc::__errno_location()) };
    let repaired = SLOTS[..USED.load(Ordering::Acquire)].iter().any(|slot| repair(slot, address));
    // SAFETY: as above. JUSTIFICATION: the interrupted code may be about to read errno.
    unsafe { *libc::__errno_location() = errno };
    if !repaired {
        forward(signal, info, context);
    }
}

fn repair(slot: &Slot, address: usize) -> bool {
    let start = slot.start.load(Ordering::Acquire);
    let (end, page) = (slot.end.load(Ordering::Relaxed), slot.page.load(Ordering::Relaxed));
    fence(Ordering::Acquire);
    // Another thread may have given the slot away in between, and then these numbers do not belong together.
    if start == 0 || address < start || address >= end || slot.start.load(Ordering::Relaxed) != start {
        return false;
    }
    let hole = address & !(page - 1);
    // SAFETY: the hole lies inside a mapping of ours that is alive, because a thread just touched it; nobody holds
    // a reference into it, only raw pointers, and those stay valid. JUSTIFICATION: repairs the fault.
    let result = unsafe {
        libc::mmap(
            hole as *mut libc::c_void,
            end - hole,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if result == libc::MAP_FAILED {
        return false;
    }
    slot.poisoned.store(true, Ordering::Relaxed);
    FAULTS.fetch_add(1, Ordering::Release);
    true
}

fn forward(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(previous) = PREVIOUS.get() else {
        return default(signal);
    };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => default(signal),
        function if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the kernel gave us this address as an `SA_SIGINFO` handler. JUSTIFICATION: chaining handlers.
            let function: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(function) };
            function(signal, info, context);
        }
        function => {
            // SAFETY: the kernel gave us this address as a plain handler. JUSTIFICATION: chaining handlers.
            let function: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(function) };
            function(signal);
        }
    }
}

/// Back to the default action; the access is repeated and ends the process as it should.
fn default(signal: libc::c_int) {
    // SAFETY: plain integers. JUSTIFICATION: async-signal-safe way to restore the default.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}
