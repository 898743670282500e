"""The actor loop stores what it observed, did and remembered."""

import numpy as np
import pytest

from configs.base import base
from dreamer_tpu import envs
from dreamer_tpu.actor.actor import Actor
from tests.helpers.sample_envs import Counter

envs.register('acting', Counter, cheap=True)


def test_transitions_and_episodes():
  env = envs.make_vector('acting_end3', 2, 0, base().env)
  resets, stored = [], []
  reset = env.reset
  env.reset = lambda: resets.append(len(stored)) or reset()

  def policy(obs):
    action = np.full(2, len(stored) % 3, np.int32)
    return {'action': action}, {'latent/x': obs['count'] + 0.5}

  actor = Actor(env, policy)
  assert not resets
  finished = [actor.step(stored.append) for _ in range(5)]
  env.close()
  assert resets == [0]
  assert set(stored[0]) == {
    *('count', 'acted', 'draw', 'pid', 'child', 'action', 'latent/x'),
    *('reward', 'is_first', 'is_last', 'is_terminal'),
  }
  count = [step['count'][0] for step in stored]
  assert count == [0, 1, 2, 3, 0]
  assert [step['latent/x'][1] for step in stored] == [x + 0.5 for x in count]
  # An observation shows the action of the step before.
  assert [step['acted'][0] for step in stored] == [-1, 0, 1, 2, -1]
  assert [step['action'][0] for step in stored] == [0, 1, 2, 0, 1]
  assert [len(episodes) for episodes in finished] == [0, 0, 2, 0, 0]
  assert [(e['env'], e['score'], e['length']) for e in finished[2]] == [
    (0, 3.0, 3),
    (1, 3.0, 3),
  ]


def test_nothing_is_stored_if_the_environments_fail():
  env = envs.make_vector('acting_end3', 2, 0, base().env)
  stored = []
  policy = lambda obs: ({'action': np.zeros(2, np.int32)}, {})
  actor = Actor(env, policy)
  actor.step(stored.append)
  step, env.step = env.step, lambda action: 1 / 0
  with pytest.raises(ZeroDivisionError):
    actor.step(stored.append)
  assert len(stored) == 1
  env.step = step
  actor.step(stored.append)
  env.close()
  assert [x['count'][0] for x in stored] == [0, 1]
