"""The official `openai` client: texts, streams, log-probabilities, errors, cancellation."""

import asyncio
import json
import math
import subprocess
import time
from urllib.request import Request, urlopen

import openai
import pytest

from conftest import KEY
from server import FATHOM, PAIR, TARGET, Server, total

MESSAGES = [
    {"role": "system", "content": "You solve problems step by step."},
    {"role": "user", "content": "Natalia sold 48 clips in April and half as many in May."},
]


def text(response):
    return response.choices[0].message.content


def streamed(chunks, index=0):
    """The text, the last finish reason and the usage of a stream."""
    content, finish, usage = "", None, None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            if choice.index == index:
                content += choice.delta.content or ""
                finish = choice.finish_reason or finish
    return content, finish, usage


@pytest.fixture
def chat(client, model):
    """A chat completion of MESSAGES."""

    def create(**options):
        options = {"messages": MESSAGES, "max_tokens": 40} | options
        return client.chat.completions.create(model=model, **options)

    return create


@pytest.fixture
def post(server):
    """The response to a body, for the paths that OpenAI's client does not know."""

    def exchange(path, body):
        request = Request(server.url + path, json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urlopen(request) as response:
            return json.load(response)

    return exchange


def test_models(client, model):
    assert [served.id for served in client.models.list().data] == [model]
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_the_same_request_gives_the_same_text(chat, client, model, server):
    first = chat()
    assert first.usage.completion_tokens == 40
    assert first.choices[0].finish_reason == "length"
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert streamed(chunks) == (text(first), "length", chunks[-1].usage)
    assert chunks[-1].usage.total_tokens == first.usage.total_tokens
    # No chunk that pretends to be a first token.
    assert chunks[0].choices[0].delta.content

    async def many():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as together:
            create = together.chat.completions.create
            requests = [create(model=model, messages=MESSAGES, max_tokens=40) for _ in range(6)]
            answers = [text(answer) for answer in await asyncio.gather(*requests)]
            stream = await create(model=model, messages=MESSAGES, max_tokens=40, stream=True)
            return answers + [streamed([chunk async for chunk in stream])[0]]

    assert set(asyncio.run(many())) == {text(first)}


def test_seeded_sampling(server, model):
    # The mode is fixed: see "The same request gives the same text" in docs/serve.md.
    with Server(*PAIR, "--mode", "pearl") as pearl:
        client = openai.OpenAI(base_url=f"{pearl.url}/v1", api_key="none")
        create = lambda seed, n=1: client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=30, temperature=1.0, seed=seed, n=n
        )
        three = [choice.message.content for choice in create(7, n=3).choices]
        assert len(set(three)) == 3
        assert text(create(7)) == three[0]
        assert text(create(8)) != three[0]


def test_choices_are_streamed_side_by_side(chat):
    whole = chat(n=3, temperature=0)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    chunks = list(chat(n=3, temperature=0, stream=True))
    for choice in whole.choices:
        assert streamed(chunks, choice.index)[0] == choice.message.content


def test_logprobs(chat):
    response = chat(logprobs=True, top_logprobs=5)
    content = response.choices[0].logprobs.content
    assert len(content) == response.usage.completion_tokens
    assert b"".join(bytes(token.bytes) for token in content).decode() == text(response)
    for token in content:
        top = [candidate.logprob for candidate in token.top_logprobs]
        assert len(top) == 5 and top == sorted(top, reverse=True)
        # Greedy: the token is the most likely one. The probabilities are of a distribution.
        assert token.token == token.top_logprobs[0].token
        assert token.logprob == top[0] <= 0
        assert sum(map(math.exp, top)) <= 1 + 1e-5
    chunks = chat(logprobs=True, top_logprobs=5, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices]
    assert [token for part in parts if part for token in part.content] == content
    assert chat(logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_bytes_of_a_split_character(chat, post):
    """The tokens of a character that has several: their bytes, not what stands for them."""
    ids = post("/tokenize", {"prompt": "\U0001f600", "add_special_tokens": False})["tokens"]
    assert len(ids) > 1
    wanted = {str(token): 100 for token in ids}
    response = chat(logit_bias=wanted, temperature=1.0, logprobs=True, top_logprobs=2)
    told = b"".join(bytes(t.bytes) for t in response.choices[0].logprobs.content)
    parts = [post("/detokenize", {"tokens": [token]})["prompt"] for token in ids]
    assert "\ufffd" in parts, "no token is a part of a character"
    broken = lambda text: text.replace("\ufffd", "")
    assert broken(told.decode(errors="replace")) == broken(text(response))
    assert max(told) >= 0x80


def test_log_probabilities_do_not_depend_on_the_mode(chat, model):
    expected = chat(logprobs=True, top_logprobs=3).choices[0].logprobs
    with Server(*TARGET, "--mode", "ar", "--no-prefix-cache") as plain:
        client = openai.OpenAI(base_url=f"{plain.url}/v1", api_key="none")
        response = client.chat.completions.create(
            model=model,
            messages=MESSAGES,
            max_tokens=40,
            logprobs=True,
            top_logprobs=3,
        )
    assert response.choices[0].logprobs == expected


def test_stop(chat):
    whole = text(chat())
    stop = whole[12:16]
    cut = chat(stop=[stop])
    assert text(cut) == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert streamed(chat(stop=stop, stream=True))[:2] == (text(cut), "stop")
    assert chat(max_tokens=openai.omit, max_completion_tokens=5).usage.completion_tokens == 5


def test_sampling_parameters_of_vllm(chat):
    body = {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 8}
    body |= {"ignore_eos": True, "stop_token_ids": [5]}
    response = chat(
        temperature=0.8, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.5, extra_body=body
    )
    assert response.usage.completion_tokens >= 8
    first = lambda response: response.choices[0].fathom["tokens"][0]["id"]
    banned = first(chat(max_tokens=1))
    assert first(chat(max_tokens=1, logit_bias={str(banned): -100})) != banned


def test_usage_tells_what_the_drafts_did(chat):
    usage = chat(max_tokens=100).usage
    details, fathom = usage.completion_tokens_details, usage.fathom
    assert details.accepted_prediction_tokens == fathom["accepted"]
    rejected = details.rejected_prediction_tokens
    assert details.accepted_prediction_tokens + rejected == fathom["drafted"]
    assert fathom["mat"] >= 1 and fathom["target_seconds"] > 0
    # The second of two equal requests finds its prompt in the cache, but for the last token,
    # whose pass gives the first token of the text.
    long = [{"role": "user", "content": "one two three four five " * 100}]
    first, second = (chat(messages=long, max_tokens=4).usage for _ in range(2))
    assert first.prompt_tokens == second.prompt_tokens > 400
    cached = second.prompt_tokens_details.cached_tokens
    assert cached == second.prompt_tokens - 1


def test_sinks_and_drafts_on_the_wire(chat):
    options = {"max_tokens": 60, "extra_body": {"fathom": {"sinks": True}}}
    whole = chat(**options)
    assert text(whole) == text(chat(max_tokens=60)), "looking does not change the text"
    fathom = whole.choices[0].fathom
    assert len(fathom["tokens"]) == 60
    assert all(isinstance(token["drafted"], bool) for token in fathom["tokens"])
    tokens, sinks = [], {}
    for chunk in chat(**options, stream=True):
        for choice in chunk.choices:
            told = getattr(choice, "fathom", None) or {}
            tokens += told.get("tokens", [])
            sinks |= {sink["position"]: sink for sink in told.get("sinks", [])}
    assert [token["id"] for token in tokens] == [token["id"] for token in fathom["tokens"]]
    last = whole.usage.prompt_tokens + 60 - 1
    for sink in fathom["sinks"]:
        assert 0 <= sink["position"] < last
        assert sink["class"] in ["primary", "secondary", "noise"]
        assert sink["lifetime"] >= 1 and sink["layer"] >= 0
    now = [sink for sink in sinks.values() if sink["class"]]
    assert sorted(now, key=lambda sink: sink["position"]) == fathom["sinks"]


def test_sinks_of_the_planted_model(tmp_path):
    """Its sinks are known: position 0 is a primary one, every line break a secondary one."""
    subprocess.run([FATHOM, "plant", "--quiet", "--out", tmp_path / "planted"], check=True)
    for mode in [["--mode", "ar"], ["--mode", "pearl", "--draft", tmp_path / "planted"]]:
        with Server("--target", tmp_path / "planted", *mode) as planted:
            client = openai.OpenAI(base_url=f"{planted.url}/v1", api_key="none")
            create = lambda **options: client.chat.completions.create(
                model=client.models.list().data[0].id,
                messages=[{"role": "user", "content": "A story\nabout a number."}],
                max_tokens=30,
                extra_body={"fathom": {"sinks": True}},
                **options,
            )
            # The second time, the prompt comes from the prefix cache.
            for _ in range(2):
                sinks = create().choices[0].fathom["sinks"]
                assert (sinks[0]["position"], sinks[0]["class"]) == (0, "primary")
                assert any(s["token_id"] == 10 and s["class"] == "secondary" for s in sinks)
                told = {}
                for chunk in create(stream=True):
                    for choice in chunk.choices:
                        told |= {sink["position"]: sink for sink in choice.fathom["sinks"]}
                assert [told[position] for position in sorted(told)] == sinks


def test_completions(client, model):
    create = lambda **options: client.completions.create(model=model, max_tokens=12, **options)
    prompt = "def is_prime(n):"
    one = create(prompt=prompt).choices[0].text
    assert one
    two = create(prompt=[prompt, "Once upon a time"])
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == one
    assert create(prompt=prompt, echo=True).choices[0].text == prompt + one
    assert "".join(c.choices[0].text for c in create(prompt=prompt, stream=True)) == one
    logprobs = create(prompt=prompt, logprobs=2).choices[0].logprobs
    assert "".join(logprobs.tokens) == one
    assert len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.tokens)
    assert all(len(top) >= 2 for top in logprobs.top_logprobs)
    # The prompt's too, as evaluation harnesses ask for them.
    echoed = create(prompt=prompt, logprobs=2, echo=True).choices[0].logprobs
    known = len(echoed.tokens) - len(logprobs.tokens)
    assert "".join(echoed.tokens[:known]) == prompt
    assert echoed.token_logprobs[known:] == logprobs.token_logprobs
    assert echoed.token_logprobs[0] is None and echoed.top_logprobs[0] is None
    assert all(logprob <= 0 for logprob in echoed.token_logprobs[1:])


def test_prompts_of_token_ids(client, model, post):
    prompt = "def is_prime(n):"
    ids = post("/tokenize", {"model": model, "prompt": prompt})
    assert ids["count"] == len(ids["tokens"]) > 1
    assert post("/detokenize", {"model": model, "tokens": ids["tokens"]})["prompt"] == prompt
    create = lambda prompt: client.completions.create(model=model, prompt=prompt, max_tokens=9)
    expected = create(prompt).choices[0].text
    assert create(ids["tokens"]).choices[0].text == expected
    assert create([ids["tokens"]] * 2).choices[1].text == expected
    chat = post("/tokenize", {"model": model, "messages": MESSAGES})
    assert chat["count"] > 20


REFUSED = [
    ({"n": 10**9}, "n"),
    ({"n": 0}, "n"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**12}, "max_tokens"),
    ({"stop": ["x"] * 1000}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 10**6}, "top_logprobs"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 1000}}, "logit_bias"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ({"extra_body": {"surprise": 1}}, "surprise"),
    ({"extra_body": {"fathom": {"sink": True}}}, "fathom.sink"),
    ({"extra_body": {"use_beam_search": True}}, "use_beam_search"),
]


@pytest.mark.parametrize(("options", "field"), REFUSED, ids=lambda part: str(part)[:50])
def test_a_refusal_names_the_field(chat, options, field):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(**options)
    error = refused.value
    assert field in error.message and error.type == "invalid_request_error"
    assert error.param.startswith(field.split(".")[0].split("[")[0])
    chat(max_tokens=1)  # and nothing else is disturbed


def test_kinds_of_errors(client, chat):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        chat(messages=[{"role": "user", "content": "word " * 10_000}])  # beyond the context
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="x", input="y")


def test_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"another\n{KEY}\n")
    with Server(*PAIR, "--api-key-file", file) as locked:
        client = lambda key: openai.OpenAI(base_url=f"{locked.url}/v1", api_key=key)
        assert client(KEY).models.list().data
        for wrong in ["none", KEY + "x", KEY[:-1], "Bearer"]:
            with pytest.raises(openai.AuthenticationError):
                client(wrong).models.list()
        assert locked.get("/health") is not None
        assert "<title>Fathom</title>" in locked.get("/")
        assert KEY not in locked.log()


def test_a_request_id_is_echoed(client, model):
    response = client.chat.completions.with_raw_response.create(
        model=model, messages=MESSAGES, max_tokens=1, extra_headers={"x-request-id": "mine-17"}
    )
    assert response.headers["x-request-id"] == "mine-17"
    given = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=1)
    assert given._request_id


def test_a_client_that_goes_ends_its_request(chat, client, model, server):
    before = total(server.metrics(), "vllm:generation_tokens_total")
    stream = chat(stream=True, max_tokens=3000, extra_body={"ignore_eos": True})
    for _ in range(3):
        next(iter(stream))
    stream.close()
    server.idle(within=5)
    # Many sampled texts, which take far longer than the client waits.
    long = {"model": model, "messages": MESSAGES, "max_tokens": 3000, "n": 32, "temperature": 1}
    long["extra_body"] = {"ignore_eos": True}
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(**long)
    server.idle(within=5)

    async def cancel():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as together:
            task = asyncio.create_task(together.chat.completions.create(**long))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancel())
    server.idle(within=5)
    written = total(server.metrics(), "vllm:generation_tokens_total") - before
    # 195 000 were asked for.
    assert written < 65_000, f"{written} tokens were written for nobody"


def test_a_full_queue_refuses(model):
    with Server(*PAIR, "--max-queue", 1, "--batch-size", 1) as small:

        async def crowd():
            url = f"{small.url}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as together:
                create = together.chat.completions.create
                options = {"max_tokens": 200, "extra_body": {"ignore_eos": True}}
                requests = [
                    create(model=model, messages=MESSAGES, **options) for _ in range(8)
                ]
                return await asyncio.gather(*requests, return_exceptions=True)

        answers = asyncio.run(crowd())
        refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
        assert 1 <= len(refused) <= 7
        assert int(refused[0].response.headers["retry-after"]) >= 1
        assert len({text(answer) for answer in answers if answer not in refused}) == 1


def test_long_prompts_do_not_stall_others(client, model):
    """Chunked prefill: a short request is answered while long prompts are read."""
    long = [[{"role": "user", "content": f"{i} two three four five " * 600}] for i in range(4)]

    async def race():
        url = str(client.base_url)
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as together:
            create = lambda messages, **options: together.chat.completions.create(
                model=model, messages=messages, max_tokens=2, **options
            )
            started = time.monotonic()
            slow = [asyncio.create_task(create(messages)) for messages in long]
            await asyncio.sleep(0.02)
            stream = await create(MESSAGES, stream=True)
            await anext(aiter(stream))
            first = time.monotonic() - started
            await asyncio.gather(*slow)
            return first, time.monotonic() - started

    first, whole = asyncio.run(race())
    assert first < whole / 2, f"the short request waited {first:.2f} s of {whole:.2f} s"
