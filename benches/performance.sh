#!/usr/bin/env bash
# Every table of docs/performance.md, on this machine. Takes about twenty minutes on an idle one.
#
#   performance.sh FATHOM [PYTHON]
#
# FATHOM is a release build. PYTHON has the packages of peers/requirements.txt; without it, other
# engines are skipped.
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

for size in 0.5b 1.5b; do # write the checkpoints
    "$fathom" bench-engine --quiet --shape "qwen2.5-$size" --keep "$scratch/$size" \
        --tokens 16 --batches 1 --repeats 1 > /dev/null
done
for precision in bf16 f32; do
    title "Qwen2.5-0.5B, $precision"
    "$fathom" bench-engine --quiet --model "$scratch/0.5b" --precision "$precision" \
        --tokens 512,2048,4096,8192
    title "Qwen2.5-1.5B, $precision"
    "$fathom" bench-engine --quiet --model "$scratch/1.5b" --precision "$precision" \
        --tokens 512,2048
done

if [ -n "$python" ]; then
    title "Other engines"
    "$python" "$here/peers/engines.py" "$scratch/0.5b" --fathom "$fathom"
fi
