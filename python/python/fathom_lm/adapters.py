"""For people who go on in other libraries: thin, and nothing of them is imported before it is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import _native
from ._cache import Cache
from ._errors import RequestError, UnsupportedError
from ._run import Classes, Mask, Run

__all__ = ["kvpress_keep", "sae_mask", "to_activation_cache"]


def sae_mask(
    run: Run,
    trace: int,
    layer: int | None = None,
    classes: Classes = ("primary", "secondary"),
) -> Mask:
    """Positions to leave out of the training of a sparse autoencoder, `bool[T]`.

    Their norms are many times those of other tokens and would make most of the loss. With SAELens:
    `activations = activations[~fl.adapters.sae_mask(run, trace, layer)]`, the rows of one trace at
    the layer that the autoencoder is trained on.
    """
    return run.mask(trace, layer, classes)


def kvpress_keep(
    run: Run,
    trace: int,
    layer: int | None = None,
    classes: Classes = ("primary", "secondary"),
    recent: int = 0,
) -> npt.NDArray[np.int64]:
    """Positions whose keys and values an eviction must keep, `int64[kept]`, ascending.

    With kvpress, in a press's `score`: `scores[..., fl.adapters.kvpress_keep(run, trace)] =
    scores.max()`.

    Args:
        recent: Keep the last positions as well.
    """
    if recent < 0:
        raise RequestError(f"recent={recent}: expected at least 0")
    keep = np.array(run.mask(trace, layer, classes))
    keep[max(0, len(keep) - recent) :] |= recent > 0
    return np.flatnonzero(keep).astype(np.int64)


def to_activation_cache(cache: Cache, model: Any) -> Any:
    """A cache as TransformerLens' `ActivationCache`: by its names, with a batch axis of one, heads
    where it has them; copies.

    Args:
        cache: The cache; places that TransformerLens has not are left out.
        model: TransformerLens' model of the same checkpoint, which `ActivationCache`'s methods ask
            for shapes and weights (`model.cfg.n_heads` is read here too).

    Raises:
        UnsupportedError: torch or transformer_lens is not installed.
    """
    try:
        import torch  # type: ignore[import-not-found,unused-ignore]
        from transformer_lens import ActivationCache  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise UnsupportedError(
            f"to_activation_cache needs torch and transformer_lens: {error.name} is not installed"
        ) from None
    tensors: dict[str, Any] = {}
    for name, array in cache.items():
        site, _, layer = name.partition(".")
        lens = _native.lens_name(site, int(layer or 0))
        if lens is not None:
            tensors[lens] = torch.from_numpy(lens_layout(site, array, model))[None]
    return ActivationCache(tensors, model)


def lens_layout(site: str, array: npt.NDArray[np.float32], model: Any) -> npt.NDArray[np.float32]:
    """An array as TransformerLens lays it out, without the batch axis: a copy."""
    if array.ndim == 3 and site != "attn_weights":  # queries, keys and values
        array = array.transpose(1, 0, 2)  # [T, heads, head_dim]
    elif site == "attn_ctx":
        cfg = getattr(model, "cfg", None)
        heads = int(cfg.n_heads if cfg is not None else model.heads)
        array = array.reshape(array.shape[0], heads, -1)
    return np.array(array, order="C")
