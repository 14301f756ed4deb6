//! Values rounded to bfloat16, which NumPy does not have, for libraries that take DLPack
//! (<https://dmlc.github.io/dlpack/latest/c_api.html>).

use std::ffi::{CStr, c_void};
use std::ptr;

use half::bf16;
use numpy::{PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::ffi;
use pyo3::prelude::*;

const LEGACY: &CStr = c"dltensor";
const VERSIONED: &CStr = c"dltensor_versioned";
/// `kDLCPU`.
const CPU: i32 = 1;
/// `kDLBfloat`.
const BFLOAT: u8 = 4;
/// `DLPACK_FLAG_BITMASK_IS_COPIED`: the memory is nobody else's.
const COPIED: u64 = 2;

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device: (i32, i32),
    ndim: i32,
    dtype: DlType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
struct DlType {
    code: u8,
    bits: u8,
    lanes: u16,
}

/// `DLManagedTensor`, with what it points to behind it.
#[repr(C)]
struct Legacy {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Legacy)>,
    owner: Owner,
}

/// `DLManagedTensorVersioned`, with what it points to behind it.
#[repr(C)]
struct Versioned {
    version: [u32; 2],
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Versioned)>,
    flags: u64,
    tensor: DlTensor,
    owner: Owner,
}

/// What a tensor points to: the memory of neither vector moves.
struct Owner {
    shape: Vec<i64>,
    strides: Vec<i64>,
    values: Vec<bf16>,
}

impl Owner {
    fn tensor(&mut self) -> DlTensor {
        DlTensor {
            data: self.values.as_mut_ptr().cast(),
            device: (CPU, 0),
            ndim: self.shape.len() as i32, // NumPy has at most 64
            dtype: DlType { code: BFLOAT, bits: 16, lanes: 1 },
            shape: self.shape.as_mut_ptr(),
            strides: self.strides.as_mut_ptr(),
            byte_offset: 0,
        }
    }
}

/// A DLPack capsule with the values of `array` in bfloat16, rounded to the nearest: a copy that
/// belongs to whoever consumes it.
#[pyfunction]
pub fn bf16_capsule<'py>(
    py: Python<'py>,
    array: PyReadonlyArrayDyn<'py, f32>,
    versioned: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let shape: Vec<i64> = array.shape().iter().map(|n| *n as i64).collect();
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    // In the order of the axes, however the array lies in memory.
    let values = array.as_array().iter().map(|value| bf16::from_f32(*value)).collect();
    let mut owner = Owner { shape, strides, values };
    let tensor = owner.tensor();
    let context = ptr::null_mut();
    match versioned {
        true => {
            let deleter = Some(drop_versioned as unsafe extern "C" fn(*mut Versioned));
            let (version, flags) = ([1, 0], COPIED);
            let managed = Box::new(Versioned { version, context, deleter, flags, tensor, owner });
            let managed = Box::into_raw(managed);
            // SAFETY: `managed` is a whole `DLManagedTensorVersioned`, alive until its deleter
            // runs.
            unsafe { capsule(py, managed.cast(), VERSIONED, destroy_versioned) }
        }
        false => {
            let deleter = Some(drop_legacy as unsafe extern "C" fn(*mut Legacy));
            let managed = Box::into_raw(Box::new(Legacy { tensor, context, deleter, owner }));
            // SAFETY: `managed` is a whole `DLManagedTensor`, alive until its deleter runs.
            unsafe { capsule(py, managed.cast(), LEGACY, destroy_legacy) }
        }
    }
}

/// # Safety
/// `managed` is what `name` says, and `destroy` frees it where nobody has consumed the capsule.
unsafe fn capsule<'py>(
    py: Python<'py>,
    managed: *mut c_void,
    name: &'static CStr,
    destroy: unsafe extern "C" fn(*mut ffi::PyObject),
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the pointer is not null and the name static; a null result is an exception that is
    // set.
    unsafe {
        let capsule = ffi::PyCapsule_New(managed, name.as_ptr(), Some(destroy));
        Bound::from_owned_ptr_or_err(py, capsule)
    }
}

/// # Safety
/// Called once, with what [`bf16_capsule`] made.
unsafe extern "C" fn drop_legacy(managed: *mut Legacy) {
    // SAFETY: it came from `Box::into_raw`.
    drop(unsafe { Box::from_raw(managed) });
}

/// # Safety
/// Called once, with what [`bf16_capsule`] made.
unsafe extern "C" fn drop_versioned(managed: *mut Versioned) {
    // SAFETY: it came from `Box::into_raw`.
    drop(unsafe { Box::from_raw(managed) });
}

/// The pointer of a capsule that nobody consumed: who does renames it.
///
/// # Safety
/// `object` is a capsule, and the thread has the GIL.
unsafe fn unconsumed(object: *mut ffi::PyObject, name: &CStr) -> *mut c_void {
    // SAFETY: the pointer is asked for only where the name is right, so no exception is set.
    unsafe {
        match ffi::PyCapsule_IsValid(object, name.as_ptr()) {
            1 => ffi::PyCapsule_GetPointer(object, name.as_ptr()),
            _ => ptr::null_mut(),
        }
    }
}

/// # Safety
/// Python calls it, with a capsule named [`LEGACY`] by [`bf16_capsule`].
unsafe extern "C" fn destroy_legacy(object: *mut ffi::PyObject) {
    // SAFETY: the capsule still holds its tensor, or the pointer is null.
    unsafe {
        let managed = unconsumed(object, LEGACY);
        if !managed.is_null() {
            drop_legacy(managed.cast());
        }
    }
}

/// # Safety
/// Python calls it, with a capsule named [`VERSIONED`] by [`bf16_capsule`].
unsafe extern "C" fn destroy_versioned(object: *mut ffi::PyObject) {
    // SAFETY: the capsule still holds its tensor, or the pointer is null.
    unsafe {
        let managed = unconsumed(object, VERSIONED);
        if !managed.is_null() {
            drop_versioned(managed.cast());
        }
    }
}
