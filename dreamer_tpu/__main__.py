r"""DreamerV3: learns a world model, and from it a policy, on one task.

Usage:
  dreamer_tpu --logdir=DIR [--config=SUITE[:PRESET,...]]
    [--config.KEY=VALUE ...]

  In a clone, `python main.py` is the same.

  --config   A suite or a Python file with a function get_config(presets).
             Suites: atari, atari100k, brax, bsuite, craftax, crafter, data, dm,
             dmc_proprio, dmc_vision, dmlab, dummy, gym (the default, with
             CartPole-v1), gymnax, loconav, memmaze, metaworld, minecraft,
             myosuite, pinpad, playground, procgen.
             Presets, applied in order: size1m, size12m, size25m, size50m,
             size100m, size200m, size400m, debug.
  --logdir   A local path or gs://bucket/path; {timestamp} becomes the time.
             A directory that holds a run resumes it.
  --help=KEY Describes a key, or a group such as run or agent.opt. --help
             describes all.
  --print_config
             Prints the merged configuration as JSON.
  --version  Prints the version.

Examples:
  dreamer_tpu --logdir=runs/first
  dreamer_tpu --logdir=runs/{timestamp} --config=atari:size12m \
    --config.task=atari_breakout --config.run.steps=1e6

Exit codes: 0 done; 75 stopped and saved, run again to resume; 1 an error, with
the reason in the last line.
"""

import signal

# Until the run can save, Ctrl-C ends it without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)

import importlib  # noqa: E402
from typing import NoReturn  # noqa: E402

import ml_collections  # noqa: E402
from etils import epath  # noqa: E402

from dreamer_tpu.cli import flags, logdirs, platform  # noqa: E402
from dreamer_tpu.hosts.preemption import Preemption  # noqa: E402


def main() -> NoReturn:
  """Runs the command line of this process and exits."""
  flags.run(run, __doc__)


def run(command: tuple[ml_collections.ConfigDict, epath.Path]) -> int:
  """Runs the script that the configuration names."""
  config, logdir = command
  platform.choose()
  platform.use_huge_pages()
  platform.use_cache(config.jax.cache)
  with Preemption() as preemption:
    # These import JAX, so mistakes on the command line are reported before.
    join = importlib.import_module('dreamer_tpu.hosts.join')
    on_tpu = platform.has_tpu()
    with join.joined(config.distributed, preemption, on_tpu=on_tpu) as sync:
      logdir = logdirs.share(logdir, sync.index, sync.gather)
      script = importlib.import_module(f'dreamer_tpu.run.{config.script}')
      return script.main(config, logdir, preemption)


if __name__ == '__main__':
  main()
