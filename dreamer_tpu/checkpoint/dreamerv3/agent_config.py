"""Derives agent options and spaces from a public checkpoint.

Sizes are in the config.yaml of its run, spaces in the shapes of its
parameters.
"""

import re
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml
from etils import epath

from dreamer_tpu.agent import Space
from dreamer_tpu.checkpoint.dreamerv3 import unpickle
from dreamer_tpu.errors import UserError

_Shapes = Mapping[str, tuple[int, ...]]


class AgentConfig(NamedTuple):
  """Arguments of the agent that fits a public checkpoint.

  Attributes:
    config: Our `agent` options, as attributes.
    obs_space: Spaces by observation key.
    act_space: Spaces by action key.
    counters: Counters of `PublicCheckpoint`.
  """

  config: Any
  obs_space: dict[str, Space]
  act_space: dict[str, Space]
  counters: dict[str, int]


def describe(folder: epath.Path) -> AgentConfig:
  """Reads the agent's options and spaces of a public checkpoint.

  Args:
    folder: Folder with agent.pkl; config.yaml is in it or at most two folders
      above.

  Raises:
    UserError: config.yaml is missing, or the checkpoint is corrupt.
  """
  config = _read_config(folder)
  checkpoint = unpickle.load(folder)
  shapes = {k: v.shape for k, v in checkpoint.params.items()}
  return AgentConfig(
    namespace(config),
    _observations(shapes, config),
    _actions(shapes),
    checkpoint.counters,
  )


class _Namespace(types.SimpleNamespace):
  """Attributes that can also be read with `get`, as those of a ConfigDict."""

  def get(self, name: str, default: Any = None) -> Any:
    return getattr(self, name, default)


def namespace(tree: Any) -> Any:
  """Returns nested mappings as objects with attributes."""
  if not isinstance(tree, Mapping):
    return tree
  return _Namespace(**{k: namespace(v) for k, v in tree.items()})


def _read_config(folder: epath.Path) -> dict[str, Any]:
  """Returns our `agent` options for the config.yaml of a public checkpoint."""
  for parent in (folder, *list(folder.parents)[:2]):
    path = parent / 'config.yaml'
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
    f"'{folder}' has no config.yaml, which holds the sizes of the agent; copy "
    'it there from the logdir of the run.'
  )


def _translate(public: Mapping[str, Any]) -> dict[str, Any]:
  pick = lambda source, *keys: {k: source[k] for k in keys}
  head = lambda name, *keys: pick(
    public[name], 'units', 'layers', 'outscale', *keys
  )
  rssm, opt = public['dyn']['rssm'], public['opt']
  encoder, decoder = public['enc']['simple'], public['dec']['simple']
  sizes = ('deter', 'hidden', 'stoch', 'classes', 'blocks', 'unimix')
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
    'reward': head('rewhead', 'bins'),
    'cont': head('conhead'),
    # Its categorical policies ignore their `unimix`.
    'policy': {**head('policy', 'minstd', 'maxstd'), 'unimix': 0.0},
    'value': head('value', 'bins'),
    'opt': {
      **pick(opt, 'lr', 'agc', 'beta2', 'eps', 'warmup'),
      'momentum': opt['beta1'],
      'schedule': 'constant',
      'weight_decay': opt['wd'],
    },
  }


def _observations(
  shapes: _Shapes, config: Mapping[str, Any]
) -> dict[str, Space]:
  """Infers the observations from the decoder; images become one, 'image'."""
  spaces = {}
  prefix, suffix = 'decoder/out_', '/kernel'
  for name, shape in shapes.items():
    if name.startswith(prefix) and name.endswith(suffix):
      key = name.removeprefix(prefix).removesuffix(suffix)
      spaces[key] = Space(shape=(shape[-1],), dtype='float32')
  if 'decoder/deter_in/bias' in shapes:
    decoder = config['decoder']
    stages, deepest = len(decoder['mults']), decoder['mults'][-1]
    cells = shapes['decoder/deter_in/bias'][0] // (deepest * decoder['depth'])
    side = round(cells**0.5) * 2**stages
    channels = shapes['decoder/image_out/bias'][0]
    spaces['image'] = Space(shape=(side, side, channels), dtype='uint8')
  return spaces


def _actions(shapes: _Shapes) -> dict[str, Space]:
  spaces = {}
  for name, shape in shapes.items():
    if match := re.fullmatch('policy/([^/]+)_mean/bias', name):
      spaces[match[1]] = Space(shape=shape, dtype='float32')
    elif match := re.fullmatch('policy/([^/]+)_logits/bias', name):
      spaces[match[1]] = Space(shape=(), dtype='int32', classes=shape[0])
  return spaces
