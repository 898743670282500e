"""Parameter names of the public implementation and ours.

Weights have the same layout in both, so a name is all that changes. Names of
ours are those of the agent's parameters plus `slow_value` and `retnorm`.
"""

import re
from collections.abc import Collection

# In both columns {i} is a number and {key} an observation or action. Where
# two rules fit a name of ours the first one counts.
_RULES = (
  ('enc/mlp{i}', 'encoder/mlp/layer{i}/linear'),
  ('enc/mlp{i}norm', 'encoder/mlp/layer{i}/norm'),
  ('enc/cnn{i}', 'encoder/conv{i}'),
  ('enc/cnn{i}norm', 'encoder/norm{i}'),
  ('dyn/dynin0', 'rssm/in_deter/linear'),
  ('dyn/dynin0norm', 'rssm/in_deter/norm'),
  ('dyn/dynin1', 'rssm/in_stoch/linear'),
  ('dyn/dynin1norm', 'rssm/in_stoch/norm'),
  ('dyn/dynin2', 'rssm/in_action/linear'),
  ('dyn/dynin2norm', 'rssm/in_action/norm'),
  ('dyn/dynhid{i}', 'rssm/hidden{i}'),
  ('dyn/dynhid{i}norm', 'rssm/hidden{i}_norm'),
  ('dyn/dyngru', 'rssm/gru'),
  ('dyn/prior{i}', 'rssm/prior/layer{i}/linear'),
  ('dyn/prior{i}norm', 'rssm/prior/layer{i}/norm'),
  ('dyn/priorlogit', 'rssm/prior_logits'),
  ('dyn/obs{i}', 'rssm/post/layer{i}/linear'),
  ('dyn/obs{i}norm', 'rssm/post/layer{i}/norm'),
  ('dyn/obslogit', 'rssm/post_logits'),
  ('dec/mlp/linear{i}', 'decoder/mlp/layer{i}/linear'),
  ('dec/mlp/norm{i}', 'decoder/mlp/layer{i}/norm'),
  ('dec/sp0', 'decoder/deter_in'),
  ('dec/sp1', 'decoder/stoch_in/linear'),
  ('dec/sp1norm', 'decoder/stoch_in/norm'),
  ('dec/sp2', 'decoder/stoch_out'),
  ('dec/spnorm', 'decoder/norm'),
  ('dec/conv{i}', 'decoder/conv{i}'),
  ('dec/conv{i}norm', 'decoder/norm{i}'),
  ('dec/imgout', 'decoder/image_out'),
  ('dec/vec/{key}/pred', 'decoder/out_{key}'),
  ('dec/vec/{key}/logits', 'decoder/out_{key}'),
  ('rew/mlp/linear{i}', 'reward/mlp/layer{i}/linear'),
  ('rew/mlp/norm{i}', 'reward/mlp/layer{i}/norm'),
  ('rew/head/logits', 'reward/out'),
  ('con/mlp/linear{i}', 'cont/mlp/layer{i}/linear'),
  ('con/mlp/norm{i}', 'cont/mlp/layer{i}/norm'),
  ('con/head/logit', 'cont/out'),
  ('pol/mlp/linear{i}', 'policy/mlp/layer{i}/linear'),
  ('pol/mlp/norm{i}', 'policy/mlp/layer{i}/norm'),
  ('pol/head/{key}/logits', 'policy/{key}_logits'),
  ('pol/head/{key}/mean', 'policy/{key}_mean'),
  ('pol/head/{key}/stddev', 'policy/{key}_std'),
  ('val/mlp/linear{i}', 'value/mlp/layer{i}/linear'),
  ('val/mlp/norm{i}', 'value/mlp/layer{i}/norm'),
  ('val/head/logits', 'value/out'),
  ('slowval/mlp/linear{i}', 'slow_value/mlp/layer{i}/linear'),
  ('slowval/mlp/norm{i}', 'slow_value/mlp/layer{i}/norm'),
  ('slowval/head/logits', 'slow_value/out'),
)
_SCALARS = {
  'retnorm/lo/value': 'retnorm/low',
  'retnorm/hi/value': 'retnorm/high',
}
_LEAF = '(?P<leaf>kernel|bias|scale)'


def from_public(name: str) -> str:
  """Our name for a public one: 'dyn/dyngru/kernel' -> 'rssm/gru/kernel'.

  Raises:
    KeyError: We keep nothing under that name (optimizer moments, counters).
  """
  if name in _SCALARS:
    return _SCALARS[name]
  for pattern, _, ours in _PATTERNS:
    if match := pattern.fullmatch(name):
      return _fill(ours, match, '/', '.')
  raise KeyError(name)


def to_public(name: str, discrete: Collection[str] = ()) -> str:
  """The public name for one of ours.

  Args:
    name: Such as 'rssm/gru/kernel'.
    discrete: Keys of the integer observations. Their decoder heads have a
      name of their own in the public implementation only.

  Raises:
    KeyError: The public implementation has nothing under that name.
  """
  for public, ours in _SCALARS.items():
    if name == ours:
      return public
  for (_, pattern, _), (public, _) in zip(_PATTERNS, _RULES, strict=True):
    if match := pattern.fullmatch(name):
      full = _fill(public, match, '.', '/')
      if public.startswith('dec/vec/'):
        key = match['key']
        integer = key in discrete or key.replace('.', '/') in discrete
        part = 'logits' if integer else 'pred'
        full = re.sub('/(pred|logits)/', f'/{part}/', full)
      return full
  raise KeyError(name)


def _fill(template: str, match: re.Match, old: str, new: str) -> str:
  groups = match.groupdict()
  key = groups.get('key', '').replace(old, new)
  return f'{template.format(i=groups.get("i"), key=key)}/{groups["leaf"]}'


def _compile(template: str, key: str) -> re.Pattern:
  pattern = template.replace('{i}', r'(?P<i>\d+)')
  return re.compile(f'{pattern.replace("{key}", key)}/{_LEAF}')


_PATTERNS = [
  (_compile(public, '(?P<key>.+)'), _compile(ours, '(?P<key>[^/]+)'), ours)
  for public, ours in _RULES
]
