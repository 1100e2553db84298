#!/usr/bin/env bash
# gke.sh print|apply|status|logs|delete --name=NAME [--namespace=N] [--dry-run]
#   print, apply   --image=IMAGE [--service-account=KSA] [--restarts=N]
#                  --tpu=tpu-v5-lite-podslice --topology=4x4 [--chips=4]
#                  or --gpu=nvidia-h100-80gb --gpus=8 [--hosts=2]
#                  -- --config=RECIPE --workdir=gs://BUCKET/RUN ...
# One JobSet, a pod for each host. See docs/launching.md.
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_slices.sh"

# Text as a YAML string; Kubernetes would take $(NAME) for a variable.
quoted() {
  local text=${1//\'/\'\'}
  [[ $1 != *$'\n'* ]] || die 'an argument has a line break'
  printf "'%s'" "${text//\$(/\$\$(}"
}

# The hosts of a slice and the chips of each, or hosts and GPUs: sets hosts, limits, selector.
shape() {
  if [ -n "${tpu:-}" ]; then
    check_topology
    [ -z "${gpu:-}${gpus:-}${hosts:-}" ] || die '--tpu and --gpu, --gpus or --hosts: the hosts of a slice follow from --topology and --chips'
    local all=$((${topology//x/*}))
    local full=$((all < 4 ? all : 4)) # chips of a host; one of 8 is a slice of its own
    chips=${chips:-$full}
    [ "$chips" = "$full" ] || [ "$chips $topology" = '8 2x4' ] ||
      die "--chips=$chips: a host of --topology=$topology has $full chip(s), or 8 of 2x4"
    hosts=$((all / chips))
    resource="google.com/tpu: $chips"
    selector="cloud.google.com/gke-tpu-accelerator: $tpu
              cloud.google.com/gke-tpu-topology: $topology"
  else
    check gpu 'nvidia-[0-9a-z-]+' 'a GPU of GKE is expected, as in nvidia-h100-80gb (or --tpu)'
    check gpus '[1-9][0-9]*' 'the GPUs of one host are expected'
    hosts=${hosts:-1}
    check hosts '[1-9][0-9]*' 'a number of hosts is expected'
    resource="nvidia.com/gpu: $gpus"
    selector="cloud.google.com/gke-accelerator: $gpu"
  fi
}

manifest() {
  # A bug; with several hosts it may be no more than the echo of another one's end.
  local person='2, 65, 74' w
  [ "$hosts" -gt 1 ] || person="1, $person"
  cat << YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
spec:
  failurePolicy:
    maxRestarts: $restarts
    restartStrategy: BlockingRecreate # two attempts must not meet in one run directory
    rules:
      - {name: needsAPerson, action: FailJobSet, onJobFailureReasons: [PodFailurePolicy]}
  network: {enableDNSHostnames: true, publishNotReadyAddresses: true}
  replicatedJobs:
    - name: run
      replicas: 1
      template:
        spec:
          completionMode: Indexed
          completions: $hosts
          parallelism: $hosts
          backoffLimit: 0 # one pod less and all must start again, which the JobSet does
          podFailurePolicy:
            rules:
              - {action: FailJob, onExitCodes: {containerName: lmjax, operator: In, values: [$person]}}
              - {action: Count, onExitCodes: {containerName: lmjax, operator: In, values: [75]}}
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 600 # to save in
${service_account:+              serviceAccountName: $service_account
}              nodeSelector:
              $(printf '  %s' "$selector" | sed '2,$s/^ */                /')
              tolerations:
                - {key: ${resource%%:*}, operator: Exists, effect: NoSchedule}
              containers:
                - name: lmjax
                  image: $image
                  command: [/opt/lmjax/launch/worker.sh]
                  args:
$(for w in "${WORDS[@]}"; do printf '                    - %s\n' "$(quoted "$w")"; done)
                  env:
                    - {name: LMJAX_COORDINATOR, value: '$name-run-0-0.$name:8476'}
                    - {name: LMJAX_PROCESSES, value: '$hosts'}
                  resources:
                    limits: {$resource}
                    requests: {$resource}
YAML
  if [ -z "${tpu:-}" ]; then
    cat << YAML
                  volumeMounts:
                    - {name: shm, mountPath: /dev/shm} # NCCL's, within a host
              volumes:
                - {name: shm, emptyDir: {medium: Memory}}
YAML
  else
    cat << YAML
                  securityContext: {runAsUser: 0} # as whom the devices of a TPU belong
YAML
  fi
}

VERBS=(
  'print apply: image= service-account= restarts= tpu= topology= chips= gpu= gpus= hosts= --'
  'status logs delete:'
)
begin 'name= namespace=' "$@"
restarts=${restarts:-100}
check name "$NAME_RULE" "$NAME_HELP"
where=(${namespace:+"--namespace=$namespace"})

case $action in
  print | apply)
    check image "$IMAGE_RULE" "$IMAGE_HELP"
    check restarts '[0-9]+' 'a whole number is expected'
    [ -z "${service_account:-}" ] || check service-account '[a-z0-9][-a-z0-9.]*' 'a service account of Kubernetes is expected'
    check_words "$BUCKET" "$BUCKET_HELP"
    shape
    text=$(manifest)
    if [ "$action" = print ] || [ "$DRY_RUN" = 1 ]; then echo "$text"; fi
    [ "$action" = print ] || run kubectl apply ${where[@]+"${where[@]}"} --filename=- <<< "$text"
    ;;
  status) run kubectl get jobset "$name" ${where[@]+"${where[@]}"} --output=wide ;;
  logs) run kubectl logs ${where[@]+"${where[@]}"} --selector="jobset.sigs.k8s.io/jobset-name=$name" --tail=20 --prefix ;;
  delete) run kubectl delete jobset "$name" ${where[@]+"${where[@]}"} ;;
esac
