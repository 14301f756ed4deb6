"""Tools as people use them with the official client, with a model that calls one of its own
accord: it says a few words, then calls `dice` with 2."""

import json

import openai
import pytest
from pydantic import BaseModel

import scripted
from server import Server

# In the manner of Qwen's.
TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}
{{- '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>' + call.function.name }}{{ call.function.arguments | tojson + '</tool_call>' }}
{%- endfor %}{{ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

WORDS = "Let me throw."
SCRIPT = ["Let me", " throw.", "<tool_call>", '\n{"name": "dice", ', '"arguments": {"n": 2}}\n']
SCRIPT += ["</tool_call>"]

MESSAGES = [{"role": "user", "content": "Throw two dice."}]


def tools(most=9, least=1, strict=False):
    number = {"type": "integer", "minimum": least, "maximum": most}
    schema = {"type": "object", "properties": {"n": number}, "required": ["n"]}
    schema["additionalProperties"] = False
    functions = [("dice", schema), ("weather", {"type": "object", "properties": {}})]
    return [
        {"type": "function", "function": {"name": name, "parameters": schema, "strict": strict}}
        for name, schema in functions
    ]


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scripted") / "caller"
    scripted.write(directory, "\u010a", SCRIPT, TEMPLATE)
    with Server("--target", directory, "--served-model-name", "caller") as running:
        yield openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def create(caller):
    def create(**options):
        options = {"messages": MESSAGES, "tools": tools(), "max_tokens": 400} | options
        return caller.chat.completions.create(model="caller", **options)

    return create


@pytest.mark.parametrize("choice", ["auto", openai.omit])
@pytest.mark.parametrize("strict", [False, True])
def test_a_call_and_its_result(create, choice, strict):
    answer = create(tool_choice=choice, tools=tools(strict=strict)).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content == WORDS
    (call,) = answer.message.tool_calls
    assert (call.type, call.function.name) == ("function", "dice")
    assert json.loads(call.function.arguments) == {"n": 2}
    # The conversation goes on as the client has it.
    result = {"role": "tool", "tool_call_id": call.id, "content": "7"}
    after = create(messages=[*MESSAGES, answer.message, result])
    assert after.choices[0].message.content == WORDS
    assert after.usage.prompt_tokens > 0


def test_deltas(create):
    """What programs do that put calls together by hand."""
    content, calls, finish = "", {}, None
    for chunk in create(tool_choice="auto", stream=True):
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        for delta in choice.delta.tool_calls or []:
            call = calls.setdefault(delta.index, {"id": None, "name": "", "arguments": ""})
            call["id"] = delta.id or call["id"]
            call["name"] += delta.function.name or ""
            call["arguments"] += delta.function.arguments or ""
        finish = choice.finish_reason or finish
    assert (content, finish) == (WORDS, "tool_calls")
    assert list(calls) == [0] and calls[0]["id"] and calls[0]["name"] == "dice"
    assert json.loads(calls[0]["arguments"]) == {"n": 2}


@pytest.mark.parametrize("choice", ["auto", "required", "named"])
def test_streams_of_the_client(caller, create, choice):
    if choice == "named":
        choice = {"type": "function", "function": {"name": "dice"}}
    options = {"tool_choice": choice, "parallel_tool_calls": False}
    whole = create(**options).choices[0]
    with caller.chat.completions.stream(
        model="caller", messages=MESSAGES, tools=tools(), max_tokens=400, **options
    ) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.done" in kinds
    assert streamed.finish_reason == whole.finish_reason == "tool_calls"
    told = lambda choice: [
        (call.function.name, json.loads(call.function.arguments))
        for call in choice.message.tool_calls
    ]
    assert told(streamed) == told(whole) and len(told(whole)) == 1
    assert (streamed.message.content or None) == whole.message.content


def test_a_strict_call_follows_its_schema(create):
    """The model would like to call with 2. Functions that are not strict are called so."""
    options = {"tool_choice": "auto", "parallel_tool_calls": False}
    arguments = lambda answer: json.loads(
        answer.choices[0].message.tool_calls[0].function.arguments
    )
    assert arguments(create(tools=tools(least=5), **options)) == {"n": 2}
    assert 5 <= arguments(create(tools=tools(least=5, strict=True), **options))["n"] <= 9
    # A call that is asked for always follows.
    for choice in ["required", {"type": "function", "function": {"name": "dice"}}]:
        answer = create(tools=tools(least=5)[:1], **options | {"tool_choice": choice})
        assert 5 <= arguments(answer)["n"] <= 9
        assert answer.choices[0].message.content is None


def test_pydantic_tools(caller):
    class Dice(BaseModel):
        n: int

    answer = caller.chat.completions.parse(
        model="caller",
        messages=MESSAGES,
        tools=[openai.pydantic_function_tool(Dice, name="dice")],
        max_tokens=400,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.parsed_arguments == Dice(n=2)


def test_text_instead_of_a_call(create):
    # The token that begins a call is forbidden: the model answers with text.
    answer = create(tool_choice="auto", logit_bias={"4098": -100}).choices[0]
    assert answer.finish_reason == "stop" and answer.message.tool_calls is None
    assert answer.message.content.startswith(WORDS)
    # With `none`, nothing is a call, whatever the model writes.
    answer = create(tool_choice="none").choices[0]
    assert answer.finish_reason == "stop" and answer.message.tool_calls is None
    assert answer.message.content.startswith(WORDS)


def test_choices_that_are_refused(create):
    named = lambda name: {"type": "function", "function": {"name": name}}
    for choice, field in [
        ("any", "tool_choice"),
        (named("cards"), "tool_choice.function.name"),
        ({"type": "function", "function": {}}, "tool_choice.function.name"),
        ({"type": "allowed_tools", "allowed_tools": {}}, "tool_choice.type"),
    ]:
        with pytest.raises(openai.BadRequestError) as refused:
            create(tool_choice=choice)
        assert refused.value.param == field
