#!/usr/bin/env bash
# The Python package: built in development mode into target/venv, tested, its types checked. Exit code 75: there is no
# Python here, or its packages cannot be fetched. PYTHON is the interpreter (python3); arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")"

skip() { echo "SKIPPED: $*"; exit 75; }

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || skip "no Python from 3.10 on here"

venv=../target/venv
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || skip "python -m venv does not work here"
if ! "$venv/bin/python" -c 'import hypothesis, maturin, mypy, numpy, polars, pyarrow, pyright, pytest' 2>/dev/null; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        'maturin>=1.9,<2' 'numpy>=2.1' 'pytest>=8' 'hypothesis>=6' 'mypy>=1.13' 'pyright[nodejs]>=1.1.390' \
        'pyarrow>=17' 'polars>=1.9' ||
        skip "the packages the tests need cannot be fetched"
fi

# The workspace's own target directory: what is built there is not built again.
VIRTUAL_ENV=$PWD/$venv CARGO_TARGET_DIR=$PWD/../target "$venv/bin/maturin" develop --quiet --locked
"$venv/bin/python" -m pytest -p no:cacheprovider --quiet "$@"

# The site: the sources are read, nothing is imported.
"$venv/bin/python" -c 'import material, mkdocstrings_handlers.python' 2>/dev/null ||
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        'mkdocs-material==9.8.2' 'mkdocstrings-python==2.0.11' || skip "mkdocs cannot be fetched"
NO_MKDOCS_2_WARNING=1 "$venv/bin/mkdocs" build --strict --quiet # to target/python-docs
