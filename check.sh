#!/usr/bin/env bash
# Everything that a change must pass: formatting, lints, documentation, tests, dependency policy
# and a short run of every fuzz target. With Chromium, also the report and the server's page in a
# browser; with Python, also the Python package, clients of the server and a trained model (a 100 MB
# download, once). Needs a Rust toolchain with rustfmt and clippy, and a C/C++ compiler.
# FUZZ_SECONDS is the time for each fuzz target (default 10).
set -euo pipefail
cd "$(dirname "$0")"
# Nothing is built twice here, and incremental state would double the 15 GB of target/.
export CARGO_INCREMENTAL=0

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

step "the report and the page of the server in a browser"
if command -v chromedriver >/dev/null &&
    { command -v chromium || command -v google-chrome; } >/dev/null; then
    cargo test --workspace --test browser --test serve_page --locked -- --ignored
else
    echo "SKIPPED: chromium or chromedriver is missing" \
        "(Debian: apt-get install chromium chromium-driver)"
fi

step "trained models"
prepared=0
./tests/real/prepare.sh || prepared=$?
case $prepared in
    0) cargo test --workspace --test real --locked -- --ignored --nocapture ;;
    75)
        echo "SKIPPED: SmolLM2 (above)"
        cargo test --workspace --test real --locked -- --ignored --nocapture stories260k
        ;;
    *) exit "$prepared" ;;
esac

step "the Python package"
checked=0
./python/check.sh || checked=$?
case $checked in
    0 | 75) ;; # 75: skipped, with the reason printed
    *) exit "$checked" ;;
esac

step "clients of the server"
checked=0
./tests/serve/check.sh || checked=$?
case $checked in
    0 | 75) ;; # 75: skipped, with the reason printed
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
# Advisories change daily and need the network: they are reported, but do not fail the check.
if cargo deny fetch db 2>/dev/null; then
    cargo deny check --disable-fetch advisories || echo "there are advisories (above)"
else
    echo "the advisory database cannot be fetched here: advisories are not checked"
fi

step "fuzz targets"
./fuzz/run.sh "${FUZZ_SECONDS:-10}"

step "all good"
