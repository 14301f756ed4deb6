//! Cache-line-aligned heap memory.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytemuck::Pod;
use fathom_backend::{BackendError, Result};

/// A zero-initialized array of fixed length on a 64-byte boundary, so that no vector load of a
/// packed panel crosses a cache line.
pub(crate) struct Aligned<T: Pod> {
    /// The allocation, of `layout`: somewhat larger than `len` elements.
    allocation: NonNull<u8>,
    layout: Layout,
    /// The first aligned address in the allocation.
    data: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its elements exclusively, like `Vec<T>`.
unsafe impl<T: Pod + Send> Send for Aligned<T> {}
// SAFETY: as above.
unsafe impl<T: Pod + Sync> Sync for Aligned<T> {}

const CACHE_LINE: usize = 64;
/// Allocations use huge pages where they fill them: fewer TLB misses while weights are streamed.
const HUGE_PAGE: usize = 2 << 20;

impl<T: Pod> Aligned<T> {
    /// Allocates `len` zeroed elements. Aborts if there is no memory, so weights, activations and
    /// caches use [`Aligned::try_zeroed`] or [`Aligned::try_zeroed_to_stream`] instead.
    pub(crate) fn zeroed(len: usize) -> Aligned<T> {
        Aligned::allocate(len, Self::bytes(len) / HUGE_PAGE)
            .unwrap_or_else(|layout| handle_alloc_error(layout))
    }

    /// # Errors
    /// Out of memory, with `what` the allocation was for.
    pub(crate) fn try_zeroed(len: usize, what: &'static str) -> Result<Aligned<T>> {
        Self::or_out_of_memory(Aligned::allocate(len, Self::bytes(len) / HUGE_PAGE), what)
    }

    /// For memory that is read sequentially again and again: the last page is huge too if it is at
    /// least three quarters full, although it then occupies a whole huge page.
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

    /// Allocates `len` elements, with `huge_pages` huge pages from the start. On failure returns
    /// the layout.
    fn allocate(len: usize, huge_pages: usize) -> Result<Aligned<T>, Layout> {
        let huge = huge_pages.saturating_mul(HUGE_PAGE);
        let boundary = if huge > 0 { HUGE_PAGE } else { CACHE_LINE };
        let size = Self::bytes(len).max(huge).saturating_add(boundary);
        let layout = Layout::from_size_align(size, align_of::<T>());
        let layout = layout
            .unwrap_or_else(|_| panic!("an array of {len} elements overflows the address space"));
        if len == 0 {
            let (allocation, data) = (NonNull::dangling(), NonNull::dangling());
            return Ok(Aligned { allocation, layout, data, len });
        }
        // Aligned manually: for zeros with a large alignment, an allocator would clear the memory
        // itself instead of taking zeroed pages from the system.
        // SAFETY: the layout's size is at least `boundary`, so it is not zero.
        let pointer = unsafe { alloc_zeroed(layout) };
        let Some(allocation) = NonNull::new(pointer) else { return Err(layout) };
        let offset = pointer.addr().next_multiple_of(boundary) - pointer.addr();
        // SAFETY: `offset < boundary`, and the layout has `boundary` bytes more than the elements
        // need.
        let data = unsafe { allocation.add(offset).cast::<T>() };
        #[cfg(target_os = "linux")]
        if huge > 0 {
            // SAFETY: the range is within the allocation and starts on a page boundary.
            // MADV_HUGEPAGE is only advice: it changes no contents, and failure affects only speed.
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

    /// Grows to at least `len` elements. If it grows, the contents become zero.
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
            // SAFETY: `len > 0`, so `allocation` was allocated with exactly this layout.
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
        // SAFETY: as in `deref`; `&mut self` guarantees that there is no other reference.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}
