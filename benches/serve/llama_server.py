#!/usr/bin/env python3
"""llama.cpp's server, from a build of one's own or from the prebuilt package xllamacpp.

    llama_server.py -m GGUF [--port N] [-t N] [-np N] [-c TOKENS] …

As a program, it is the server of the package, with the names of llama-server's options. It prints
the address it listens on, and ends when its standard input does. As a module, `LlamaServer` runs
either of the two; the package's is compiled for AVX2 and nothing newer.
"""

import argparse
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request


class LlamaServer:
    """A server that is ready when the constructor returns.

    `slots` is the number of places in the batch, `context` the tokens of each. `binary` is a
    llama-server; without it, the package's runs. `libraries` is a directory that is searched first
    for llama.cpp's libraries: one with a libggml-cpu.so for AVX2 alone limits the whole server.
    """

    def __init__(self, gguf, threads, slots, context, binary=None, libraries=None, extra=()):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [binary] if binary else [sys.executable, pathlib.Path(__file__).resolve()]
        command += ["-m", gguf, "--port", port, "-t", threads, "-tb", threads]
        # A prompt is computed anew each time, and no state is copied between two requests.
        command += ["-np", slots, "-c", slots * context, "--cache-ram", 0, *extra]
        environment = dict(os.environ)
        if libraries:
            environment["LD_LIBRARY_PATH"] = str(pathlib.Path(libraries).resolve())
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        while not self._healthy():
            if self.process.poll() is not None:
                raise SystemExit(f"llama.cpp's server ended: {' '.join(map(str, command))}")
            time.sleep(0.1)

    def _healthy(self):
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except OSError:
            return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGCONT)  # a stopped process does not end
        self.process.kill()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("-t", "--threads", type=int, required=True)
    parser.add_argument("-tb", "--threads-batch", type=int, required=True)
    parser.add_argument("-np", "--parallel", type=int, default=1)
    parser.add_argument("-c", "--ctx-size", type=int, required=True, help="of all slots together")
    parser.add_argument("--cache-ram", type=int, default=0)
    parser.add_argument("-fa", "--flash-attn", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("-md", "--model-draft")
    parser.add_argument("--spec-type", default="none")
    parser.add_argument("--spec-draft-n-max", type=int)
    parser.add_argument("--spec-draft-p-min", type=float)
    args = parser.parse_args()

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.port = args.port
    params.n_parallel = args.parallel
    params.n_ctx = args.ctx_size
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads_batch
    params.cache_ram_mib = args.cache_ram
    attention = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = {
        "auto": attention.LLAMA_FLASH_ATTN_TYPE_AUTO,
        "on": attention.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "off": attention.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    }[args.flash_attn]
    kinds = xllamacpp.common_speculative_type
    names = [name.upper().replace("-", "_") for name in args.spec_type.split(",")]
    params.speculative.types = [getattr(kinds, f"COMMON_SPECULATIVE_TYPE_{name}") for name in names]
    if args.model_draft:
        draft = params.speculative.draft
        draft.mparams.path = args.model_draft
        draft.cpuparams.n_threads = args.threads
        draft.cpuparams_batch.n_threads = args.threads_batch
        draft.n_max = args.spec_draft_n_max or draft.n_max
        draft.p_min = args.spec_draft_p_min or draft.p_min
    server = xllamacpp.Server(params)
    print(xllamacpp.get_system_info(), file=sys.stderr)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
