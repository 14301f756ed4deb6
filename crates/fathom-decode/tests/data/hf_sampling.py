"""Writes hf_sampling.json: probabilities by HuggingFace's logits warpers of random logits.

    pip install torch transformers; python hf_sampling.py > hf_sampling.json
"""

import json

import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

torch.manual_seed(0)
cases = []
for temperature, top_k, top_p in [
    (1.0, 0, 1.0),
    (0.7, 0, 1.0),
    (1.5, 5, 1.0),
    (1.0, 0, 0.9),
    (1.0, 0, 0.3),
    (0.6, 20, 0.95),
    (1.3, 3, 0.5),
    (1.0, 1, 1.0),
    (2.0, 0, 0.01),
]:
    logits = torch.randn(1, 40) * 3
    if top_k == 3:
        # Four equal logits. HuggingFace's top-k keeps all of them.
        logits[0, [4, 9, 30, 31]] = logits.max() + 1
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    probs = torch.softmax(warpers(None, logits.clone()), dim=-1)
    if top_k == 3:
        # Which of equal logits top-p keeps depends on the sort. Only the number of kept tokens and
        # the sorted probabilities are compared.
        assert int((probs > 0).sum()) == 2
    cases.append(
        {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "logits": logits[0].tolist(),
            "probs": probs[0].tolist(),
        }
    )
print(json.dumps(cases, indent=1))
