#!/usr/bin/env bash
# Trains on several tasks with several seeds and plots the learning curves.
#   launch/sweep.sh LOGDIR TASKS SEEDS [options of main.py]
# TASKS and SEEDS are separated by commas: atari_pong,atari_qbert 0,1,2. The run
# of a task and a seed is in LOGDIR/TASK/SEED, with its output in log.txt. The
# same command resumes what is not done. JOBS runs, 1 by default, go on at the
# same time. Exit codes: 0 all are done; 75 stopped; 1 some have failed.
if [ $# -lt 3 ]; then
  sed -n 's/^# \{0,1\}//p' "$0" | sed 1d >&2
  exit 1
fi
logdir=$1 tasks=$2 seeds=$3
shift 3
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

one() { # [options of main.py] TASK SEED
  local task=${*: -2:1} seed=${*: -1} code=0
  local folder=$logdir/${task//\//_}/$seed
  mkdir -p "$folder"
  python main.py "${@:1:$#-2}" --config.task="$task" --config.seed="$seed" \
    --logdir="$folder" >>"$folder/log.txt" 2>&1 || code=$?
  case $code in
    0) echo "sweep: $task, seed $seed: done" ;;
    75) echo "sweep: $task, seed $seed: stopped" && return 255 ;; # Ends xargs.
    *) echo "sweep: $task, seed $seed: $(tail -n 1 "$folder/log.txt")" ;;
  esac
  return "$code"
}
export -f one
export logdir

code=0
for task in ${tasks//,/ }; do
  for seed in ${seeds//,/ }; do printf '%s\n' "$task" "$seed"; done
done | xargs -n 2 -P "${JOBS:-1}" bash -c "one \"\$@\"" one "$@" || code=$?
[ "$code" != 124 ] || exit 75
runs=("$logdir"/*/*/scores.jsonl)
python -m dreamer_tpu.tools.plot "${runs[@]%/scores.jsonl}" \
  --out="$logdir/curves.png"
[ "$code" = 0 ] || exit 1
