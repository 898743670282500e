"""Maps parameter names of the public implementation to ours.

Weights have the same layout in both. Our names are those of the agent's
parameters, plus `slow_value` and `retnorm`.
"""

import re

_MLPS = {
  'dec': 'decoder',
  'rew': 'reward',
  'con': 'cont',
  'pol': 'policy',
  'val': 'value',
  'slowval': 'slow_value',
}
# Public and our modules. {i} is a number, {key} an observation or action.
_MODULES = {
  'enc/mlp{i}': 'encoder/mlp/layer{i}/linear',
  'enc/mlp{i}norm': 'encoder/mlp/layer{i}/norm',
  'enc/cnn{i}': 'encoder/conv{i}',
  'enc/cnn{i}norm': 'encoder/norm{i}',
  'dyn/dynin0': 'rssm/in_deter/linear',
  'dyn/dynin0norm': 'rssm/in_deter/norm',
  'dyn/dynin1': 'rssm/in_stoch/linear',
  'dyn/dynin1norm': 'rssm/in_stoch/norm',
  'dyn/dynin2': 'rssm/in_action/linear',
  'dyn/dynin2norm': 'rssm/in_action/norm',
  'dyn/dynhid{i}': 'rssm/hidden{i}',
  'dyn/dynhid{i}norm': 'rssm/hidden{i}_norm',
  'dyn/dyngru': 'rssm/gru',
  'dyn/prior{i}': 'rssm/prior/layer{i}/linear',
  'dyn/prior{i}norm': 'rssm/prior/layer{i}/norm',
  'dyn/priorlogit': 'rssm/prior_logits',
  'dyn/obs{i}': 'rssm/post/layer{i}/linear',
  'dyn/obs{i}norm': 'rssm/post/layer{i}/norm',
  'dyn/obslogit': 'rssm/post_logits',
  **{
    f'{k}/mlp/linear{{i}}': f'{v}/mlp/layer{{i}}/linear'
    for k, v in _MLPS.items()
  },
  **{
    f'{k}/mlp/norm{{i}}': f'{v}/mlp/layer{{i}}/norm' for k, v in _MLPS.items()
  },
  'dec/sp0': 'decoder/deter_in',
  'dec/sp1': 'decoder/stoch_in/linear',
  'dec/sp1norm': 'decoder/stoch_in/norm',
  'dec/sp2': 'decoder/stoch_out',
  'dec/spnorm': 'decoder/norm',
  'dec/conv{i}': 'decoder/conv{i}',
  'dec/conv{i}norm': 'decoder/norm{i}',
  'dec/imgout': 'decoder/image_out',
  'dec/vec/{key}/pred': 'decoder/out_{key}',
  'dec/vec/{key}/logits': 'decoder/out_{key}',
  'rew/head/logits': 'reward/out',
  'con/head/logit': 'cont/out',
  'pol/head/{key}/logits': 'policy/{key}_logits',
  'pol/head/{key}/mean': 'policy/{key}_mean',
  'pol/head/{key}/stddev': 'policy/{key}_std',
  'val/head/logits': 'value/out',
  'slowval/head/logits': 'slow_value/out',
}
_SCALARS = {
  'retnorm/lo/value': 'retnorm/low',
  'retnorm/hi/value': 'retnorm/high',
}
_PATTERNS = {
  re.compile(
    public.replace('{i}', r'(?P<i>\d+)').replace('{key}', '(?P<key>.+)')
    + '/(?P<leaf>kernel|bias|scale)'
  ): ours
  for public, ours in _MODULES.items()
}


def from_public(name: str) -> str:
  """Maps a public name, such as 'dyn/dyngru/kernel', to 'rssm/gru/kernel'.

  Raises:
    KeyError: There is no such parameter here (e.g. optimizer moments).
  """
  if name in _SCALARS:
    return _SCALARS[name]
  for pattern, ours in _PATTERNS.items():
    if match := pattern.fullmatch(name):
      groups = match.groupdict(default='')
      key = groups.get('key', '').replace('/', '.')
      return f'{ours.format(i=groups.get("i"), key=key)}/{groups["leaf"]}'
  raise KeyError(name)
