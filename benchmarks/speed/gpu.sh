#!/usr/bin/env bash
# Everything that a GPU is to show, one after the other; a failure stops nothing, its log says so.
#     benchmarks/speed/gpu.sh FOLDER [small]
set -u
out=${1:?a folder for the results}
scale=${2:-full}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$here/../../src${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"
sizes="1000000 10000000"
[ "$scale" = small ] && sizes=20000

step() {  # name, command
  local name=$1
  shift
  echo "== $name"
  "$@" >"$out/$name.log" 2>&1 || echo "   failed: $out/$name.log"
  tail -n 3 "$out/$name.log"
}

nvidia-smi >"$out/device.log" 2>&1
step training "$python" "$here/gpu_training.py" --scale "$scale" --json "$out/training.json"
[ -f "$here/../softmax_gpu.py" ] && step softmax "$python" "$here/../softmax_gpu.py"
# shellcheck disable=SC2086
step index "$python" "$here/gpu_index.py" --sizes $sizes --json "$out/index.json"
step tests "$python" -m pytest -q -m gpu "$here/../../tests"
