"""Structured outputs and tools by constrained decoding, through the official client."""

import json
from typing import Annotated, Literal

import openai
import pytest
from pydantic import BaseModel, Field

# The pair was not trained on JSON: it breaks lines wherever the grammar lets it.
MOST = 400

MESSAGES = [{"role": "user", "content": "Natalia sold 48 clips in April. Describe the sale."}]


class Sale(BaseModel):
    """Every text of this type is short: the trained pair never tires of a free string."""

    month: Literal["April", "May"]
    clips: Annotated[int, Field(ge=0, le=99)]
    certain: bool
    tags: Annotated[list[Literal["clips", "friends"]], Field(max_length=2)]


SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "sale",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "month": {"enum": ["April", "May"]},
                "name": {"type": "string", "maxLength": 12},
            },
            "required": ["month", "name"],
            "additionalProperties": False,
        },
    },
}


def check(text):
    value = json.loads(text)
    assert set(value) == {"month", "name"}
    assert value["month"] in ["April", "May"] and len(value["name"]) <= 12


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_json_schema(client, model, temperature):
    options = {"messages": MESSAGES, "max_tokens": MOST, "temperature": temperature}
    options |= {"response_format": SCHEMA, "seed": 3}
    response = client.chat.completions.create(model=model, **options)
    assert response.choices[0].finish_reason == "stop"
    check(response.choices[0].message.content)
    chunks = client.chat.completions.create(model=model, stream=True, **options)
    check("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices))
    for choice in client.chat.completions.create(model=model, n=3, **options).choices:
        check(choice.message.content)


def test_pydantic(client, model):
    response = client.chat.completions.parse(
        model=model, messages=MESSAGES, response_format=Sale, max_tokens=MOST
    )
    assert isinstance(response.choices[0].message.parsed, Sale)
    with client.chat.completions.stream(
        model=model, messages=MESSAGES, response_format=Sale, max_tokens=MOST
    ) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == (
            response.choices[0].message.parsed
        )


def test_a_text_that_is_cut_off_says_so(client, model):
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model=model, messages=MESSAGES, response_format=Sale, max_tokens=3
        )


def test_json_object(client, model):
    response = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        response_format={"type": "json_object"},
        max_tokens=300,
        temperature=1.0,
        seed=5,
    )
    text = response.choices[0].message.content
    assert text.lstrip().startswith("{")
    if response.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"The {name} of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"enum": [1, 2]}},
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    }
    for name in ["weather", "population"]
]


def check_call(call, names):
    assert call.type == "function" and call.id
    assert call.function.name in names
    arguments = json.loads(call.function.arguments)
    assert arguments["city"] in ["Paris", "Oslo"] and arguments["days"] in [1, 2]


def test_tools(client, model):
    create = lambda **options: client.chat.completions.create(
        model=model, messages=MESSAGES, tools=TOOLS, max_tokens=MOST, **options
    )
    required = create(tool_choice="required", parallel_tool_calls=False).choices[0]
    assert required.finish_reason == "tool_calls"
    (call,) = required.message.tool_calls
    check_call(call, ["weather", "population"])
    named = {"type": "function", "function": {"name": "population"}}
    choice = create(tool_choice=named).choices[0]
    check_call(choice.message.tool_calls[0], ["population"])
    # The pair's template does not know tools: the model could not hear of them.
    for choice_of_the_model in ["auto", "none"]:
        with pytest.raises(openai.BadRequestError, match="tools"):
            create(tool_choice=choice_of_the_model)

    # The streamed call, put together by the client.
    with client.chat.completions.stream(
        model=model, messages=MESSAGES, tools=TOOLS, tool_choice=named, max_tokens=MOST
    ) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert streamed.function.arguments == choice.message.tool_calls[0].function.arguments

    # Nor could it read the call in the conversation that goes on.
    call = choice.message.tool_calls[0]
    answered = [
        *MESSAGES,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "700 000"},
    ]
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model=model, messages=answered, max_tokens=5)


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


BOMBS = {
    "deep": nested(150),  # the client itself fails beyond about 300
    "wide": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(50_000)}},
    "repeats": {"type": "string", "pattern": "((a{1,999}){1,999}){1,999}"},
    "long enum": {"enum": [f"value {i}" for i in range(200_000)]},
    "itself": {"$ref": "#"},
    "elsewhere": {"$ref": "https://example.com/schema.json"},
    "file": {"$ref": "file:///etc/passwd"},
    "nonsense": {"type": "no such type"},
    "impossible": {"type": "integer", "minimum": 5, "maximum": 4},
}


@pytest.mark.parametrize("name", BOMBS)
def test_schema_bombs(client, model, name):
    wanted = {"type": "json_schema", "json_schema": {"name": "bomb", "schema": BOMBS[name]}}
    try:
        client.with_options(timeout=20).chat.completions.create(
            model=model, messages=MESSAGES, response_format=wanted, max_tokens=3
        )
    except openai.APIStatusError as error:
        assert error.status_code in [400, 413], error
        assert error.type == "invalid_request_error" and len(error.message) < 600
    else:
        assert name in ["itself", "repeats"], "these may be followed"
