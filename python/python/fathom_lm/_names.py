"""Names of the places in a pass: Fathom's and TransformerLens'."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Union

from . import _native
from ._errors import RequestError

NamesFilter = Union[None, str, Sequence[str], Callable[[str], bool]]
"""Which places: a name, names, or a function of a name; `None` for every place whose size is linear
in T."""

_PER_LAYER = dict(_native.site_names())

# Places that TransformerLens records and Fathom does not, and what to use instead.
_LENS_ONLY = {
    "hook_pos_embed": "rotary models have none",
    "hook_tokens": "they are the ids that you passed",
    "ln1.hook_scale": "compute it from resid_pre",
    "ln1.hook_normalized": "attn_in is that times the norm's weight",
    "ln2.hook_scale": "compute it from resid_mid",
    "ln2.hook_normalized": "mlp_in is that times the norm's weight",
    "ln_final.hook_scale": "compute it from resid_post of the last layer",
    "ln_final.hook_normalized": "final_norm is that times the norm's weight",
    "attn.hook_attn_scores": "scores before the softmax are never stored; attn_weights are the "
    "probabilities",
    "attn.hook_result": "attn_ctx has the heads in one row; multiply with the output projection",
    "hook_mlp_in": "use resid_mid",
    "hook_attn_in": "use resid_pre",
    "hook_q_input": "use attn_in",
    "hook_k_input": "use attn_in",
    "hook_v_input": "use attn_in",
}


def at(site: str, layer: int) -> str:
    """Fathom's name of a place: `resid_post.3`, `embed`."""
    return f"{site}.{layer}" if _PER_LAYER[site] else site


def lens_only(name: str) -> str | None:
    """The message about a name that TransformerLens has and Fathom does not."""
    hook = re.sub(r"^blocks\.(\d+|\*)\.", "", name.strip())
    advice = _LENS_ONLY.get(hook)
    return None if advice is None else f"TransformerLens' `{name}` is not recorded: {advice}"


def parse(name: str) -> tuple[str, int | None]:
    """The site and layer that a name means.

    Raises `RequestError` for an unknown name; the message lists the known ones.
    """
    if not isinstance(name, str):
        raise RequestError(
            f"{name!r} is not the name of a place: expected a string such as resid_post.3"
        )
    advice = lens_only(name)
    if advice is not None:
        raise RequestError(advice)
    return _native.parse_site(name)


def every(layers: int, stop: int | None) -> list[tuple[str, int]]:
    """All places of a pass that stops before layer `stop`, in the order of the pass."""
    end = layers if stop is None else stop
    places: list[tuple[str, int]] = []
    for site, per_layer in _PER_LAYER.items():
        if per_layer:
            places.extend((site, layer) for layer in range(end))
        elif site == "embed" or stop is None:
            places.append((site, 0))
    return places


def _wanted(wants: Callable[[str], bool], site: str, layer: int) -> bool:
    """Whether a function of a name returns true for either name of a place."""
    lens = _native.lens_name(site, layer)
    return bool(wants(at(site, layer))) or (lens is not None and bool(wants(lens)))


def chosen(names: NamesFilter, layers: int, stop: int | None) -> list[str]:
    """The names that a filter selects, in a form that the library accepts."""
    if names is None:
        # attn_weights grow with T², and logits are returned anyway.
        left_out = {"attn_weights", "logits"}
        return [at(*place) for place in every(layers, stop) if place[0] not in left_out]
    if isinstance(names, str):
        names = [names]
    if callable(names):
        return [at(*place) for place in every(layers, stop) if _wanted(names, *place)]
    names = list(names)
    for name in names:
        parse(name)
    return names
