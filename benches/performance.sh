#!/usr/bin/env bash
# Every table of docs/performance.md, on this machine; some twenty minutes where nothing else runs.
#
#   performance.sh FATHOM [PYTHON]
#
# FATHOM is a release build. PYTHON has the packages of peers/requirements.txt; without it other engines are left out.
set -euo pipefail
fathom=$1 python=${2:-}
here=$(cd "$(dirname "$0")" && pwd)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
title() { printf '\n## %s\n\n' "$*"; }

title "The machine"
"$fathom" doctor --quiet
"$fathom" doctor --quiet --measure --precision bf16 | sed -n '/^This machine/,$p'

for precision in bf16 f32; do
    title "Kernels, $precision"
    "$fathom" bench-engine --quiet --kernels --precision "$precision"
done

"$fathom" bench-engine --quiet --shape qwen2.5-0.5b --keep "$scratch/0.5b" --tokens 16 --batches 1 --repeats 1 > /dev/null
"$fathom" bench-engine --quiet --shape qwen2.5-1.5b --keep "$scratch/1.5b" --tokens 16 --batches 1 --repeats 1 > /dev/null
for precision in bf16 f32; do
    title "Qwen2.5-0.5B, $precision"
    "$fathom" bench-engine --quiet --model "$scratch/0.5b" --tokens 512,2048,4096,8192 --precision "$precision"
    title "Qwen2.5-1.5B, $precision"
    "$fathom" bench-engine --quiet --model "$scratch/1.5b" --tokens 512,2048 --precision "$precision"
done

if [ -n "$python" ]; then
    title "Other engines"
    "$python" "$here/peers/engines.py" "$scratch/0.5b" --fathom "$fathom"
fi
