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
    """Positions whose keys and values must not be evicted, `int64[kept]`, ascending.

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

    The scales of the norms (`hook_scale`), which methods such as `logit_attrs` need, are computed
    from the residual streams in the cache: `resid_pre`, `resid_mid` and the last `resid_post`.

    Args:
        cache: The cache. Places that TransformerLens does not record are left out.
        model: TransformerLens' model of the same checkpoint. The methods of `ActivationCache` read
            its weights, and this function reads its shape.

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
        lens = _lens_name(site, int(layer or 0), model)
        if lens is not None:
            # TransformerLens has normed heads as [heads, T, head_dim], others as [T, heads, …].
            values = array.copy() if lens.endswith("_normed") else lens_layout(site, array, model)
            tensors[lens] = torch.from_numpy(values)[None]
    cfg: Any = getattr(model, "cfg", None)
    if hasattr(cfg, "eps") and hasattr(cfg, "n_layers"):
        tensors.update(_norm_scales(tensors, cfg.n_layers, cfg.eps))
    return ActivationCache(tensors, model)


def _lens_name(site: str, layer: int, model: Any) -> str | None:
    """TransformerLens' name of a place of this model."""
    name = _native.lens_name(site, layer)
    if name is not None and site in ("q_pre_rope", "k_pre_rope"):
        # Fathom's are after the norm of queries and keys; TransformerLens' hook_q is before it.
        attention = getattr(getattr(model, "blocks", {layer: None})[layer], "attn", None)
        if getattr(attention, "q_norm", None) is not None:
            return f"{name}_normed"
    return name


def _norm_scales(tensors: dict[str, Any], layers: int, eps: float) -> dict[str, Any]:
    """The scale `sqrt(mean(x²) + eps)` that RMSNorm divides by, `[1, T, 1]`, for each norm whose
    input x is in `tensors`."""
    sources = {f"blocks.{i}.ln1": f"blocks.{i}.hook_resid_pre" for i in range(layers)}
    sources |= {f"blocks.{i}.ln2": f"blocks.{i}.hook_resid_mid" for i in range(layers)}
    sources["ln_final"] = f"blocks.{layers - 1}.hook_resid_post"
    return {
        f"{norm}.hook_scale": (tensors[source].square().mean(-1, keepdim=True) + eps).sqrt()
        for norm, source in sources.items()
        if source in tensors
    }


def lens_layout(site: str, array: npt.NDArray[np.float32], model: Any) -> npt.NDArray[np.float32]:
    """A copy of an array in TransformerLens' layout, without the batch axis."""
    if array.ndim == 3 and site != "attn_weights":  # queries, keys and values
        array = array.transpose(1, 0, 2)  # [T, heads, head_dim]
    elif site == "attn_ctx":
        cfg = getattr(model, "cfg", None)
        heads = int(cfg.n_heads if cfg is not None else model.heads)
        array = array.reshape(array.shape[0], heads, -1)
    return np.array(array, order="C")
