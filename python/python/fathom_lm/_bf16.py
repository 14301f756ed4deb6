"""bfloat16, which NumPy lacks, for libraries that read DLPack."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import _native
from ._errors import UnsupportedError


class BFloat16:
    """An array that other libraries read as bfloat16: `torch.from_dlpack(fl.bf16(array))`.

    Each export is a new copy, rounded to the nearest bfloat16, which its consumer owns. NumPy reads
    the original `float32` values.
    """

    __slots__ = ("_values",)

    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        self._values = values

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis."""
        return self._values.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self._values, dtype=dtype, copy=copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if stream is not None:
            raise UnsupportedError("host memory has no streams: expected stream=None")
        if dl_device is not None and tuple(dl_device) != (1, 0):
            raise BufferError("the values are in host memory and cannot be exported elsewhere")
        if copy is False:
            raise BufferError("a bfloat16 export is always a copy: expected copy=None or True")
        versioned = max_version is not None and max_version[0] >= 1
        return _native.bf16_capsule(self._values, versioned)

    def __repr__(self) -> str:
        return f"BFloat16(shape={list(self.shape)})"


def bf16(array: npt.ArrayLike) -> BFloat16:
    """Wraps `array` for libraries that read bfloat16 through DLPack."""
    return BFloat16(np.asarray(array, dtype=np.float32))
