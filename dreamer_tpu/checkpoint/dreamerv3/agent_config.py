"""The agent that belongs to a checkpoint of the public implementation.

Its sizes are in the config.yaml of the run, its spaces in the shapes of its
parameters.
"""

import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml
from etils import epath

from dreamer_tpu.agent import Space
from dreamer_tpu.checkpoint.dreamerv3 import unpickle
from dreamer_tpu.errors import UserError


class Description(NamedTuple):
  """What a public checkpoint tells of its agent.

  Attributes:
    config: Our `agent` options, as attributes.
    obs_space: By observation key.
    act_space: By action key.
    counters: As in `PublicCheckpoint`.
  """

  config: Any
  obs_space: dict[str, Space]
  act_space: dict[str, Space]
  counters: dict[str, int]


def describe(folder: epath.Path) -> Description:
  """Reads a public checkpoint, whose parameters such an agent fits.

  Args:
    folder: With agent.pkl; config.yaml lies in it or in a folder above it.

  Raises:
    UserError: config.yaml is missing, or the checkpoint is damaged.
  """
  config = read_config(folder)
  checkpoint = unpickle.load(folder)
  shapes = {k: v.shape for k, v in checkpoint.params.items()}
  return Description(
    namespace(config),
    _observations(shapes, config),
    _actions(shapes),
    checkpoint.counters,
  )


def namespace(tree: Any) -> Any:
  """Nested mappings as objects with attributes."""
  if not isinstance(tree, Mapping):
    return tree
  return types.SimpleNamespace(**{k: namespace(v) for k, v in tree.items()})


def read_config(folder: epath.Path) -> dict[str, Any]:
  """Our `agent` options for the config.yaml of a public checkpoint."""
  for place in (folder, *list(folder.parents)[:2]):
    path = place / 'config.yaml'
    if path.exists():
      try:
        return _translate(yaml.safe_load(path.read_text())['agent'])
      except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(
          f"'{path}' is not the configuration of a public DreamerV3 run "
          f'({type(error).__name__}: {" ".join(str(error).split())}); copy it '
          'from the logdir of the run.'
        ) from error
  raise UserError(
    f"'{folder}' has no config.yaml, which tells the sizes of the agent; copy "
    'it there from the logdir of the run.'
  )


def _translate(theirs: Mapping[str, Any]) -> dict[str, Any]:
  rssm = theirs['dyn']['rssm']
  encoder, decoder = theirs['enc']['simple'], theirs['dec']['simple']
  pick = lambda source, *keys: {k: source[k] for k in keys}
  head = lambda source, *keys: pick(
    source, 'units', 'layers', 'outscale', *keys
  )
  sizes = ('deter', 'hidden', 'stoch', 'classes', 'blocks', 'unimix')
  opt, policy = theirs['opt'], theirs['policy']
  stages = ('depth', 'mults', 'kernel', 'units', 'layers')
  return {
    'rssm': {
      **pick(rssm, *sizes, 'free_nats'),
      'dyn_layers': rssm['dynlayers'],
      'prior_layers': rssm['imglayers'],
      'post_layers': rssm['obslayers'],
    },
    'encoder': pick(encoder, *stages),
    'decoder': {**pick(decoder, *stages), 'blocks': decoder['bspace']},
    'reward': head(theirs['rewhead'], 'bins'),
    'cont': head(theirs['conhead']),
    # Its categorical policies do not use their `unimix`.
    'policy': {**head(policy, 'minstd', 'maxstd'), 'unimix': 0.0},
    'value': head(theirs['value'], 'bins'),
    'opt': {
      **pick(opt, 'lr', 'agc', 'beta2', 'eps', 'warmup'),
      'momentum': opt['beta1'],
      'schedule': 'constant',
      'weight_decay': opt['wd'],
    },
  }


def _observations(
  shapes: Mapping[str, tuple], config: Mapping[str, Any]
) -> dict[str, Space]:
  """Images are known only together: they become one key, 'image'."""
  spaces = {}
  prefix, suffix = 'decoder/out_', '/kernel'
  for name, shape in shapes.items():
    if name.startswith(prefix) and name.endswith(suffix):
      key = name[len(prefix) : -len(suffix)]
      spaces[key] = Space(shape=(shape[-1],), dtype='float32')
  if 'decoder/deter_in/bias' in shapes:
    decoder = config['decoder']
    stages, deepest = len(decoder['mults']), decoder['mults'][-1]
    cells = shapes['decoder/deter_in/bias'][0] // (deepest * decoder['depth'])
    side = round(cells**0.5) * 2**stages
    channels = shapes['decoder/image_out/bias'][0]
    spaces['image'] = Space(shape=(side, side, channels), dtype='uint8')
  return spaces


def _actions(shapes: Mapping[str, tuple]) -> dict[str, Space]:
  spaces = {}
  for name, shape in shapes.items():
    module, _, rest = name.partition('/')
    head, _, leaf = rest.partition('/')
    key, _, part = head.rpartition('_')
    if module != 'policy' or leaf != 'bias' or not key:
      continue
    if part == 'mean':
      spaces[key] = Space(shape=(shape[0],), dtype='float32')
    elif part == 'logits':
      spaces[key] = Space(shape=(), dtype='int32', classes=shape[0])
  return spaces
