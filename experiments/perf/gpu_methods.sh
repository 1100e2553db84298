#!/usr/bin/env bash
# Costs of single methods where a GPU is at hand; about fifteen minutes. Usage: experiments/perf/gpu_methods.sh [OUT]
# Needs what gpu.sh needs, and is its own run: either fits in half an hour by itself.
set -u
cd "$(dirname "$0")/../.."
out="${1:-gpu_results}"
mkdir -p "$out"
export PYTHONPATH="$PWD" JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
python="${PYTHON:-python3}" failed=""
timeout 200 "$python" experiments/perf/headless.py --width=1024 --depth=8 --rows=16 --length=512 --dtype=bfloat16 \
  --vocab=8192,32768,131072 --steps=5 --rounds=5 --out="$out/headless.json" > "$out/headless.txt" 2>&1 || failed="$failed headless"
timeout 300 "$python" experiments/perf/length.py --width=1024 --depth=12 --head=128 --dtype=bfloat16 --tokens=65536 \
  --lengths=256,1024,4096,16384,65536 --steps=5 --out="$out" > "$out/length.txt" 2>&1 || failed="$failed length"
timeout 120 "$python" experiments/perf/int8.py --out="$out/int8.json" > "$out/int8.txt" 2>&1 || failed="$failed int8"
timeout 300 "$python" experiments/perf/megabyte.py --size=large --dtype=bfloat16 --out="$out/megabyte.json" > "$out/megabyte.txt" 2>&1 || failed="$failed megabyte"
tail -n 3 "$out"/*.txt
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
