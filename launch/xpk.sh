#!/usr/bin/env bash
# xpk.sh start|list|delete --cluster=C --name=NAME --zone=ZONE [--project=P] [--dry-run]
#   start   --type=v5litepod-256 --image=IMAGE [--restarts=N] [--slices=N] -- --config=RECIPE --workdir=gs://BUCKET/RUN ...
# See docs/launching.md.
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_slices.sh"

VERBS=('start: type= image= restarts= slices= --' 'list delete:')
begin 'cluster= name= zone= project=' "$@"
restarts=${restarts:-100} slices=${slices:-1}
check cluster "$NAME_RULE" "$NAME_HELP"
check name "$NAME_RULE" "$NAME_HELP"
check zone "$ZONE_RULE" "$ZONE_HELP"
where=("--cluster=$cluster" "--zone=$zone" ${project:+"--project=$project"})

case $action in
  start)
    check_type
    check image "$IMAGE_RULE" "$IMAGE_HELP"
    check restarts '[0-9]+' 'a whole number is expected'
    check slices '[1-9][0-9]*' 'a number of slices is expected'
    check_words "$BUCKET" "$BUCKET_HELP"
    # xpk restarts what was killed (127 to 255) by itself; 75 is ours.
    run xpk workload create "${where[@]}" --workload="$name" --tpu-type="$type" \
      --num-slices="$slices" --docker-image="$image" --max-restarts="$restarts" --restart-on-exit-codes=75 \
      --termination-grace-period-seconds=600 \
      --command="bash /opt/lmjax/launch/worker.sh $(printf '%q ' "${WORDS[@]}")"
    ;;
  list) run xpk workload list "${where[@]}" --filter-by-job="$name" ;;
  delete) run xpk workload delete "${where[@]}" --workload="$name" --force ;;
esac
