#!/usr/bin/env bash
# Trains on a TPU slice of Google Cloud; all workers run main.py as one pod.
#   launch/tpu.sh train NAME TYPE ZONE --logdir=gs://BUCKET/RUN [options of main.py]
#   launch/tpu.sh stop NAME ZONE      saves and stops; 'train' resumes
#   launch/tpu.sh delete NAME ZONE    deletes the slice
# 'train' requests the slice if it does not exist (TYPE is v5litepod-16, v5p-16,
# v6e-16, ...), copies this folder to all workers, installs, trains, and shows
# the output of worker 0. If the slice is preempted, 'train' requests it again
# and resumes from the last checkpoint. Environment variables: PROJECT,
# GCLOUD_FLAGS (for the request, such as --spot), VERSION (TPU VM runtime).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
POLL=${POLL:-20} # Seconds between polls of the state.

usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
  exit 1
}

fail() {
  echo "tpu: $*" >&2
  exit 1
}

tpus() {
  gcloud compute tpus "$@" --zone="$zone" ${PROJECT:+--project="$PROJECT"}
}

on() { # WORKERS COMMAND
  tpus tpu-vm ssh "$name" --worker="$1" --command="$2"
}

state() { # Prints the state of the request, or nothing if there is none.
  tpus queued-resources describe "$name" --format='value(state.state)' \
    2>/dev/null || true
}

runtime() {
  case $type in
    v5lite*) echo v2-alpha-tpuv5-lite ;;
    v5p*) echo v2-alpha-tpuv5 ;;
    v6e*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

acquire() {
  local was='' now
  while now=$(state) && [ "$now" != ACTIVE ]; do
    case $now in
      '')
        echo "tpu: requesting $name, $type in $zone"
        # shellcheck disable=SC2086  # GCLOUD_FLAGS may hold several words.
        tpus queued-resources create "$name" --node-id="$name" \
          --accelerator-type="$type" \
          --runtime-version="${VERSION:-$(runtime)}" ${GCLOUD_FLAGS:-}
        ;;
      FAILED | SUSPENDED) tpus queued-resources delete "$name" --force --quiet ;;
      "$was") ;;
      *) echo "tpu: $name is $now" ;;
    esac
    was=$now
    sleep "$POLL"
  done
}

install() {
  local archive
  archive=$(mktemp --suffix=.tgz)
  tar --exclude={.venv,.git,'.[a-z]*_cache',__pycache__,./runs,./logdir} \
    -czf "$archive" .
  tpus tpu-vm scp "$archive" "$name:dreamer_tpu.tgz" --worker=all
  rm "$archive"
  on all 'mkdir -p dreamer_tpu && tar -xzf dreamer_tpu.tgz -C dreamer_tpu &&
    sudo -n bash dreamer_tpu/launch/setup.sh && rm -f dreamer_tpu/.stopped'
}

# The run survives a lost connection: run.log has its output, .pid its process,
# and .code its exit code once it has ended.
start() {
  on all "cd dreamer_tpu && rm -f .code && : >run.log &&
    { setsid nohup bash -c '.venv/bin/python main.py \"\$@\" >run.log 2>&1 &
    echo \$! >.pid; wait \$!; echo \$? >.code' \
    main $(printf '%q ' "$@") </dev/null >/dev/null 2>&1 & }"
}

# Shows the log of worker 0 after line $shown until the run ends or the
# connection is lost. Sets `code` to the exit code, or '' if it is unknown.
follow() {
  local text
  while
    text=$(on 0 "cd dreamer_tpu && { cat .code 2>/dev/null || echo -; } &&
      tail -n +$((shown + 1)) run.log" 2>/dev/null) || text=''
    code=$(head -n 1 <<<"$text")
    if [ -n "$text" ]; then
      tail -n +2 <<<"$text"
      shown=$((shown + $(wc -l <<<"$text") - 1))
    fi
    [ "$code" = - ] || [ -z "$code" ] && [ "$(state)" = ACTIVE ]
  do sleep "$POLL"; done
}

train() {
  [[ " $* " == *" --logdir=gs://"* ]] ||
    fail 'set --logdir=gs://BUCKET/RUN, which all workers can access'
  while true; do
    acquire
    shown=0 code=''
    # The run may still be going after a lost connection.
    if on 0 'kill -0 "$(cat dreamer_tpu/.pid)"' 2>/dev/null; then
      echo "tpu: $name is already training; showing that run"
    else
      install
      echo "tpu: starting on all workers of $name"
      start "$@"
    fi
    follow
    case $code in
      0) return 0 ;;
      75 | '' | -)
        if on 0 'test -e dreamer_tpu/.stopped' 2>/dev/null; then
          return 75
        fi
        ;;
      *)
        sleep "$POLL" # A slice that is being preempted loses workers one by one.
        if [ "$(state)" = ACTIVE ]; then
          on all 'tail -n 3 dreamer_tpu/run.log'
          return "$code"
        fi
        ;;
    esac
  done
}

command=${1:-}
case $command in
  train)
    [ $# -ge 5 ] || usage
    name=$2 type=$3 zone=$4
    shift 4
    train "$@"
    ;;
  stop | delete)
    [ $# -eq 3 ] || usage
    name=$2 zone=$3
    if [ "$command" = stop ]; then
      on all 'cd dreamer_tpu && touch .stopped && kill -TERM "$(cat .pid)"'
    else
      tpus queued-resources delete "$name" --force --quiet
    fi
    ;;
  *) usage ;;
esac
