"""Writes small tokenizers of six kinds, and expected.json: the ids of transformers for them, alone
and with tokens declared in other files.

    pip install transformers==5.24.0 tokenizers==0.23.3
    python generate.py
"""

import json
import os
import pathlib
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

assert transformers.__version__ == "5.24.0" and tokenizers.__version__ == "0.23.3"
HERE = pathlib.Path(__file__).parent

CORPUS = [
    "the quick brown fox jumps over the lazy dog and the other tokens",
    "a sink draws the attention of the other tokens in the middle of a text",
    "line one\nline two, 12 and 345; it's \"quoted\" (twice) <b>",
] * 20
ALPHABET = sorted(set("".join(CORPUS)))
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def special(*contents):
    return [AddedToken(content, special=True, normalized=False) for content in contents]


def saved(name, tokenizer, keep):
    """Keeps only the tokens in `keep` as added tokens: byte tokens are ordinary entries in Llama."""
    tree = json.loads(tokenizer.to_str())
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] in keep]
    (HERE / f"{name}.json").write_text(json.dumps(tree, ensure_ascii=False, separators=(",", ":")) + "\n")


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=340, special_tokens=special(*names), initial_alphabet=alphabet, show_progress=False
        ),
    )
    saved("byte_level", tokenizer, names)


def byte_level_prefix():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    names = special("<s>", "</s>", "<unk>") + [AddedToken("<mask>", lstrip=True, special=True, normalized=False)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=340, special_tokens=names, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=True)
    saved("byte_level_prefix", tokenizer, [str(name) for name in names])


def llama(name, legacy):
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=380, special_tokens=special(*names, *BYTES), show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    saved(name, tokenizer, names)


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace()
    names = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=90, special_tokens=special(*names), unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    saved("unigram", tokenizer, names)


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=140, special_tokens=special(*names), show_progress=False)
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    saved("wordpiece", tokenizer, names)


byte_level()
byte_level_prefix()
llama("metaspace_first", legacy=False)
llama("legacy_prepend", legacy=True)
unigram()
wordpiece()
KINDS = ["byte_level", "byte_level_prefix", "metaspace_first", "legacy_prepend", "unigram", "wordpiece"]

TEXTS = [
    "", " ", "   ", "\n", "\n\n ", "\r\n", "one\r\ntwo\r\n", "\t", "\t\ttab", "the", " the", "  the  fox ",
    "the quick brown fox.", "It's THE dog's, isn’t it?", "0", "12345678901234567890", "3.14 -1e-9 1,000 0x1F",
    "٣٤ ४५ Ⅷ ½ ²", "𝟙𝟚 𝒳²", "e\u0301 é A\u030a Å", "ﬁﬂ ｆｕｌｌ ①", "ß ẞ İ ı ǆ", "∑∫≤≠∀x∈ℝ", "$\\frac{1}{2}$",
    "def f(x):\n    return x\n", "{\"a\": [1, null]}", "<b>the</b> &amp;", "https://a.example/b?c=d#e",
    "====----", "!!??..", "“quotes” — …", "a\u00a0b\u2003c\u3000d", "\u2028\u2029\u0085", "\ufeffthe",
    "zero\u200bwidth\u200c\u200d\u2060", "\u00ad", "🙂", "👩\u200d👩\u200d👧 🏳️\u200d🌈 👍🏽 🇨🇭", "漢字、かな カナ", "한국어 \u1112\u1161\u11ab",
    "שלום، مرحبا", "\u202eabc\u202c", "हिन्दी ภาษา", "\x00\x01\x1b[0m\x7f", "\ud7ff\ue000\ufffd\uffff", "𐍈𓀀",
    "x\u0301\u0302\u0303", "▁", "▁the ▁▁fox", "_ __", "Ġthe Ċ", "<0x0A><0xFF>", "##ing", "<s>", "</s>", "<s> the </s> ",
    "<unk>", " <mask> the<mask>", "[MASK] [CLS]the[SEP]", "[mask]", "<pad></s></s>", "<|im_start|>user\nthe<|im_end|>\n",
    "a<|endoftext|>b <|endoftext|> c", "a" * 70, "end ", "end\n",
]

SHORT = [
    "<think>\nthe</think>", "a <think> the</think>  fox", "the<think>the <THINK> xthink think", "<x><y> <z>the",
    "  <x>  the  <y>  fox", "<pad><pad> the [PAD]", "the quick fox", "<img>the<img_end> <extra>", "</s> the<|im_end|>the [SEP]the",
    " <mask> [MASK] the", "<Über> <über>", "",
]


def token(content, **flags):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": False} | flags


def tagged(content, **flags):
    return {"__type": "AddedToken"} | token(content, **flags)


def overlays(kind):
    """Name, tokenizer_config.json, special_tokens_map.json, added_tokens.json."""
    tree = json.loads((HERE / f"{kind}.json").read_text())
    n = max([len(tree["model"]["vocab"])] + [t["id"] + 1 for t in tree["added_tokens"]])
    held = tree["added_tokens"]
    last = held[-1]
    first = held[0]["content"]
    word = {"byte_level": "Ġthe", "legacy_prepend": "▁the"}.get(kind, "the")
    yield "nothing", None, None, None
    yield "decoder", {"added_tokens_decoder": {str(n): token("<think>"), str(n + 1): token("</think>", special=True)}}, None, None
    yield "decoder in another order", {"added_tokens_decoder": {str(n + 1): token("<x>"), str(n): token("<y>")}}, None, None
    yield "decoder with gaps", {"added_tokens_decoder": {"0": token("<think>"), str(n + 7): token("<x>"), str(n + 3): token("<y>")}}, None, None
    yield "decoder with flags", {"added_tokens_decoder": {
        str(n): token("<x>", lstrip=True), str(n + 1): token("<y>", rstrip=True, lstrip=True),
        str(n + 2): token("think", single_word=True), str(n + 3): {"content": "<z>"}}}, None, None
    yield "decoder that changes flags", {"added_tokens_decoder": {
        str(last["id"]): token(last["content"], lstrip=True, rstrip=True, special=True),
        str(held[0]["id"]): token(first, normalized=True)}}, None, None
    yield "normalized tokens", {"added_tokens_decoder": {
        str(n): token("<THINK>", normalized=True), str(n + 1): token("<Über>", normalized=True)}}, None, None
    yield "decoder and names", {"eos_token": "<x>", "pad_token": tagged("<y>"), "mask_token": "<z>", "added_tokens_decoder": {
        str(n): token("<x>"), str(n + 1): token("<y>", rstrip=True)}}, None, None
    yield "added_tokens.json", {"pad_token": "<pad>", "eos_token": last["content"]}, None, {"<x>": n + 1, "<think>": n, "<pad>": n + 2}
    yield "added_tokens.json and an object", {"pad_token": tagged("<x>", lstrip=True), "extra_special_tokens": ["<y>"]}, None, {"<x>": n, "<y>": n + 1}
    yield "added_tokens.json with ids that are taken", None, None, {"<x>": held[0]["id"], "<y>": n + 4, "<think>": 7}
    yield "map over config", {"eos_token": first, "unk_token": first, "pad_token": "<x>"}, {
        "eos_token": last["content"], "unk_token": None, "pad_token": token("<pad>", lstrip=True)}, None
    yield "map and lists", {"additional_special_tokens": ["<x>"]}, {"additional_special_tokens": ["<y>"], "cls_token": "<z>"}, None
    yield "map alone", None, {"bos_token": "<x>", "additional_special_tokens": ["<y>", "<think>"], "image_token": "<img>"}, {"<think>": n}
    yield "map that is not read", {"eos_token": first, "added_tokens_decoder": {str(n): token("<x>")}}, {
        "eos_token": last["content"], "pad_token": "<pad>", "additional_special_tokens": ["<y>"]}, {"<z>": n + 1, "<x>": n + 2}
    yield "map with extra tokens", {"extra_special_tokens": ["<x>"]}, {"extra_special_tokens": ["<y>", "<x>"]}, None
    yield "map with named extra tokens", {"extra_special_tokens": ["<x>"]}, {"extra_special_tokens": {"image_token": "<img>"}}, None
    yield "extra list", {"extra_special_tokens": ["<y>", tagged("<x>", lstrip=True, rstrip=True), first]}, None, None
    yield "extra names", {"extra_special_tokens": {"image_token": "<img>", "pad_token": "<pad>", "end_token": tagged("<img_end>")}}, None, None
    yield "additional", {"additional_special_tokens": ["<y>", tagged("<x>")], "extra_special_tokens": []}, None, None
    yield "additional and extra", {"additional_special_tokens": ["<y>"], "extra_special_tokens": ["<x>"]}, None, None
    yield "additional and extra names", {"additional_special_tokens": ["<y>"], "extra_special_tokens": {"image_token": "<img>"}}, None, None
    yield "own names", {"image_token": "<img>", "end_token": tagged("<img_end>", special=True), "odd_token": {"content": "<x>"},
                        "add_bos_token": True, "mask_token": "<mask>"}, None, None
    yield "own names as saved", {"model_specific_special_tokens": {"image_token": "<img>"}}, None, None
    yield "names that are lacking", {"pad_token": "<pad>", "bos_token": "<x>", "sep_token": "<y>", "cls_token": "<x>"}, None, None
    yield "a name in the vocabulary", {"pad_token": word, "eos_token": tagged("fox", single_word=True)}, None, None
    yield "the same twice", {"pad_token": tagged("<x>", lstrip=True), "extra_special_tokens": ["<x>"]}, None, None
    yield "nothing to add", {"pad_token": "", "extra_special_tokens": [""], "unk_token": None}, None, None
    yield "split special tokens", {"split_special_tokens": True, "extra_special_tokens": ["<x>"]}, None, None


def directory(tokenizer, config=None, token_map=None, added=None, model=None):
    path = pathlib.Path(tempfile.mkdtemp())
    texts = {"tokenizer.json": tokenizer, "tokenizer_config.json": config, "special_tokens_map.json": token_map,
             "added_tokens.json": added, "config.json": model}
    for name, content in texts.items():
        if content is not None:
            (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def load(path):
    return transformers.AutoTokenizer.from_pretrained(path)


def encoded(tokenizer, texts):
    """The ids without special tokens; those are in `frame`."""
    return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]


def frame(tokenizer):
    full, bare = tokenizer("the").input_ids, tokenizer("the", add_special_tokens=False).input_ids
    at = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return [full[:at], full[at + len(bare) :]]


BACKEND = {"tokenizer_class": "TokenizersBackend"}  # use the file unchanged for every model class
plain, laid_over, bos = [], [], []
for kind in KINDS:
    text = (HERE / f"{kind}.json").read_text()
    tokenizer = load(directory(text, BACKEND))
    plain.append({"kind": kind, "frame": frame(tokenizer), "ids": encoded(tokenizer, TEXTS)})
    if kind in ("unigram", "byte_level_prefix"):
        continue
    for name, config, token_map, added in overlays(kind):
        tokenizer = load(directory(text, BACKEND | (config or {}), token_map, added))
        tokens = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
        laid_over.append({
            "kind": kind, "name": name, "config": config, "special_tokens_map": token_map, "added_tokens": added,
            "tokens": tokens, "size": len(tokenizer),
            "named": [tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token],
            "ids": encoded(tokenizer, SHORT),
        })

CLASSES = [None, "PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer",
           "CodeLlamaTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast",
           "NoSuchTokenizer"]
tree = json.loads((HERE / "metaspace_first.json").read_text())
with_eos = json.loads(processors.TemplateProcessing(
    single="<s> $A </s>", pair="<s> $A </s> $B", special_tokens=[("<s>", 1), ("</s>", 2)]).__getstate__())
for what, post_processor in [("bos", tree["post_processor"]), ("none", None), ("both", with_eos)]:
    tree["post_processor"] = post_processor
    for name in CLASSES:
        for model in [None, "llama", "mistral", "qwen2", "qwen3", "phi3"]:
            for add in [{}, {"add_bos_token": True, "add_eos_token": True}, {"add_bos_token": False, "add_eos_token": False}]:
                config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"} | add
                config |= {"tokenizer_class": name} if name else {}
                path = directory(json.dumps(tree), config, model=model and {"model_type": model})
                if name is None and model is None:
                    continue  # transformers needs one of them
                case = {"post_processor": what, "class": name, "model_type": model, "config": add}
                bos.append(case | {"frame": frame(load(path))})

expected = {
    "transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
    "texts": TEXTS, "plain": plain, "short": SHORT, "overlays": laid_over, "bos": bos,
}
text = json.dumps(expected, ensure_ascii=True, separators=(",", ":"))
(HERE / "expected.json").write_text(text.replace('{"kind"', '\n{"kind"').replace('{"post_', '\n{"post_') + "\n")
