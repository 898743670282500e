"""ProcGen: 16 games with generated levels, stepped by EnvPool's threads.

The end of a level is terminal, the time limit of each game (500 to 6,000 steps)
is not. EnvPool draws images of 64x64, which are resized to `size`.
"""

from collections.abc import Iterable
from typing import Any

from dreamer_tpu.envs import registry
from dreamer_tpu.envs.pools import Pool
from dreamer_tpu.errors import UserError

_MOST_LEVELS = 2**31 - 1


def make_vector(name: str, num_envs: int, config: Any) -> Pool:
  """Makes N copies of a game.

  Args:
    name: Game, such as 'coinrun'.
    num_envs: Number N of copies.
    config: mode ('easy', 'hard', 'extreme', 'memory' or 'exploration'),
      num_levels (0 for all) from start_level on.

  Raises:
    UserError: The game does not have the mode, or the mode no such levels.
  """
  modes = _games()[name]
  if config.mode not in modes:
    raise UserError(
      f"env.procgen.mode='{config.mode}' is not a mode of {name}; modes: "
      f'{", ".join(modes)}'
    )
  start, count = config.start_level, config.num_levels
  if start + count > _MOST_LEVELS:
    raise UserError(
      f'env.procgen.start_level={start} and num_levels={count} reach beyond '
      f'the last level, {_MOST_LEVELS}'
    )
  if start and not count:
    raise UserError(
      f'env.procgen.start_level={start} has no effect on all levels '
      '(num_levels=0); set num_levels'
    )
  if config.mode == 'exploration' and count:
    raise UserError(
      "env.procgen.mode='exploration' has one level; set num_levels to 0"
    )
  options: dict[str, Any] = {'num_levels': count, 'start_level': start}
  if (name, config.mode) == ('jumper', 'memory'):
    # EnvPool takes its limit for 1,000.
    options['max_episode_steps'] = 2000
  try:
    return Pool(
      f'{name.capitalize()}{config.mode.capitalize()}-v0',
      num_envs,
      channel_first=False,
      **options,
    )
  except ModuleNotFoundError:
    raise
  except ImportError as error:
    raise UserError(
      f'EnvPool cannot load Qt ({error}): on Debian, apt-get install libqt5gui5'
    ) from error


def _games() -> dict[str, list[str]]:
  """Returns the modes of each game."""
  from envpool.procgen import registration

  return {
    game: [registration.distribution[mode].lower() for mode in modes]
    for game, _, modes in registration.procgen_game_config
  }


def names(name: str, config: Any) -> Iterable[str]:
  """Returns the 16 games."""
  del name, config
  return _games()


SUITE = registry.Suite(
  make_vector=make_vector, names=names, package='envpool', extra='procgen'
)
