#!/usr/bin/env bash
# Everything about one GPU, the most important first, within eight minutes. Results are written as they come.
#
#   benchmarks/gpu.sh OUT                 on a GPU
#   DRY_RUN=1 benchmarks/gpu.sh OUT       on a CPU, with tiny sizes: shows that every step runs
#
# Data sets, if they are not where `alexnet prepare` finds them: CIFAR10=STORE PHOTOS=STORE benchmarks/gpu.sh OUT.
# The exit status is the number of steps that failed. Every step has a time limit and does not stop the others.
set -u
cd "$(dirname "$0")/.."
out=${1:?usage: benchmarks/gpu.sh OUT}
mkdir -p "$out"
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
failed=0

if [ -n "${DRY_RUN:-}" ]; then
  device=cpu model=cifar_18pct batches=4,8 seconds=0.1
  tests="tests/kernels/test_space_to_depth.py" filter="left_to_pytorch" scale=10
  cifar=${CIFAR10:-digits} cifar_options="--epochs 2 --batch-size 64 --schedule cosine"
  photos=${PHOTOS:-digits} photos_options="--epochs 1 --model cifar_18pct --schedule constant"
else
  device=cuda scale=1 # of the time limits
  model=alexnet batches=128,256,512,1024,2048,4096 seconds=1
  tests="tests/kernels tests/loader/test_gpu_cache.py tests/models/test_layers.py tests/training/test_compiled.py"
  filter="gpu or cuda or triton or space_to_depth or blocks"
  cifar=${CIFAR10:-cifar10} cifar_options=""
  photos=${PHOTOS:-photos} photos_options="--epochs 5"
fi

step() { # step NAME SECONDS COMMAND...: output in OUT/NAME.txt, one line in OUT/summary.txt
  local name=$1 limit=$(($2 * scale)) started=$SECONDS status
  shift 2
  timeout -k 5 "$limit" "$@" >"$out/$name.txt" 2>&1
  status=$?
  [ "$status" -eq 0 ] || failed=$((failed + 1))
  echo "$name: status $status, $((SECONDS - started)) s" | tee -a "$out/summary.txt"
}

step info 60 "$python" -m alexnet info
step tests 120 "$python" -m pytest -n 0 -q -p no:cacheprovider -m "slow or not slow" $tests -k "$filter"
step steps 150 "$python" benchmarks/steps.py --device "$device" --model "$model" --batches "$batches" \
  --seconds "$seconds" --out "$out/steps.jsonl"
step cifar_18pct 120 "$python" -m alexnet train "$cifar" --recipe cifar_18pct --device "$device" \
  --output-dir "$out/cifar-run" $cifar_options
step photos 90 "$python" -m alexnet train "$photos" --device "$device" --output-dir "$out/photos-run" $photos_options
step profile 60 "$python" benchmarks/steps.py --device "$device" --model "$model" --batches "${batches%%,*}" \
  --out "$out/steps.jsonl" --profile "$out/operations.txt"
echo "$failed steps failed; $SECONDS s" | tee -a "$out/summary.txt"
exit "$failed"
