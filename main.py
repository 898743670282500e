r"""DreamerV3: learns a world model, and from it a policy, on one task.

Usage:
  python main.py --logdir=DIR [--config=configs/SUITE.py[:PRESET,...]]
    [--config.KEY=VALUE ...]

  --config   Suites: atari, atari100k, crafter, dmc_proprio, dmc_vision, gym
             (the default, with CartPole-v1). Presets, applied in order:
             size1m, size12m, size25m, size50m, size100m, size200m, size400m,
             debug.
  --logdir   A local path or gs://bucket/path; {timestamp} becomes the time.
             A directory that holds a run resumes it.

Examples:
  python main.py --logdir=runs/first
  python main.py --logdir=runs/{timestamp} --config=configs/atari.py:size12m \
    --config.task=atari_breakout --config.run.steps=1e6

Exit codes: 0 done; 75 stopped and saved, run again to resume; 1 an error, with
the reason in the last line.
"""

import importlib

import ml_collections
from etils import epath

from dreamer_tpu.cli import flags, logdirs, platform


def main(command: tuple[ml_collections.ConfigDict, epath.Path]) -> int:
  """Runs the script that the configuration names."""
  config, logdir = command
  platform.choose()
  platform.use_huge_pages()
  # These import JAX, so mistakes on the command line are reported before.
  join = importlib.import_module('dreamer_tpu.hosts.join')
  sync = importlib.import_module('dreamer_tpu.hosts.sync')
  join.start(config.distributed, on_tpu=platform.has_tpu())
  logdir = epath.Path(sync.HostSync().broadcast(str(logdir)))
  logdirs.check_writable(logdir)
  script = importlib.import_module(f'dreamer_tpu.run.{config.script}')
  return script.main(config, logdir)


if __name__ == '__main__':
  flags.run(main)
