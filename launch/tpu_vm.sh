#!/usr/bin/env bash
# tpu_vm.sh create|pull|start|logs|stop|delete --name=NAME --zone=ZONE [--project=P] [--dry-run]
#   create  --type=v5litepod-16 --version=RUNTIME [--spot] [--service-account=MAIL]
#   pull    --image=IMAGE
#   start   --image=IMAGE -- --config=RECIPE --workdir=gs://BUCKET/RUN ...
# See docs/launching.md.
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_slices.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_tpu.sh"

VERBS=(
  'create: type= version= spot service-account='
  'pull: image='
  'start: image= --'
  'logs stop delete:'
)
begin 'name= zone= project=' "$@"
check name "$NAME_RULE" "$NAME_HELP"
check zone "$ZONE_RULE" "$ZONE_HELP"
where=("--zone=$zone" ${project:+"--project=$project"})

on_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

case $action in
  create)
    check_type
    check version '[a-z0-9][-a-z0-9._]*' 'a runtime version is expected, as in v2-alpha-tpuv5-lite'
    run gcloud compute tpus tpu-vm create "$name" "${where[@]}" --accelerator-type="$type" \
      --version="$version" --scopes=cloud-platform ${spot:+--spot} \
      ${service_account:+"--service-account=$service_account"}
    ;;
  delete) run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet ;;
  *) on_workers_do "$action" ;;
esac
