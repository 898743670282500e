#!/usr/bin/env bash
# Runs main.py on one worker of a slice, as root. tpu.sh and gce.sh copy it there.
#   worker.sh install ARCHIVE  unpacks the code and installs its packages
#   worker.sh start ARGUMENTS  starts main.py in the background
#   worker.sh log LINES        prints the state, and run.log after LINES lines
#   worker.sh state            prints none, running, lost, stopped or 'ended CODE'
#   worker.sh stop             saves and stops
# Without a command it is the start-up script of a machine: it downloads the
# code, installs, and trains until the run has ended, at each boot again.
set -euo pipefail
folder=${DREAMER_FOLDER:-/opt/dreamer_tpu}
mkdir -p "$folder"
cd "$folder"

boot_id() { cat /proc/sys/kernel/random/boot_id; }

# 'lost' has neither ended nor runs: killed, or the machine was restarted. What
# has ended is still running until its parent has noted the exit code.
state() {
  local boot pid parent code noting=''
  if ! read -r boot pid parent 2>/dev/null <.pid; then
    echo none
    return
  fi
  [ "$boot" = "$(boot_id)" ] || pid='' parent=''
  ! kill -0 "$parent" 2>/dev/null || noting=1 # Before the code is read.
  if kill -0 "$pid" 2>/dev/null; then
    echo running
  elif ! read -r code 2>/dev/null <.code; then
    if [ "$noting" ]; then echo running; else echo lost; fi
  elif [ "$code" = 75 ] && [ -e .stopped ]; then
    echo stopped
  else
    echo "ended $code"
  fi
}

install() { # ARCHIVE
  tar -xzf "$1" && rm "$1"
  sudo -n bash launch/setup.sh
}

# Runs main.py; notes the boot, its process and this one, and later its exit
# code. The variables in .env never are on a command line, which all users of a
# machine can read.
run() {
  local code=0
  rm -f .code
  (
    if [ -e .env ]; then
      # shellcheck source=/dev/null
      source .env
    fi
    exec .venv/bin/python main.py "$@"
  ) >>run.log 2>&1 </dev/null &
  echo "$(boot_id) $! $$" >.pid.new
  mv .pid.new .pid
  wait $! || code=$?
  echo "$code" >.code.new
  mv .code.new .code
  return "$code"
}

signal() { # NAME
  local pid
  read -r _ pid _ <.pid
  kill "-$1" "$pid" 2>/dev/null || true
}

start() {
  local try
  if [ "$(state)" = running ]; then # What is left of a run that lost others.
    signal KILL
    for ((try = 0; try < 50; try++)); do
      [ ! -e .code ] || break
      sleep 0.1
    done
  fi
  rm -f .stopped .code .pid
  : >run.log
  setsid nohup bash "$0" run "$@" >/dev/null 2>&1 </dev/null &
  while [ ! -e .pid ] && kill -0 $! 2>/dev/null; do sleep 0.1; done
  [ -e .pid ]
}

attribute() { # NAME
  curl -sf --retry 5 -H 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

# Ends when the run is done or was stopped, or has failed often and at once.
boot() {
  local arguments name failures=0 code began
  until
    code=$(attribute dreamer-code) &&
      gcloud --quiet storage cp "$code" code.tgz
  do sleep "${POLL:-20}"; done
  mapfile -t arguments < <(attribute dreamer-arguments)
  install code.tgz
  for name in $(attribute dreamer-secrets || true); do
    printf 'export %s=%q\n' "$name" \
      "$(gcloud --quiet secrets versions access latest --secret="$name")"
  done >.env.new
  chmod 600 .env.new
  mv .env.new .env
  while [ ! -e .stopped ]; do
    began=$SECONDS code=0
    run "${arguments[@]}" || code=$?
    [ "$code" != 0 ] || break
    [ $((SECONDS - began)) -lt 600 ] || failures=0
    [ $((failures += 1)) -lt 10 ] || return "$code"
    sleep "${POLL:-20}"
  done
}

command=${1:-boot}
case $command in
  boot) (umask 077 && boot) ;;
  stop)
    touch .stopped
    # Hosts stop one another, so that this one may have ended already.
    [ "$(state)" != running ] || signal TERM
    ;;
  log)
    state
    tail -n "+$(($2 + 1))" run.log
    ;;
  *) "$@" ;;
esac
