#!/usr/bin/env python3
"""llama.cpp's server, from the prebuilt package xllamacpp.

    llama_server.py GGUF --threads N --slots N --context TOKENS

Prints the address it listens on, and ends when its standard input does. --context is that of one
slot.
"""

import argparse
import sys

import xllamacpp


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    args = parser.parse_args()

    params = xllamacpp.CommonParams()
    params.model.path = args.gguf
    params.n_parallel = args.slots
    params.n_ctx = args.slots * args.context
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    params.port = 0
    server = xllamacpp.Server(params)
    print(xllamacpp.get_system_info(), file=sys.stderr)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
