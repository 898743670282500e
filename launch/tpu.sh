#!/usr/bin/env bash
# Trains on a TPU slice of Google Cloud; all workers run main.py as one pod.
#   launch/tpu.sh train NAME TYPE ZONE --logdir=gs://BUCKET/RUN [options of main.py]
#   launch/tpu.sh submit NAME TYPE ZONE --logdir=gs://BUCKET/RUN [options of main.py]
#   launch/tpu.sh status NAME ZONE         state of request, nodes and workers
#   launch/tpu.sh logs NAME ZONE [WORKER]  follows the output of a worker
#   launch/tpu.sh stop NAME ZONE           saves and stops; 'train' resumes
#   launch/tpu.sh delete NAME ZONE         deletes the slice
# 'train' requests the slice if it does not exist (TYPE is v5litepod-16, v5p-16,
# v6e-16, ...), copies this folder to all workers, installs, trains, and shows
# the output of worker 0. Preempted slices are requested again, lost workers
# started again, and the run resumes from its last checkpoint. It exits as
# main.py does. 'submit' requests the slice, with a start-up script that installs
# and trains at each boot, and returns. --dry_run prints the commands instead.
# Environment variables:
#   PROJECT       project of Google Cloud
#   GCLOUD_FLAGS  for the request, such as '--spot --internal-ips'
#   SSH_FLAGS     --internal-ip or --tunnel-through-iap, without external addresses
#   NODE_COUNT    slices of the run, connected by the data center network
#   VERSION       TPU VM runtime
#   WORKER_ENV    names of variables that 'train' hands to main.py: WANDB_API_KEY
#   SECRETS       the same for 'submit'; names in Secret Manager
set -euo pipefail
umask 077
cd "$(dirname "${BASH_SOURCE[0]}")/.."
POLL=${POLL:-20}  # Seconds between polls of the state.
TRIES=${TRIES:-8} # Failures in a row, with a growing pause, before the end.
MISSES=${MISSES:-15} # Polls without an answer until a worker is lost.
REPAIR=${REPAIR:-60} # Polls until a node that is repaired counts as dead.
WORKER='sudo -n bash /opt/dreamer_tpu/launch/worker.sh'
LOG=/opt/dreamer_tpu/run.log
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
  exit 1
}

fail() {
  echo "tpu: $*" >&2
  exit 1
}

run_gcloud() {
  if [ "$dry_run" ]; then
    printf '%q ' gcloud "$@" >&3
    echo >&3
  else
    gcloud "$@" 3>&- 4>&-
  fi
}

tpus() {
  run_gcloud --quiet compute tpus "$@" --zone="$zone" \
    ${PROJECT:+--project="$PROJECT"}
}

# shellcheck disable=SC2086  # SSH_FLAGS may hold several words.
on() { # WORKERS COMMAND; worker 0 is that of the first slice
  local node first=1 pids=()
  for node in "${nodes[@]}"; do
    [ "$1" = all ] || [ "$first" ] || break
    tpus tpu-vm ssh "$node" --worker="$1" --command="$2" ${SSH_FLAGS:-} &
    pids+=($!) first=
  done
  each "${pids[@]}"
}

each() { # Waits for processes and fails if one of them did.
  local pid code=0
  for pid; do wait "$pid" || code=$?; done
  return "$code"
}

error() { # Prints the last line of what a command wrote to stderr.
  sed -n 's/^ERROR: ([^)]*) //; /[^ ]/p' "$scratch/error" | tail -n 1
}

# Tells why something is tried again, and waits, longer each time. Ends after
# $TRIES failures without a success.
again() {
  failures=$((failures + 1))
  [ "$failures" -lt "$TRIES" ] || fail "$*; gave up after $TRIES tries"
  local pause=$((POLL << (failures - 1)))
  [ "$pause" -le 600 ] || pause=600
  echo "tpu: $*; trying again in $pause s" >&2
  sleep "$pause"
}

# Sets `now` to the state of the slice, and `reason`: the state of the request,
# NONE if there is none, or that of a node that is not ready.
look() {
  local node health lost failures=0
  look_at_request
  [ "$now" = ACTIVE ] || return 0
  for node in "${nodes[@]}"; do
    until ask tpu-vm "$node" 'state,health'
    do again "cannot ask for the state of $node: $(error)"; done
    health=$reason reason="node $node is $now"
    case $now in
      READY) ;;
      NONE | PREEMPTED | TERMINATED | STOPPED)
        lost=$reason
        look_at_request # Somebody may be deleting the slice, nodes first.
        [ "$now" != ACTIVE ] || now=DEAD reason=$lost
        return 0
        ;;
      *) return 0 ;;
    esac
    case $health in
      UNHEALTHY*) now=$health && return 0 ;;
    esac
  done
  now=ACTIVE reason=
}

look_at_request() {
  until ask queued-resources "$name" 'state.state,state.failedData.error.message'
  do again "cannot ask for the state of $name: $(error)"; done
}

ask() { # KIND NAME FIELDS; sets `now` and `reason`
  local answer
  if answer=$(tpus "$1" describe "$2" --format="value($3)" 2>"$scratch/error"); then
    IFS=$'\t' read -r now reason <<<"$answer"
  elif grep -q NOT_FOUND "$scratch/error"; then
    now=NONE reason=
  else
    return 1
  fi
}

runtime() {
  case $type in
    v5lite*) echo v2-alpha-tpuv5-lite ;;
    v5p*) echo v2-alpha-tpuv5 ;;
    v6e*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

# shellcheck disable=SC2086  # GCLOUD_FLAGS may hold several words.
request() { # [flags]
  local node=(--node-id="$name")
  [ "$NODE_COUNT" = 1 ] ||
    node=(--node-count="$NODE_COUNT" --node-prefix="$name")
  echo "tpu: requesting $name, $NODE_COUNT x $type in $zone" >&2
  tpus queued-resources create "$name" "${node[@]}" \
    --accelerator-type="$type" --runtime-version="${VERSION:-$(runtime)}" \
    "$@" ${GCLOUD_FLAGS:-} 2>"$scratch/error" && exists=1 && return 0
  case $(<"$scratch/error") in
    *ALREADY_EXISTS*) exists=1 ;;
    *INVALID_ARGUMENT* | *PERMISSION_DENIED*) fail "$(error)" ;;
    *) again "the request failed: $(error)" ;;
  esac
}

remove() { tpus queued-resources delete "$name" --force; }

# Waits for the slice, and requests it if there is none or if it is lost, but not
# if somebody has deleted the one that was there.
acquire() {
  local was='' polls=0
  while look && [ "$now" != ACTIVE ]; do
    polls=$((polls + 1))
    [ "$now" = "$was" ] || polls=0
    [[ $now != @(REPAIRING|UNHEALTHY*) || $polls -lt $REPAIR ]] || now=DEAD
    case $now in
      NONE)
        [ ! "$exists" ] || fail "$name was deleted"
        request
        ;;
      FAILED | SUSPENDED | DEAD)
        ! remove || exists=
        case $now in
          FAILED) again "the request failed: $reason" ;;
          *) echo "tpu: $name is $now${reason:+ ($reason)}; deleted it" >&2 ;;
        esac
        ;;
      "$was") ;;
      *) echo "tpu: $name is $now${reason:+ ($reason)}" >&2 ;;
    esac
    was=$now
    sleep "$POLL"
  done
  exists=1
}

pack() { # Packs this folder, and the variables that the workers get.
  local variable
  for variable in ${WORKER_ENV:-}; do
    [ "${!variable+set}" ] || fail "WORKER_ENV: the variable $variable is not set"
    printf 'export %s=%q\n' "$variable" "${!variable}"
  done >"$scratch/.env"
  tar --exclude={.venv,.git,'.[a-z]*_cache',__pycache__,./runs,./logdir} \
    -czf "$scratch/dreamer_tpu.tgz" . -C "$scratch" ./.env
}

# shellcheck disable=SC2086  # SSH_FLAGS may hold several words.
install() {
  local node pids=()
  pack
  for node in "${nodes[@]}"; do
    tpus tpu-vm scp "$scratch/dreamer_tpu.tgz" "$node:" --worker=all \
      ${SSH_FLAGS:-} &
    pids+=($!)
  done
  each "${pids[@]}" && on all "tar -xzf dreamer_tpu.tgz ./launch/worker.sh -O >worker.sh &&
    sudo -n bash worker.sh install \"\$PWD/dreamer_tpu.tgz\" && rm worker.sh"
}

# Shows the output of worker 0 until the run ends. Sets `run` to the state of
# the run, or to a reason for which it is unknown.
follow() {
  local lines shown=0 misses=0
  while true; do
    # Without $(...), also in what this calls: Ctrl-C may get lost in it.
    if on 0 "$WORKER log $shown" >"$scratch/log" 2>"$scratch/error"; then
      mapfile -t lines <"$scratch/log"
      misses=0 run=${lines[0]:-}
      if [ ${#lines[@]} -gt 1 ]; then
        printf '%s\n' "${lines[@]:1}"
        shown=$((shown + ${#lines[@]} - 1))
      fi
      [ "$run" = running ] || return 0
    else
      run=", does not answer: $(error)"
      look
      [ "$now" = ACTIVE ] && [ $((misses += 1)) -lt "$MISSES" ] || return 0
    fi
    sleep "$POLL"
  done
}

# Installs and starts the run, unless it still runs after a lost connection.
begin() {
  local found
  found=$(on 0 "$WORKER state 2>/dev/null || echo none" 2>"$scratch/error") ||
    return 1
  if [ "$found" = running ]; then
    echo "tpu: $name is already training; showing that run" >&2
    return 0
  fi
  echo "tpu: installing on all workers of $name" >&2
  install 2>"$scratch/error" || return 1
  echo "tpu: starting on all workers of $name" >&2
  on all "$WORKER start $(printf '%q ' "$@")" 2>"$scratch/error"
}

train() {
  local failures=0 exists='' began states
  trap interrupted INT TERM
  while true; do
    acquire
    if ! begin "$@"; then
      again "cannot reach the workers of $name (${SSH_FLAGS:-for slices without \
external addresses, set SSH_FLAGS=--internal-ip or --tunnel-through-iap}): $(error)"
      continue
    fi
    began=$SECONDS
    follow
    [ $((SECONDS - began)) -lt 600 ] || failures=0
    case $run in
      'ended 0') return 0 ;;
      stopped) return 75 ;;
      'ended 75')
        sleep "$POLL" # 'stop' may not have reached worker 0 yet.
        [ "$(on 0 "$WORKER state" 2>/dev/null)" != stopped ] || return 75
        ;;
      ended*)
        sleep "$POLL" # A slice that is being preempted loses workers one by one.
        look
        if [ "$now" = ACTIVE ] &&
          states=$(on all "$WORKER state" 2>"$scratch/error") &&
          [[ $states != *@(lost|none|running)* ]]; then
          on all "sudo -n tail -n 3 $LOG" 2>/dev/null
          return "${run#ended }"
        fi
        [ "$now" != ACTIVE ] || again "a worker of $name was lost: ${states:-$(error)}"
        ;;
      *)
        look
        [ "$now" != ACTIVE ] || again "worker 0 of $name was lost${run#lost}"
        ;;
    esac
  done
}

interrupted() {
  echo "
tpu: $name keeps training, and costs money, without this terminal.
  launch/tpu.sh logs $name $zone    shows the run; so does the same 'train'
  launch/tpu.sh stop $name $zone    saves and stops it
  launch/tpu.sh delete $name $zone  deletes the slice" >&4
  exit 130
}

submit() {
  local logdir code failures=0
  look
  [ "$now" = NONE ] || fail "$name exists and is $now; delete it first"
  logdir=$(printf '%s\n' "$@" | sed -n 's/^--logdir=//p' | tail -n 1)
  code=${logdir%/}/code.tgz
  WORKER_ENV='' pack
  printf '%s\n' "$@" >"$scratch/arguments"
  run_gcloud --quiet storage cp "$scratch/dreamer_tpu.tgz" "$code"
  request --metadata="^|^dreamer-code=$code|dreamer-secrets=${SECRETS:-}" \
    --metadata-from-file="startup-script=launch/worker.sh,dreamer-arguments=$scratch/arguments"
}

status() {
  look
  echo "$name: $now${reason:+ ($reason)}"
  [ "$now" != ACTIVE ] ||
    on all "echo \$(hostname): \$($WORKER state): \$(sudo -n tail -n 1 $LOG)"
}

dry_run='' arguments=()
for argument; do
  if [ "$argument" = --dry_run ]; then dry_run=1; else arguments+=("$argument"); fi
done
set -- "${arguments[@]}"
NODE_COUNT=${NODE_COUNT:-1}
exec 3>&1 4>&2 # Where dry runs and the message of Ctrl-C go.
command=${1:-}
case $command in
  train | submit)
    [ $# -ge 5 ] || usage
    name=$2 type=$3 zone=$4
    shift 4
    [[ $type != @(tpu7x|v7x|tpu-?7x)* ]] ||
      fail "TYPE=$type: the Cloud TPU API has no TPU7x; use launch/gce.sh or launch/gke.sh"
    [[ " $* " == *" --logdir=gs://"* ]] ||
      fail 'set --logdir=gs://BUCKET/RUN, which all workers can access'
    ;;
  status | stop | delete | logs)
    [ $# -ge 3 ] || usage
    name=$2 zone=$3
    ;;
  *) usage ;;
esac

nodes=("$name")
if [ "$NODE_COUNT" != 1 ]; then
  for ((i = 0; i < NODE_COUNT; i++)); do nodes[i]=$name-$i; done
fi

case $command in
  train)
    if [ "$dry_run" ]; then
      request
      install
      on all "$WORKER start $(printf '%q ' "$@")"
      on 0 "$WORKER log 0"
    else
      train "$@"
    fi
    ;;
  logs)
    on "${4:-0}" "sudo -n tail -n 1000 -F $LOG --pid=\$(sudo -n cut -d ' ' -f 2 /opt/dreamer_tpu/.pid)"
    ;;
  stop) on all "$WORKER stop" ;;
  delete) remove ;;
  *) "$command" "$@" ;;
esac
