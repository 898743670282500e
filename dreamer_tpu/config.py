"""Access to nested configurations by dotted key."""

from typing import Any


def flatten(config: Any, prefix: str = '') -> dict[str, Any]:
  """Returns a nested configuration as {'agent.opt.lr': 4e-5, ...}.

  Args:
    config: A mapping or a ConfigDict.
    prefix: Put before each key.
  """
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if hasattr(value, 'items'):
      flat.update(flatten(value, f'{prefix}{key}.'))
    else:
      flat[f'{prefix}{key}'] = value
  return flat
