#!/usr/bin/env bash
# Trains on a TPU slice of Google Kubernetes Engine, as a JobSet.
#   launch/gke.sh train NAME TOPOLOGY IMAGE --logdir=gs://BUCKET/RUN [options of main.py]
#   launch/gke.sh status NAME           state of the JobSet and its pods
#   launch/gke.sh logs NAME [INDEX]     follows the output of a host
#   launch/gke.sh delete NAME           saves, stops and deletes the JobSet
# TOPOLOGY is v5e:4x4, v5p:2x2x2, v6e:4x4, tpu7x:2x2x2, ...; IMAGE is built from
# this folder. When hosts fail or Spot nodes are taken away, all hosts of the
# JobSet start again, and resume, until the run is done. --dry_run prints the
# manifest or the command instead. Environment variables:
#   SPOT         1 for Spot nodes
#   NODE_COUNT   slices of the run, connected by the data center network
#   RESTARTS     maximum number of restarts after errors (20); those after a
#                save or the loss of a node do not count
#   ACCOUNT      service account of Kubernetes with access to the bucket
# The Kubernetes secret NAME, if it exists, becomes environment variables:
#   kubectl create secret generic NAME --from-literal=WANDB_API_KEY=...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
  exit 1
}

fail() {
  echo "gke: $*" >&2
  exit 1
}

kube() {
  if [ "$dry_run" ]; then
    printf '%q ' kubectl "$@"
    echo
  else
    kubectl "$@"
  fi
}

# Quotes strings for YAML, whose flow sequences may be JSON.
quoted() { printf '%s\n' "$@" | sed 's/[\\"]/\\&/g; s/.*/"&"/' | paste -sd, -; }

accelerator() {
  case $generation in
    v4) echo tpu-v4-podslice ;;
    v5e) echo tpu-v5-lite-podslice ;;
    v5p) echo tpu-v5p-slice ;;
    v6e) echo tpu-v6e-slice ;;
    tpu7x) echo tpu7x ;;
    *) fail "TOPOLOGY=$generation:$topology: use v4, v5e, v5p, v6e or tpu7x, such as v6e:4x4" ;;
  esac
}

# Hosts have four chips, unless one has them all. The hosts' own network lets
# them find each other by name, as on TPU VMs.
manifest() {
  local kind chips=$((${topology//x/*})) each
  kind=$(accelerator) || exit 1
  each=$((chips < 4 ? chips : 4))
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: ${RESTARTS:-20}
    rules:
    - name: preempted
      action: RestartJobSetAndIgnoreMaxRestarts
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: ${NODE_COUNT:-1}
    template:
      spec:
        parallelism: $((chips / each))
        completions: $((chips / each))
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {operator: In, values: [75]}
          - action: FailJob
            onPodConditions: [{type: DisruptionTarget}]
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 30
            hostNetwork: true
            dnsPolicy: ClusterFirstWithHostNet
            serviceAccountName: ${ACCOUNT:-default}
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $kind
              cloud.google.com/gke-tpu-topology: $topology
END
  [ "${SPOT:-}" != 1 ] || cat <<END
              cloud.google.com/gke-spot: "true"
            tolerations:
            - key: cloud.google.com/gke-spot
              operator: Equal
              value: "true"
              effect: NoSchedule
END
  cat <<END
            containers:
            - name: dreamer
              image: $image
              args: [$(quoted "$@")]
              envFrom:
              - secretRef: {name: $name, optional: true}
              ports:
              - containerPort: 8482
              - containerPort: 8483
              resources:
                limits: {google.com/tpu: $each}
END
}

dry_run='' arguments=()
for argument; do
  if [ "$argument" = --dry_run ]; then dry_run=1; else arguments+=("$argument"); fi
done
set -- "${arguments[@]}"
[ $# -ge 2 ] || usage
command=$1 name=$2
selector=jobset.sigs.k8s.io/jobset-name=$name
case $command in
  train)
    [ $# -ge 5 ] || usage
    generation=${3%%:*} topology=${3#*:} image=$4
    shift 4
    [[ $topology =~ ^[0-9]+(x[0-9]+)+$ ]] ||
      fail "TOPOLOGY=$generation:$topology: write it as v6e:4x4 or tpu7x:2x2x2"
    [[ " $* " == *" --logdir=gs://"* ]] ||
      fail 'set --logdir=gs://BUCKET/RUN, which all hosts can access'
    text=$(manifest "$@")
    if [ "$dry_run" ]; then echo "$text"; else kubectl apply -f - <<<"$text"; fi
    ;;
  status)
    kube get jobset "$name"
    kube get pods -l "$selector" -o wide
    ;;
  logs) kube logs -f --tail=1000 -l "$selector,batch.kubernetes.io/job-completion-index=${3:-0}" ;;
  delete) kube delete jobset "$name" ;;
  *) usage ;;
esac
