"""A second client: LangChain, which sends what an application sends."""

import asyncio
from typing import Literal

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

MESSAGES = [SystemMessage("You are brief."), HumanMessage("What is 6 times 7?")]


@pytest.fixture
def chat(server, model):
    options = {"base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0}
    return ChatOpenAI(model=model, max_tokens=30, temperature=0, **options)


def test_invoke_stream_batch(chat):
    whole = chat.invoke(MESSAGES)
    assert whole.usage_metadata["output_tokens"] == 30
    assert "".join(part.content for part in chat.stream(MESSAGES)) == whole.content
    assert [answer.content for answer in chat.batch([MESSAGES] * 3)] == [whole.content] * 3

    async def together():
        parts = [part.content async for part in chat.astream(MESSAGES)]
        return "".join(parts), (await chat.ainvoke(MESSAGES)).content

    assert asyncio.run(together()) == (whole.content, whole.content)


class Verdict(BaseModel):
    """A judgement."""

    right: bool
    sure: Literal["yes", "no"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat, method):
    judge = chat.with_structured_output(Verdict, method=method, strict=True)
    assert isinstance(judge.invoke(MESSAGES, max_tokens=400), Verdict)


def test_bound_tools(chat):
    bound = chat.bind_tools([Verdict], tool_choice="Verdict", strict=True)
    call = bound.invoke(MESSAGES, max_tokens=400).tool_calls[0]
    assert call["name"] == "Verdict" and isinstance(Verdict(**call["args"]), Verdict)


def test_completions(server, model):
    options = {"base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0}
    writer = OpenAI(model=model, max_tokens=20, temperature=0, **options)
    whole = writer.invoke("def is_prime(n):")
    assert whole and "".join(writer.stream("def is_prime(n):")) == whole
