"""Arrays are read-only views of the engine's memory that outlive the model. Addresses show that no
copy is made where none is promised."""

from __future__ import annotations

import gc
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fathom_lm as fl


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def test_two_reads_are_one_memory(model: fl.Model, ids: list[int]) -> None:
    _, cache = model.run_with_cache(ids, ["resid_post.1", "q.1"])
    first, second = cache["resid_post.1"], cache["blocks.1.hook_resid_post"]
    assert address(first) == address(second) and np.shares_memory(first, second)
    assert address(cache.to_numpy()["q.1"]) == address(cache["q", 1])
    # The memory is not NumPy's: the owner is the engine's vector.
    assert not first.flags.owndata and first.base is not None
    owner = first.base
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    assert not isinstance(owner, np.ndarray)


def test_arrays_cannot_be_made_writable(model: fl.Model, ids: list[int]) -> None:
    logits, cache = model.run_with_cache(ids, "resid_post.1")
    for array in (logits, cache["resid_post.1"]):
        assert array.dtype == np.float32 and array.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        base = array
        while isinstance(base, np.ndarray):
            with pytest.raises(ValueError, match="WRITEABLE"):
                base.flags.writeable = True
            base = base.base


def test_arrays_outlive_the_model_and_the_cache(golden_dir: Path, ids: list[int]) -> None:
    model = fl.Model(golden_dir / "qwen3", threads=1)
    gone = weakref.ref(model)
    _, cache = model.run_with_cache(ids, "resid_post.1")
    array = cache["resid_post.1"]
    where, copy = address(array), array.copy()
    del model, cache
    gc.collect()
    assert gone() is None
    _ = [np.ones((len(ids), 80), dtype=np.float32) for _ in range(100)]
    assert address(array) == where and np.array_equal(array, copy)


def test_dlpack_shares_memory_and_is_read_only(model: fl.Model, ids: list[int]) -> None:
    _, cache = model.run_with_cache(ids, "resid_post.1")
    array = cache["resid_post.1"]
    assert array.__dlpack_device__() == (1, 0)
    taken = np.from_dlpack(array)
    assert address(taken) == address(array) and not taken.flags.writeable
    with pytest.raises(BufferError):
        array.__dlpack__()  # a consumer without read-only arrays


def test_views_share_the_memory(model: fl.Model, ids: list[int]) -> None:
    logits, cache = model.run_with_cache(ids, ["resid_post.1", "q.1"])
    for array in (logits, cache["resid_post.1"], cache["q.1"]):
        start = address(array)
        assert address(np.frombuffer(memoryview(array), dtype=np.float32)) == start
        assert address(np.asarray(array)) == start
        assert address(np.from_dlpack(array)) == start
        assert address(array[1:]) == start + array.strides[0]
        assert array[1:].base is not None and not array[1:].flags.writeable
    assert not np.shares_memory(cache.stack("resid_post"), cache["resid_post.1"])


def test_arrays_are_arrow_without_a_copy(model: fl.Model, ids: list[int]) -> None:
    pa = pytest.importorskip("pyarrow")
    _, cache = model.run_with_cache(ids, "resid_post.1")
    flat = cache["resid_post.1"].reshape(-1)
    assert pa.array(flat).buffers()[1].address == address(flat) == address(cache["resid_post.1"])


def test_ids_are_not_copied(model: fl.Model) -> None:
    from fathom_lm import _input

    ids = np.arange(8, dtype=np.int64)
    assert _input.as_ids(ids) is ids
    assert address(_input.as_ids(ids[2:6])) == address(ids) + 16
    encoded = model.encode(ids)
    assert address(np.asarray(encoded)) == address(encoded.ids) == address(_input.as_ids(encoded))
    assert not np.shares_memory(_input.as_ids(ids[::2]), ids)


def test_what_a_hook_returns_is_copied_once(model: fl.Model, ids: list[int]) -> None:
    from fathom_lm import _hooks

    seen: list[Any] = []

    def replace(values: Any, site: fl.HookSite) -> Any:
        seen.append(values)
        replacement = values.copy()
        assert _hooks._replacement(replacement, values.shape, site.name) is replacement
        seen.append(replacement)
        return replacement

    _, cache = model.run_with_cache(ids, "resid_post.1", fwd_hooks=[("resid_post.1", replace)])
    values, replacement = seen
    assert not values.flags.writeable
    for array in seen:
        assert not np.shares_memory(array, cache["resid_post.1"])
    assert np.array_equal(replacement, cache["resid_post.1"])


def test_torch_shares_the_memory(model: fl.Model, ids: list[int]) -> None:
    torch = pytest.importorskip("torch")
    _, cache = model.run_with_cache(ids, "resid_post.1")
    array = cache["resid_post.1"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has no read-only tensors, and warns
        tensor = torch.from_dlpack(array)
    assert tensor.data_ptr() == address(array) and tensor.shape == array.shape


def test_bf16_through_dlpack(model: fl.Model, ids: list[int]) -> None:
    _, cache = model.run_with_cache(ids, "resid_post.1")
    values = cache["resid_post.1"]
    rounded = fl.bf16(values)
    assert rounded.shape == values.shape and rounded.__dlpack_device__() == (1, 0)
    assert np.shares_memory(np.asarray(rounded), values)
    assert 'dltensor"' in repr(rounded.__dlpack__())
    capsule = rounded.__dlpack__(max_version=(1, 0))
    assert 'dltensor_versioned"' in repr(capsule)
    data, shape, strides, dtype = _parsed(capsule)
    assert shape == values.shape and strides == (values.shape[1], 1)
    assert dtype == (4, 16, 1)  # kDLBfloat
    # Rounded to nearest even, as the upper half of a float32.
    bits = values.view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    assert np.array_equal(data, nearest.astype(np.uint16))
    with pytest.raises(BufferError):
        rounded.__dlpack__(copy=False)
    with pytest.raises(BufferError):
        rounded.__dlpack__(dl_device=(2, 0))


def _parsed(capsule: Any) -> tuple[Any, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The fields of a versioned capsule, as a consumer reads them."""
    import ctypes

    class Tensor(ctypes.Structure):
        _fields_ = [
            ("data", ctypes.c_void_p),
            ("device", ctypes.c_int32 * 2),
            ("ndim", ctypes.c_int32),
            ("code", ctypes.c_uint8),
            ("bits", ctypes.c_uint8),
            ("lanes", ctypes.c_uint16),
            ("shape", ctypes.POINTER(ctypes.c_int64)),
            ("strides", ctypes.POINTER(ctypes.c_int64)),
            ("byte_offset", ctypes.c_uint64),
        ]

    class Managed(ctypes.Structure):
        _fields_ = [
            ("version", ctypes.c_uint32 * 2),
            ("context", ctypes.c_void_p),
            ("deleter", ctypes.c_void_p),
            ("flags", ctypes.c_uint64),
            ("tensor", Tensor),
        ]

    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    managed = Managed.from_address(pointer(capsule, b"dltensor_versioned"))
    tensor = managed.tensor
    assert (
        tuple(managed.version) == (1, 0) and managed.flags == 2 and tuple(tensor.device) == (1, 0)
    )
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim))
    count = int(np.prod(shape))
    bits = np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(tensor.data)).copy()
    return bits.reshape(shape), shape, strides, (tensor.code, tensor.bits, tensor.lanes)


def test_torch_reads_bf16() -> None:
    torch = pytest.importorskip("torch")
    values = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
    tensor = torch.from_dlpack(fl.bf16(values))
    assert tensor.dtype == torch.bfloat16
    assert torch.equal(tensor, torch.tensor(values).to(torch.bfloat16))
