#!/usr/bin/env python3
"""Write a checkpoint as a bfloat16 GGUF file: gguf_of.py CHECKPOINT GGUF"""

import json
import pathlib
import sys

from engines import write_gguf

checkpoint, gguf = map(pathlib.Path, sys.argv[1:])
write_gguf(checkpoint, json.loads((checkpoint / "config.json").read_text()), gguf)
