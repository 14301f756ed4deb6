//! Heap memory on cache-line boundaries.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytemuck::Pod;

/// A fixed-length array that starts zeroed and on a 64-byte boundary, so that no vector load of a packed
/// panel straddles two cache lines.
pub(crate) struct Aligned<T: Pod> {
    data: NonNull<T>,
    len: usize,
}

// SAFETY: it owns plain numbers, as `Vec<T>` does.
unsafe impl<T: Pod + Send> Send for Aligned<T> {}
// SAFETY: as above.
unsafe impl<T: Pod + Sync> Sync for Aligned<T> {}

const CACHE_LINE: usize = 64;
/// From here on, memory is asked for in huge pages: fewer TLB misses while weights stream through.
const HUGE_PAGE: usize = 2 << 20;

impl<T: Pod> Aligned<T> {
    pub(crate) fn zeroed(len: usize) -> Aligned<T> {
        if len == 0 {
            return Aligned { data: NonNull::dangling(), len };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout is not empty: `len > 0` and `Pod` types here are f32, u32 and f64.
        let pointer = unsafe { alloc_zeroed(layout) };
        let Some(data) = NonNull::new(pointer.cast::<T>()) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if layout.size() >= HUGE_PAGE {
            // SAFETY: the range was just allocated and starts on a page. The call is advice: failure
            // changes nothing but speed.
            unsafe { libc::madvise(pointer.cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        Aligned { data, len }
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

    fn layout(len: usize) -> Layout {
        let bytes = len.saturating_mul(size_of::<T>());
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { CACHE_LINE };
        Layout::from_size_align(bytes, align).unwrap_or_else(|_| panic!("{len} elements: too many"))
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
            // SAFETY: allocated in `zeroed` with this very layout.
            unsafe { dealloc(self.data.as_ptr().cast(), Self::layout(self.len)) }
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
