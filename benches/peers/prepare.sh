#!/usr/bin/env bash
# Write the models of turns.py, speculation.py and serve/load.py, as checkpoints and as GGUF.
#
#   prepare.sh FATHOM PYTHON TARGET DRAFT DIRECTORY
#
# TARGET and DRAFT are a small trained pair. DIRECTORY gets
#   0.5b            random bfloat16 weights in the shape of Qwen2.5-0.5B, and the pair's tokenizer
#   target, draft   the pair at the cost of larger models, as in ../pearl.sh
# What is there already is not written again. PYTHON has gguf and numpy.
set -euo pipefail
fathom=$1 python=$2 target=$3 draft=$4 out=$5
here=$(cd "$(dirname "$0")" && pwd)

mkdir -p "$out"
if [ ! -d "$out/0.5b" ]; then
    "$fathom" bench-engine --quiet --shape qwen2.5-0.5b --keep "$out/0.5b" \
        --tokens 16 --batches 1 --repeats 1 > /dev/null
    cp "$target"/tokenizer.json "$target"/tokenizer_config.json "$target"/chat_template.jinja \
        "$out/0.5b"
fi
[ -d "$out/target" ] ||
    "$here/../heavier.py" "$target" "$out/target" --layers 12 --intermediate 4608
[ -d "$out/draft" ] || "$here/../heavier.py" "$draft" "$out/draft" --layers 3 --intermediate 1536
for model in 0.5b target draft; do
    [ -f "$out/$model.gguf" ] && continue
    "$python" "$here/gguf_of.py" "$out/$model" "$out/$model.gguf.part"
    mv "$out/$model.gguf.part" "$out/$model.gguf"
done
