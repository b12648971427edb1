#!/usr/bin/env bash
# The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer: bash tests/csrc/sanitize.sh
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${CXX:-g++}" -std=c++17 -O1 -g -Wall -Wextra -Wno-psabi -fsanitize=address,undefined -fno-sanitize-recover=all \
    -I"$root/csrc" "$root"/tests/csrc/sanitize.cpp "$root"/csrc/cpu/capability.cpp "$root"/csrc/cpu/{mlp,active}_*.cpp \
    -o "$work/sanitize"
"$work/sanitize"
