#!/usr/bin/env bash
# The table of docs/pearl.md: four benchmarks, batch sizes 1 to 16, every decoding mode, both
# accountings.
#
#   pearl.sh FATHOM TARGET DRAFT DATA OUT
#
# TARGET and DRAFT are a small trained pair. heavier.py gives them the cost of larger models without
# changing their text: a pass of the target then takes eight to ten times as long as one of the
# draft, as in the published pairs. OUT receives one JSON file per batch size, next to the tables; a
# batch size whose file exists is not measured again. Takes half an hour on two idle cores.
set -euo pipefail
fathom=$1 target=$2 draft=$3 data=$4 out=$5
here=$(dirname "$0")

mkdir -p "$out"
[[ -d $out/target ]] || "$here/heavier.py" "$target" "$out/target" --layers 12 --intermediate 4608
[[ -d $out/draft ]] || "$here/heavier.py" "$draft" "$out/draft" --layers 3 --intermediate 1536

measure() { # measure BATCH_SIZE PROMPTS STEPS AR_TOKENS
    local file="$out/batch-$1.json"
    [[ -s $file ]] && return
    "$fathom" bench --target "$out/target" --draft "$out/draft" --data "$data" --precision bf16 \
        --modes ar,sd,pearl,auto --batch-sizes "$1" --limit "$2" --steps "$3" --ar-tokens "$4" \
        --repeats 9 --json > "$file.part"
    mv "$file.part" "$file"
}
measure 1 2 100 200
measure 4 4 100 200
measure 8 8 100 200
measure 16 16 100 200
"$here/pearl_tables.py" "$out"/batch-{1,4,8,16}.json
