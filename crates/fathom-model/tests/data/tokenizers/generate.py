"""Writes metaspace.json, a small tokenizer like Llama 2's, and expected.json: the ids and texts of
HuggingFace `tokenizers` for it and for the repository's byte-level fixture.

    pip install tokenizers
    python generate.py
"""

import json
import pathlib

import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

HERE = pathlib.Path(__file__).parent
FIXTURE = HERE / "../../../../../tests/fixtures/tokenizer/tokenizer.json"

CORPUS = ["the quick brown fox jumps over the lazy dog", "a sink draws the attention of the other tokens"] * 20

metaspace = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
metaspace.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
metaspace.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
special = ["<unk>", "<s>", "</s>"]
byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special + byte_tokens, show_progress=False)
metaspace.train_from_iterator(CORPUS, trainer)
# Byte tokens are ordinary entries, as in Llama 2: only the first three are special.
config = json.loads(metaspace.to_str())
config["added_tokens"] = [token for token in config["added_tokens"] if token["content"] in special]
metaspace = Tokenizer.from_str(json.dumps(config))
metaspace.post_processor = processors.TemplateProcessing(
    single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
)
metaspace.save(str(HERE / "metaspace.json"), pretty=False)

TEXTS = [
    "",
    " ",
    "the quick fox",
    "  two spaces ",
    "line\nbreak\ttab",
    "émigré 你好 😀👩‍👩‍👧 \u200d",
    "x = 3.14 * (0)",
    "<s>the</s> <|im_start|>user\n<|im_end|>",
    "Ġ▁<0x0A>",
]

expected = {"version": tokenizers.__version__, "cases": []}
for name, tokenizer in [("metaspace", metaspace), ("byte_level", Tokenizer.from_file(str(FIXTURE)))]:
    for text in TEXTS:
        bare = tokenizer.encode(text, add_special_tokens=False).ids
        full = tokenizer.encode(text, add_special_tokens=True).ids
        expected["cases"].append(
            {
                "tokenizer": name,
                "text": text,
                "ids": bare,
                "ids_with_special": full,
                "decoded": tokenizer.decode(full, skip_special_tokens=False),
            }
        )
(HERE / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1))
