#!/usr/bin/env bash
# worker.sh ARGUMENTS of lmjax.main: what runs on every worker, and in the container. The same
# command goes to all of them.
#
# Exit status 75 means 'start again', and at most LMJAX_RESTARTS times (0 by default: a scheduler
# does it) that is done here. Every other status is for a person, and is handed on. TERM and INT are
# handed down: lmjax saves, ends with 75, and is not started again.
set -uo pipefail
[[ ${LMJAX_RESTARTS:-0} =~ ^[0-9]+$ ]] || {
  echo "worker.sh: LMJAX_RESTARTS=$LMJAX_RESTARTS: a whole number is expected" >&2
  exit 2
}
stopped='' child=''
trap 'stopped=1; [ -n "$child" ] && kill -TERM "$child" 2> /dev/null' TERM INT

join=() # lmjax finds its place by itself under Slurm and on TPUs
if [ "${LMJAX_PROCESSES:-1}" -gt 1 ]; then # a JobSet: launch/gke.sh
  join=("--coordinator=$LMJAX_COORDINATOR" "--processes=$LMJAX_PROCESSES" "--process=$JOB_COMPLETION_INDEX")
fi

for attempt in $(seq 0 "${LMJAX_RESTARTS:-0}"); do
  [ -z "$stopped" ] || exit 75
  "${LMJAX_PYTHON:-python}" -m lmjax.main "$@" ${join[@]+"${join[@]}"} &
  child=$!
  wait "$child"
  status=$?
  while [ -n "$stopped" ] && kill -0 "$child" 2> /dev/null; do # a signal ends `wait` early
    wait "$child"
    status=$?
  done
  if [ "$status" != 75 ] || [ -n "$stopped" ]; then
    exit "$status"
  fi
  echo "worker.sh: status 75, attempt $((attempt + 1)) of $((${LMJAX_RESTARTS:-0} + 1))" >&2
  sleep "${LMJAX_PAUSE:-5}"
done
exit 75
