# Shortcuts for daily use. Each recipe is one ordinary command.

# List the recipes.
default:
    @just --list

# Everything that a change must pass.
check:
    ./check.sh

# Unit, integration and black-box tests.
test *ARGS:
    cargo test --workspace {{ARGS}}

# Formatting and lints.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# Format everything.
fmt:
    cargo fmt --all

# The API documentation, in a browser.
doc:
    cargo doc --workspace --no-deps --open

# Measure kernels, prefill and scan.
bench *ARGS:
    cargo bench --workspace {{ARGS}}

# Every table of docs/performance.md; `just performance python3` also measures other engines.
performance *PYTHON:
    cargo build --release
    ./benches/performance.sh target/release/fathom {{PYTHON}}

# Fuzz one target: `just fuzz config 600`.
fuzz TARGET SECONDS="60":
    ./fuzz/run.sh {{SECONDS}} {{TARGET}}

# Regenerate the command line reference.
reference:
    cargo build -p fathom-lm
    cargo run -q -p fathom-lm -- reference > docs/cli.md

# Scanning and generation on built-in models.
demo:
    cargo run --release -- demo
