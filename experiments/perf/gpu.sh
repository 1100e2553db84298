#!/usr/bin/env bash
# What to run where a GPU is at hand; about fifteen minutes. Usage: experiments/perf/gpu.sh [OUT]
# Needs lmjax installed with '.[cuda,test]', or on the path of a Python that has what it needs.
set -u
cd "$(dirname "$0")/../.."
out="${1:-gpu_results}"
mkdir -p "$out"
export PYTHONPATH="$PWD" JAX_PLATFORMS=cuda
nvidia-smi > "$out/nvidia-smi.txt"
# Tests ask for a simulated mesh on the CPU only; the flags keep them from slowing the GPU's compiler.
XLA_FLAGS="--xla_backend_optimization_level=3 --xla_force_host_platform_device_count=1" \
  timeout 240 python -m pytest -q -p no:cacheprovider tests/kernels tests/contracts/test_mixer.py \
  tests/test_train_step.py tests/test_recompute.py > "$out/tests.txt" 2>&1
timeout 150 python experiments/perf/device.py --recipe=gpt2:124M --rows=32 --out="$out/gpt2_124M.json"
timeout 150 python experiments/perf/device.py --recipe=llama:1B --rows=2 --rounds=2 --out="$out/llama_1B.json"
timeout 400 python experiments/perf/optim_step.py --recipe=gpt2:124M --rows=32 --out="$out/optim_step.json" > "$out/optim_step.txt" 2>&1
timeout 120 python -m lmjax.main --config=quickstart --workdir="$out/quickstart" > "$out/quickstart.txt" 2>&1
tail -3 "$out"/*.txt
