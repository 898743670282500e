#!/usr/bin/env bash
# Trains on a TPU slice of Compute Engine (v6e, TPU7x): an instance template, a
# workload policy with the topology, and a managed instance group.
#   launch/gce.sh train NAME TOPOLOGY ZONE --logdir=gs://BUCKET/RUN [options of main.py]
#   launch/gce.sh status NAME ZONE           state of the machines
#   launch/gce.sh logs NAME ZONE [MACHINE]   follows the output of a machine
#   launch/gce.sh stop NAME ZONE             saves and stops
#   launch/gce.sh delete NAME ZONE           deletes all three
# TOPOLOGY is v6e:4x4, tpu7x:2x2x2, ... A start-up script installs and trains at
# each boot, so that machines which restart resume by themselves. To replace a
# Spot slice that was preempted: delete, then the same 'train'. --dry_run prints
# the commands instead. Environment variables:
#   PROJECT       project of Google Cloud, required
#   GCLOUD_FLAGS  for the template, such as '--provisioning-model=SPOT --no-address'
#   SSH_FLAGS     --internal-ip or --tunnel-through-iap, without external addresses
#   SECRETS       names in Secret Manager that become variables: WANDB_API_KEY
set -euo pipefail
umask 077
cd "$(dirname "${BASH_SOURCE[0]}")/.."
WORKER='sudo -n bash /opt/dreamer_tpu/launch/worker.sh'
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
  exit 1
}

fail() {
  echo "gce: $*" >&2
  exit 1
}

cloud() {
  if [ "$dry_run" ]; then
    printf '%q ' gcloud --quiet "$@" --project="$PROJECT" >&3
    echo >&3
  else
    gcloud --quiet "$@" --project="$PROJECT" 3>&-
  fi
}

group() { cloud compute instance-groups managed "$@" --zone="$zone"; }

machines() {
  group list-instances "$name" --format='value(name)' &&
    { [ ! "$dry_run" ] || echo MACHINE; }
}

# shellcheck disable=SC2086  # SSH_FLAGS may hold several words.
on() { # MACHINE COMMAND
  cloud compute ssh "$1" --zone="$zone" --command="$2" ${SSH_FLAGS:-}
}

# Sets the machine type, the image and the number of machines of a topology.
# Machines have four chips, unless one has them all.
choose() {
  local chips=$((${topology//x/*})) each
  each=$((chips < 4 ? chips : 4))
  count=$((chips / each))
  case $generation in
    v6e)
      machine=ct6e-standard-${each}t
      image=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e
      ;;
    tpu7x)
      machine=tpu7x-standard-${each}t
      image=ubuntu-accel-2404-amd64-tpu-tpu7x
      disk=--boot-disk-type=hyperdisk-balanced
      ;;
    *) fail "TOPOLOGY=$generation:$topology: use v6e or tpu7x here, such as v6e:4x4; launch/tpu.sh has the others" ;;
  esac
}

# shellcheck disable=SC2086  # GCLOUD_FLAGS may hold several words.
train() {
  local logdir code machine image count disk='' policy=()
  choose
  logdir=$(printf '%s\n' "$@" | sed -n 's/^--logdir=//p' | tail -n 1)
  code=${logdir%/}/code.tgz
  tar --exclude={.venv,.git,'.[a-z]*_cache',__pycache__,./runs,./logdir} \
    -czf "$scratch/code.tgz" .
  printf '%s\n' "$@" >"$scratch/arguments"
  cloud storage cp "$scratch/code.tgz" "$code"
  cloud compute instance-templates create "$name" --machine-type="$machine" \
    --image-project=ubuntu-os-accelerator-images --image-family="$image" \
    --boot-disk-size=200GB $disk --maintenance-policy=TERMINATE \
    --scopes=cloud-platform \
    --metadata="^|^dreamer-code=$code|dreamer-secrets=${SECRETS:-}" \
    --metadata-from-file="startup-script=launch/worker.sh,dreamer-arguments=$scratch/arguments" \
    ${GCLOUD_FLAGS:-}
  if [ "$count" -gt 1 ]; then
    cloud compute resource-policies create workload-policy "$name" \
      --type=HIGH_THROUGHPUT --accelerator-topology="$topology" \
      --region="${zone%-*}"
    policy=(
      --workload-policy="projects/$PROJECT/regions/${zone%-*}/resourcePolicies/$name"
      --target-size-policy-mode=bulk
    )
  fi
  group create "$name" --template="$name" --size="$count" "${policy[@]}" \
    --default-action-on-vm-failure=do-nothing
}

remove() { # Whatever is there of the three.
  group delete "$name" || true
  cloud compute resource-policies delete "$name" --region="${zone%-*}" || true
  cloud compute instance-templates delete "$name"
}

# Fails if the machines cannot be listed, or one of them cannot be reached.
stop() {
  local all machine pid pids=() code=0
  all=$(machines)
  for machine in $all; do
    on "$machine" "$WORKER stop" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || code=1; done
  return "$code"
}

exec 3>&1 # Where dry runs print.
dry_run='' arguments=()
for argument; do
  if [ "$argument" = --dry_run ]; then dry_run=1; else arguments+=("$argument"); fi
done
set -- "${arguments[@]}"
[ $# -ge 3 ] || usage
[ "${PROJECT:-}" ] || fail 'set PROJECT to the project of Google Cloud'
command=$1
case $command in
  train)
    [ $# -ge 5 ] || usage
    name=$2 generation=${3%%:*} topology=${3#*:} zone=$4
    shift 4
    [[ $topology =~ ^[0-9]+(x[0-9]+)+$ ]] ||
      fail "TOPOLOGY=$generation:$topology: write it as v6e:4x4 or tpu7x:2x2x2"
    [[ " $* " == *" --logdir=gs://"* ]] ||
      fail 'set --logdir=gs://BUCKET/RUN, which all machines can access'
    train "$@"
    ;;
  status | logs | stop | delete)
    name=$2 zone=$3
    case $command in
      status) group list-instances "$name" ;;
      logs)
        machine=${4:-$(machines)}
        on "${machine%%$'\n'*}" 'sudo -n tail -n 1000 -F /opt/dreamer_tpu/run.log'
        ;;
      stop) stop ;;
      delete) remove ;;
    esac
    ;;
  *) usage ;;
esac
