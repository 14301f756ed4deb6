"""Bytes that no client library sends: each is answered with a 4xx and a sentence, or the
connection is closed; the next request is answered as ever."""

import json
import socket
import time

import pytest

GOOD = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


def exchange(server, data, timeout=30):
    """Sends bytes; returns all that comes back until the connection ends or is idle."""
    with socket.create_connection(("127.0.0.1", server.port), timeout) as connection:
        try:
            connection.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the answer may come before the whole body was sent
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except (TimeoutError, ConnectionResetError):
            pass
        return answer


def request(body, path="/v1/chat/completions", headers=(), length=None):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        f"Content-Length: {len(body) if length is None else length}",
        *(headers or ["Content-Type: application/json"]),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def status(answer):
    return int(answer.split(b" ", 2)[1])


def sentence(answer):
    head, body = answer.split(b"\r\n\r\n", 1)
    if b"transfer-encoding: chunked" in head.lower():
        body = body.split(b"\r\n", 1)[1].rsplit(b"\r\n0\r\n", 1)[0]
    error = json.loads(body)["error"]
    assert error["message"] and error["type"] and len(error["message"]) < 600
    return error["message"]


@pytest.fixture(autouse=True)
def undisturbed(server):
    yield
    assert status(exchange(server, request(GOOD))) == 200
    assert server.process.poll() is None
    assert "panicked" not in server.log()


MALFORMED = {
    "nothing": b"",
    "half an object": b'{"messages": [',
    "no object": b"[1, 2]",
    "two objects": b"{}{}",
    "a number with a tail": b'{"max_tokens": 12abc}',
    "NaN": b'{"temperature": NaN}',
    "a number without end": b'{"temperature": 1' + b"0" * 400 + b"}",
    "invalid UTF-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "half a surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "deep arrays": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"messages": ' + b'{"a":' * 50_000,
    "a message that is text": b'{"messages": ["hi"]}',
    "text for a number": b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": "x"}',
    "a list for a flag": b'{"messages": [{"role": "user", "content": "x"}], "stream": []}',
    "a field twice": b'{"messages": [], "messages": []}',
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_bodies(server, name):
    answer = exchange(server, request(MALFORMED[name]))
    assert status(answer) == 400
    sentence(answer)


def test_a_body_that_is_not_declared_as_json(server):
    answer = exchange(server, request(GOOD, headers=["Content-Type: text/plain"]))
    assert status(answer) in [400, 415]
    sentence(answer)


def test_a_compressed_body(server):
    headers = ["Content-Type: application/json", "Content-Encoding: gzip"]
    answer = exchange(server, request(b"\x1f\x8b\x08\x00" + b"\x00" * 64, headers=headers))
    assert 400 <= status(answer) < 500


@pytest.mark.parametrize("declared", [None, 10**15, 2**64 - 1])
def test_a_huge_body(server, declared):
    body = b'{"messages": "' + b"x" * (64 << 20 if declared is None else 1000)
    before, *_ = server.resources()
    answer = exchange(server, request(body, length=declared), timeout=20)
    if declared == 2**64 - 1:
        assert 400 <= status(answer) < 500  # no length at all for the HTTP library
    else:
        assert status(answer) == 413
        sentence(answer)
    assert server.resources()[0] - before < 200, "MiB more"


def test_a_length_that_is_no_number(server):
    for length in ["-1", "1e3", str(2**64), "x"]:
        answer = exchange(server, request(b"{}", length=length), timeout=10)
        assert answer == b"" or 400 <= status(answer) < 500


def test_slow_bodies_hold_up_nobody(server):
    """Many clients that send nothing more: the others are answered meanwhile."""
    head = request(b"", length=1000)
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    try:
        for connection in slow:
            connection.sendall(head + b'{"mess')
        started = time.monotonic()
        assert status(exchange(server, request(GOOD))) == 200
        assert time.monotonic() - started < 5
    finally:
        for connection in slow:
            connection.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nx: " + b"y" * 1_000_000 + b"\r\n\r\n",
        b"\r\n" * 1000,
    ],
    ids=["TLS", "version", "path", "headers", "header", "empty lines"],
)
def test_not_http(server, data):
    answer = exchange(server, data, timeout=5)
    assert answer == b"" or b"\x15\x03" == answer[:2] or 400 <= status(answer) < 506


@pytest.mark.parametrize("path", ["/v1/nothing", "/..%2f..%2fetc/passwd", "/%00", "/v1//models"])
def test_unknown_paths(server, path):
    answer = exchange(server, request(GOOD, path))
    assert status(answer) in [400, 404]
    sentence(answer)


def test_wrong_methods(server):
    for line in [b"GET /v1/chat/completions", b"DELETE /v1/models", b"POST /metrics"]:
        answer = exchange(server, line + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert status(answer) == 405
        sentence(answer)


def test_another_origin_gets_nothing(server):
    """A page of another site may not use the server: neither JSON as a form, nor an answer to a
    preflight."""
    lines = [b"OPTIONS /v1/chat/completions HTTP/1.1", b"Host: x", b"Connection: close"]
    lines += [b"Origin: https://example.com", b"Access-Control-Request-Method: POST"]
    answer = exchange(server, b"\r\n".join(lines) + b"\r\n\r\n")
    assert b"access-control-allow-origin" not in answer.lower()
