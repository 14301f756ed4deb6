#!/usr/bin/env bash
# Builds the fuzz targets with the stable toolchain and runs each from the committed seeds.
#
#   fuzz/run.sh [SECONDS] [TARGET…]      default: 10 seconds, all targets
#
# Inputs that reach new code are saved in fuzz/corpus/, failing inputs in fuzz/artifacts/. To replay
# one:
#   fuzz/target/<triple>/release/<target> fuzz/artifacts/<target>/crash-…
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-10}
shift || true
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    for file in fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

if ! command -v "${CXX:-c++}" >/dev/null; then
    echo "no C++ compiler (libFuzzer is C++): the fuzz targets are not run"
    exit 0
fi

# The flags of `cargo fuzz --sanitizer none`: LLVM's coverage counters, without a nightly compiler.
# An explicit --target keeps them out of build scripts and procedural macros.
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"
export CARGO_TARGET_DIR=${FUZZ_TARGET_DIR:-$PWD/target}
cargo build --release --target "$host"

for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    log=artifacts/$target.log
    # More than 5 seconds or 1 GiB for an input is a failure.
    if "$CARGO_TARGET_DIR/$host/release/$target" \
        -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 -print_final_stats=1 \
        -artifact_prefix="artifacts/$target/" "corpus/$target" "seeds/$target" >"$log" 2>&1; then
        inputs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        echo "$target: $inputs inputs, nothing found"
    else
        tail -n 60 "$log"
        echo "$target: failed; the input is in fuzz/artifacts/$target" >&2
        exit 1
    fi
done
