# Daily verbs. Nothing here is needed: each line is an ordinary command.

# List the verbs.
default:
    @just --list

# Everything a change must pass.
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

# Every table of docs/performance.md: `just performance python3` compares other engines too.
performance *PYTHON:
    cargo build --release
    ./benches/performance.sh target/release/fathom {{PYTHON}}

# Fuzz one target: `just fuzz config 600`.
fuzz TARGET SECONDS="60":
    ./fuzz/run.sh {{SECONDS}} {{TARGET}}

# The whole product on a built-in model.
demo:
    cargo run --release -- demo
