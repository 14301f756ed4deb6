"""Names from PyTorch and TransformerLens that Fathom lacks, and what to use instead."""

from __future__ import annotations

from typing import Any

from ._errors import UnsupportedError

_GRADIENTS = (
    "Fathom computes no gradients: measure effects with run_with_hooks or run_with_edits, or take "
    "gradients in PyTorch"
)
_DEVICE = (
    "a model stays where it was loaded: choose how it computes with fl.Model(..., precision=, "
    "threads=)"
)
_WEIGHTS = (
    "weights are packed for the CPU when they are loaded and cannot be read back: read them from "
    "the checkpoint's safetensors"
)
_HOOKS = "hooks last for one pass: pass them to run_with_hooks(ids, [(name, fn)])"

_OF_MODELS = {
    "parameters": _WEIGHTS,
    "named_parameters": _WEIGHTS,
    "state_dict": _WEIGHTS,
    "load_state_dict": _WEIGHTS,
    "backward": _GRADIENTS,
    "zero_grad": _GRADIENTS,
    "requires_grad": _GRADIENTS,
    "requires_grad_": _GRADIENTS,
    "train": "Fathom does not train; a model is always in inference mode",
    "eval": "a model is always in inference mode",
    "to": _DEVICE,
    "cuda": _DEVICE,
    "cpu": _DEVICE,
    "mps": _DEVICE,
    "half": _DEVICE,
    "bfloat16": _DEVICE,
    "float": _DEVICE,
    "add_hook": _HOOKS,
    "add_perma_hook": _HOOKS,
    "reset_hooks": _HOOKS,
    "hooks": _HOOKS,
    "register_forward_hook": _HOOKS,
    "hook_dict": "model.names() lists the places of a pass",
    "cfg": "the config is model.config, a dictionary",
    "tokenizer": "use model.encode, model.decode and model.tokens",
    "to_tokens": "use model.encode(text), or model.encode(text, chat_template=False) for bare text",
    "to_str_tokens": "use model.tokens(ids)",
    "to_string": "use model.decode(ids)",
    "forward": "call model(ids), or model.run_with_cache(ids, names)",
    "trace": "use model.run_with_cache(ids, names) and model.run_with_hooks(ids, hooks)",
}

_LOGIT_LENS = "is arithmetic on arrays: use those of the cache, as in cache['resid_post', 3]"

_OF_CACHES = {
    "stack_activation": "use cache.stack(site), [layers, T, …]",
    "accumulated_resid": f"accumulated_resid {_LOGIT_LENS}",
    "decompose_resid": f"decompose_resid {_LOGIT_LENS}",
    "logit_attrs": f"logit_attrs {_LOGIT_LENS}",
    "remove_batch_dim": "there is no batch axis: arrays are [T, …]",
    "apply_slice_to_batch_dim": "there is no batch axis: arrays are [T, …]",
    "to": "arrays are NumPy in host memory: torch.from_dlpack(array) shares them without a copy",
    "cuda": "arrays are NumPy in host memory: torch.from_dlpack(array) shares them without a copy",
    "toggle_autodiff": _GRADIENTS,
}


def of_model(name: str) -> UnsupportedError | None:
    return UnsupportedError(f"`{name}`: {_OF_MODELS[name]}") if name in _OF_MODELS else None


def of_cache(name: str) -> UnsupportedError | None:
    return UnsupportedError(f"`{name}`: {_OF_CACHES[name]}") if name in _OF_CACHES else None


def check_tensor(value: Any, what: str) -> None:
    """Refuses tensors of other libraries that NumPy cannot read."""
    if getattr(value, "requires_grad", False):
        raise UnsupportedError(f"{what} requires grad: {_GRADIENTS}; here, .detach() it first")
    device = getattr(value, "device", None)
    kind = getattr(device, "type", "cpu")
    if isinstance(kind, str) and kind != "cpu":
        raise UnsupportedError(f"{what} is on `{kind}`: move it to host memory first, with .cpu()")
