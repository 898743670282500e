"""Functions of a configuration."""

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


def sequence_length(config: Any) -> int:
  """Returns the steps per replay sequence: enough for training and reports."""
  trained = config.batch_length * config.consec_train
  reported = config.report_length * config.consec_report
  return config.replay_context + max(trained, reported)
