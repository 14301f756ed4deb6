"""Adapters for other libraries. They import those libraries only when they are called."""

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

    The norms of sinks are many times those of other tokens, so they would dominate the loss. With
    the rows of one trace at the layer that the autoencoder is trained on:
    `activations = activations[~fl.adapters.sae_mask(run, trace, layer)]`.
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

    In the `score` of a kvpress `ScorerPress`:
    `scores[..., fl.adapters.kvpress_keep(run, trace)] = scores.max()`.

    Args:
        recent: Also keep this many of the last positions.
    """
    if recent < 0:
        raise RequestError(f"recent={recent}: expected at least 0")
    keep = np.array(run.mask(trace, layer, classes))
    keep[max(0, len(keep) - recent) :] |= recent > 0
    return np.flatnonzero(keep).astype(np.int64)


def to_activation_cache(cache: Cache, model: Any) -> Any:
    """A cache as TransformerLens' `ActivationCache`: its names, a batch axis of size 1, and its
    order of heads. The tensors are copies.

    Args:
        cache: The cache. Places that TransformerLens does not record are left out.
        model: TransformerLens' model of the same checkpoint. The methods of `ActivationCache` read
            its weights, and this function reads `model.cfg.n_heads`.

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
    """A copy of an array in TransformerLens' layout, without the batch axis."""
    if site in ("q_pre_rope", "k_pre_rope", "q", "k", "v"):
        array = array.transpose(1, 0, 2)  # [T, heads, head_dim]
    elif site == "attn_ctx":
        cfg = getattr(model, "cfg", None)
        heads = int(cfg.n_heads if cfg is not None else model.heads)
        array = array.reshape(array.shape[0], heads, -1)
    return np.array(array, order="C")
