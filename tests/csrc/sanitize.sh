#!/usr/bin/env bash
# The native kernels under AddressSanitizer with UndefinedBehaviorSanitizer, then under ThreadSanitizer; CUDA's MLP and
# convolution kernels, run on the CPU, under AddressSanitizer:
# bash tests/csrc/sanitize.sh
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

run_with() { # run_with SANITIZERS FLAG...
    printf '%s: ' "$1"
    "${CXX:-g++}" -std=c++17 -O1 -g -Wno-psabi -fsanitize="$1" "${@:2}" \
        -I"$root/csrc" "$root"/tests/csrc/sanitize.cpp "$root"/csrc/cpu/capability.cpp \
        "$root"/csrc/cpu/{mlp,active,conv,elementwise,norm,pool}_*.cpp -o "$work/sanitize"
    "$work/sanitize"
}

run_with address,undefined -fno-sanitize-recover=all -Wall -Wextra
run_with thread # its instrumentation hides from the compiler what is initialised; the warnings are those of the first

printf 'CUDA kernels run on the CPU, address: '
"${CXX:-g++}" -std=c++17 -O0 -g -w -fsanitize=address -fno-sanitize-recover=all -DPROGRAM \
    -I"$root/csrc" -I"$root/tests/csrc" "$root/tests/csrc/cuda_mlp.cpp" -o "$work/cuda_mlp"
"$work/cuda_mlp" | tee "$work/said"
grep -qx right "$work/said"
