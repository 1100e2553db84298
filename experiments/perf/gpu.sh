#!/usr/bin/env bash
# Benchmarks where a GPU is at hand (an H100, or an H200): goals of speed, the suite's GPU tests, determinism.
#
#   bash experiments/perf/gpu.sh PIECE...     pieces or groups: see below
#   bash experiments/perf/gpu.sh all          all groups, 27 minutes at most
#   SMALL=1 JAX_PLATFORMS=cpu bash experiments/perf/gpu.sh all     tries every piece on a CPU
#
# first  step124m attention loss    second  step1b step8b    third  optim decode tests    (a group: nine minutes at most)
# alone  determinism quickstart     Single methods: gpu_methods.sh
#
# Needs lmjax's dependencies ('.[cuda,test]'; lmjax itself is found by its path) and, to compare with, torch for CUDA; without it its rows
# say 'torch absent'. OUT (gpu_results) receives PIECE.json and PIECE.txt. A piece that fails, or is not done within its time, is named at the end
# and makes the exit status 1; what it had measured until then is in its JSON.
set -u
cd "$(dirname "$0")/../.."
out="${OUT:-gpu_results}"
mkdir -p "$out"
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
here=experiments/perf python="${PYTHON:-python3}"
tests="tests/kernels tests/contracts/test_mixer.py tests/test_train_step.py tests/test_recompute.py"

# limit (seconds), command, and the command with SMALL=1
piece() {
  local step="$here/train_step.py" tiny="--rows=2 --steps=1 --rounds=1 --contestants lmjax torch"
  case "$1" in
    step124m) limit=220
      full=("$step" --recipe=gpt2:124M --rows=32 --steps=20 --rounds=5 --contestants lmjax 'lmjax model.remat=none'
            'lmjax model.remat=none model.unroll=12' torch 'torch compiled' 'torch compiled, narrow')
      small=("$step" --recipe=gpt2:tiny $tiny) ;;
    step1b) limit=270
      full=("$step" --recipe=gpt3:1.3B --rows=8 --steps=8 --rounds=2 --alone --contestants 'lmjax model.remat=none'
            lmjax 'torch compiled' 'torch compiled, narrow')
      small=("$step" --recipe=gpt3:tiny --alone $tiny) ;;
    step8b) limit=270
      full=("$step" --recipe=llama:8B --rows=1 --set=model.depth=8 --set=data.mask_documents=False --steps=8 --rounds=2 --alone
            --contestants 'lmjax model.remat=none' lmjax 'torch compiled' 'torch compiled, narrow')
      small=("$step" --recipe=llama:tiny --alone --set=model.depth=2 $tiny) ;;
    attention) limit=190
      full=("$here/attention.py")
      small=("$here/attention.py" --lengths=64 --tokens=64 --heads=2 --size=16 --dtype=float32 --steps=1 --rounds=1) ;;
    loss) limit=130
      full=("$here/loss_layer.py" --tokens=32768 --width=768 --dtype=bfloat16 --steps=10)
      small=("$here/loss_layer.py" --tokens=64 --vocab=300 --width=16 --rounds=1) ;;
    optim) limit=150
      full=("$here/optim_step.py" --recipe=gpt3:1.3B --rows=1 --alone --only=adamw,lion,eight_bit)
      small=("$here/optim_step.py" --recipe=gpt2:tiny --rows=1 --alone --only=adamw) ;;
    decode) limit=150
      full=("$here/decode_floor.py" --recipe=llama:1B)
      small=("$here/decode_floor.py" --recipe=gpt2:tiny --prompt=17 --tokens=64 --rows=1 --rounds=1) ;;
    tests) limit=240
      full=(-m pytest -q -p no:cacheprovider $tests)
      small=(-m pytest -q -p no:cacheprovider tests/kernels/test_choice.py) ;;
    determinism) limit=300
      full=("$here/device.py" --recipe=gpt2:124M --rows=32)
      small=("$here/device.py" --recipe=gpt2:tiny --rows=2 --steps=2 --rounds=1) ;;
    quickstart) limit=120
      full=(-m lmjax.main --config=quickstart --workdir="$out/quickstart")
      small=(-m lmjax.main --config=quickstart --workdir="$out/quickstart" --config.steps=2) ;;
    *) return 1 ;;
  esac
}

names=()
for word in "$@"; do
  case "$word" in
    first) names+=(step124m attention loss) ;;
    second) names+=(step1b step8b) ;;
    third) names+=(optim decode tests) ;;
    all) names+=(step124m attention loss step1b step8b optim decode tests) ;;
    *) piece "$word" || { echo "gpu.sh: no piece '$word'; the head of this file names them" >&2; exit 2; }
       names+=("$word") ;;
  esac
done
[ ${#names[@]} -gt 0 ] || { sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }
nvidia-smi > "$out/nvidia-smi.txt" 2>&1 || echo 'no nvidia-smi' > "$out/nvidia-smi.txt"

failed=()
for name in "${names[@]}"; do
  piece "$name"
  command=("${full[@]}")
  [ -z "${SMALL:-}" ] || command=("${small[@]}")
  case "${command[0]}" in *.py) rm -f "$out/$name.json"; command+=(--out="$out/$name.json") ;; esac
  echo "== $name, at most $limit s: $python ${command[*]}"
  began=$SECONDS flags="${XLA_FLAGS:-}"
  # Tests ask for a simulated mesh on the CPU only; this keeps them from slowing the GPU's compiler.
  [ "$name" != tests ] || flags='--xla_backend_optimization_level=3 --xla_force_host_platform_device_count=1'
  XLA_FLAGS="$flags" timeout -k 10 "$limit" "$python" "${command[@]}" 2>&1 | tee "$out/$name.txt" | tail -n 25
  status=${PIPESTATUS[0]}
  echo "== $name: exit status $status after $((SECONDS - began)) s"
  [ "$status" = 0 ] || failed+=("$name ($status)")
done
[ ${#failed[@]} -eq 0 ] || { echo "FAILED: ${failed[*]}; see $out/" >&2; exit 1; }
