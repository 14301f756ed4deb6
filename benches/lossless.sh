#!/usr/bin/env bash
# Greedy text must not depend on how it is decoded: generates from the same prompts with every mode, batch size and γ,
# over several thread splits and both precisions, and compares the files byte by byte with plain decoding's.
#
#   lossless.sh FATHOM TARGET DRAFT DATA [PROMPTS_PER_BENCHMARK] [TOKENS]
#
# DATA holds AIME.jsonl, CNNDM.jsonl, GSM8K.jsonl and HumanEval.jsonl. Exit code 1 at the first difference.
set -euo pipefail
fathom=$1 target=$2 draft=$3 data=$4 per_benchmark=${5:-50} tokens=${6:-48}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for name in AIME CNNDM GSM8K HumanEval; do
    head -n "$per_benchmark" "$data/$name.jsonl"
done > "$scratch/prompts.jsonl"

generate() { # generate NAME ARGUMENTS…
    local out="$scratch/$1.jsonl"
    shift
    rm -f "$out"
    "$fathom" generate --target "$target" --draft "$draft" --prompts "$scratch/prompts.jsonl" \
        --max-tokens "$tokens" --out "$out" --quiet "$@" > /dev/null
}

splits=("1 1" "2 1" "1 2")
runs=0
for precision in f32 bf16; do
    generate plain --mode ar --precision "$precision"
    for mode in sd pearl auto; do
        for batch in 1 4 16; do
            for gamma in 1 2 5 9 auto; do
                read -r for_target for_draft <<< "${splits[runs % 3]}"
                options=(--mode "$mode" --batch-size "$batch" --gamma "$gamma" --precision "$precision"
                    --target-threads "$for_target" --draft-threads "$for_draft")
                generate other "${options[@]}"
                runs=$((runs + 1))
                if ! cmp -s "$scratch/plain.jsonl" "$scratch/other.jsonl"; then
                    echo "differs from plain decoding: ${options[*]}"
                    exit 1
                fi
            done
        done
    done
done
echo "$runs runs over $(wc -l < "$scratch/prompts.jsonl") prompts: the bytes of plain decoding, every time"
