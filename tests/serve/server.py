"""A `fathom serve` of its own for a test: started, watched and ended."""

import os
import pathlib
import re
import signal
import subprocess
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
FATHOM = os.environ.get("FATHOM", str(ROOT / "target/debug/fathom"))
MODELS = ROOT / "tests/fixtures/models"
NAME = "pair"  # as in docs/serve.md
TARGET = ["--target", MODELS / "draft", "--served-model-name", NAME]
PAIR = [*TARGET, "--draft", MODELS / "draft-weak"]


class Server:
    """`fathom serve` on a free port, with `arguments`; ready when the constructor returns."""

    def __init__(self, *arguments, fathom=FATHOM, start_within=120):
        command = [fathom, "serve", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines = []
        self.url = None
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._listening.wait(start_within)
        if self.url is None:
            self.process.kill()
            raise RuntimeError(f"{command} does not listen:\n{self.log()}")
        self._wait_ready(time.monotonic() + start_within)

    def _read(self):
        # The pipe must be read to its end: a server whose log nobody reads would block.
        for line in self.process.stdout:
            self.lines.append(line)
            found = re.search(r"http://[\w.:\[\]]+:\d+", line)
            if found and self.url is None:
                self.url = found.group()
                self._listening.set()
        self._listening.set()

    def _wait_ready(self, deadline):
        while True:
            try:
                return self.get("/ready")
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.05)

    def get(self, path):
        """The body of a GET; an OSError if its status is not 200."""
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return response.read().decode()

    @property
    def port(self):
        return int(self.url.rsplit(":", 1)[1])

    def metrics(self):
        """The values of /metrics, by name and labels as they are written there."""
        lines = self.get("/metrics").splitlines()
        samples = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in samples}

    def idle(self, within=10):
        """Waits until no request is in progress; fails otherwise."""
        names = ["vllm:num_requests_running", "vllm:num_requests_waiting"]
        deadline = time.monotonic() + within
        while True:
            counts = [total(self.metrics(), name) for name in names]
            if counts == [0, 0]:
                return
            assert time.monotonic() < deadline, f"running, waiting: {counts} after {within} s"
            time.sleep(0.05)

    def resources(self):
        """Resident memory in MiB, open descriptors and threads of the process."""
        proc = pathlib.Path("/proc") / str(self.process.pid)
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        resident = int(status["VmRSS"].split()[0]) / 1024
        return resident, len(os.listdir(proc / "fd")), int(status["Threads"])

    def log(self):
        return "".join(self.lines)

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def end(self, within=30):
        """Ends the server with SIGTERM; returns its exit code."""
        if self.process.poll() is None:
            self.terminate()
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join()
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


def total(metrics, name):
    """The sum of a metric over its labels."""
    values = [value for key, value in metrics.items() if key.split("{")[0] == name]
    assert values, f"/metrics has no {name}"
    return sum(values)
