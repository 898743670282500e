"""Import and export of episodes, against files that others wrote."""

import itertools
import logging
import pathlib
import shutil

import gymnasium
import jax
import numpy as np
import pytest
from etils import epath
from gymnasium.spaces import Box

from dreamer_tpu import envs
from dreamer_tpu.checkpoint import layout
from dreamer_tpu.cli import flags
from dreamer_tpu.envs.recorded import Recorded, Recording
from dreamer_tpu.envs.suites import data as data_suite
from dreamer_tpu.errors import UserError
from dreamer_tpu.learner.latents import LatentPass
from dreamer_tpu.replay import Replay
from dreamer_tpu.run import memory
from dreamer_tpu.tools.data import describing, exporting, importing
from dreamer_tpu.tools.data.__main__ import main
from dreamer_tpu.tools.data.episodes import Names
from dreamer_tpu.tools.data.logdirs import Logdir
from dreamer_tpu.tools.data.sources import open_source
from tests.helpers import pods, program, small
from tests.helpers.disk import Disk

KNOWN = Names(['vector'], ['action'])
GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'data'


def cartpole(*overrides):
  argv = ['--config=configs/gym.py:debug', *overrides]
  return flags.parse_config(argv)[0]


def play(seed, length=12, env='CartPole-v1', rng=None):
  """Returns an episode in the form of older versions of Dreamer."""
  rng = np.random.default_rng(seed)
  env = gymnasium.make(env)
  obs, _ = env.reset(seed=seed)
  rows = [(obs, np.zeros(2), 0.0, False)]
  for _ in range(length):
    action = int(rng.integers(2))
    obs, reward, over, _, _ = env.step(action)
    rows.append((obs, np.eye(2)[action], reward, over))
    if over:
      break
  obs, action, reward, over = map(np.array, zip(*rows, strict=True))
  flags_ = np.arange(len(rows))
  return {
    'vector': obs.astype(np.float32),
    'action': action.astype(np.float32),
    'reward': reward.astype(np.float32),
    'is_first': flags_ == 0,
    'is_last': flags_ == len(rows) - 1,
    'is_terminal': over,
  }


def write(folder, episodes):
  folder.mkdir(parents=True, exist_ok=True)
  for name, arrays in episodes.items():
    np.savez_compressed(folder / f'{name}.npz', **arrays)


def recorded(source, conversion):
  seen = describing.recordings(source)
  return Recorded(
    conversion, *seen, agents=source.agents, sampled=source.sampled
  )


def steps(source, conversion):
  converter = recorded(source, conversion)
  return [importing.steps_of(read(), converter) for _, read in source.read()]


def make_replay(logdir):
  """Returns the replay of a logdir, restored."""
  manifests = [*layout.read_manifests(logdir / 'checkpoints' / '0').values()]
  spec = {k: (x, dtype) for k, (dtype, x) in manifests[0]['spec'].items()}
  options = dict(length=9, capacity=10_000, chunksize=64, streams=1, seed=0)
  replay = Replay(spec, online=False, **options)
  replay.load(logdir / 'replay', manifests)
  return replay


def conversion_of(env):
  return envs.Conversion(env.observation_space, env.action_space)


def test_rlds_as_tensorflow_datasets_reads_it():
  with np.load(GOLDEN / 'rlds_expected.npz') as file:
    expected = dict(file)
  source = open_source(str(GOLDEN / 'rlds'), Names())
  episodes = [read() for _, read in source.read()]
  assert len(episodes) == 3
  # Files are shuffled: episodes are recognized by their length and end.
  for i, episode in enumerate(episodes):
    for key, value in expected.items():
      number, name = key.split('/', 1)
      if int(number) != i:
        continue
      if name.startswith('observation/'):
        found = episode.observations[name.removeprefix('observation/')]
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)
      elif name == 'action':
        np.testing.assert_array_equal(episode.actions[name], value[:-1])
      elif name == 'reward':
        np.testing.assert_array_equal(episode.rewards, value[:-1])
      elif name == 'is_terminal':
        assert episode.terminal == value[-1]


def test_truncated_rlds_file_is_one_broken_episode(tmp_path):
  shutil.copytree(GOLDEN / 'rlds', tmp_path / 'rlds')
  (path,) = (tmp_path / 'rlds').glob('*.tfrecord*')
  path.write_bytes(path.read_bytes()[:-100])
  entries = list(open_source(str(tmp_path / 'rlds'), Names()).read())
  assert [read() for _, read in entries[:-1]]
  with pytest.raises(ValueError, match='truncated in record 2'):
    entries[-1][1]()


def test_replay_that_the_public_implementation_wrote():
  with np.load(GOLDEN / 'public_expected.npz') as file:
    streams = [
      {k[2:]: x for k, x in file.items() if k.startswith(f'{i}/')}
      for i in range(2)
    ]
  want = []
  for stream in streams:
    starts = [*np.flatnonzero(stream['is_first']), len(stream['reward'])]
    for begin, end in itertools.pairwise(starts):
      want.append({k: x[begin:end] for k, x in stream.items()})
  conversion = conversion_of(gymnasium.make('CartPole-v1'))
  source = open_source(str(GOLDEN / 'public'), KNOWN)
  found = steps(source, conversion)
  assert len(found) == len(want) > 8
  assert {tuple(x['vector'].ravel()) for x in found} == {
    tuple(x['vector'].ravel()) for x in want
  }
  order = {tuple(x['vector'].ravel()): x for x in want}
  for episode in found:
    truth = order[tuple(episode['vector'].ravel())]
    np.testing.assert_array_equal(episode['action'][:-1], truth['action'][:-1])
    for key in ('reward', 'is_first', 'is_terminal'):
      np.testing.assert_array_equal(episode[key], truth[key])
    assert episode['is_last'].tolist()[:-1] == [False] * (
      len(truth['reward']) - 1
    )


def test_minari_dataset_there_and_back(tmp_path, monkeypatch):
  minari = pytest.importorskip('minari', reason='the extra data installs it')
  monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path))
  env = minari.DataCollector(gymnasium.make('Pendulum-v1', max_episode_steps=9))
  env.action_space.seed(0)
  truth = []
  for seed in range(3):
    rows = [(env.reset(seed=seed)[0], None, 0.0)]
    done = False
    while not done:
      action = env.action_space.sample()
      obs, reward, over, cut, _ = env.step(action)
      rows.append((obs, action, reward))
      done = over or cut
    truth.append(rows)
  env.create_dataset('pendulum/random-v0')
  source = open_source('minari:pendulum/random-v0', Names())
  conversion = conversion_of(gymnasium.make('Pendulum-v1'))
  for episode, rows in zip(steps(source, conversion), truth, strict=True):
    obs, actions, rewards = zip(*rows, strict=True)
    np.testing.assert_array_equal(episode['vector'], np.stack(obs))
    np.testing.assert_array_equal(
      conversion.action({'action': episode['action'][:-1]}, 1),
      np.stack(actions[1:]),
    )
    np.testing.assert_allclose(episode['reward'], rewards, rtol=1e-6)
    assert not episode['is_terminal'].any()
  with pytest.raises(UserError, match='get it with: minari download other-v0'):
    open_source('minari:other-v0', Names())
  wider = gymnasium.make('Pendulum-v1').unwrapped
  wider.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
  with pytest.raises(
    UserError, match=r"'action' is .*-2\.\.2 .*-1\.\.1 in the env"
  ):
    recorded(source, conversion_of(wider))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x: x.pop('reward'), "has no 'reward'"),
    (lambda x: x.pop('action'), "action 'action' is missing"),
    (lambda x: x.pop('is_terminal'), "neither 'is_terminal' nor 'discount'"),
    (lambda x: x['vector'].__setitem__((3, 1), np.nan), 'is not finite'),
    (lambda x: x['reward'].__setitem__(2, np.inf), 'rewards are not finite'),
    (lambda x: x.update(vector=x['vector'][:, :3]), 'has shape'),
    (lambda x: x.update(action=x['action'][:-2]), '11 of'),
    (lambda x: x['action'].__setitem__(4, 0.5), 'is not one-hot'),
    (lambda x: x['is_first'].__setitem__(4, True), 'several episodes'),
    (lambda x: x['is_last'].__setitem__(4, True), 'several episodes'),
    (lambda x: x.update(goal=np.array([{}])), "'goal' holds Python objects"),
    (lambda x: x.update(vector=np.float32(0)), "and has 0 of 'vector'"),
  ],
)
def test_broken_episode_is_named(change, message, tmp_path):
  episodes = {'a': play(0), 'b': play(0)}
  assert len(episodes['b']['reward']) == 13
  change(episodes['b'])
  write(tmp_path, episodes)
  source = open_source(str(tmp_path), KNOWN)
  converter = recorded(source, conversion_of(gymnasium.make('CartPole-v1')))
  good, (name, read) = source.read()
  assert importing.steps_of(good[1](), converter)['reward'].sum() == 12
  with pytest.raises(ValueError, match=message):
    importing.steps_of(read(), converter)
  assert name == 'b.npz'


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (['--config.task=gym_Pendulum-v1'], "observation 'vector' is float32 [4]"),
    (
      ['--config.task=gym_FrozenLake-v1'],
      "observation 'vector' is float32 [4]",
    ),
    (['--config.replay.size=10'], 'replay.size=10 is too small'),
  ],
)
def test_other_environment_is_one_line(overrides, message, tmp_path, capsys):
  write(tmp_path / 'data', {'a': play(0)})
  where = [str(tmp_path / 'data'), f'--logdir={tmp_path / "run"}']
  argv = ['import', *where, '--config=configs/gym.py:debug', *overrides]
  assert main(argv) == 1
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1
  assert message in lines[0]
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_latents_are_those_of_the_policy():
  agent = small.make_agent(small.VECTOR_OBS)
  params = agent.init(jax.random.key(0))['params']
  device = jax.local_devices()[0]
  episodes = []
  for length in (3, 200, 70, 1):
    batch = small.make_batch(agent, steps=length, seed=length)
    keys = [*agent.obs_space, *agent.act_space]
    episode = {k: batch[k][0, -length:] for k in keys}
    episode['is_first'] = np.arange(length) == 0
    episodes.append(episode)
  given = [dict(x) for x in episodes]
  LatentPass(agent, params, seed=1, device=device)(episodes)
  policy = jax.jit(lambda carry, obs: agent.policy(params, carry, obs, None)[2])
  for episode in episodes:
    length = len(episode['is_first'])
    zero = agent.initial_carry(1)
    before = {
      'deter': episode['latent/deter'][:-1],
      'stoch': episode['latent/stoch'][:-1],
      'action': {k: episode[k][:-1] for k in agent.act_space},
    }
    carry = jax.tree.map(lambda x, y: np.concatenate([x, y]), zero, before)
    obs = {k: episode[k] for k in [*agent.policy_keys, 'is_first']}
    want = policy(carry, obs)['latent/deter']
    assert length < 3 or np.abs(want).max() > 0.01
    np.testing.assert_allclose(episode['latent/deter'], want, atol=2e-5)
  for episode, before in zip(episodes, given, strict=True):
    for key, value in before.items():
      np.testing.assert_array_equal(episode[key], value)


def test_import_and_export(tmp_path, caplog):
  good = {f'e{i:03d}': play(i, 60) for i in range(40)}
  nan = play(90)
  nan['vector'][2] = np.nan
  write(tmp_path / 'data', good | {'nan': nan})
  (tmp_path / 'data' / 'e999.npz').write_bytes(b'PK\x03\x04 cut off')
  logdir = epath.Path(tmp_path / 'run')
  with caplog.at_level(logging.WARNING, 'absl'):
    importing.run(cartpole(), logdir, [str(tmp_path / 'data')])
  assert 'e999.npz is skipped' in caplog.text
  assert 'nan.npz is skipped' in caplog.text
  assert '2 episodes were broken' in caplog.text

  # The steps in the logdir are those of the files.
  conversion = conversion_of(gymnasium.make('CartPole-v1'))
  (step,) = layout.steps(logdir / 'checkpoints')
  assert step == 0
  assert layout.read_run(logdir / 'checkpoints' / '0')['update'] == 0
  found = steps(Logdir(logdir), conversion)
  assert len(found) == len(good)
  for episode, arrays in zip(found, good.values(), strict=True):
    for key in ('vector', 'reward', 'is_first', 'is_last', 'is_terminal'):
      np.testing.assert_array_equal(episode[key], arrays[key])
    chosen = arrays['action'][1:].argmax(-1)
    np.testing.assert_array_equal(episode['action'][:-1], chosen)
  # They count in the memory of a run, however short that is. One that only
  # learns needs no more.
  total = sum(len(x['reward']) for x in good.values())
  for option, own in (('run.steps=7', 7), ('run.updates=7', 0)):
    config = cartpole(f'--config.{option}')
    steps_at_end = memory.steps_at_end(config, logdir / 'checkpoints')
    assert steps_at_end == total + own
  replay = make_replay(logdir)
  assert len(replay) == total - 8
  assert np.any(replay.sample(4)[0]['latent/deter'][:, 1:], (0, 2)).all()

  # Exported and read again, every step is the same.
  exporting.run(str(logdir), str(tmp_path / 'out'))
  again = steps(open_source(str(tmp_path / 'out'), KNOWN), conversion)
  for one, two in zip(again, found, strict=True):
    assert one.keys() == two.keys()
    for key in one:
      assert one[key].dtype == two[key].dtype
      np.testing.assert_array_equal(one[key], two[key])
  with pytest.raises(UserError, match='exists already'):
    exporting.run(str(logdir), str(tmp_path / 'out'))
  disk = Disk(tmp_path / 'disk')
  disk.fill()
  try:
    with pytest.raises(UserError, match=r"export to '.*' failed: "):
      exporting.run(str(logdir), str(tmp_path / 'disk' / 'out'))
    assert [x.name for x in (tmp_path / 'disk').iterdir()] in ([], ['filler'])
  finally:
    disk.release()
  with pytest.raises(UserError, match='holds no replay_eval'):
    exporting.run(str(logdir), str(tmp_path / 'eval'), evaluate=True)
  with pytest.raises(UserError, match='holds a run already'):
    importing.run(cartpole(), logdir, [str(tmp_path / 'data')])


@pytest.mark.slow
def test_two_hosts_learn_from_an_import_and_act_on(tmp_path):
  episodes = {f'e{i:03d}': play(i, 60) for i in range(40)}
  write(tmp_path / 'data', episodes)
  logdir = epath.Path(tmp_path / 'run')
  importing.run(cartpole(), logdir, [str(tmp_path / 'data')])
  total = sum(len(x['reward']) for x in episodes.values())
  args = ['--config=configs/gym.py:debug', '--config.run.report_every=0']
  args += ['--config.replay.keep_imported=0.5']

  def train(*more):
    ends = pods.run(logdir, 2, 1, *args, *more)
    assert [x.code for x in ends] == [0, 0], ends
    folder = logdir / 'checkpoints' / str(program.steps(tmp_path / 'run')[-1])
    parts = [
      [
        sum(fill for _, fill, _ in stream)
        for i, stream in enumerate(manifest['streams'])
        if (i in manifest['imported']) == imported
      ]
      for imported in (True, False)
      for manifest in layout.read_manifests(folder).values()
    ]
    metrics = program.read(tmp_path / 'run' / 'metrics.jsonl')[-1]
    assert metrics['replay/imported'] == total
    return layout.read_run(folder), parts

  run, (one, two, *own) = train('--config.run.updates=20')
  assert run['update'] == 20
  assert own == [[], []]
  assert (sum(one), sum(two)) == (total // 2, total - total // 2)
  # Online, both keep their part, and updates follow the steps of both.
  run, (*kept, one, two) = train('--config.run.steps=400')
  assert kept == [[total // 2], [total - total // 2]]
  assert one == two
  assert sum(one) + sum(two) == run['step'] >= 400
  assert abs(run['update'] - 20 - 400 * 8 / 64) <= 1


@pytest.mark.parametrize(
  ('bound', 'sampled', 'expected'),
  [
    (1, False, [-1, 0.5, 1]),
    (2, True, [-1, 0.5, 1]),
    (2, False, 'action .* 2 of 3 values outside of -1..1, for'),
  ],
)
def test_sampled_actions_beyond_their_bounds(bound, sampled, expected):
  conversion = envs.Conversion(
    Box(-1, 1, (2,), np.float32), Box(-bound, bound, (1,), np.float32)
  )
  converter = Recorded(
    conversion,
    {'vector': Recording((2,), np.dtype(np.float32))},
    {'action': Recording((1,), np.dtype(np.float32))},
    agents=True,
    sampled=sampled,
  )
  given = {'action': np.array([[-1.5], [0.5], [1.25]], np.float32)}
  if isinstance(expected, str):
    with pytest.raises(ValueError, match=expected):
      converter.action(given)
    return
  found = converter.action(given)['action']
  np.testing.assert_array_equal(found[:, 0], np.float32(expected))


def test_continuous_actions_there_and_back(tmp_path):
  """A policy's samples beyond -1..1 do not keep its episodes out."""
  logdir = tmp_path / 'run'
  task = ('--config=configs/gym.py:debug', '--config.task=gym_Pendulum-v1')
  ended = program.run(
    logdir, *task, '--config.run.train_ratio=0', '--config.run.steps=900'
  )
  assert ended.code == 0, ended.err
  exporting.run(str(logdir), str(tmp_path / 'out'))
  conversion = conversion_of(gymnasium.make('Pendulum-v1'))
  again = steps(open_source(str(tmp_path / 'out'), KNOWN), conversion)
  found = steps(Logdir(epath.Path(logdir)), conversion)
  whole = [x for x in found if len(x['reward']) == 201]
  assert len(again) == 4
  for one, two in zip(again, whole, strict=True):
    for key in one:
      np.testing.assert_array_equal(one[key], two[key])
  # What the environment got: the rewards follow from it.
  stored = [read() for _, read in Logdir(epath.Path(logdir)).read()]
  assert max(np.abs(x.actions['action']).max() for x in stored) > 1
  env = gymnasium.make('Pendulum-v1').unwrapped
  for episode in again:
    cos, sin, speed = episode['vector'][50]
    env.reset()
    env.state = np.array([np.arctan2(sin, cos), speed], np.float64)
    _, reward, *_ = env.step(2 * episode['action'][50])
    assert reward == pytest.approx(episode['reward'][51], abs=1e-4)


def test_failed_import_leaves_nothing(tmp_path):
  good, shifted = play(0), play(1)
  for key in ('action', 'reward'):
    shifted[key] = np.roll(shifted[key], -1, 0)
  # In half of such files the first action is 0, as if it came before.
  write(tmp_path / 'data', {'a': good, 'b': shifted})
  logdir = epath.Path(tmp_path / 'run')
  with pytest.raises(
    UserError, match=r"data', b\.npz: 'action' is .* leave out"
  ):
    importing.run(cartpole(), logdir, [str(tmp_path / 'data')])
  assert not layout.committed_steps(logdir / 'checkpoints')
  assert not list(tmp_path.glob('run/replay/*'))
  with pytest.raises(UserError, match='is given twice'):
    importing.run(cartpole(), logdir, 2 * [str(tmp_path / 'data')])
  nan = play(90)
  nan['vector'][2] = np.nan
  write(tmp_path / 'nan', {'a': nan})
  with pytest.raises(UserError, match='None of the 1 episodes'):
    importing.run(cartpole(), logdir, [str(tmp_path / 'nan')])
  assert not list(tmp_path.glob('run/replay/*'))


def test_forms_of_values(tmp_path):
  plain = play(0)
  changed = {k: x.astype(np.float64) for k, x in plain.items()}
  changed |= {'action': plain['action'].argmax(-1).astype(np.float64)}
  changed |= {'reward': changed['reward'][:, None], 'is_terminal': np.array(0)}
  changed |= {'goal': np.arange(3), 'size': np.array(3)}
  write(tmp_path / 'plain', {'a': plain | {'is_terminal': np.zeros(13)}})
  write(tmp_path / 'changed', {'a': changed})
  conversion = conversion_of(gymnasium.make('CartPole-v1'))
  (one,), (two,) = (
    steps(open_source(str(tmp_path / name), KNOWN), conversion)
    for name in ('plain', 'changed')
  )
  for key in one:
    np.testing.assert_array_equal(one[key], two[key])


def test_data_describe_an_environment(tmp_path):
  config = cartpole(f'--config.task=data_{tmp_path / "robot"}')
  source = open_source(str(GOLDEN / 'rlds'), Names())
  conversion = describing.conversion([source], envs.Rules())
  assert conversion.obs_space['image'].shape[-1] == 3
  assert conversion.act_space['action'].shape == (2,)
  with pytest.raises(UserError, match=r'spaces\.json.* is missing'):
    envs.make_vector(config.task, 1, 0, config.env)
  data_suite.save(config.task, conversion)
  env = envs.make_vector(config.task, 1, 0, config.env)
  assert env.conversion.to_json() == conversion.to_json()
  with pytest.raises(UserError, match=r'learn offline, with --config\.run\.up'):
    env.reset()


def test_images_are_found_in_the_data(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (13, 3, 64, 64), np.uint8)
  images = {
    'uint8': image,
    'channels_last': image.transpose(0, 2, 3, 1),
    'int64': image.astype(np.int64),
    'float64': image / 255,
  }
  episode = play(0) | images | {'text': np.array(13 * ['left'])}
  write(tmp_path / 'data', {'a': episode})
  source = open_source(str(tmp_path / 'data'), Names())
  (found,) = steps(source, describing.conversion([source], envs.Rules()))
  for key in images:
    np.testing.assert_array_equal(found[key], images['channels_last'])
  assert 'text' not in found
  far = play(0) | {'action': np.arange(13) * 10**9}
  write(tmp_path / 'far', {'a': far})
  source = open_source(str(tmp_path / 'far'), Names())
  with pytest.raises(UserError, match='has 12000000000; save numbers as'):
    describing.conversion([source], envs.Rules())


def test_categories_of_actions_are_found_in_the_data(tmp_path):
  one_hot = {f'e{i}': play(i) for i in range(3)}
  integers = {
    k: x
    | {'action': x['action'].argmax(-1) + 3 * (np.arange(len(x['reward'])) > 0)}
    for k, x in one_hot.items()
  }
  floats = one_hot | {'e9': play(9) | {'action': 0.5 * play(9)['action']}}
  for name, data, space in (
    ('one_hot', one_hot, gymnasium.spaces.Discrete(2)),
    ('integers', integers, gymnasium.spaces.Discrete(5)),
    ('floats', floats, gymnasium.spaces.Box(-1, 1, (2,))),
  ):
    write(tmp_path / name, data)
    source = open_source(str(tmp_path / name), Names())
    conversion = describing.conversion([source], envs.Rules())
    assert conversion.own_actions == {'action': space}
    assert len(steps(source, conversion)) == len(data)
