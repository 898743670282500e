"""DeepMind Lab: the 30 levels of DMLab-30, from images and instructions.

Training uses the training variant of levels that have one; evaluation may use
held-out variants. Levels with instructions in words observe them as the hashed
embedding of the public implementation.
"""

import functools
import re
import zlib
from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Dict

from dreamer_tpu.envs import registry
from dreamer_tpu.envs.foreign.client import Made
from dreamer_tpu.envs.kinds import discrete_space, image_space, vector_space

LEVELS = (
  'explore_goal_locations_large',
  'explore_goal_locations_small',
  'explore_object_locations_large',
  'explore_object_locations_small',
  'explore_object_rewards_few',
  'explore_object_rewards_many',
  'explore_obstructed_goals_large',
  'explore_obstructed_goals_small',
  'language_answer_quantitative_question',
  'language_execute_random_task',
  'language_select_described_object',
  'language_select_located_object',
  'lasertag_one_opponent_large',
  'lasertag_one_opponent_small',
  'lasertag_three_opponents_large',
  'lasertag_three_opponents_small',
  'natlab_fixed_large_map',
  'natlab_varying_map_randomized',
  'natlab_varying_map_regrowth',
  'psychlab_arbitrary_visuomotor_mapping',
  'psychlab_continuous_recognition',
  'psychlab_sequential_comparison',
  'psychlab_visual_search',
  'rooms_collect_good_objects_train',
  'rooms_exploit_deferred_effects_train',
  'rooms_keys_doors_puzzle',
  'rooms_select_nonmatching_object',
  'rooms_watermaze',
  'skymaze_irreversible_path_hard',
  'skymaze_irreversible_path_varied',
)

# Look left or right and up or down (pixels per frame), strafe, move, fire,
# jump, crouch.
ACTIONS = (
  (0, 0, 0, 1, 0, 0, 0),
  (0, 0, 0, -1, 0, 0, 0),
  (0, 0, -1, 0, 0, 0, 0),
  (0, 0, 1, 0, 0, 0, 0),
  (-10, 0, 0, 0, 0, 0, 0),
  (10, 0, 0, 0, 0, 0, 0),
  (-60, 0, 0, 0, 0, 0, 0),
  (60, 0, 0, 0, 0, 0, 0),
  (0, 10, 0, 0, 0, 0, 0),
  (0, -10, 0, 0, 0, 0, 0),
  (-10, 0, 0, 1, 0, 0, 0),
  (10, 0, 0, 1, 0, 0, 0),
  (-60, 0, 0, 1, 0, 0, 0),
  (60, 0, 0, 1, 0, 0, 0),
  (0, 0, 0, 0, 1, 0, 0),
)

WORDS, FEATURES, BUCKETS = 32, 32, 64 * 1024

# Settings of an evaluation: held-out variants, other random numbers.
EVAL = {'allowHoldOutLevels': 'true', 'mixerSeed': str(0x600D5EED)}


class Level(gymnasium.Env):
  """One level as a Gymnasium environment.

  Args:
    name: Level.
    config: repeat; size (height, width) of the image; python that runs it, ''
      for this one.
    role: 'train' or 'eval'.
  """

  def __init__(self, name: str, config: Any, *, role: str = 'train'):
    settings = {'height': str(config.size[0]), 'width': str(config.size[1])}
    settings['logLevel'] = 'WARN'
    if role == 'eval':
      settings |= EVAL
    else:
      name = re.sub('_test$', '_train', name)
    self._text = name.startswith('language_')
    self._env = Made(
      'dmlab',
      config.python,
      level=f'contributed/dmlab30/{name}',
      config=settings,
      repeat=config.repeat,
      text=self._text,
    )
    observed = {'image': image_space((*config.size, 3))}
    if self._text:
      observed['instr'] = vector_space((WORDS * FEATURES,))
    self.observation_space = Dict(observed)
    self.action_space = discrete_space(len(ACTIONS))

  def reset(self, *, seed=None, options=None):
    """Starts an episode; a seed starts a new sequence of them."""
    super().reset(seed=seed)
    seed = int(self.np_random.integers(2**31 - 1))
    obs, info = self._env.reset(seed=seed)
    return self._observation(obs), info

  def step(self, action):
    """Takes an action for `repeat` frames."""
    obs, *rest = self._env.step(np.array(ACTIONS[action], np.int32))
    return (self._observation(obs), *rest)

  def close(self):
    """Frees the engine."""
    self._env.close()

  def _observation(self, obs: dict[str, Any]) -> dict[str, np.ndarray]:
    result = {'image': obs['image']}
    if self._text:
      result['instr'] = embed(obs['instruction'])
    return result


def embed(text: str) -> np.ndarray:
  """Returns the embeddings of the first words of a text, float32 [1024].

  Words and marks are hashed to rows of a fixed random table; row 0 fills up.
  """
  words = re.findall(r'[A-Za-z_]+|[^A-Za-z_ ]+', text.lower())[:WORDS]
  rows = [zlib.crc32(word.encode()) % BUCKETS for word in words]
  return _table()[rows + [0] * (WORDS - len(rows))].reshape(-1)


@functools.cache
def _table() -> np.ndarray:
  table = np.random.default_rng(0).normal(0.0, 1.0, (BUCKETS, FEATURES))
  return table.astype(np.float32)


def names(name: str, config: Any) -> Iterable[str]:
  """Returns the levels, and the test variants of those that have one."""
  del name, config
  tests = (re.sub('_train$', '_test', level) for level in LEVELS)
  return {*LEVELS, *tests}


SUITE = registry.Suite(
  make=Level,
  names=names,
  package='deepmind-lab',
  by_hand='build it from its repository, and set env.dmlab.python',
)
