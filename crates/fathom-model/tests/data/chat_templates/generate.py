"""Renders every template of this directory with HuggingFace transformers, into expected.json.

    pip install transformers jinja2
    python generate.py

Uses the environment of `apply_chat_template`, with `strftime_now` fixed at Fathom's PINNED_DATE and
without the `tools` and `documents` that `apply_chat_template` sets to None.
"""

import datetime
import json
import pathlib
import sys

import jinja2
import transformers
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent


class StoppedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


chat_template_utils.datetime = StoppedClock

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
CONVERSATIONS = {
    "user": [{"role": "user", "content": " What is 2+2?\n"}],
    "system": [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "Hi <there> & 'you' \"é😀\""},
    ],
    "turns": [
        {"role": "user", "content": "First"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nAnswer"},
        {"role": "user", "content": "Second"},
    ],
    "answered": [
        {"role": "user", "content": "First"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nAnswer"},
    ],
    "two_users": [{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}],
    "late_system": [{"role": "user", "content": "One"}, {"role": "system", "content": "Late"}],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds <two> numbers & more",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": []},
        },
    }
]
OPTIONS = {
    "none": {},
    "prompt": {"add_generation_prompt": True},
    "no_prompt": {"add_generation_prompt": False},
    "no_thinking": {"add_generation_prompt": True, "enable_thinking": False},
    "thinking": {"add_generation_prompt": True, "enable_thinking": True},
    "tools": {"add_generation_prompt": True, "tools": TOOLS},
}


def render(template, variables):
    try:
        return {"text": template.render(**variables)}
    except jinja2.exceptions.TemplateError as error:
        return {"error": str(error)}


cases = []
for path in sorted(HERE.glob("*.jinja")):
    template = chat_template_utils._compile_jinja_template(path.read_text())
    for conversation, messages in CONVERSATIONS.items():
        for options, kwargs in OPTIONS.items():
            result = render(template, {**SPECIAL, **kwargs, "messages": messages})
            cases.append({"template": path.name, "conversation": conversation, "options": options, **result})

json.dump(
    {
        "versions": {
            "python": sys.version.split()[0],
            "transformers": transformers.__version__,
            "jinja2": jinja2.__version__,
        },
        "special_tokens": SPECIAL,
        "conversations": CONVERSATIONS,
        "options": OPTIONS,
        "cases": cases,
    },
    (HERE / "expected.json").open("w"),
    ensure_ascii=False,
    indent=1,
)
print(f"{len(cases)} cases, {sum('error' in case for case in cases)} of them refused")
