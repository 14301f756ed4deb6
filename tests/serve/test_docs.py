"""Every command of docs/serve.md works, and the Python in it runs."""

import json
import re
import subprocess

from server import FATHOM, PAIR, ROOT, Server

DOCUMENT = (ROOT / "docs/serve.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def commands(program):
    """The commands of a program in blocks without a language; a backslash continues a line."""
    text = "\n".join(blocks("")).replace("\\\n", " ")
    return re.findall(rf"^({program} (?:[^'\n]|'[^']*')*)$", text, re.MULTILINE)


def test_requests():
    curls = commands("curl")
    assert len(curls) >= 3
    with Server(*PAIR) as server:
        for command in curls:
            command = command.replace(ADDRESS, server.url)
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
            assert done.returncode == 0, command
            refused = '"n": 1000000000' in command
            assert ("error" in json.loads(done.stdout)) == refused, done.stdout

        python = "\n".join(blocks("python")).replace(ADDRESS, server.url)
        exec(compile(python, "docs/serve.md", "exec"), {})


def test_options():
    told = subprocess.run([FATHOM, "serve", "--help"], capture_output=True, text=True).stdout
    options = set(re.findall(r"--[a-z][a-z-]+", "\n".join(commands("fathom serve"))))
    options |= set(re.findall(r"`(--[a-z][a-z-]+)", DOCUMENT))
    assert len(options) > 10
    missing = {option for option in options if option not in told}
    assert not missing
