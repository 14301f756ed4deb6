"""Errors are the command line's sentences in a small class hierarchy; remarks are warnings."""

from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fathom_lm as fl


def test_the_class_of_an_error_says_who_can_fix_it(tmp_path: Path, golden_dir: Path) -> None:
    with pytest.raises(fl.FathomError) as no_model:
        fl.Model("no/such-model-anywhere")
    assert "no/such-model-anywhere" in str(no_model.value)
    broken = tmp_path / "broken"
    shutil.copytree(golden_dir / "qwen2", broken)
    (broken / "config.json").write_text('{"model_type": "mamba", "architectures": ["Mamba"]}')
    with pytest.raises(fl.CheckpointError, match="config.json"):
        fl.Model(broken)
    (broken / "config.json").write_text("{")
    with pytest.raises(fl.CheckpointError, match="config.json: is not JSON"):
        fl.Model(broken)
    shutil.copy(golden_dir / "qwen2" / "config.json", broken)
    (broken / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(fl.CheckpointError, match="model.safetensors"):
        fl.Model(broken)
    for error in (fl.CheckpointError, fl.DataError, fl.RequestError, fl.BackendError):
        assert issubclass(error, fl.FathomError)
    assert issubclass(fl.RequestError, ValueError) and issubclass(fl.EngineError, RuntimeError)


def test_the_sentence_is_the_command_lines(
    model: fl.Model, ids: list[int], golden_dir: Path, tmp_path: Path, capfd: Any
) -> None:
    from fathom_lm import _native

    for name in ("resid", "resid_post.9", "embed.3"):
        with pytest.raises(fl.RequestError) as refused:
            model.run_with_cache(ids, name)
        (tmp_path / "ids.json").write_text("[1, 2, 3]")
        arguments = ["--model", str(golden_dir / "qwen3"), "--ids", str(tmp_path / "ids.json")]
        out = ["--sites", name, "--out", str(tmp_path / "out.safetensors")]
        assert _native.main(["fathom", "capture", *arguments, *out]) == 2
        assert str(refused.value) in capfd.readouterr().err


def test_arguments_are_checked(golden_dir: Path, model: fl.Model, ids: list[int]) -> None:
    path = golden_dir / "qwen3"
    bad: list[tuple[dict[str, Any], str]] = [
        ({"precision": "fp8"}, "precision `fp8` is unknown: expected `f32` or `bf16`"),
        ({"threads": 0}, "threads=0"),
        ({"isa": "mmx"}, "instruction set `mmx` is unknown"),
        ({"adapter": "no/adapter-here"}, "no/adapter-here"),
        ({"template_kwargs": {"a": object()}}, "template_kwargs: cannot be written as JSON"),
        ({"template_kwargs": {"a": 1}}, "template"),
    ]
    for options, sentence in bad:
        with pytest.raises(fl.FathomError, match=sentence):
            fl.Model(path, **options)
    for edits, sentence in [
        (["mlp_out.1"], "expected SITE.LAYER@POSITIONS=CHANGE"),
        (["mlp_out.1@400=zero"], "there is no such position"),
        (["mlp_out.1@3=zero", "mlp_out.1@3=scale(2)"], "their order would matter"),
        (["attn_weights.1@3=zero"], "can be read, but not edited"),
    ]:
        with pytest.raises(fl.RequestError, match=sentence):
            model.run_with_edits(ids, edits)
    with pytest.raises(fl.RequestError, match="expected 'all', 'last' or None"):
        model.run_with_cache(ids, "embed", logits="first")  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="free memory is read from /proc")
def test_a_pass_that_needs_too_much_memory_is_refused_first(model: fl.Model) -> None:
    ids = [1 + i % 300 for i in range(300_000)]
    with pytest.raises(fl.RequestError, match=r"would keep \d+\.\d GiB, but .* are free"):
        model.run_with_cache(ids, "attn_weights", logits=None)


def test_the_exception_of_a_hook_is_raised_unchanged(model: fl.Model, ids: list[int]) -> None:
    class Mine(Exception):
        pass

    def fail(values: Any, site: fl.HookSite) -> None:
        raise Mine(site.name)

    with pytest.raises(Mine, match="mlp_out.1"):
        model.run_with_hooks(ids, [("mlp_out.1", fail)])
    for returned, sentence in [
        (np.zeros((2, 2)), r"returned shape \[2, 2\]: expected \[40, 80\]"),
        ("text", "returned str"),
        ([[1, 2], [3]], "returned list"),
        (np.zeros((40, 80), dtype=complex), "expected None or numbers"),
    ]:
        with pytest.raises(fl.RequestError, match=sentence):
            model.run_with_hooks(ids, [("mlp_out.1", lambda v, s, returned=returned: returned)])
    with pytest.raises(fl.RequestError, match="can be read, but not edited"):
        model.run_with_hooks(ids, [("attn_weights.1", lambda v, s: v * 2)])
    with pytest.raises(ValueError, match="read-only"):
        model.run_with_hooks(ids, [("mlp_out.1", lambda v, s: v.fill(0))])
    for hook in ("mlp_out.1", ("mlp_out.1", 3), ("mlp_out.1",)):
        with pytest.raises(fl.RequestError, match="hook"):
            model.run_with_hooks(ids, [hook])  # type: ignore[list-item]
    assert np.array_equal(model(ids), model(ids)), "the model still works"


def test_unsupported_names_are_refused_by_name(model: fl.Model, ids: list[int]) -> None:
    for name, instead in [
        ("parameters", "safetensors"),
        ("backward", "run_with_hooks"),
        ("requires_grad", "gradients"),
        ("to", "fl.Model"),
        ("cuda", "threads="),
        ("to_tokens", "model.encode"),
        ("add_hook", "run_with_hooks"),
        ("cfg", "model.config"),
    ]:
        with pytest.raises(fl.UnsupportedError, match=f"`{name}`: .*{instead}"):
            getattr(model, name)
        assert not hasattr(model, name)
    with pytest.raises(AttributeError, match="no attribute `nonsense`"):
        model.nonsense  # noqa: B018
    with pytest.raises(fl.UnsupportedError, match="load it in each process"):
        pickle.dumps(model)

    class Tensor:
        requires_grad = True

    class OnGpu:
        class device:
            type = "cuda"

    with pytest.raises(fl.UnsupportedError, match="requires grad.*detach"):
        model.run_with_hooks(ids, [("mlp_out.1", lambda v, s: Tensor())])
    with pytest.raises(fl.UnsupportedError, match="is on `cuda`"):
        model(OnGpu())  # type: ignore[arg-type]


def test_remarks_are_warnings(tmp_path: Path, golden_dir: Path) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(golden_dir / "qwen2", odd)
    (odd / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    with pytest.warns(fl.FathomRemark) as warned:
        model = fl.Model(odd, threads=1)
    assert model.remarks and str(model.remarks[0]) == str(warned[0].message)
    assert warned[0].filename == __file__
    assert model.remarks[0].about == "input" and model.remarks[0].kind
    with pytest.raises(fl.RequestError, match="refused because of strict=True"):
        fl.Model(odd, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fl.Model(golden_dir / "qwen2", strict=True, threads=1)
