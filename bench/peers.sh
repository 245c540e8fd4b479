#!/usr/bin/env bash
# Sets up the engines that Kvik is measured against, from Python packages, through pip.
#
#   bench/peers.sh DIR [llamacpp] [openvino]     both if none is named
#
#   DIR/bin/llama-{bench,batched-bench,quantize,server}        llama.cpp, built for this processor
#   DIR/openvino/bin/python                                    a Python that has openvino_genai
#
# llama.cpp comes from the source package of llama-cpp-python, which carries it whole. It is built with the compiler of
# the machine, which takes some minutes on two cores; JOBS is how many compilers run at a time (all cores).
# What is there already is left as it is. The versions are those that docs/benchmarks.md was measured with.
set -euo pipefail

LLAMA_CPP_PYTHON=llama-cpp-python==0.3.36
OPENVINO_GENAI=openvino-genai==2026.4.1.0

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

# pip in a virtual environment of its own, $dir/$1.
venv_pip() {
    local venv=$dir/$1
    shift
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"
}

llamacpp() {
    local programs=(llama-bench llama-batched-bench llama-quantize llama-server) missing=()
    for program in "${programs[@]}"; do
        [ -x "$dir/bin/$program" ] || missing+=("$program")
    done
    [ ${#missing[@]} -gt 0 ] || return 0

    local source=$dir/llama-cpp-python build=$dir/llama-build
    if [ ! -d "$source" ]; then
        # The package itself as source; the tools that it would be built with as ready wheels, or pip builds those too.
        venv_pip tools download --no-deps --no-binary llama-cpp-python --dest "$dir" "$LLAMA_CPP_PYTHON"
        mkdir -p "$source.part"
        tar xzf "$dir"/llama_cpp_python-*.tar.gz --strip-components 1 -C "$source.part"
        # A file that points to a repository which is not there; ninja would ask cmake about it again and again.
        rm -f "$source.part/vendor/llama.cpp/.git"
        # The headers of some compilers do not say that `ldtilecfg` reads the whole configuration, which then stays unwritten: on
        # processors with AMX the program would die of an illegal instruction.
        sed -i 's/_tile_loadconfig(&tc);/__asm__ volatile("" : : "r"(&tc) : "memory"); &/' \
            "$source.part/vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp"
        mv "$source.part" "$source"
    fi

    venv_pip tools install cmake ninja
    export PATH=$dir/tools/bin:$PATH
    cmake -S "$source/vendor/llama.cpp" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
        -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
        -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF >"$dir/llama-cmake.log"
    if ! ninja -C "$build" -j "${JOBS:-$(nproc)}" "${missing[@]}" >"$dir/llama-build.log"; then
        tail -n 30 "$dir/llama-build.log" >&2
        exit 1
    fi
    mkdir -p "$dir/bin"
    for program in "${missing[@]}"; do
        ln -sf "$build/bin/$program" "$dir/bin/$program"
    done
}

openvino() {
    venv_pip openvino install "$OPENVINO_GENAI"
    "$dir/openvino/bin/python" -c 'import openvino_genai'
}

[ $# -ge 1 ] || usage
dir=$1
shift
for part in "$@"; do
    case $part in llamacpp | openvino) ;; *) usage ;; esac
done
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
[ $# -gt 0 ] || set -- llamacpp openvino
for part in "$@"; do
    "$part"
done
