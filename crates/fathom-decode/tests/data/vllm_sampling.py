"""Writes vllm_sampling.json: vLLM's sampling parameters in NumPy, on random logits.

    pip install numpy==2.4.6; python vllm_sampling.py > vllm_sampling.json

Written from the definitions in vLLM 0.11 (vllm/v1/sample/sampler.py, logits_processor/builtin.py,
ops/topk_topp_sampler.py, vllm/model_executor/layers/utils.py): min-tokens, bias, repetition,
frequency and presence penalty, in float32 as in vLLM; then temperature, min-p, top-k and top-p, in
float64. A case in which rounding could decide which tokens are kept is replaced by a new one. Of
equal logits at the limit of top-p, where vLLM's result depends on its sort, the lower id is kept.
"""

import json

import numpy as np

rng = np.random.default_rng(20240607)
F = np.float32


def penalised(case):
    """The processed logits, of which greedy decoding takes the argmax."""
    logits = np.array(case["logits"][: case["limit"]], dtype=F)
    n = len(logits)
    if len(case["output"]) < case["min_tokens"]:
        logits[sorted(set(case["eos"]) | set(case["stop_token_ids"]))] = -np.inf
    bias = np.zeros(n, dtype=F)
    for token, value in case["logit_bias"].items():
        bias[int(token)] = F(value)
    logits = logits + bias
    in_prompt = np.bincount(case["prompt"], minlength=n) > 0
    counts = np.bincount(np.array(case["output"], dtype=int), minlength=n)
    seen = in_prompt | (counts > 0)
    repetition = F(case["repetition_penalty"])
    scaled = np.where(logits > 0, logits / repetition, logits * repetition)
    logits = np.where(seen, scaled, logits)
    logits = logits - F(case["frequency_penalty"]) * counts.astype(F)
    return logits - F(case["presence_penalty"]) * (counts > 0).astype(F)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


class Close(Exception):
    """Rounding could decide which tokens are kept."""


def apart(values, threshold):
    """Raises if a value is close to the threshold but not equal to it."""
    values = values[np.isfinite(values)]
    near = np.abs(values - threshold) < 1e-4
    if (near & (values != threshold)).any():
        raise Close


def distribution(logits, case):
    logits = logits.astype(float) / float(F(case["temperature"]))
    n = len(logits)
    if case["min_p"] > 0:
        relative = softmax(logits) / softmax(logits).max()
        min_p = float(F(case["min_p"]))
        apart(relative, min_p)
        logits = np.where(relative < min_p, -np.inf, logits)
    if 0 < case["top_k"] < n:
        least = np.sort(logits)[n - case["top_k"]]
        apart(logits, least)
        logits = np.where(logits < least, -np.inf, logits)
    if case["top_p"] < 1:
        ascending = np.lexsort((-np.arange(n), logits))
        cumulative = np.cumsum(softmax(logits)[ascending])
        left_out = cumulative <= 1 - float(F(case["top_p"]))
        if (np.abs(cumulative - (1 - float(F(case["top_p"])))) < 1e-4).any():
            raise Close
        left_out[-1] = False
        logits[ascending[left_out]] = -np.inf
    return softmax(logits)


def pick(*choices):
    return choices[rng.integers(len(choices))]


def draw():
    limit = int(rng.integers(1, 13))
    width = limit + int(pick(0, 0, 1, 3))
    scale, digits = pick((1, 3), (4, 3), (4, 3), (12, 2), (2, 0))  # 0 digits: many equal logits
    ids = lambda most: rng.integers(0, limit, rng.integers(0, most + 1)).tolist()
    case = {
        "limit": limit,
        "logits": np.round(rng.normal(size=width) * scale, digits).tolist(),
        "prompt": rng.integers(0, limit, rng.integers(1, 6)).tolist(),
        "output": ids(9),
        "eos": sorted(set(ids(2))),
        "temperature": pick(1.0, 1.0, 0.7, 0.3, 1.8),
        "top_k": int(pick(0, 0, 1, 3, 5, 40)),
        "top_p": pick(1.0, 1.0, 0.9, 0.5, 0.01),
        "min_p": pick(0.0, 0.0, 0.05, 0.3, 1.0),
        "repetition_penalty": pick(1.0, 1.0, 1.05, 1.3, 2.0, 0.8),
        "presence_penalty": pick(0.0, 0.0, 0.4, 2.0, -1.5),
        "frequency_penalty": pick(0.0, 0.0, 0.25, 1.1, -0.7),
        "logit_bias": {str(i): pick(1.5, -2.25, 100.0, -100.0, 0.3) for i in ids(3)},
        "stop_token_ids": sorted(set(ids(pick(0, 2, 3)))),
        "min_tokens": int(pick(0, 3, 9)),
    }
    if limit == len(set(case["eos"]) | set(case["stop_token_ids"])):
        case["min_tokens"] = 0  # Fathom refuses parameters that exclude every token
    return case


def solve(case):
    logits = penalised(case)
    case["processed"] = [None if x == -np.inf else float(x) for x in logits]
    case["greedy"] = int(np.argmax(logits))
    case["probs"] = [float(f"{p:.9g}") for p in distribution(logits, case)]
    return case


edges = [
    # One token; equal logits; only the last token not excluded; a bias on an excluded token.
    {"limit": 1, "logits": [-3.0]},
    {"limit": 6, "logits": [1.5] * 6, "top_k": 2, "top_p": 0.4},
    {"limit": 4, "logits": [9.0, 8.0, 7.0, -5.0], "eos": [0, 2], "stop_token_ids": [1], "min_tokens": 1},
    {"limit": 3, "logits": [5.0, 1.0, 0.0], "eos": [0], "logit_bias": {"0": 100.0}, "min_tokens": 1},
    # The same token in prompt and output; min-tokens just reached; a logit of exactly 0.
    {
        "limit": 4,
        "logits": [0.0, 2.0, -2.0, 1.0],
        "prompt": [0, 1, 1],
        "output": [1, 2, 2, 2],
        "repetition_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
    },
    {"limit": 3, "logits": [5.0, 1.0, 0.0], "eos": [0], "output": [1, 1], "min_tokens": 2},
    # Excluded tokens do not count: not for the maximum of min-p, not for top-k, not for top-p.
    {"limit": 4, "logits": [9.0, 3.0, 2.5, -1.0], "eos": [0], "min_tokens": 1, "min_p": 0.5},
    {"limit": 4, "logits": [9.0, 3.0, 2.5, -1.0], "eos": [0], "min_tokens": 1, "top_k": 3, "top_p": 0.6},
]
usual = {
    "prompt": [0],
    "output": [],
    "eos": [],
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "stop_token_ids": [],
    "min_tokens": 0,
}
cases = [solve({**usual, **edge}) for edge in edges]
while len(cases) < 250:
    try:
        cases.append(solve(draw()))
    except Close:
        pass
print("[" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "]")
