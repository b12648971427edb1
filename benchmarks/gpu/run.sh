#!/usr/bin/env bash
# All that a GPU has to tell, most important first, within a time that is set:
#   bash benchmarks/gpu/run.sh OUT [--minutes 8] [--dry-run]
#
# Needs a Python with torch (and pytest, hypothesis, matplotlib; jax if it is to be compared), nvcc, and no network.
# PYTHON names it; `python` by default. OUT gets JSON, CSV, PNG and a log of each step; steps.csv says how each ended,
# also if the run is cut off. Without a GPU, or with --dry-run, the same steps run on the CPU with small sizes, which
# shows that they work.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

out=${1:?usage: bash benchmarks/gpu/run.sh OUT [--minutes 8] [--dry-run]}
shift
minutes=8
device=cuda
while (($#)); do
    case $1 in
        --minutes) minutes=$2 && shift 2 ;;
        --dry-run) device=cpu && shift ;;
        *) echo "unknown argument: $1" >&2 && exit 2 ;;
    esac
done
python=${PYTHON:-python}
if ! "$python" -c "import torch, sys; sys.exit(not torch.cuda.is_available())"; then device=cpu; fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
deadline=$((SECONDS + minutes * 60))
has() { "$python" -c "import $1" 2>/dev/null; }
if ! has rich && has pip._vendor.rich; then # pip has a copy, of what is needed here
    mkdir -p "$out/modules/rich"
    cat >"$out/modules/rich/__init__.py" <<'PYTHON'
import sys

import pip._vendor.rich.console, pip._vendor.rich.progress, pip._vendor.rich.table

for name, module in list(sys.modules.items()):
    if name.startswith("pip._vendor.rich"):
        sys.modules[name.removeprefix("pip._vendor.")] = module
PYTHON
    export PYTHONPATH=$out/modules${PYTHONPATH:+:$PYTHONPATH}
fi
cache=${XDG_CACHE_HOME:-${HOME:-/nowhere}/.cache}
if ! mkdir -p "$cache" 2>/dev/null || [[ ! -w $cache ]]; then # ours, Inductor's, Triton's and matplotlib's
    cache=$(mktemp -d)
    trap 'rm -rf "$cache"' EXIT
    export XDG_CACHE_HOME=$cache GRADREG_FAST_CACHE=$cache/gradreg_fast MPLCONFIGDIR=$cache/matplotlib
    export TRITON_CACHE_DIR=$cache/triton TORCHINDUCTOR_CACHE_DIR=$cache/inductor PYTHONDONTWRITEBYTECODE=1
fi
echo "step,status,seconds" >"$out/steps.csv"
failed=0

step() { # step NAME SECONDS COMMAND...: run it for so long at most; its output goes to NAME.log
    local name=$1 limit=$2 start=$SECONDS status left=$((deadline - SECONDS))
    shift 2
    if ((left < 5)); then
        echo "$name,no time left,0" >>"$out/steps.csv"
        return
    fi
    printf '\n==> %s (at most %d s)\n' "$name" $((limit < left ? limit : left))
    timeout --kill-after=10 $((limit < left ? limit : left)) "$@" >"$out/$name.log" 2>&1
    status=$?
    tail -n 15 "$out/$name.log"
    case $status in
        0) status=ok ;;
        124 | 137) status="cut off" ;;
        *) status="failed ($status)" && failed=1 ;;
    esac
    echo "$name,$status,$((SECONDS - start))" >>"$out/steps.csv"
    printf '<== %s: %s, %d s\n' "$name" "$status" $((SECONDS - start))
}

tests() { # tests NAME SECONDS ARGUMENT...
    step "$1" "$2" "$python" -m pytest -q -p no:cacheprovider --device "$device" --junit-xml "$out/$1.xml" "${@:3}"
}

measure() { # measure NAME SECONDS ARGUMENT...: of every case, with peers that need no long compilation unless told
    step "$1" "$2" "$python" -m benchmarks speed --device "$device" --out "$out/$1" "${@:3}"
}

sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}"/bin/compute-sanitizer 2>/dev/null)
sanitize() { # sanitize TOOL: the kernels' own tests, few of them, under compute-sanitizer
    local few=(tests/csrc/test_elementwise.py tests/csrc/test_norm_passes.py tests/csrc/test_samples.py
        tests/csrc/test_cuda_mlp_networks.py tests/csrc/test_cuda_conv.py)
    few+=(-k "float32 or tanh or networks" -x)
    if [[ $device == cuda && -n $sanitizer ]]; then # without PyTorch's cache of memory, which hides where arrays end
        step "$1" 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$1" --error-exitcode 86 \
            "$python" -m pytest -q -p no:cacheprovider --device cuda "${few[@]}"
    else
        echo "$1,no compute-sanitizer,0" >>"$out/steps.csv"
    fi
}

if [[ $device == cuda ]]; then
    nvidia-smi >"$out/nvidia-smi.txt" 2>&1
    parallel=() small=() large=(--rows-times 64) shapes=()
    if has xdist; then parallel=(-n 6); fi
    suite=(tests/rules tests/test_ops.py tests/test_functional.py tests/test_networks.py tests/test_precision.py
        tests/test_modules.py tests/test_recompute.py)
else
    parallel=() small=(--quick --cases coordinate --peers gradreg_fast autograd cuda-graph jax plain)
    large=() shapes=(--quick) suite=(tests/test_recompute.py)
fi
quick_peers=(gradreg_fast autograd autograd-batched torch.func cuda-graph jax plain)

step build 180 "$python" -m gradreg_fast info
if [[ $device == cuda ]]; then
    tests parity-kernels 90 tests/csrc/test_cuda_mlp_networks.py tests/csrc/test_cuda_conv.py \
        tests/csrc/test_elementwise.py tests/csrc/test_norm_passes.py tests/csrc/test_samples.py
    tests device 60 tests/test_device.py
else
    tests parity-kernels 90 tests/csrc/test_elementwise.py -k passes
fi
step ceilings 60 "$python" -m benchmarks.gpu.ceilings --device "$device" --out "$out" "${shapes[@]}"
if [[ $device == cuda ]]; then
    measure speed-small 60 --repeats 7 --cases coordinate eikonal frobenius-784 --peers "${quick_peers[@]}" "${large[@]}"
    measure speed-images 75 --repeats 7 --cases r3gan dcgan-critic-r1 resnet lenet-relu --peers "${quick_peers[@]}"
else
    measure speed-small 60 "${small[@]}"
fi
sanitize memcheck
sanitize racecheck
step crossover 90 "$python" -m benchmarks.gpu.crossover --device "$device" --out "$out" "${shapes[@]}"
tests parity 150 "${parallel[@]}" "${suite[@]}"
if [[ $device == cuda ]]; then measure speed-all 600 --repeats 7; fi

printf '\n'
cat "$out/steps.csv"
exit $failed
