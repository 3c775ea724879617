//! Memory mappings as typed slices: anonymous ones for flow caches, and files under the runtime directory for what
//! must survive the process.
//!
//! All are used at random, so that a processor finds few of their small pages in its TLB: they ask for huge ones. Of a file in
//! memory (tmpfs) nobody gets them by being asked beforehand unless the administrator has set `shmem_enabled`; what the kernel grants
//! everybody is to make them of pages that are there (`MADV_COLLAPSE`, Linux 6.1).
//!
//! What lies in a file may be written by another process at any time, so its type is made of atomics only ([`Plain`]).
//! Pages of a mapping are zero and cost nothing until they are touched.

use std::fs::{File, OpenOptions};
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use memmap2::{MmapMut, MmapOptions};

/// Octets of a huge page. Where they are larger, nothing is won.
const HUGE_PAGE: usize = 2 << 20;

/// Types of which every pattern of octets is a value.
///
/// # Safety
/// The type has no padding that matters, no pointers, no references, and no invalid values; zero is its empty value. For
/// [`SharedFile`] it consists of atomics only.
pub unsafe trait Plain: Sized {}

macro_rules! plain {
    ($($type:ty),+) => {
        // SAFETY: any pattern is a value of an integer or an atomic one. JUSTIFICATION: a promise about memory.
        $(unsafe impl Plain for $type {})+
    };
}

plain!(u64, std::sync::atomic::AtomicU8, std::sync::atomic::AtomicU32, std::sync::atomic::AtomicU64);

// SAFETY: an array has no padding of its own. JUSTIFICATION: a promise about memory.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Declares that a `repr(C)` structure of plain fields is plain itself. All fields must be listed, padding is one of them.
#[macro_export]
macro_rules! plain_struct {
    ($type:ident { $($field:tt),+ $(,)? }) => {
        const _: () = {
            const fn is_plain<T: $crate::shared::Plain>(_: &T) {}
            #[allow(dead_code, reason = "only its types are checked")]
            const fn all_fields_are_plain(value: &$type) {
                let $type { $($field: _),+ } = value;
                $(is_plain(&value.$field);)+
            }
            const fn octets_of<T>(_: fn(&$type) -> &T) -> usize {
                size_of::<T>()
            }
            assert!(size_of::<$type>() == 0 $(+ octets_of(|value: &$type| &value.$field))+, "there is padding");
        };
        // SAFETY: every field is plain, and there is nothing between them: both were checked above. JUSTIFICATION: a
        // promise about memory.
        #[allow(unsafe_code, reason = "the fields were checked")]
        unsafe impl $crate::shared::Plain for $type {}
    };
}
pub use plain_struct;

/// One cache line of plain words.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Line(pub [u64; 8]);

plain_struct!(Line { 0 });

/// Two plain words.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub struct Pair(pub [u64; 2]);

plain_struct!(Pair { 0 });

/// An anonymous, private, zeroed mapping of `T`s.
pub struct Anonymous<T> {
    map: MmapMut,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Plain> Anonymous<T> {
    /// Room for `len` values, none of which takes memory yet. Large ones ask for huge pages.
    ///
    /// # Errors
    /// The kernel refuses the mapping.
    pub fn new(len: usize) -> io::Result<Self> {
        let octets = len.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let map = MmapOptions::new().len(octets.max(1)).map_anon()?;
        Ok(Self { map, len, of: PhantomData })
    }

    /// Asks for huge pages (`MADV_HUGEPAGE`) for the first `len` values: they will be used at random.
    pub fn advise_huge(&self, len: usize) {
        // Only advice: a kernel without transparent huge pages refuses it.
        let _ = self.map.advise_range(memmap2::Advice::HugePage, 0, len.min(self.len) * size_of::<T>());
    }
}

impl Anonymous<AtomicU32> {
    /// That many words of one value, which will be used at random.
    ///
    /// # Errors
    /// The kernel refuses the mapping.
    pub fn filled(len: usize, value: u32) -> io::Result<Self> {
        let words = Self::new(len)?;
        words.advise_huge(len);
        words.iter().for_each(|word| word.store(value, Relaxed));
        Ok(words)
    }
}

impl<T: Plain> Deref for Anonymous<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping has `len * size_of::<T>()` octets, is aligned to a page, lives as long as `self`, and any
        // pattern is a `T`. JUSTIFICATION: a zeroed allocation that touches no page has no safe form.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Anonymous<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`, and `&mut self` makes it the only reference. JUSTIFICATION: as for `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.len) }
    }
}

/// A file that several runs of the daemon share, mapped whole.
pub struct SharedFile {
    base: NonNull<u8>,
    len: usize,
    file: File,
}

// SAFETY: `base` is a mapping that belongs to this value alone, and what lies in it is atomics only. JUSTIFICATION: as for `map`.
unsafe impl Send for SharedFile {}
// SAFETY: as above. JUSTIFICATION: as above.
unsafe impl Sync for SharedFile {}

impl SharedFile {
    /// Opens or makes the file, `len` octets long, readable by this user only. A file of another length is begun anew.
    /// Returns whether it was there before.
    ///
    /// # Errors
    /// The file cannot be made or mapped.
    pub fn open(path: &Path, len: usize) -> io::Result<(Self, bool)> {
        let open = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
        };
        let mut file = open()?;
        let existed = file.metadata()?.len() == len as u64;
        if !existed {
            // A new file: a process that still maps the old one keeps it whole.
            std::fs::remove_file(path)?;
            file = open()?;
            file.set_len(len as u64)?;
        }
        Ok((Self { base: map(&file, len)?, len, file }, existed))
    }

    /// Has blocks of the file allocated, so that touching what lies in this range, in octets, can never fail; in huge pages where its
    /// file system has them, to which it is extended then: nobody touches them before they are whole.
    ///
    /// # Errors
    /// The file system is full.
    pub fn allocate(&self, range: Range<usize>) -> io::Result<()> {
        let end = range.end.next_multiple_of(HUGE_PAGE).min(self.len);
        let start = range.start.min(end);
        if start == end {
            return Ok(());
        }
        // The page in which it begins was made, or was not, when what lies before was allocated.
        let whole = start.next_multiple_of(HUGE_PAGE)..end / HUGE_PAGE * HUGE_PAGE;
        if !whole.is_empty() {
            // SAFETY: the range lies in the mapping, and what is in it stays. Only advice: other file systems and older kernels refuse it,
            // and then small pages serve. JUSTIFICATION: no crate that this one uses has a form for it.
            unsafe { libc::madvise(self.base.as_ptr().add(whole.start).cast(), whole.len(), libc::MADV_COLLAPSE) };
        }
        let [offset, len] =
            [start, end - start].map(|octets| libc::off_t::try_from(octets).unwrap_or(libc::off_t::MAX));
        // SAFETY: the descriptor is open. JUSTIFICATION: as above.
        match unsafe { libc::posix_fallocate(self.file.as_raw_fd(), offset, len) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// The values that begin `offset` octets into the file.
    ///
    /// # Panics
    /// When they do not lie in the file, or are not aligned.
    #[inline]
    pub fn slice<T: Plain>(&self, offset: usize, len: usize) -> &[T] {
        assert!(offset.is_multiple_of(align_of::<T>()) && offset + len * size_of::<T>() <= self.len);
        // SAFETY: checked above; the mapping lives as long as `self`, any pattern is a `T`, and `T` is atomics only, so
        // that writes of others are no data race. JUSTIFICATION: memory that outlives the process has no safe form.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset).cast(), len) }
    }
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and all slices of it have ended. JUSTIFICATION: as for `map`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Maps a file whole, at an address to which huge pages can be mapped.
fn map(file: &File, len: usize) -> io::Result<NonNull<u8>> {
    // A place of that size, which is free again when the file wants it. Whatever came between takes only the alignment away.
    let place = MmapOptions::new().len(len + HUGE_PAGE).no_reserve_swap().map_anon()?;
    let wanted = place.as_ptr().addr().next_multiple_of(HUGE_PAGE);
    drop(place);
    // SAFETY: without `MAP_FIXED` the address is a wish, and the mapping lies where nothing else is. JUSTIFICATION: memmap2 takes no
    // address.
    let base = unsafe {
        libc::mmap(
            std::ptr::without_provenance_mut(wanted),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    let base = NonNull::new(base.cast::<u8>()).filter(|_| base != libc::MAP_FAILED);
    base.ok_or_else(io::Error::last_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn what_was_written_is_there_for_the_next_one_who_opens_it() {
        let path = std::env::temp_dir().join(format!("hostweave-shared-{}", std::process::id()));
        let (file, existed) = SharedFile::open(&path, 8192).unwrap();
        assert!(!existed);
        file.slice::<AtomicU32>(4096, 4)[3].store(7, Ordering::Relaxed);
        drop(file);
        let (file, existed) = SharedFile::open(&path, 8192).unwrap();
        assert!(existed);
        assert_eq!(file.slice::<AtomicU32>(4096, 4)[3].load(Ordering::Relaxed), 7);
        let (file, existed) = SharedFile::open(&path, 4096).unwrap();
        assert!(!existed, "another length is another layout");
        assert_eq!(file.slice::<AtomicU32>(0, 1024).iter().map(|word| word.load(Ordering::Relaxed)).sum::<u32>(), 0);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_allocated_keeps_what_was_written_and_extends_to_whole_pages() {
        let path = std::env::temp_dir().join(format!("hostweave-allocated-{}", std::process::id()));
        let (file, _) = SharedFile::open(&path, 3 * HUGE_PAGE + 4096).unwrap();
        let allocated = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap()) as usize * 512;
        file.allocate(0..100).unwrap();
        assert!((100..=HUGE_PAGE + 4096).contains(&allocated()), "{}", allocated());
        file.slice::<AtomicU32>(96, 1)[0].store(7, Ordering::Relaxed);
        file.allocate(0..3 * HUGE_PAGE + 4096).unwrap();
        assert!(allocated() >= 3 * HUGE_PAGE + 4096, "{}", allocated());
        assert_eq!(file.slice::<AtomicU32>(96, 1)[0].load(Ordering::Relaxed), 7);
        assert!(file.base.as_ptr().addr().is_multiple_of(HUGE_PAGE));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn anonymous_memory_is_zero_and_aligned() {
        let mut lines = Anonymous::<Line>::new(1 << 16).unwrap();
        lines[65_535].0[7] = 1;
        assert_eq!(lines.iter().map(|line| line.0[7]).sum::<u64>(), 1);
        assert!(lines.as_ptr().is_aligned());
    }
}
