//! Heap memory on cache-line boundaries.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytemuck::Pod;
use fathom_backend::{BackendError, Result};

/// A fixed-length array that starts zeroed and on a 64-byte boundary, so that no vector load of a
/// packed panel straddles two cache lines.
pub(crate) struct Aligned<T: Pod> {
    /// What the allocator gave, as `layout` asked: some bytes more than `len` elements take.
    allocation: NonNull<u8>,
    layout: Layout,
    /// The first boundary within.
    data: NonNull<T>,
    len: usize,
}

// SAFETY: it owns plain numbers, as `Vec<T>` does.
unsafe impl<T: Pod + Send> Send for Aligned<T> {}
// SAFETY: as above.
unsafe impl<T: Pod + Sync> Sync for Aligned<T> {}

const CACHE_LINE: usize = 64;
/// Memory is asked for in huge pages where it fills them: fewer TLB misses while weights stream
/// through.
const HUGE_PAGE: usize = 2 << 20;

impl<T: Pod> Aligned<T> {
    /// For memory whose size no input decides.
    pub(crate) fn zeroed(len: usize) -> Aligned<T> {
        Aligned::allocate(len, Self::bytes(len) / HUGE_PAGE)
            .unwrap_or_else(|layout| handle_alloc_error(layout))
    }

    /// # Errors
    /// No room for it; `what` it is for is said.
    pub(crate) fn try_zeroed(len: usize, what: &'static str) -> Result<Aligned<T>> {
        Self::or_out_of_memory(Aligned::allocate(len, Self::bytes(len) / HUGE_PAGE), what)
    }

    /// For what is read from end to end again and again: the last page is huge too if it is nearly
    /// full, though it then takes all of its memory.
    ///
    /// # Errors
    /// As [`Aligned::try_zeroed`].
    pub(crate) fn try_zeroed_to_stream(len: usize, what: &'static str) -> Result<Aligned<T>> {
        let huge_pages = Self::bytes(len).saturating_add(HUGE_PAGE / 4) / HUGE_PAGE;
        Self::or_out_of_memory(Aligned::allocate(len, huge_pages), what)
    }

    fn or_out_of_memory(
        allocated: Result<Aligned<T>, Layout>,
        what: &'static str,
    ) -> Result<Aligned<T>> {
        allocated.map_err(|layout| BackendError::OutOfMemory {
            device: "CPU",
            what,
            bytes: layout.size() as u64,
        })
    }

    fn bytes(len: usize) -> usize {
        len.saturating_mul(size_of::<T>())
    }

    /// `len` elements, the first of their bytes in so many huge pages; or the layout there is no
    /// room for.
    fn allocate(len: usize, huge_pages: usize) -> Result<Aligned<T>, Layout> {
        let huge = huge_pages.saturating_mul(HUGE_PAGE);
        let boundary = if huge > 0 { HUGE_PAGE } else { CACHE_LINE };
        let size = Self::bytes(len).max(huge).saturating_add(boundary);
        let layout = Layout::from_size_align(size, align_of::<T>());
        let layout = layout.unwrap_or_else(|_| panic!("{len} elements: too many"));
        if len == 0 {
            let (allocation, data) = (NonNull::dangling(), NonNull::dangling());
            return Ok(Aligned { allocation, layout, data, len });
        }
        // Aligned by hand: an allocator asked for zeros *and* a large alignment clears the memory
        // itself, where it could have taken untouched pages from the system.
        // SAFETY: the layout is not empty: it has room for a boundary.
        let pointer = unsafe { alloc_zeroed(layout) };
        let Some(allocation) = NonNull::new(pointer) else { return Err(layout) };
        let offset = pointer.addr().next_multiple_of(boundary) - pointer.addr();
        // SAFETY: the layout has room for less than `boundary` bytes before `len` elements.
        let data = unsafe { allocation.add(offset).cast::<T>() };
        #[cfg(target_os = "linux")]
        if huge > 0 {
            // SAFETY: the range lies in the allocation and starts on a page. The call is advice:
            // failure changes nothing but speed.
            unsafe { libc::madvise(data.as_ptr().cast(), huge, libc::MADV_HUGEPAGE) };
        }
        Ok(Aligned { allocation, layout, data, len })
    }

    pub(crate) fn filled(len: usize, value: T) -> Aligned<T> {
        let mut filled = Aligned::zeroed(len);
        filled.fill(value);
        filled
    }

    pub(crate) fn copied_from(values: &[T], len: usize) -> Aligned<T> {
        let mut copy = Aligned::zeroed(len);
        copy[..values.len()].copy_from_slice(values);
        copy
    }

    /// At least `len` elements; contents are kept only if it was long enough already.
    pub(crate) fn reserve(&mut self, len: usize) {
        if self.len < len {
            *self = Aligned::zeroed(len);
        }
    }

    /// As [`Aligned::reserve`].
    ///
    /// # Errors
    /// As [`Aligned::try_zeroed`].
    pub(crate) fn try_reserve(&mut self, len: usize, what: &'static str) -> Result<()> {
        if self.len < len {
            *self = Aligned::try_zeroed(len, what)?;
        }
        Ok(())
    }
}

impl<T: Pod> Default for Aligned<T> {
    fn default() -> Self {
        Aligned::zeroed(0)
    }
}

impl<T: Pod> Drop for Aligned<T> {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated with this very layout.
            unsafe { dealloc(self.allocation.as_ptr(), self.layout) }
        }
    }
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `data` points to `len` initialised (zeroed, `Pod`) elements.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}
