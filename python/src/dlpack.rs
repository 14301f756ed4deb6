//! Values rounded to bfloat16, which NumPy lacks, for libraries that read DLPack
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
/// `DLPACK_FLAG_BITMASK_IS_COPIED`: nothing else refers to the memory.
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

/// `DLManagedTensor`, followed by what it points to.
#[repr(C)]
struct Legacy {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Legacy)>,
    owner: Owner,
}

/// `DLManagedTensorVersioned`, followed by what it points to.
#[repr(C)]
struct Versioned {
    version: [u32; 2],
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Versioned)>,
    flags: u64,
    tensor: DlTensor,
    owner: Owner,
}

/// What a tensor points to. The vectors are never resized, so their memory does not move.
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
            ndim: self.shape.len() as i32, // NumPy allows at most 64
            dtype: DlType { code: BFLOAT, bits: 16, lanes: 1 },
            shape: self.shape.as_mut_ptr(),
            strides: self.strides.as_mut_ptr(),
            byte_offset: 0,
        }
    }
}

/// A DLPack capsule with a copy of `array`, rounded to the nearest bfloat16, that belongs to its
/// consumer.
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
    // In row-major order, whatever the array's strides.
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
            // SAFETY: `managed` points to a valid `DLManagedTensorVersioned`, which lives until
            // its deleter runs.
            unsafe { capsule(py, managed.cast(), VERSIONED, destroy_versioned) }
        }
        false => {
            let deleter = Some(drop_legacy as unsafe extern "C" fn(*mut Legacy));
            let managed = Box::into_raw(Box::new(Legacy { tensor, context, deleter, owner }));
            // SAFETY: `managed` points to a valid `DLManagedTensor`, which lives until its deleter
            // runs.
            unsafe { capsule(py, managed.cast(), LEGACY, destroy_legacy) }
        }
    }
}

/// # Safety
/// `managed` points to the type that `name` stands for, and `destroy` frees it if the capsule was
/// not consumed.
unsafe fn capsule<'py>(
    py: Python<'py>,
    managed: *mut c_void,
    name: &'static CStr,
    destroy: unsafe extern "C" fn(*mut ffi::PyObject),
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the pointer is not null and the name is static; a null result means that an
    // exception is set.
    unsafe {
        let capsule = ffi::PyCapsule_New(managed, name.as_ptr(), Some(destroy));
        Bound::from_owned_ptr_or_err(py, capsule)
    }
}

/// # Safety
/// Called once, with a tensor that [`bf16_capsule`] made.
unsafe extern "C" fn drop_legacy(managed: *mut Legacy) {
    // SAFETY: it came from `Box::into_raw`.
    drop(unsafe { Box::from_raw(managed) });
}

/// # Safety
/// Called once, with a tensor that [`bf16_capsule`] made.
unsafe extern "C" fn drop_versioned(managed: *mut Versioned) {
    // SAFETY: it came from `Box::into_raw`.
    drop(unsafe { Box::from_raw(managed) });
}

/// The pointer of a capsule that was not consumed, or null: consumers rename the capsule.
///
/// # Safety
/// `object` is a capsule, and the thread has the GIL.
unsafe fn unconsumed(object: *mut ffi::PyObject, name: &CStr) -> *mut c_void {
    // SAFETY: `PyCapsule_GetPointer` is called only with the right name, so it sets no exception.
    unsafe {
        match ffi::PyCapsule_IsValid(object, name.as_ptr()) {
            1 => ffi::PyCapsule_GetPointer(object, name.as_ptr()),
            _ => ptr::null_mut(),
        }
    }
}

/// # Safety
/// Called by Python, with a capsule that [`bf16_capsule`] named [`LEGACY`].
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
/// Called by Python, with a capsule that [`bf16_capsule`] named [`VERSIONED`].
unsafe extern "C" fn destroy_versioned(object: *mut ffi::PyObject) {
    // SAFETY: the capsule still holds its tensor, or the pointer is null.
    unsafe {
        let managed = unconsumed(object, VERSIONED);
        if !managed.is_null() {
            drop_versioned(managed.cast());
        }
    }
}
