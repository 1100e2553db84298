#!/usr/bin/env bash
# queued.sh create|status|pull|start|logs|stop|delete --name=NAME --zone=ZONE [--project=P] [--dry-run]
#   create  --type=v5litepod-256 --version=RUNTIME [--spot|--reserved] [--valid-until=6h]
#           [--service-account=MAIL]
#   pull    --image=IMAGE
#   start   --image=IMAGE -- --config=RECIPE --workdir=gs://BUCKET/RUN ...
# See docs/launching.md.
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_slices.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_tpu.sh"

VERBS=(
  'create: type= version= spot reserved valid-until= service-account='
  'pull: image='
  'start: image= --'
  'status logs stop delete:'
)
begin 'name= zone= project=' "$@"
check name "$NAME_RULE" "$NAME_HELP"
check zone "$ZONE_RULE" "$ZONE_HELP"
where=("--zone=$zone" ${project:+"--project=$project"})

on_workers() {
  run gcloud compute tpus queued-resources ssh "$name" "${where[@]}" --node=all --worker=all \
    --command="$1"
}

case $action in
  create)
    check_type
    check version '[a-z0-9][-a-z0-9._]*' 'a runtime version is expected, as in v2-alpha-tpuv5-lite'
    [ -z "${spot:-}" ] || [ -z "${reserved:-}" ] || die '--spot and --reserved: one of them is expected'
    [ -z "${valid_until:-}" ] || check valid-until '[1-9][0-9]*[smhd]' 'a duration is expected, as in 6h'
    run gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id="$name" \
      --accelerator-type="$type" --runtime-version="$version" --scopes=cloud-platform \
      ${spot:+--spot} ${reserved:+--reserved} \
      ${valid_until:+"--valid-until-duration=$valid_until"} \
      ${service_account:+"--service-account=$service_account"}
    ;;
  status) run gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' ;;
  delete) run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet ;;
  *) on_workers_do "$action" ;;
esac
