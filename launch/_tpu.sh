# What tpu_vm.sh and queued.sh do on the workers of a TPU, given `on_workers COMMAND`.

RESTARTS=1000 # by worker.sh: nothing else starts a container again
GRACE=600     # seconds in which a stopped run may save

words() {
  printf '%q ' "$@"
}

start_workers() {
  check image "$IMAGE_RULE" "$IMAGE_HELP"
  check_words "$BUCKET" "$BUCKET_HELP"
  # --privileged and root: the devices of a TPU VM belong to root. --net: the other workers, and the
  # metadata that say which worker this is.
  on_workers "sudo docker rm -f lmjax > /dev/null 2>&1; $(words sudo docker run -d --name=lmjax \
    --privileged --net=host --user=root -e LMJAX_RESTARTS="$RESTARTS" \
    "$image" "${WORDS[@]}")"
}

on_workers_do() {
  case $1 in
    pull)
      check image "$IMAGE_RULE" "$IMAGE_HELP"
      on_workers "$(words sudo docker pull -q "$image")"
      ;;
    start) start_workers ;;
    logs) on_workers 'sudo docker logs --tail=20 lmjax' ;;
    stop) on_workers "sudo docker stop -t $GRACE lmjax" ;;
  esac
}
