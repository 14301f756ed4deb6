"""The servers and clients of the tests."""

import openai
import pytest

from server import NAME, PAIR, Server

KEY = "the-key-of-the-tests"


@pytest.fixture(scope="session")
def server():
    """The trained pair. Most tests share it."""
    with Server(*PAIR, "--mode", "auto") as running:
        yield running


@pytest.fixture(scope="session")
def model():
    return NAME


@pytest.fixture(scope="session")
def client(server):
    """The official client, without its retries: a failure must show."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
