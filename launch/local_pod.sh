#!/usr/bin/env bash
# Runs main.py on this machine as several hosts with virtual CPU devices.
#   launch/local_pod.sh HOSTS DEVICES_PER_HOST --logdir=DIR [options of main.py]
# Ctrl-C and SIGTERM save and stop all hosts. Exits with the first nonzero exit
# code. Every host I but 0 writes to host-I.log in the logdir.
if [ $# -lt 3 ]; then
  sed -n 's/^# \{0,1\}//p' "$0" | sed 1d >&2
  exit 1
fi
hosts=$1 devices=$2
shift 2
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

logdir=$(printf '%s\n' "$@" | sed -n 's/^--logdir=//p' | tail -n 1)
logs=${logdir:-.}
case $logs in *://* | *'{'*) logs=$(mktemp -d) ;; esac
mkdir -p "$logs"

# A free port whose next one, for heartbeats, is free, too.
port=${PORT:-$(python -c 'import socket
while True:
  with socket.socket() as one, socket.socket() as two:
    one.bind(("", 0))
    port = one.getsockname()[1]
    try:
      two.bind(("", port + 1))
    except (OSError, OverflowError):
      continue
    print(port)
    break')}
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$devices
export JAX_COORDINATOR_ADDRESS=localhost:$port JAX_NUM_PROCESSES=$hosts

pids=()
for ((i = 1; i < hosts; i++)); do
  JAX_PROCESS_ID=$i python main.py "$@" >"$logs/host-$i.log" 2>&1 &
  pids+=($!)
done
JAX_PROCESS_ID=0 python main.py "$@" &
pids+=($!)
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT

code=0
for pid in "${pids[@]}"; do
  # A signal to this script interrupts the wait, but not the process.
  while
    result=0
    wait "$pid" || result=$?
    kill -0 "$pid" 2>/dev/null
  do :; done
  [ "$code" != 0 ] || code=$result
done
exit "$code"
