#!/usr/bin/env bash
# Everything a change must pass, in one command: format, lints, documentation, tests, dependencies, and a
# short run of every fuzz target; the report is opened in Chromium where that is installed, and a trained model
# is run where Python can fetch it (100 MB, once), and the Python package where there is Python. Needs a Rust toolchain with rustfmt and clippy, and a C/C++
# compiler.
# FUZZ_SECONDS is the time each fuzz target gets.
set -euo pipefail
cd "$(dirname "$0")"

step() { printf '\n== %s\n' "$*"; }

step "formatting"
cargo fmt --all --check
cargo fmt --manifest-path fuzz/Cargo.toml --check

step "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings

step "tests"
cargo test --workspace --locked

step "the library without the command line"
cargo test -p external-user --locked

step "the report in a browser"
if command -v chromedriver >/dev/null && { command -v chromium || command -v google-chrome; } >/dev/null; then
    cargo test -p fathom-lm --test browser --locked -- --ignored
else
    echo "SKIPPED: no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)"
fi

step "really trained models"
prepared=0
./tests/real/prepare.sh || prepared=$?
case $prepared in
    0) cargo test -p fathom-lm --test real --locked -- --ignored --nocapture ;;
    75)
        echo "SKIPPED: SmolLM2 (above)"
        cargo test -p fathom-lm --test real --locked -- --ignored --nocapture stories260k
        ;;
    *) exit "$prepared" ;;
esac

step "the Python package"
checked=0
./python/check.sh || checked=$?
case $checked in
    0 | 75) ;; # 75: skipped, and says why
    *) exit "$checked" ;;
esac

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

step "dependencies"
if ! command -v cargo-deny >/dev/null; then
    PATH="$PWD/target/tools/bin:$PATH"
    command -v cargo-deny >/dev/null ||
        cargo install --locked --root target/tools --version '^0.20' cargo-deny
fi
cargo deny check bans licenses sources
# Advisories change from day to day and need the network: they inform, the three above decide.
if cargo deny fetch db 2>/dev/null; then
    cargo deny check --disable-fetch advisories || echo "there are advisories to look at (above)"
else
    echo "the advisory database cannot be fetched here: advisories are not checked"
fi

step "fuzz targets"
./fuzz/run.sh "${FUZZ_SECONDS:-10}"

step "all good"
