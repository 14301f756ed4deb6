#!/usr/bin/env bash
# Builds the Python package in development mode into target/venv, runs its tests and type checks, and
# builds its pages. Exit code 75: there is no Python, or packages cannot be fetched. PYTHON is the
# interpreter (default python3). Arguments are passed to pytest.
set -euo pipefail
cd "$(dirname "$0")"

skip() { echo "SKIPPED: $*"; exit 75; }

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || skip "there is no Python 3.10 or later"

venv=../target/venv
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || skip "python -m venv does not work"
if ! "$venv/bin/python" -c 'import hypothesis, maturin, mypy, numpy, polars, pyarrow, pyright, pytest' 2>/dev/null; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        'maturin>=1.9,<2' 'numpy>=2.1' 'pytest>=8' 'hypothesis>=6' 'mypy>=1.13' 'pyright[nodejs]>=1.1.390' \
        'pyarrow>=17' 'polars>=1.9' ||
        skip "the packages the tests need cannot be fetched"
fi

# The workspace's target directory, so that built dependencies are reused.
VIRTUAL_ENV=$PWD/$venv CARGO_TARGET_DIR=$PWD/../target "$venv/bin/maturin" develop --quiet --locked
"$venv/bin/python" -m pytest -p no:cacheprovider --quiet "$@"

# The pages. The package's sources are read, not imported.
"$venv/bin/python" -c 'import material, mkdocstrings_handlers.python' 2>/dev/null ||
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        'mkdocs-material==9.8.2' 'mkdocstrings-python==2.0.11' || skip "mkdocs cannot be fetched"
NO_MKDOCS_2_WARNING=1 "$venv/bin/mkdocs" build --strict --quiet # to target/python-docs
