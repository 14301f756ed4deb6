#!/usr/bin/env bash
# Clients against `fathom serve` on the trained pair: the official openai client, LangChain,
# schemathesis, bad input, then a soak of 300 requests (soak.py runs a longer one). Builds the
# binary in development mode unless FATHOM names one. Exit code 75: there is no Python, or packages
# cannot be fetched. PYTHON is the interpreter (default python3). Arguments are passed to pytest.
set -euo pipefail
cd "$(dirname "$0")"

skip() { echo "SKIPPED: $*"; exit 75; }

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    skip "there is no Python 3.10 or later"

mkdir -p ../../target
venv=../../target/venv-serve
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || skip "python -m venv does not work"
if ! cmp --silent requirements.txt "$venv/installed.txt"; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt ||
        skip "the packages the tests need cannot be fetched"
    cp requirements.txt "$venv/installed.txt"
fi

[ -n "${FATHOM:-}" ] || cargo build --workspace --locked --bin fathom
"$venv/bin/python" -m pytest -p no:cacheprovider --quiet "$@"
"$venv/bin/python" soak.py --requests 300
