#!/usr/bin/env bash
# Build llama.cpp's server and llama-bench from the sources in the package llama-cpp-python.
#
#   build_llama.sh PYTHON DIRECTORY
#
# PYTHON has the packages cmake, ninja and scikit-build-core. DIRECTORY/native/bin/llama-server has
# every instruction set of this CPU. DIRECTORY/avx2/bin has a libggml-cpu.so that was compiled for
# AVX2, FMA and F16C, as the package xllamacpp is: with it in LD_LIBRARY_PATH the same server uses
# nothing newer. (ggml chooses instructions when it is compiled; no variable limits them later.)
# Takes about fifteen minutes of processor time.
set -euo pipefail
python=$1 out=$2
mkdir -p "$out/src"
out=$(cd "$out" && pwd)
PATH="$(cd "$(dirname "$python")" && pwd):$PATH"

if [ ! -d "$out/src/llama.cpp" ]; then
    "$python" -m pip download -q --no-deps --no-binary :all: --no-build-isolation \
        -d "$out/src" llama-cpp-python==0.3.36
    tar xzf "$out"/src/llama_cpp_python-*.tar.gz -C "$out/src"
    mv "$out"/src/llama_cpp_python-*/vendor/llama.cpp "$out/src/llama.cpp"
fi
options=(-G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_TESTS=OFF
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
    # LD_LIBRARY_PATH must come before the directory in the program.
    -DCMAKE_EXE_LINKER_FLAGS=-Wl,--enable-new-dtags
    -DCMAKE_SHARED_LINKER_FLAGS=-Wl,--enable-new-dtags)
cmake -S "$out/src/llama.cpp" -B "$out/native" "${options[@]}" -DGGML_NATIVE=ON > /dev/null
cmake -S "$out/src/llama.cpp" -B "$out/avx2" "${options[@]}" -DGGML_NATIVE=OFF -DGGML_AVX2=ON \
    -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON > /dev/null
ninja -C "$out/native" llama-server llama-bench
ninja -C "$out/avx2" ggml-cpu
