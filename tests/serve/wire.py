"""HTTP by hand: clients that read slowly, leave in the middle, and see every byte."""

import asyncio
import json
import socket


class Refused(Exception):
    """A response whose status is not 200."""

    def __init__(self, status, body):
        super().__init__(f"{status}: {body[:300]}")
        self.status = status
        self.body = body


def message(path, body):
    data = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    return head.encode() + b"\r\n" + data


async def connect(port, window):
    """A connection; with a `window`, one that takes only so many bytes before they are read."""
    if window is None:
        return await asyncio.open_connection("127.0.0.1", port)
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    taken.setblocking(False)
    await asyncio.get_running_loop().sock_connect(taken, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=taken, limit=window)


async def exchange(port, path, body, pace=None):
    """The body of the response. `pace`: seconds between reads of 256 bytes."""
    reader, writer = await connect(port, None if pace is None else 2048)
    try:
        writer.write(message(path, body))
        await writer.drain()
        data = b""
        while part := await reader.read(1 << 16 if pace is None else 256):
            data += part
            if pace is not None:
                await asyncio.sleep(pace)
    finally:
        writer.transport.abort()
    if data == b"":
        raise ConnectionResetError("closed without an answer")
    head, rest = data.split(b"\r\n\r\n", 1)
    status = int(head.split(b" ", 2)[1])
    answer = whole(head.lower(), rest)
    if status != 200:
        raise Refused(status, answer)
    return answer


def whole(head, rest):
    """The body of a response, which must be complete."""
    if b"transfer-encoding: chunked" not in head:
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        assert len(rest) == length, f"{len(rest)} of {length} bytes of the body"
        return rest
    body = b""
    while True:
        size, rest = rest.split(b"\r\n", 1)
        size = int(size, 16)
        if size == 0:
            return body
        assert len(rest) > size + 1, "the body ends within a chunk"
        body, rest = body + rest[:size], rest[size + 2 :]


def events(data):
    """The events of a whole stream, which must end as one."""
    *blocks, last, rest = data.decode().split("\n\n")
    assert (last, rest) == ("data: [DONE]", ""), f"the stream ends with {last!r}, {rest!r}"
    told = []
    for block in blocks:
        if block.startswith(":"):
            continue  # keeps the connection alive
        assert block.startswith("data: "), block
        told.append(json.loads(block.removeprefix("data: ")))
        assert "error" not in told[-1], block
    return told


async def leave(port, path, body, rng):
    """Sends a request and leaves: in its middle, at once, or after some bytes of the answer;
    politely or with a reset."""
    reader, writer = await connect(port, None)
    sent = message(path, body)
    when = rng.choice(["sending", "at once", "waiting", "reading"])
    writer.write(sent[: rng.randrange(1, len(sent))] if when == "sending" else sent)
    try:
        await writer.drain()
        if when == "waiting":
            await asyncio.sleep(rng.random() * 0.5)
        if when == "reading":
            await asyncio.wait_for(reader.read(rng.randrange(1, 2000)), 20)
    except (ConnectionError, TimeoutError):
        pass
    if rng.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()
