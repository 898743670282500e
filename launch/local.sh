#!/usr/bin/env bash
# Sets up .venv, trains the default task and draws its learning curve.
#   launch/local.sh [LOGDIR] [--config=... and other options of main.py]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

logdir=runs/first
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  logdir=$1
  shift
fi
python main.py --logdir="$logdir" "$@"
python -m dreamer_tpu.tools.plot "$logdir" --out="$logdir/curve.png"
python - "$logdir/scores.jsonl" <<'END'
import json
import statistics
import sys

with open(sys.argv[1]) as lines:
  episodes = [json.loads(line) for line in lines]
scores = [x['episode/score'] for x in episodes if x['mode'] == 'train']
if not scores:
  sys.exit('No episode has finished: the run is too short for a score.')
count = min(20, len(scores))
print(f'First {count} episodes: score {statistics.mean(scores[:count]):.1f}')
print(f'Final score: {statistics.mean(scores[-count:]):.1f} '
      f'(mean of the last {count} of {len(scores)} episodes)')
END
echo "Learning curve: $logdir/curve.png"
