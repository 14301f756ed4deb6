"""schemathesis: requests made from /openapi.json, good and bad, and every response against it."""

import json

import pytest
import schemathesis
import schemathesis.core.failures
from hypothesis import HealthCheck, settings

SHORT = 4  # tokens of an answer: the examples take seconds


@pytest.fixture
def document(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("document")


def shorten(body):
    """Fewer tokens and choices where the request asks for a valid number of them."""
    if not isinstance(body, dict):
        return
    for name in ["max_tokens", "max_completion_tokens", "min_tokens"]:
        if isinstance(body.get(name), int):
            body[name] = min(body[name], SHORT)
    if isinstance(body.get("n"), int) and body["n"] > 0:
        body["n"] = 1 + body["n"] % 2
    if "prompt" in body or "messages" in body:
        body.setdefault("max_tokens", SHORT)


@schema.parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_every_operation(case):
    shorten(case.body)
    # A document cannot say which token ids exist, or what fits into the context.
    beyond = [schemathesis.checks.positive_data_acceptance]
    case.call_and_validate(timeout=60, excluded_checks=beyond)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("usage", [False, True])
def test_every_event_of_a_stream(server, path, usage):
    url = f"{server.url}/openapi.json"
    operation = schemathesis.openapi.from_url(url)[path]["POST"]
    body = {"stream": True, "max_tokens": SHORT, "stream_options": {"include_usage": usage}}
    body |= {"prompt": "One"} if path == "/v1/completions" else {
        "messages": [{"role": "user", "content": "One"}]
    }
    case = operation.Case(body=body, media_type="application/json")
    response = case.call(timeout=60)
    assert response.status_code == 200
    case.validate_response(response)
    # The check can fail: a piece without its id violates the document.
    other = case.call(timeout=60)
    other.content = other.content.replace(b'"id":"', b'"di":"')
    with pytest.raises(schemathesis.core.failures.FailureGroup, match="violates"):
        case.validate_response(other)


def test_the_document_has_every_path(server):
    paths = json.loads(server.get("/openapi.json"))["paths"]
    expected = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize"}
    expected |= {"/detokenize", "/health", "/ready", "/metrics"}
    assert expected <= set(paths)
