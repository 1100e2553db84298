#!/usr/bin/env bash
# slurm.sh submit --name=NAME --nodes=N --gpus=G [--time=D-HH:MM:SS] [--partition=P] [--account=A]
#   [--qos=Q] [--python=PYTHON] [--restarts=N] [--dry-run] -- --config=RECIPE --workdir=DIR ...
# One process a node, with all GPUs of it; squeue, scancel and scontrol do the rest. See docs/launching.md.
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

VERBS=('submit: nodes= gpus= time= partition= account= qos= python= restarts= --')
begin 'name=' "$@"
restarts=${restarts:-100} time=${time:-1-00:00:00}
check name "$NAME_RULE" "$NAME_HELP"
check nodes '[1-9][0-9]*' 'a number of nodes is expected'
check gpus '[0-9]+' 'the GPUs of one node are expected'
check restarts '[0-9]+' 'a whole number is expected'
check time '([0-9]+-)?[0-9]+(:[0-9]+){0,2}' 'a duration is expected, as in 1-12:00:00'
check_words '^(/|gs://[^/]+/).+' 'a folder that all nodes see is expected: an absolute path, or gs://'
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${python:-$(command -v python || command -v python3 || true)}
check python '[^,]+' 'a Python that has lmjax is expected, and none is on the PATH (a comma separates variables for sbatch)'
[ "$gpus" = 0 ] && gpus=

run sbatch --job-name="$name" --nodes="$nodes" --ntasks-per-node=1 ${gpus:+"--gpus-per-node=$gpus"} \
  --time="$time" ${partition:+"--partition=$partition"} ${account:+"--account=$account"} \
  ${qos:+"--qos=$qos"} --output="$name-%j.log" \
  --export="ALL,LMJAX_PYTHON=$python,LMJAX_REQUEUES=$restarts" \
  "$here/slurm.sbatch" "$here/worker.sh" "${WORDS[@]}"
