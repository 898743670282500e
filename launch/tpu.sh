#!/usr/bin/env bash
# Trains on a TPU slice of Google Cloud: every worker runs main.py, as one pod.
#   launch/tpu.sh train NAME TYPE ZONE --logdir=gs://BUCKET/RUN [options of main.py]
#   launch/tpu.sh stop NAME ZONE      saves and stops; 'train' goes on from there
#   launch/tpu.sh delete NAME ZONE    gives the slice back
# 'train' asks for the slice where there is none (such as TYPE v5litepod-16,
# v5p-16, v6e-16), copies this folder to all workers, installs, trains and shows
# what worker 0 prints. A slice that is preempted is asked for again, and the
# run goes on from its last checkpoint. Environment: PROJECT, GCLOUD_FLAGS (such
# as --spot, for the request), VERSION (runtime of the TPU VM).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
POLL=${POLL:-20} # Seconds between two looks at the slice.

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

state() { # Of the request; empty where there is none.
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
        echo "tpu: asking for $name, $type in $zone"
        # shellcheck disable=SC2086  # GCLOUD_FLAGS are several words.
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

# The run outlives a broken connection: its output is in run.log, its process in
# .pid, and at the end its exit code in .code.
start() {
  on all "cd dreamer_tpu && rm -f .code && : >run.log &&
    { setsid nohup bash -c '.venv/bin/python main.py \"\$@\" >run.log 2>&1 &
    echo \$! >.pid; wait \$!; echo \$? >.code' \
    main $(printf '%q ' "$@") </dev/null >/dev/null 2>&1 & }"
}

# Shows worker 0's log from line $shown on, until the run has ended or the
# connection breaks. Sets `code`, empty when it is not known.
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
    fail '--logdir=gs://BUCKET/RUN is needed, which all workers can see'
  while true; do
    acquire
    shown=0 code=''
    # After a broken connection, or in another terminal, it may still be going.
    if on 0 'kill -0 "$(cat dreamer_tpu/.pid)"' 2>/dev/null; then
      echo "tpu: $name is training already; showing that run"
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
        sleep "$POLL" # A slice on its way out takes its workers one by one.
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
