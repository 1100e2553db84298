#!/usr/bin/env bash
# gpu.sh start|logs|stop --name=NAME [--dry-run]
#   start   --image=IMAGE [--runs=DIR] [--gpus=all] -- --config=RECIPE --workdir=/runs/RUN ...
# One host with GPUs, in a container; DIR is what the container sees as /runs. See docs/launching.md.
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

VERBS=('start: image= runs= gpus= --' 'logs stop:')
begin 'name=' "$@"
gpus=${gpus:-all}
check name "$NAME_RULE" "$NAME_HELP"

case $action in
  start)
    check image "$IMAGE_RULE" "$IMAGE_HELP"
    check gpus 'all|[1-9][0-9]*' "'all' or a number of GPUs is expected"
    if [ -n "${runs:-}" ]; then
      check runs '/[^:]+' 'an absolute path without a colon is expected'
      check_words '^(/runs/|gs://[^/]+/).+' 'a folder below /runs, which is --runs outside, or gs:// is expected'
    else
      check_words "$BUCKET" 'without --runs a folder in a bucket is expected, since a container goes with its disk'
    fi
    # The user outside owns what is written to /runs.
    run docker run --detach --name="$name" --gpus="$gpus" --ipc=host --env=LMJAX_RESTARTS=1000 \
      --env=HOME=/tmp --user="$(id -u):$(id -g)" ${runs:+"--volume=$runs:/runs"} "$image" "${WORDS[@]}"
    ;;
  logs) run docker logs --tail=20 "$name" ;;
  stop) run docker stop -t 600 "$name" ;;
esac
