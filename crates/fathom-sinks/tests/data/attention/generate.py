"""Writes golden.json: knock-out and eviction by brute force, with eager attention in NumPy.

    pip install numpy
    python generate.py

Reads the planted model of tests/fixtures/planted/basic (a Qwen2 checkpoint), its traces and its
true sinks. All arithmetic is float64, masks are T x T matrices applied to the scores, and nothing
of Fathom is used. The hash that chooses random tokens is SplitMix64, written again here.
"""

import json
import struct
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PLANTED = HERE / "../../../../../tests/fixtures/planted/basic"
CONFIG = json.loads((PLANTED / "config.json").read_text())
LAYERS, HEADS = CONFIG["num_hidden_layers"], CONFIG["num_attention_heads"]
KV_HEADS, HIDDEN = CONFIG["num_key_value_heads"], CONFIG["hidden_size"]
HEAD_DIM = HIDDEN // HEADS
FIRST, CHUNK, BUDGETS, WRITTEN, DRAWS, SEED = 4, 32, [64, 96, 256], 64, 3, 0
NEVER = 1 << 60


def tensors():
    data = (PLANTED / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    found = {}
    for name, info in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + offset for offset in info["data_offsets"])
        assert info["dtype"] == "BF16"
        bits = np.frombuffer(data[start:end], dtype="<u2").astype(np.uint32) << 16
        found[name] = bits.view(np.float32).reshape(info["shape"]).astype(np.float64)
    return found


W = tensors()
BLOCKS = [
    {name.split(f".layers.{layer}.")[1]: w for name, w in W.items() if f".layers.{layer}." in name}
    for layer in range(LAYERS)
]


def norm(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + CONFIG["rms_norm_eps"]) * weight


def rotate(x, positions):
    """[T, heads, head_dim], HuggingFace's rotate-half."""
    half = HEAD_DIM // 2
    angles = positions[:, None] / CONFIG["rope_theta"] ** (np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class Pass:
    """A pass over a text, chunk by chunk, with cached keys and values."""

    def __init__(self, until=None, zeroed=None, budget=None):
        self.until = until  # [layers][keys]: from which query on a key is hidden
        self.zeroed = zeroed or (set(), [])  # layers, positions
        self.budget = budget  # heavy hitters
        self.keys, self.values = [[] for _ in range(LAYERS)], [[] for _ in range(LAYERS)]
        self.received = [np.zeros(0) for _ in range(LAYERS)]  # mean over heads, by key
        self.entropy = np.zeros(LAYERS)  # summed over queries, mean over heads
        self.first_query = NEVER
        self.done = 0

    def evict(self):
        """H2O, for all heads of a layer together."""
        keep, now = self.budget - CHUNK, self.done
        if self.until is None:
            self.until = [[] for _ in range(LAYERS)]
        for layer in range(LAYERS):
            until = self.until[layer]
            until += [NEVER] * (now - len(until))
            recent = min(keep // 2, now)
            left = [k for k in range(now - recent) if until[k] > now]
            left.sort(key=lambda k: -self.received[layer][k])
            for key in left[keep - recent :]:
                until[key] = now

    def visible(self, layer, queries, keys):
        mask = keys[None, :] <= queries[:, None]
        if self.until is not None:
            until = np.array((self.until[layer] + [NEVER] * len(keys))[: len(keys)])
            own = keys[None, :] == queries[:, None]
            hidden = (queries[:, None] >= until[None, :]) & ~own & mask
            if hidden.any():
                self.first_query = min(self.first_query, queries[hidden.any(1)].min())
            mask &= ~hidden
        return mask

    def run(self, ids):
        """Logits of the next tokens, [len(ids), vocab]."""
        logits = []
        for start in range(0, len(ids), CHUNK):
            if self.budget and self.done % CHUNK == 0:
                self.evict()
            logits.append(self.chunk(np.array(ids[start : start + CHUNK])))
        return np.concatenate(logits)

    def chunk(self, ids):
        queries = np.arange(self.done, self.done + len(ids))
        keys = np.arange(self.done + len(ids))
        x = W["model.embed_tokens.weight"][ids]
        for layer, w in enumerate(BLOCKS):
            h = norm(x, w["input_layernorm.weight"])
            project = lambda n: h @ w[f"self_attn.{n}_proj.weight"].T + w[f"self_attn.{n}_proj.bias"]
            q = rotate(project("q").reshape(-1, HEADS, HEAD_DIM), queries)
            k = rotate(project("k").reshape(-1, KV_HEADS, HEAD_DIM), queries)
            v = project("v").reshape(-1, KV_HEADS, HEAD_DIM)
            layers, positions = self.zeroed
            if layer in layers:
                v = np.where(np.isin(queries, positions)[:, None, None], 0.0, v)
            self.keys[layer].append(k)
            self.values[layer].append(v)
            k = np.concatenate(self.keys[layer]).repeat(HEADS // KV_HEADS, 1)
            v = np.concatenate(self.values[layer]).repeat(HEADS // KV_HEADS, 1)
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(HEAD_DIM)
            scores = np.where(self.visible(layer, queries, keys)[None], scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            received = weights.sum(1).mean(0)
            received[: self.done] += self.received[layer]
            self.received[layer] = received
            logs = np.log(np.where(weights > 0, weights, 1.0))
            self.entropy[layer] += -(weights * logs).sum() / HEADS
            context = np.einsum("hqk,khd->qhd", weights, v).reshape(len(ids), HIDDEN)
            x = x + context @ w["self_attn.o_proj.weight"].T
            h = norm(x, w["post_attention_layernorm.weight"])
            gate, up = h @ w["mlp.gate_proj.weight"].T, h @ w["mlp.up_proj.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w["mlp.down_proj.weight"].T
        self.done += len(ids)
        return norm(x, W["model.norm.weight"]) @ W["lm_head.weight"].T

    def write(self, ids, tokens):
        written, last = [], self.run(ids)[-1]
        for i in range(tokens):
            written.append(int(last.argmax()))
            if i + 1 < tokens:
                last = self.run([written[-1]])[-1]
        return written


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def compare(ids, plain, edited, start):
    """Predictions from position `start` on."""
    p, q = log_softmax(plain)[start:], log_softmax(edited)[start:]
    following = ids[start + 1 :]
    nll = lambda x: float(-x[np.arange(len(following)), following].mean()) if following else 0.0
    return {
        "positions": len(p),
        "kl": float((np.exp(p) * (p - q)).sum(-1).mean()),
        "nll_before": nll(p),
        "nll_after": nll(q),
        "top1": int((plain[start:].argmax(-1) == edited[start:].argmax(-1)).sum()),
    }


# --- the choice of random tokens ---------------------------------------------------------------


def shuffle_key(seed, trace, position):
    def mix(x, y):
        z = (x + (y + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    return mix(mix(seed, trace), position)


def random_tokens(trace, ids, sinks, wanted, seed):
    def sample(tokens, n):
        return sorted(tokens, key=lambda t: shuffle_key(seed, trace, t))[:n]

    ordinary = [t for t in range(len(ids)) if t not in sinks]
    names = {ids[t] for t in wanted}
    chosen = sample([t for t in ordinary if ids[t] in names], len(wanted))
    of_same_ids = len(chosen)
    chosen += sample([t for t in ordinary if ids[t] not in names], len(wanted) - of_same_ids)
    return sorted(chosen), of_same_ids


# --- knock-out ---------------------------------------------------------------------------------


def knock_out(trace, ids, sinks, levels, by, layers):
    of = lambda keep: sorted({s["position"] for s in sinks if keep(s)})
    primary = sorted({0, *of(lambda s: s["class"] == "primary")})
    secondary = of(lambda s: s["class"] == "secondary" and s["position"] != 0)
    choices = [({"keys": "bos"}, [0]), ({"keys": "primary"}, primary)]
    choices.append(({"keys": "secondary"}, secondary))
    for l_start, lifetime in levels:
        level = lambda s: s["class"] == "secondary" and (s["l_start"], s["lifetime"]) == (l_start, lifetime)
        choices.append(({"keys": "level", "l_start": l_start, "lifetime": lifetime}, of(level)))
    if secondary:
        choices.append(({"keys": "both"}, sorted(primary + secondary)))
    every = {s["position"] for s in sinks} | {0}
    same = {}
    for draw in range(DRAWS):
        chosen, same[draw] = random_tokens(trace, ids, every, secondary, SEED + 1 + draw)
        choices.append(({"keys": "random", "draw": draw}, chosen))
    plain = Pass()
    before = plain.run(ids)
    results = []
    for keys, positions in choices:
        if not positions:
            continue
        if by == "hide":
            until = [[NEVER] * len(ids) for _ in range(LAYERS)]
            for layer in layers:
                for key in positions:
                    until[layer][key] = key + 1
            edited = Pass(until=until)
        else:
            edited = Pass(zeroed=(set(layers), positions))
        after = edited.run(ids)
        start = positions[0] + 1
        mean = lambda one: np.mean([one.received[layer] for layer in layers], 0)
        gained = (mean(edited) - mean(plain)) / (len(ids) - start)
        classes = {s["position"]: s["class"] for s in sinks if s["position"] != 0}
        to = lambda c: float(
            sum(g for t, g in enumerate(gained) if t not in positions and t != 0 and classes.get(t) in c)
        )
        most = max((t for t in range(len(ids)) if t not in positions), key=lambda t: gained[t])
        results.append(
            {
                "trace": trace,
                **keys,
                "knocked": positions,
                "of_same_ids": same[keys["draw"]] if "draw" in keys else len(positions),
                **compare(ids, before, after, start),
                "freed": float(-gained[positions].sum()),
                "to_bos": float(0 if 0 in positions else gained[0]),
                "to_primary": to({"primary"}),
                "to_secondary": to({"secondary"}),
                "to_others": to({"noise", None}),
                "entropy_before": float(plain.entropy[layers].mean() / len(ids)),
                "entropy_after": float(edited.entropy[layers].mean() / len(ids)),
                "receiver": {"position": most, "gained": float(gained[most])},
            }
        )
    return results


# --- eviction ----------------------------------------------------------------------------------


def policies(trace, ids, sinks, budget):
    tokens = len(ids) + WRITTEN
    secondary = [s for s in sinks if s["class"] == "secondary" and s["position"] >= FIRST]
    secondary.sort(key=lambda s: (-s["lifetime"], s["position"]))
    kept = {s["position"] for s in secondary[: (budget - FIRST) // 2]}

    def window(kept):
        width = budget - FIRST - len(kept)
        return [NEVER if k < FIRST or k in kept else k + width for k in range(tokens)]

    until, left = [NEVER] * tokens, []
    for key in range(FIRST, tokens):
        if FIRST + len(left) + 1 > budget:
            dropped = min(left, key=lambda k: shuffle_key(SEED, trace, k))
            left.remove(dropped)
            until[dropped] = key
        left.append(key)
    yield "window", lambda: Pass(until=[window(set())] * LAYERS)
    yield "secondary", lambda: Pass(until=[window(kept)] * LAYERS)
    yield "heavy_hitters", lambda: Pass(budget=budget)
    yield "random", lambda: Pass(until=[until] * LAYERS)


def repetition(ids):
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams)


def evict(trace, ids, sinks):
    before = Pass().run(ids)
    middle = len(ids) // 2
    written = Pass().write(ids[:middle], WRITTEN) if BUDGETS[0] < middle else []
    results = []
    for budget in (b for b in BUDGETS if b < len(ids)):
        for policy, begin in policies(trace, ids, sinks, budget):
            edited = begin()
            after = edited.run(ids)
            result = {"trace": trace, "policy": policy, "budget": budget}
            result |= compare(ids, before, after, int(edited.first_query))
            if budget < middle:
                result["repetition_before"] = repetition(written)
                result["repetition_after"] = repetition(begin().write(ids[:middle], WRITTEN))
            results.append(result)
    return results


def rounded(x):
    if isinstance(x, float):
        return float(f"{x:.9g}")
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    return [rounded(v) for v in x] if isinstance(x, list) else x


truth = json.loads((PLANTED / "truth.json").read_text())["sequences"]
traces = [json.loads(line)["input_ids"] for line in (PLANTED / "traces.jsonl").open()]
sinks = [sequence["sinks"] for sequence in truth]
counts = {}
for s in (s for of_trace in sinks for s in of_trace if s["class"] == "secondary"):
    level = (s["l_start"], s["lifetime"])
    counts[level] = counts.get(level, 0) + 1
levels = sorted(sorted(counts, key=lambda level: (-counts[level], level))[:3])
every_layer, some = list(range(LAYERS)), [6, 9, 10]
cases = [("hide", every_layer), ("hide", some), ("zero", every_layer)]
golden = {
    "draws": DRAWS,
    "budgets": BUDGETS,
    "knockout": [
        {
            "by": by,
            "layers": layers,
            "traces": [
                result
                for trace, ids in enumerate(traces)
                for result in knock_out(trace, ids, sinks[trace], levels, by, layers)
            ],
        }
        for by, layers in cases
    ],
    "evict": [r for trace, ids in enumerate(traces) for r in evict(trace, ids, sinks[trace])],
}
lines = json.dumps(rounded(golden)).replace('{"trace"', '\n{"trace"')
(HERE / "golden.json").write_text(lines + "\n")
