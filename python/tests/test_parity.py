"""Ids are those of HuggingFace transformers: against files that it wrote, and live where it is
installed."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from trained import DRAFT

import fathom_lm as fl
from conftest import FIXTURES

DATA = FIXTURES.parents[1] / "crates" / "fathom-model" / "tests" / "data"
TOKENIZERS = DATA / "tokenizers"
TEMPLATES = DATA / "chat_templates"
KINDS = [
    "byte_level",
    "byte_level_prefix",
    "metaspace_first",
    "legacy_prepend",
    "unigram",
    "wordpiece",
]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def checkpoint(directory: Path, tokenizer: Any, **files: Any) -> Path:
    """A tiny checkpoint (vocabulary of 400) with this tokenizer; a file that is `None` is left
    out."""
    if not directory.exists():
        shutil.copytree(FIXTURES / "golden" / "qwen3", directory)
    for name, content in {"tokenizer": tokenizer, **files}.items():
        file = directory / f"{name}.json"
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(json.dumps(content), encoding="utf-8")
    return directory


def load(directory: Path, **options: Any) -> fl.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fl.FathomRemark)
        return fl.Model(directory, threads=1, **options)


def encode(model: fl.Model, text: str) -> list[int] | str:
    """The ids of bare text, or why they are refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fl.FathomRemark)
        try:
            return model.encode(text, chat_template=False).tolist()
        except fl.RequestError as error:
            return str(error)


def check(model: fl.Model, text: str, expected: list[int], bos: int | None) -> None:
    """Ids are equal; only no ids at all, and two BOS at the start, are refused."""
    found = encode(model, text)
    if expected[:2] == [bos, bos]:
        assert isinstance(found, str) and "BOS" in found, (text, found)
    elif not expected:
        assert isinstance(found, str) and "no token" in found, (text, found)
    else:
        assert found == expected, (text, found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_awkward_texts(kind: str, tmp_path: Path) -> None:
    expected = read(TOKENIZERS / "parity" / "expected.json")
    (case,) = (case for case in expected["plain"] if case["kind"] == kind)
    model = load(checkpoint(tmp_path / "model", read(TOKENIZERS / "parity" / f"{kind}.json")))
    before, after = case["frame"]
    for text, ids in zip(expected["texts"], case["ids"], strict=True):
        check(model, text, [*before, *ids, *after], None)


def test_files_that_change_the_tokenizer(tmp_path: Path) -> None:
    """`tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`."""
    expected = read(TOKENIZERS / "parity" / "expected.json")
    frames = {case["kind"]: case["frame"] for case in expected["plain"]}
    compared = 0
    for case in expected["overlays"]:
        directory = checkpoint(
            tmp_path / "model",
            read(TOKENIZERS / "parity" / f"{case['kind']}.json"),
            tokenizer_config=case["config"],
            special_tokens_map=case["special_tokens_map"],
            added_tokens=case["added_tokens"],
        )
        model = load(directory)
        before, after = frames[case["kind"]]
        bos = case["tokens"].get(case["named"][0])
        for text, ids in zip(expected["short"], case["ids"], strict=True):
            check(model, text, [*before, *ids, *after], bos)
            compared += 1
    assert compared == len(expected["overlays"]) * len(expected["short"]) > 500


def test_what_the_post_processor_adds(tmp_path: Path) -> None:
    expected = read(TOKENIZERS / "parity" / "expected.json")
    tokenizer = read(TOKENIZERS / "parity" / "metaspace_first.json")
    (ids,) = (
        case["ids"][expected["texts"].index("the")]
        for case in expected["plain"]
        if case["kind"] == "metaspace_first"
    )
    post_processors = {"none": None, "bos": tokenizer["post_processor"]}
    both = json.loads(json.dumps(tokenizer["post_processor"]))
    both["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    both["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    post_processors["both"] = both
    found: dict[str, Any] = {}
    compared = 0
    for case in expected["bos"]:
        if (case["class"] or "").startswith("CodeLlama"):
            continue  # transformers makes another post-processor for this class
        key = json.dumps([case["post_processor"], case["config"]])
        if key not in found:
            directory = checkpoint(
                tmp_path / "model",
                {**tokenizer, "post_processor": post_processors[case["post_processor"]]},
                tokenizer_config={"bos_token": "<s>", "eos_token": "</s>", **case["config"]},
            )
            found[key] = encode(load(directory), "the")
        before, after = case["frame"]
        assert found[key] == [*before, *ids, *after], case
        compared += 1
    assert compared == 531


@pytest.mark.parametrize("name", ["metaspace", "byte_level"])
def test_ids_and_texts_of_tokenizers(name: str, tmp_path: Path) -> None:
    if name == "byte_level":
        model = load(DRAFT)
        assert (DRAFT / "tokenizer.json").read_bytes() == (
            FIXTURES / "tokenizer" / "tokenizer.json"
        ).read_bytes()
    else:
        config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
        tokenizer = read(TOKENIZERS / "metaspace.json")
        model = load(checkpoint(tmp_path / "model", tokenizer, tokenizer_config=config))
    bos = 1 if name == "metaspace" else None
    cases = [
        case for case in read(TOKENIZERS / "expected.json")["cases"] if case["tokenizer"] == name
    ]
    assert len(cases) == 9
    for case in cases:
        check(model, case["text"], case["ids_with_special"], bos)
        assert model.decode(case["ids_with_special"]) == case["decoded"]


def templates() -> list[str]:
    return sorted(path.name for path in TEMPLATES.glob("*.jinja"))


@pytest.mark.filterwarnings("ignore::fathom_lm.FathomRemark")
@pytest.mark.parametrize("template", templates())
def test_chat_templates(template: str, tmp_path: Path) -> None:
    """The rendered text, and the ids of that text without further special tokens."""
    expected = read(TEMPLATES / "expected.json")
    directory = checkpoint(
        tmp_path / "model",
        read(TOKENIZERS / "parity" / "metaspace_first.json"),
        tokenizer_config=expected["special_tokens"],
    )
    shutil.copy(TEMPLATES / template, directory / "chat_template.jinja")
    model, bare = load(directory), load(directory, bos=False, chat_template=False)
    compared = 0
    for case in expected["cases"]:
        options = dict(expected["options"][case["options"]])
        # The prompt of a generation is what `encode` renders.
        if case["template"] != template or not options.pop("add_generation_prompt", False):
            continue
        messages = expected["conversations"][case["conversation"]]
        if "error" in case:
            with pytest.raises(fl.FathomError) as refused:
                model.encode(messages, template_kwargs=options)
            reasons = (f": {case['error']}", "has no use for it")
            assert str(refused.value).split(" (")[0].endswith(reasons), case
            continue
        try:
            encoded = model.encode(messages, template_kwargs=options)
        except fl.RequestError as error:
            # A variable that the template does not read is refused, not ignored.
            assert options and "has no use for it" in str(error), case
            continue
        assert encoded.text == case["text"], case
        assert encoded.tolist() == encode(bare, case["text"]), case
        compared += 1
    assert compared >= 4


# Live.


@pytest.mark.parametrize("name", ["draft", *KINDS])
def test_live_ids_of_texts(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    directory = DRAFT
    if name != "draft":
        tokenizer = read(TOKENIZERS / "parity" / f"{name}.json")
        directory = checkpoint(tmp_path / "model", tokenizer)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(directory))
    model = load(directory)
    texts = read(TOKENIZERS / "parity" / "expected.json")["texts"]
    texts += ["".join(texts[i::7]) for i in range(7)]
    for text in texts:
        check(model, text, theirs(text)["input_ids"], theirs.bos_token_id)


@pytest.mark.parametrize("which", ["draft", "planted"])
def test_live_ids_of_conversations(which: str, planted_dir: Path) -> None:
    transformers = pytest.importorskip("transformers")
    directory = DRAFT if which == "draft" else planted_dir
    theirs = transformers.AutoTokenizer.from_pretrained(str(directory))
    model = load(directory)
    for messages in read(TEMPLATES / "expected.json")["conversations"].values():
        expected = theirs.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert model.encode(messages).tolist() == expected
