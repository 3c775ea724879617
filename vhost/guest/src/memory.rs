//! Guest memory: regions backed by memfds, mapped here and shared with the backend.
//!
//! A region is a memfd (hugetlb if asked), a guest physical address and our own mapping of it. Regions may touch each
//! other, so that a buffer can cross from one into the next, which is legal for a guest and awkward for a backend.
//! The other side maps the same pages and writes to them at any time: no reference to guest memory is ever formed,
//! every access is a raw copy, a volatile access or an atomic.
//!
//! This is the only file of the crate with `unsafe`. What it does *not* do: keep its own mapping safe from a file that
//! was made smaller. A hostile test which truncates a region's file must not touch that region afterwards.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crate::Error;

/// Size of a huge page asked for with `MFD_HUGETLB`, in octets.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Size of an ordinary page, in octets.
pub const PAGE_BYTES: usize = 4096;

/// One piece of guest RAM: `len` octets from guest physical address `gpa`, in a file of its own.
#[derive(Debug)]
pub struct Region {
    gpa: u64,
    len: usize,
    base: NonNull<u8>,
    file: File,
}

// SAFETY: the mapping stays until drop, wherever the value moves, and every access is a copy, volatile or atomic.
// JUSTIFICATION: `NonNull` is neither `Send` nor `Sync`; the mapping is shared memory by nature.
unsafe impl Send for Region {}
// SAFETY: as above; two threads that write one place race like two vCPUs of a guest, and read whatever is there.
// JUSTIFICATION: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` octets (rounded up to whole pages) of fresh zeroed memory at guest physical address `gpa`.
    ///
    /// # Errors
    /// When the system has no memory, or no huge pages left for `huge`.
    pub fn new(gpa: u64, len: usize, huge: bool) -> Result<Self, Error> {
        let page = if huge { HUGE_PAGE_BYTES } else { PAGE_BYTES };
        let len = len.max(1).next_multiple_of(page);
        let flags = libc::MFD_CLOEXEC | if huge { libc::MFD_HUGETLB } else { 0 };
        // SAFETY: the name is a NUL-terminated literal; the call touches no memory of ours.
        // JUSTIFICATION: std has no memfd.
        let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), flags) };
        if fd < 0 {
            return Err(Error::io("memfd_create", std::io::Error::last_os_error()));
        }
        // SAFETY: `fd` was just made and belongs to nobody else.
        // JUSTIFICATION: the only way from a system call's result to an owned file.
        let file = unsafe { File::from_raw_fd(fd) };
        let size = u64::try_from(len).map_err(|_| Error::OutOfMemory { gpa, len })?;
        file.set_len(size).map_err(|e| Error::io("ftruncate of guest memory", e))?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let populate = if huge { libc::MAP_POPULATE } else { 0 };
        // SAFETY: a fresh mapping at an address of the kernel's choice; no existing memory is replaced.
        // JUSTIFICATION: std has no mmap.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED | populate, fd, 0) };
        if map == libc::MAP_FAILED {
            return Err(Error::io("mmap of guest memory", std::io::Error::last_os_error()));
        }
        let base = NonNull::new(map.cast::<u8>()).ok_or(Error::OutOfMemory { gpa, len })?;
        Ok(Self { gpa, len, base, file })
    }

    /// First guest physical address.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Size in octets.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: a region has at least one page.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the region lies in this process: vhost-user's "user address".
    pub fn user_addr(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// The file behind the region.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Treats the region as a bitmap: clears it and returns the numbers of the bits that were set.
    pub fn take_bits(&self) -> Vec<u64> {
        let mut bits = Vec::new();
        for index in 0..self.len / 8 {
            // SAFETY: inside the mapping, page aligned, and mapped as long as `self` lives.
            // JUSTIFICATION: the other side sets bits at the same time; none may be lost between read and clear.
            let word = unsafe { AtomicU64::from_ptr(self.base.as_ptr().cast::<u64>().add(index)) };
            let mut set = u64::from_le(word.swap(0, Ordering::AcqRel));
            while set != 0 {
                bits.push(index as u64 * 64 + u64::from(set.trailing_zeros()));
                set &= set - 1;
            }
        }
        bits
    }

    /// Offset of `gpa` when `len` octets from there lie inside this region.
    #[inline]
    fn offset(&self, gpa: u64, len: usize) -> Option<usize> {
        let offset = usize::try_from(gpa.checked_sub(self.gpa)?).ok()?;
        (offset.checked_add(len)? <= self.len).then_some(offset)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; windows hold the region alive by reference count.
        // JUSTIFICATION: std has no munmap.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// How a guest's memory is laid out.
#[derive(Clone, Debug)]
pub struct MemoryConfig {
    /// Guest physical address of the first octet.
    pub gpa: u64,
    /// Sizes of the regions in octets, each rounded up to whole pages; each begins where the one before ends.
    /// The last one is extended when the queues need more.
    pub regions: Vec<usize>,
    /// Whether to use huge pages.
    pub huge: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { gpa: 0x10_0000, regions: vec![0], huge: false }
    }
}

/// All memory of one guest.
#[derive(Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Arc<Region>>,
}

impl GuestMemory {
    /// Maps the configured regions, the last one enlarged until `need` octets exist in all.
    ///
    /// # Errors
    /// When mapping fails.
    pub fn new(config: &MemoryConfig, need: usize) -> Result<Self, Error> {
        let mut memory = Self::default();
        let mut gpa = config.gpa;
        let mut have = 0;
        for (i, &bytes) in config.regions.iter().enumerate() {
            let last = i + 1 == config.regions.len();
            let bytes = if last { bytes.max(need.saturating_sub(have)) } else { bytes };
            let region = Region::new(gpa, bytes, config.huge)?;
            have += region.len();
            gpa += region.len() as u64;
            memory.add(region);
        }
        Ok(memory)
    }

    /// The regions, in the order in which they were added.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Plugs a region in.
    pub fn add(&mut self, region: Region) -> Arc<Region> {
        let region = Arc::new(region);
        self.regions.push(region.clone());
        region
    }

    /// Takes the region which begins at `gpa` out. Its mapping lives on while a window refers to it.
    pub fn remove(&mut self, gpa: u64) -> Option<Arc<Region>> {
        let at = self.regions.iter().position(|r| r.gpa == gpa)?;
        Some(self.regions.remove(at))
    }

    /// First guest physical address behind all regions.
    pub fn end(&self) -> u64 {
        self.regions.iter().map(|r| r.gpa + r.len as u64).max().unwrap_or(0)
    }

    /// Copies guest memory out, across touching regions if need be.
    ///
    /// # Errors
    /// When part of the range is not guest memory.
    #[inline]
    pub fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), Error> {
        let len = into.len();
        self.walk(gpa, len, |region, offset, done, count| {
            let target = &mut into[done..done + count];
            // SAFETY: `walk` gives an offset and count inside the region; `target` is exactly `count` octets of ours.
            // JUSTIFICATION: shared memory may change while it is copied; no reference to it may exist.
            unsafe { region.base.add(offset).as_ptr().copy_to_nonoverlapping(target.as_mut_ptr(), count) };
        })
    }

    /// Copies into guest memory, across touching regions if need be.
    ///
    /// # Errors
    /// When part of the range is not guest memory.
    #[inline]
    pub fn write(&self, gpa: u64, from: &[u8]) -> Result<(), Error> {
        self.walk(gpa, from.len(), |region, offset, done, count| {
            let source = &from[done..done + count];
            // SAFETY: `walk` gives an offset and count inside the region; `source` is exactly `count` octets of ours.
            // JUSTIFICATION: as for `read`.
            unsafe { region.base.add(offset).as_ptr().copy_from_nonoverlapping(source.as_ptr(), count) };
        })
    }

    /// A window onto `len` octets from `gpa`, which must lie in one region.
    ///
    /// # Errors
    /// When they do not, or `gpa` is not a multiple of 16 (so that every field of a ring is aligned).
    pub fn window(&self, gpa: u64, len: usize) -> Result<Window, Error> {
        for region in &self.regions {
            if let Some(offset) = region.offset(gpa, len) {
                if !gpa.is_multiple_of(16) {
                    return Err(Error::Misaligned { gpa });
                }
                // SAFETY: `offset` is inside the mapping.
                // JUSTIFICATION: pointer arithmetic on a mapping.
                let base = unsafe { region.base.add(offset) };
                return Ok(Window { base, len, _region: region.clone() });
            }
        }
        Err(Error::OutOfMemory { gpa, len })
    }

    /// Calls `copy(region, offset in it, octets done, octets now)` for every piece of the range.
    #[inline]
    fn walk(&self, gpa: u64, len: usize, mut copy: impl FnMut(&Region, usize, usize, usize)) -> Result<(), Error> {
        let mut done = 0;
        while done < len {
            let at = gpa.wrapping_add(done as u64);
            let found = self.regions.iter().find_map(|r| r.offset(at, 1).map(|offset| (r, offset)));
            let (region, offset) = found.ok_or(Error::OutOfMemory { gpa, len })?;
            let count = (region.len - offset).min(len - done);
            copy(region, offset, done, count);
            done += count;
        }
        Ok(())
    }
}

/// A checked view of one stretch of guest memory, for rings: little-endian fields at octet offsets.
///
/// # Panics
/// Every accessor panics when the field does not lie inside the window or is not aligned: that is a mistake of this
/// crate, never something that a backend can bring about.
#[derive(Clone, Debug)]
pub struct Window {
    base: NonNull<u8>,
    len: usize,
    _region: Arc<Region>,
}

// SAFETY: as for `Region`, which the window keeps alive.
// JUSTIFICATION: as for `Region`.
unsafe impl Send for Window {}
// SAFETY: as for `Region`.
// JUSTIFICATION: as for `Region`.
unsafe impl Sync for Window {}

impl Window {
    /// Size in octets.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the window has no octets.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn at<T>(&self, offset: usize) -> *mut T {
        let size = size_of::<T>();
        assert!(offset.is_multiple_of(size) && offset.checked_add(size).is_some_and(|end| end <= self.len));
        // SAFETY: just checked to lie inside the window, which lies inside the mapping.
        // JUSTIFICATION: pointer arithmetic on a mapping.
        unsafe { self.base.add(offset).as_ptr().cast::<T>() }
    }

    /// Reads a 16-bit field.
    #[inline]
    pub fn load16(&self, offset: usize) -> u16 {
        // SAFETY: `at` checked bounds and alignment. JUSTIFICATION: the other side may write at any time.
        u16::from_le(unsafe { self.at::<u16>(offset).read_volatile() })
    }

    /// Reads a 32-bit field.
    #[inline]
    pub fn load32(&self, offset: usize) -> u32 {
        // SAFETY: `at` checked bounds and alignment. JUSTIFICATION: the other side may write at any time.
        u32::from_le(unsafe { self.at::<u32>(offset).read_volatile() })
    }

    /// Writes a 16-bit field.
    #[inline]
    pub fn store16(&self, offset: usize, value: u16) {
        // SAFETY: `at` checked bounds and alignment. JUSTIFICATION: the other side may read at any time.
        unsafe { self.at::<u16>(offset).write_volatile(value.to_le()) }
    }

    /// Writes a 64-bit field.
    #[inline]
    pub fn store64(&self, offset: usize, value: u64) {
        // SAFETY: `at` checked bounds and alignment. JUSTIFICATION: the other side may read at any time.
        unsafe { self.at::<u64>(offset).write_volatile(value.to_le()) }
    }

    #[inline]
    fn atomic16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: bounds and alignment checked by `at`; the mapping outlives `self`; both sides use it atomically.
        // JUSTIFICATION: a ring's index needs acquire and release order.
        unsafe { AtomicU16::from_ptr(self.at::<u16>(offset)) }
    }

    /// Reads a ring index; what the other side wrote before it is visible afterwards.
    #[inline]
    pub fn load16_acquire(&self, offset: usize) -> u16 {
        u16::from_le(self.atomic16(offset).load(Ordering::Acquire))
    }

    /// Publishes a ring index; everything written before it is visible to whoever reads it.
    #[inline]
    pub fn store16_release(&self, offset: usize, value: u16) {
        self.atomic16(offset).store(value.to_le(), Ordering::Release);
    }

    /// Asks the CPU for the cache line at `offset`, which will be read or written soon.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        assert!(offset < self.len);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch changes nothing and never faults; the offset is inside the window anyway.
        // JUSTIFICATION: std has no stable prefetch; a generator stalls on every line the switch wrote without it.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
                self.base.add(offset).as_ptr().cast_const().cast(),
            );
        }
    }

    /// Copies octets out.
    #[inline]
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        assert!(offset.checked_add(into.len()).is_some_and(|end| end <= self.len));
        // SAFETY: just checked to lie inside the window; `into` is ours.
        // JUSTIFICATION: shared memory may change while it is copied; no reference to it may exist.
        unsafe { self.base.add(offset).as_ptr().copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) }
    }

    /// Copies octets in.
    #[inline]
    pub fn write(&self, offset: usize, from: &[u8]) {
        assert!(offset.checked_add(from.len()).is_some_and(|end| end <= self.len));
        // SAFETY: just checked to lie inside the window; `from` is ours.
        // JUSTIFICATION: as for `read`.
        unsafe { self.base.add(offset).as_ptr().copy_from_nonoverlapping(from.as_ptr(), from.len()) }
    }

    /// Copies `len` octets from `from` at `source` to `offset` here, as one `memcpy`.
    #[inline]
    pub fn copy_from(&self, offset: usize, from: &Window, source: usize, len: usize) {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        assert!(source.checked_add(len).is_some_and(|end| end <= from.len));
        // SAFETY: both ranges checked to lie inside their windows; `copy_to` allows overlap.
        // JUSTIFICATION: the reference copy of the benchmarks, from shared memory to shared memory.
        unsafe { from.base.add(source).as_ptr().copy_to(self.base.add(offset).as_ptr(), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_crosses_touching_regions() {
        let config = MemoryConfig { gpa: 0x1000, regions: vec![PAGE_BYTES, PAGE_BYTES], huge: false };
        let memory = GuestMemory::new(&config, 0).unwrap();
        let data: Vec<u8> = (0..=255).collect();
        memory.write(0x2000 - 100, &data).unwrap();
        let mut back = [0; 256];
        memory.read(0x2000 - 100, &mut back).unwrap();
        assert_eq!(back[..], data[..]);
        assert!(memory.window(0x2000 - 112, 256).is_err(), "a window never crosses");
    }

    #[test]
    fn what_is_not_memory_is_refused() {
        let memory = GuestMemory::new(&MemoryConfig::default(), PAGE_BYTES).unwrap();
        assert!(memory.write(0, &[1]).is_err());
        assert!(memory.write(memory.end() - 1, &[1, 2]).is_err());
        assert!(memory.read(u64::MAX, &mut [0; 2]).is_err());
        assert!(memory.window(0x10_0008, 16).is_err());
    }

    #[test]
    fn both_sides_see_one_memory() {
        let memory = GuestMemory::new(&MemoryConfig::default(), PAGE_BYTES).unwrap();
        let window = memory.window(0x10_0000, 64).unwrap();
        window.store16_release(2, 0x1234);
        let mut octets = [0; 4];
        memory.read(0x10_0000, &mut octets).unwrap();
        assert_eq!(octets, [0, 0, 0x34, 0x12]);
        assert_eq!(window.load16_acquire(2), 0x1234);
    }

    #[test]
    fn a_removed_region_lives_while_a_window_looks_at_it() {
        let mut memory = GuestMemory::new(&MemoryConfig::default(), PAGE_BYTES).unwrap();
        let window = memory.window(0x10_0000, 64).unwrap();
        assert!(memory.remove(0x10_0000).is_some());
        window.store16(0, 7);
        assert_eq!(window.load16(0), 7);
        assert!(memory.read(0x10_0000, &mut [0]).is_err());
    }
}
