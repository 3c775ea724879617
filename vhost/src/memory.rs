//! Guest memory: mapping it, translating guest addresses, copying, and the dirty log.
//!
//! A [`GuestMemory`] is an immutable snapshot of a memory table. Each ring holds one (through its [`Translator`]), so
//! mappings live until the last ring let go of them. Guest addresses become a [`GuestSlice`]: checked once, inside
//! one region, borrowed from the translator. There is never a `&[u8]` over guest memory, because the guest writes
//! there whenever it likes; all copies go through raw pointers. Mappings stand in the table of [`crate::sigbus`].

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use hostweave_switch::payload::Segment;

use crate::sigbus::Registration;
use crate::sys;

/// Regions of one guest (the number that other backends offer in `GET_MAX_MEM_SLOTS`).
pub const REGIONS_MAX: usize = 509;
/// Octets of one guest's memory.
pub const MEMORY_MAX: u64 = 1 << 46;
/// Octets of memory that one bit of the dirty log stands for (`VHOST_LOG_PAGE`).
const LOG_PAGE: u64 = 4096;

/// A memory table that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Too many regions.
    #[error("the VMM shares more than {REGIONS_MAX} memory regions")]
    TooManyRegions,
    /// Too much memory, or none, or the sum overflows.
    #[error("the memory region at guest address {gpa:#x} with {len} octets is empty, wraps around, or is too large")]
    BadSize {
        /// Guest physical address.
        gpa: u64,
        /// Octets.
        len: u64,
    },
    /// Two regions claim one address.
    #[error("the memory regions at guest addresses {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
    /// No such region to remove.
    #[error("the VMM removes a memory region at guest address {0:#x} that it never shared")]
    Unknown(u64),
    /// Not a memory file.
    #[error(
        "the descriptor for guest address {0:#x} is no memory file (memfd, hugetlbfs or shm); start the VMM with shared memory"
    )]
    NotMemory(u64),
    /// Shorter than the region.
    #[error("the memory file for guest address {gpa:#x} has {file_len} octets, but the region needs {needed}")]
    FileTooShort {
        /// Guest physical address.
        gpa: u64,
        /// Octets in the file.
        file_len: u64,
        /// Offset and length of the region.
        needed: u64,
    },
    /// Addresses are not multiples of 4096.
    #[error("the memory region at guest address {0:#x} is not aligned to pages")]
    Misaligned(u64),
    /// The process has too many mappings.
    #[error("this process holds too many guest memory mappings")]
    TooManyMappings,
    /// `mmap`, `fstat` or `fstatfs` failed.
    #[error("cannot map the memory at guest address {gpa:#x}")]
    Map {
        /// Guest physical address.
        gpa: u64,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// A shared mapping of a file. Unmapped on drop.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// Given up before the mapping goes.
    registration: Option<Registration>,
}

// SAFETY: the mapping is plain shared memory that any thread may access through raw pointers until it is dropped.
// JUSTIFICATION: raw pointers are not `Send` by themselves.
unsafe impl Send for Mapping {}
// SAFETY: as above. JUSTIFICATION: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `offset..offset + len` of `file`. Returns where `offset` landed.
    fn new(file: &File, offset: u64, len: u64, page: u64) -> io::Result<(Self, NonNull<u8>)> {
        let start = offset & !(page - 1);
        let end = (offset + len).next_multiple_of(page);
        let bytes = usize::try_from(end - start).map_err(io::Error::other)?;
        let offset_from_start = (offset - start) as usize;
        let file_offset = libc::off_t::try_from(start).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nobody. JUSTIFICATION: guest memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                file_offset,
            )
        };
        let Some(base) = NonNull::new(base.cast::<u8>()).filter(|_| base != libc::MAP_FAILED) else {
            return Err(io::Error::last_os_error());
        };
        let mut mapping = Self { base, len: bytes, registration: None };
        for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
            // SAFETY: our own mapping; the advice only keeps it out of core dumps and children.
            // JUSTIFICATION: no safe wrapper in std.
            unsafe { libc::madvise(base.as_ptr().cast(), bytes, advice) };
        }
        mapping.registration = Registration::new(base.as_ptr() as usize, bytes, page as usize);
        if mapping.registration.is_none() {
            return Err(io::Error::from(io::ErrorKind::QuotaExceeded));
        }
        // SAFETY: `offset_from_start` is less than a page and the mapping is longer. JUSTIFICATION: pointer arithmetic.
        Ok((mapping, unsafe { base.add(offset_from_start) }))
    }

    fn poisoned(&self) -> bool {
        self.registration.as_ref().is_some_and(Registration::poisoned)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        drop(self.registration.take());
        // SAFETY: our own mapping, and whoever holds a pointer into it also holds an `Arc` of its owner.
        // JUSTIFICATION: guest memory.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// What the VMM says about one region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionSpec {
    /// Guest physical address.
    pub gpa: u64,
    /// Octets.
    pub len: u64,
    /// Address in the VMM, which names rings.
    pub uva: u64,
    /// Where in the file it starts.
    pub offset: u64,
}

/// A mapped region.
pub struct Region {
    spec: RegionSpec,
    base: NonNull<u8>,
    page: u64,
    mapping: Mapping,
}

// SAFETY: see `Mapping`, which `base` points into. JUSTIFICATION: raw pointers are not `Send` by themselves.
unsafe impl Send for Region {}
// SAFETY: as above. JUSTIFICATION: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps a region after checking it.
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn map(spec: RegionSpec, file: &File) -> Result<Self, MemoryError> {
        let RegionSpec { gpa, len, uva, offset } = spec;
        let fits = |start: u64| start.checked_add(len).is_some();
        if len == 0 || len > MEMORY_MAX || !fits(gpa) || !fits(uva) || !fits(offset) || offset + len > i64::MAX as u64 {
            return Err(MemoryError::BadSize { gpa, len });
        }
        if [gpa, len, offset].iter().any(|value| value % LOG_PAGE != 0) {
            return Err(MemoryError::Misaligned(gpa));
        }
        let system = |source| MemoryError::Map { gpa, source };
        let metadata = file.metadata().map_err(system)?;
        if !metadata.is_file() {
            return Err(MemoryError::NotMemory(gpa));
        }
        if metadata.len() < offset + len {
            return Err(MemoryError::FileTooShort { gpa, file_len: metadata.len(), needed: offset + len });
        }
        let page = sys::memory_page(file).map_err(system)?.ok_or(MemoryError::NotMemory(gpa))?;
        let (mapping, base) = Mapping::new(file, offset, len, page).map_err(|source| match source.kind() {
            io::ErrorKind::QuotaExceeded => MemoryError::TooManyMappings,
            _ => system(source),
        })?;
        Ok(Self { spec, base, page, mapping })
    }
}

/// A region as translation sees it.
#[derive(Clone, Copy)]
struct Window {
    gpa: u64,
    len: u64,
    base: NonNull<u8>,
}

/// A snapshot of a guest's memory table.
#[derive(Default)]
pub struct GuestMemory {
    /// By guest address.
    regions: Vec<Arc<Region>>,
    windows: Vec<Window>,
}

// SAFETY: windows point into the mappings that `regions` keeps. JUSTIFICATION: raw pointers are not `Send`.
unsafe impl Send for GuestMemory {}
// SAFETY: as above. JUSTIFICATION: as above.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// A table of these regions.
    ///
    /// # Errors
    /// Too many, too large in sum, or overlapping in guest addresses or in VMM addresses.
    pub fn new(mut regions: Vec<Arc<Region>>) -> Result<Self, MemoryError> {
        if regions.len() > REGIONS_MAX {
            return Err(MemoryError::TooManyRegions);
        }
        let mut total = 0u64;
        for region in &regions {
            total = total.saturating_add(region.spec.len);
            if total > MEMORY_MAX {
                return Err(MemoryError::BadSize { gpa: region.spec.gpa, len: total });
            }
        }
        for key in [|spec: &RegionSpec| spec.uva, |spec: &RegionSpec| spec.gpa] {
            regions.sort_by_key(|region| key(&region.spec));
            for pair in regions.windows(2) {
                let (a, b) = (&pair[0].spec, &pair[1].spec);
                if key(a) + a.len > key(b) {
                    return Err(MemoryError::Overlap(a.gpa, b.gpa));
                }
            }
        }
        let windows = regions
            .iter()
            .map(|region| Window { gpa: region.spec.gpa, len: region.spec.len, base: region.base })
            .collect();
        Ok(Self { regions, windows })
    }

    /// This table and one more region, which takes the place of one that is the same but for its file.
    ///
    /// # Errors
    /// As [`GuestMemory::new`].
    pub fn with(&self, region: Region) -> Result<Self, MemoryError> {
        let same = |other: &RegionSpec| RegionSpec { offset: region.spec.offset, ..*other } == region.spec;
        let mut regions: Vec<_> = self.regions.iter().filter(|other| !same(&other.spec)).cloned().collect();
        regions.push(Arc::new(region));
        Self::new(regions)
    }

    /// This table without a region (its file offset does not matter).
    ///
    /// # Errors
    /// When there is no such region.
    pub fn without(&self, gpa: u64, len: u64, uva: u64) -> Result<Self, MemoryError> {
        let same = |spec: &RegionSpec| (spec.gpa, spec.len, spec.uva) == (gpa, len, uva);
        let regions: Vec<_> = self.regions.iter().filter(|region| !same(&region.spec)).cloned().collect();
        if regions.len() == self.regions.len() {
            return Err(MemoryError::Unknown(gpa));
        }
        Self::new(regions)
    }

    /// Octets in all.
    pub fn len(&self) -> u64 {
        self.windows.iter().map(|window| window.len).sum()
    }

    /// Whether there is no region.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// The smallest page that any region is mapped with, in octets; zero without regions.
    pub fn page_size(&self) -> u64 {
        self.regions.iter().map(|region| region.page).min().unwrap_or(0)
    }

    /// Whether any region's file turned out to be shorter than it was.
    pub fn poisoned(&self) -> bool {
        self.regions.iter().any(|region| region.mapping.poisoned())
    }

    /// The guest address behind an address of the VMM.
    pub fn guest_address(&self, uva: u64) -> Option<u64> {
        let spec = self.regions.iter().map(|region| region.spec).find(|spec| uva.wrapping_sub(spec.uva) < spec.len)?;
        Some(spec.gpa + (uva - spec.uva))
    }

    /// `len` octets at guest address `gpa`, if they lie in one region.
    pub fn slice(&self, gpa: u64, len: u32) -> Option<GuestSlice<'_>> {
        self.window(gpa)?.slice(gpa, len)
    }

    fn window(&self, gpa: u64) -> Option<&Window> {
        let index = self.windows.partition_point(|window| window.gpa <= gpa).checked_sub(1)?;
        self.windows.get(index).filter(|window| gpa - window.gpa < window.len)
    }
}

impl Window {
    #[inline]
    fn slice<'a>(&self, gpa: u64, len: u32) -> Option<GuestSlice<'a>> {
        let offset = gpa.wrapping_sub(self.gpa);
        if offset >= self.len || u64::from(len) > self.len - offset {
            return None;
        }
        // SAFETY: `offset` is inside the mapped region. JUSTIFICATION: pointer arithmetic in guest memory.
        let start = unsafe { self.base.add(offset as usize) };
        Some(GuestSlice { start, len, memory: PhantomData })
    }
}

/// A snapshot with the region that was hit last: most guests have all buffers in one.
pub struct Translator {
    last: Cell<Window>,
    memory: Arc<GuestMemory>,
}

// SAFETY: as `GuestMemory`; the cell is only reached through the claim of the ring that owns the translator.
// JUSTIFICATION: raw pointers are not `Send` by themselves.
unsafe impl Send for Translator {}

impl Translator {
    /// Translates in this snapshot.
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        let last = memory.windows.first().copied().unwrap_or(Window { gpa: 0, len: 0, base: NonNull::dangling() });
        Self { last: Cell::new(last), memory }
    }

    /// The snapshot.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// `len` octets at `gpa`, if they lie in one region.
    #[inline]
    pub fn slice(&self, gpa: u64, len: u32) -> Option<GuestSlice<'_>> {
        match self.last.get().slice(gpa, len) {
            Some(slice) => Some(slice),
            None => self.slice_elsewhere(gpa, len),
        }
    }

    #[cold]
    fn slice_elsewhere(&self, gpa: u64, len: u32) -> Option<GuestSlice<'_>> {
        let window = self.memory.window(gpa)?;
        self.last.set(*window);
        window.slice(gpa, len)
    }

    /// Calls `with` for each part of `gpa..gpa + len`, in order: one part per region that it touches. False when some
    /// octet is no memory, or `with` says so.
    #[inline]
    pub fn parts<'a>(&'a self, gpa: u64, len: u32, mut with: impl FnMut(GuestSlice<'a>) -> bool) -> bool {
        match self.slice(gpa, len) {
            Some(slice) => with(slice),
            None => self.parts_slow(gpa, len, &mut with),
        }
    }

    #[cold]
    fn parts_slow<'a>(&'a self, gpa: u64, len: u32, with: &mut dyn FnMut(GuestSlice<'a>) -> bool) -> bool {
        let (mut at, mut left) = (gpa, len);
        while left > 0 {
            let Some(window) = self.memory.window(at) else { return false };
            let room = window.len - (at - window.gpa);
            let part = left.min(u32::try_from(room).unwrap_or(u32::MAX));
            let Some(slice) = window.slice(at, part) else { return false };
            if !with(slice) {
                return false;
            }
            left -= part;
            // A region ends below 2^64, so only an address behind the last region can wrap, and that has no window.
            at = at.wrapping_add(u64::from(part));
        }
        true
    }
}

/// A run of octets in guest memory, inside one region. The guest may write it at any time.
#[derive(Clone, Copy)]
pub struct GuestSlice<'a> {
    start: NonNull<u8>,
    len: u32,
    memory: PhantomData<&'a GuestMemory>,
}

impl GuestSlice<'_> {
    /// Octets.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "an empty one is never asked for")]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Address in this process.
    #[inline]
    pub fn address(&self) -> NonNull<u8> {
        self.start
    }

    /// The part `from..from + len`, cut to what there is.
    #[inline]
    pub fn part(&self, from: usize, len: usize) -> Self {
        let from = from.min(self.len());
        let len = len.min(self.len() - from);
        // SAFETY: `from <= len`. JUSTIFICATION: pointer arithmetic in guest memory.
        Self { start: unsafe { self.start.add(from) }, len: len as u32, memory: PhantomData }
    }

    /// Copies from the start into `into`.
    ///
    /// # Panics
    /// When `into` is longer.
    #[inline]
    pub fn read(&self, into: &mut [u8]) {
        assert!(into.len() <= self.len());
        // SAFETY: the source is mapped for that many octets while `'a` lasts; the target is ours, so they do not
        // overlap. JUSTIFICATION: guest memory may not be borrowed.
        unsafe { copy(self.start.as_ptr(), into.as_mut_ptr(), into.len()) }
    }

    /// [`GuestSlice::prefetch`] for a slice that will be written.
    #[inline]
    pub fn prefetch_write(&self) {
        prefetch_write(self.start.as_ptr(), self.len);
    }

    /// Copies `from` to the start.
    ///
    /// # Panics
    /// When `from` is longer.
    #[inline]
    pub fn write(&self, from: &[u8]) {
        assert!(from.len() <= self.len());
        // SAFETY: as `read`, the other way round. JUSTIFICATION: guest memory may not be borrowed.
        unsafe { copy(from.as_ptr(), self.start.as_ptr(), from.len()) }
    }

    /// As [`GuestSlice::write`], for the head of a packet, whose first 32 octets have just been rewritten by words of eight octets
    /// ([`hostweave_switch::rewrite`]): they are read by the same words. A wider load would have to wait until those stores, and
    /// all before them, have reached the cache. Not more of them: each store to a line that the guest has just read waits in the store
    /// buffer, and eight narrow ones in place of five cost packets of 64 octets a fifth of their rate.
    ///
    /// # Panics
    /// When `from` is longer.
    #[inline]
    pub fn write_head(&self, from: &[u8]) {
        const WORDS: usize = 4;
        let Some((words, rest)) = from.split_at_checked(8 * WORDS) else { return self.write(from) };
        assert!(from.len() <= self.len());
        for at in 0..WORDS {
            // SAFETY: both sides have 32 octets at least, checked above. Volatile, or the compiler makes wide loads of them.
            // JUSTIFICATION: guest memory may not be borrowed.
            unsafe {
                let word = words.as_ptr().cast::<Word>().add(at).read_volatile();
                self.start.as_ptr().cast::<Word>().add(at).write(word);
            }
        }
        // SAFETY: as `write`. JUSTIFICATION: as `write`.
        unsafe { copy(rest.as_ptr(), self.start.as_ptr().add(words.len()), rest.len()) }
    }

    /// Copies from somebody else's payload to `at`: the one copy of the payload. Returns how many octets, at most
    /// what fits.
    #[inline]
    pub fn write_segment(&self, at: usize, segment: Segment) -> usize {
        let target = self.part(at, segment.len());
        // SAFETY: both are mapped for that many octets. They may overlap when a guest sends out of a buffer that it
        // also posted for receiving: then only octets of its own memory are wrong, but `memmove` it must be.
        // JUSTIFICATION: guest memory may not be borrowed.
        unsafe { std::ptr::copy(segment.address().as_ptr(), target.start.as_ptr(), target.len()) };
        target.len()
    }

    /// As a payload segment. The burst that gets it must be cleared before the queue's claim ends, which
    /// [`crate::FromGuest::receive`] demands of its caller.
    #[inline]
    pub(crate) fn segment(&self) -> Segment {
        // SAFETY: mapped while the snapshot lives; the ring holds it, and control exchanges it only under the claim.
        // JUSTIFICATION: the payload stays where it is.
        unsafe { Segment::new(self.start, self.len) }
    }

    /// Asks for the first line (of two, if it is that long) to be near soon.
    #[inline]
    pub fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a prefetch never faults. JUSTIFICATION: no safe form.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.start.as_ptr().cast()) };
            if self.len > 64 {
                // SAFETY: a prefetch never faults. JUSTIFICATION: no safe form.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(self.start.as_ptr().add(64).cast()) };
            }
        }
    }
}

/// Asks for the line at `start` (and the next one, if `len` reaches there) to be ours alone soon: what a store needs of
/// a line that the guest has just read or written.
#[inline(always)]
pub(crate) fn prefetch_write(start: *const u8, len: u32) {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: a prefetch never faults, wherever it points; processors without PREFETCHW take it as no operation.
        // JUSTIFICATION: the intrinsic becomes a prefetch for reading where the target's baseline has no PREFETCHW.
        unsafe {
            let asked = start;
            std::arch::asm!("prefetchw byte ptr [{0}]", in(reg) asked, options(readonly, nostack, preserves_flags));
            if len > 64 {
                let asked = start.wrapping_add(64);
                std::arch::asm!("prefetchw byte ptr [{0}]", in(reg) asked, options(readonly, nostack, preserves_flags));
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (start, len);
}

/// Eight octets that need not be aligned.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Word(u64);

/// `memcpy` for header sizes: 64 to 128 octets take two overlapping copies of 64 without a call.
///
/// # Safety
/// As `std::ptr::copy_nonoverlapping`.
#[inline(always)]
unsafe fn copy(from: *const u8, into: *mut u8, len: usize) {
    // SAFETY: the caller's promise covers `len` octets, and each branch stays inside. JUSTIFICATION: guest memory.
    unsafe {
        match len {
            64..=80 => {
                // The shortest frame, alone and with its header: each store more is one that the guest's line is waited for.
                std::ptr::copy_nonoverlapping(from, into, 64);
                std::ptr::copy_nonoverlapping(from.add(len - 16), into.add(len - 16), 16);
            }
            81..=128 => {
                std::ptr::copy_nonoverlapping(from, into, 64);
                std::ptr::copy_nonoverlapping(from.add(len - 64), into.add(len - 64), 64);
            }
            16..64 => {
                let half = if len >= 32 { 32 } else { 16 };
                if half == 32 {
                    std::ptr::copy_nonoverlapping(from, into, 32);
                    std::ptr::copy_nonoverlapping(from.add(len - 32), into.add(len - 32), 32);
                } else {
                    std::ptr::copy_nonoverlapping(from, into, 16);
                    std::ptr::copy_nonoverlapping(from.add(len - 16), into.add(len - 16), 16);
                }
            }
            12 => std::ptr::copy_nonoverlapping(from, into, 12),
            _ => std::ptr::copy_nonoverlapping(from, into, len),
        }
    }
}

/// The dirty log of a live migration: one bit per page of guest memory, read and cleared by the VMM meanwhile.
pub struct DirtyLog {
    base: NonNull<u8>,
    len: usize,
    mapping: Mapping,
}

// SAFETY: atomics in a shared mapping. JUSTIFICATION: raw pointers are not `Send` by themselves.
unsafe impl Send for DirtyLog {}
// SAFETY: as above. JUSTIFICATION: as above.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// Maps the log of `SET_LOG_BASE`.
    ///
    /// # Errors
    /// When the file is no memory file, too short, or cannot be mapped.
    pub fn map(file: &File, offset: u64, len: u64) -> Result<Self, MemoryError> {
        let gpa = 0;
        let system = |source| MemoryError::Map { gpa, source };
        let end = offset.checked_add(len).filter(|end| len > 0 && *end <= MEMORY_MAX);
        let Some(end) = end else { return Err(MemoryError::BadSize { gpa, len }) };
        let metadata = file.metadata().map_err(system)?;
        if !metadata.is_file() {
            return Err(MemoryError::NotMemory(gpa));
        }
        if metadata.len() < end {
            return Err(MemoryError::FileTooShort { gpa, file_len: metadata.len(), needed: end });
        }
        let page = sys::memory_page(file).map_err(system)?.ok_or(MemoryError::NotMemory(gpa))?;
        let (mapping, base) = Mapping::new(file, offset, len, page).map_err(system)?;
        Ok(Self { base, len: len as usize, mapping })
    }

    /// Marks the pages of `gpa..gpa + len` as written. To be called after the write: the VMM may read, send and forget
    /// the page at once.
    pub fn mark(&self, gpa: u64, len: u64) {
        let Some(last) = gpa.checked_add(len.saturating_sub(1)) else { return };
        for page in gpa / LOG_PAGE..=last / LOG_PAGE {
            let Some(byte) = usize::try_from(page / 8).ok().filter(|byte| *byte < self.len) else { return };
            // SAFETY: inside the mapping, octet-wise atomics need no alignment. JUSTIFICATION: shared with the VMM.
            let byte = unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(byte)) };
            byte.fetch_or(1 << (page % 8), Ordering::Release);
        }
    }

    /// Whether its file turned out to be shorter than it was.
    pub fn poisoned(&self) -> bool {
        self.mapping.poisoned()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A memory file of `len` octets.
    pub(crate) fn memfd(len: u64) -> File {
        sys::memory_file(len).unwrap()
    }

    fn region(gpa: u64, len: u64, uva: u64, offset: u64, file: &File) -> Arc<Region> {
        Arc::new(Region::map(RegionSpec { gpa, len, uva, offset }, file).unwrap())
    }

    #[test]
    fn slices_stay_inside_one_region_and_parts_cross() {
        let file = memfd(0x4000);
        let memory = Arc::new(
            GuestMemory::new(vec![
                region(0x10000, 0x2000, 0x7000_0000, 0, &file),
                region(0x12000, 0x1000, 0x6000_0000, 0x2000, &file),
            ])
            .unwrap(),
        );
        let translator = Translator::new(memory);
        assert!(translator.slice(0x10000, 0x2000).is_some());
        assert!(translator.slice(0x10000, 0x2001).is_none());
        assert!(translator.slice(0xffff, 1).is_none());
        assert!(translator.slice(0x13000, 1).is_none());
        assert!(translator.slice(u64::MAX, 16).is_none());
        let mut lens = vec![];
        assert!(translator.parts(0x11ff0, 0x20, |part| {
            lens.push(part.len());
            true
        }));
        assert_eq!(lens, [0x10, 0x10]);
        assert!(!translator.parts(0x12ff0, 0x20, |_| true));
        assert!(!translator.parts(u64::MAX - 1, 0x20, |_| true));
        assert_eq!(translator.memory().guest_address(0x6000_0010), Some(0x12010));
        assert_eq!(translator.memory().guest_address(0x6000_1000), None);
    }

    #[test]
    fn copies_of_all_small_sizes_are_exact() {
        let file = memfd(0x1000);
        let memory = GuestMemory::new(vec![region(0, 0x1000, 0, 0, &file)]).unwrap();
        let pattern: Vec<u8> = (0..=255).collect();
        for len in 0..200usize {
            let slice = memory.slice(0, 256).unwrap();
            for write in [GuestSlice::write, GuestSlice::write_head] {
                slice.write(&[0xa5; 256]);
                write(&slice, &pattern[..len]);
                let mut out = [0; 256];
                slice.read(&mut out);
                assert_eq!(out[..len], pattern[..len]);
                assert_eq!(out[len..], [0xa5; 256][len..], "{len}");
            }
            let mut out = [0xa5; 256];
            slice.read(&mut out[..len]);
            assert_eq!(out[..len], pattern[..len]);
            assert_eq!(out[len..], [0xa5; 256][len..], "{len}");
        }
    }

    #[test]
    fn bad_tables_are_refused() {
        let file = memfd(0x4000);
        let map = |gpa, len, uva, offset| Region::map(RegionSpec { gpa, len, uva, offset }, &file);
        assert!(matches!(map(0, 0, 0, 0), Err(MemoryError::BadSize { .. })));
        assert!(matches!(map(u64::MAX - 0xfff, 0x1000, 0, 0), Err(MemoryError::BadSize { .. })));
        assert!(matches!(map(0, 0x1000, u64::MAX, 0), Err(MemoryError::BadSize { .. })));
        assert!(matches!(map(0, 0x1000, 0, 0x10), Err(MemoryError::Misaligned(_))));
        assert!(matches!(map(0, 0x5000, 0, 0), Err(MemoryError::FileTooShort { .. })));
        let null = File::open("/dev/zero").unwrap();
        let spec = RegionSpec { gpa: 0, len: 0x1000, uva: 0, offset: 0 };
        assert!(matches!(Region::map(spec, &null), Err(MemoryError::NotMemory(0))));
        // A page of a file on a disk, or on a FUSE server that never answers, would keep a worker waiting.
        let program = File::open(std::env::current_exe().unwrap()).unwrap();
        assert!(matches!(Region::map(spec, &program), Err(MemoryError::NotMemory(0))));
        assert!(matches!(DirtyLog::map(&program, 0, 8), Err(MemoryError::NotMemory(0))));
        let a = region(0, 0x2000, 0x10_0000, 0, &file);
        let gpa = region(0x1000, 0x1000, 0x20_0000, 0x2000, &file);
        let uva = region(0x8000, 0x1000, 0x10_1000, 0x2000, &file);
        assert!(matches!(GuestMemory::new(vec![a.clone(), gpa]), Err(MemoryError::Overlap(..))));
        assert!(matches!(GuestMemory::new(vec![a.clone(), uva]), Err(MemoryError::Overlap(..))));
        let memory = GuestMemory::new(vec![a]).unwrap();
        assert!(matches!(memory.without(0, 0x1000, 0x10_0000), Err(MemoryError::Unknown(0))));
        assert!(memory.without(0, 0x2000, 0x10_0000).unwrap().is_empty());
    }

    #[test]
    fn a_file_that_shrinks_poisons_and_does_not_kill() {
        let file = memfd(0x4000);
        let memory = GuestMemory::new(vec![region(0, 0x4000, 0, 0, &file)]).unwrap();
        memory.slice(0x3000, 4).unwrap().write(&[1, 2, 3, 4]);
        file.set_len(0x1000).unwrap();
        let before = crate::sigbus::faults();
        assert!(!memory.poisoned());
        let mut out = [0xa5; 4];
        memory.slice(0x3000, 4).unwrap().read(&mut out);
        assert_eq!(out, [0; 4]);
        memory.slice(0x3000, 4).unwrap().write(&[9; 4]);
        assert!(memory.poisoned());
        assert!(crate::sigbus::faults() > before);
    }

    #[test]
    fn the_log_marks_each_touched_page() {
        use std::os::unix::fs::FileExt;
        let file = memfd(0x1000);
        let log = DirtyLog::map(&file, 0, 4).unwrap();
        log.mark(0x0fff, 2);
        log.mark(0x9000, 1);
        log.mark(0x5000, 0);
        log.mark(1 << 40, 64);
        log.mark(u64::MAX, 64);
        let mut bits = [0; 4];
        file.read_at(&mut bits, 0).unwrap();
        assert_eq!(bits, [0b0010_0011, 0b0000_0010, 0, 0]);
        assert!(DirtyLog::map(&file, 0, 0x1001).is_err());
    }
}
