"""The model sizes, from 1 to 400 million parameters.

Every size follows from the units of a hidden layer: the recurrent state has
eight times as many; the discrete state has a sixteenth as many classes, and the
convolutions a sixteenth as many channels.
"""

import functools

import ml_collections

UNITS = {
  'size1m': 64,
  'size12m': 256,
  'size25m': 384,
  'size50m': 512,
  'size100m': 768,
  'size200m': 1024,
  'size400m': 1536,
}


def resize(config: ml_collections.ConfigDict, units: int) -> None:
  """Sets all widths of the agent from `units`."""
  agent = config.agent
  agent.rssm.update(deter=8 * units, hidden=units, classes=units // 16)
  for part in (agent.encoder, agent.decoder):
    part.update(depth=units // 16, units=units)
  for head in (agent.reward, agent.cont, agent.policy, agent.value):
    head.units = units
  # Without it, an update above 200M parameters does not fit 16 GiB.
  agent.remat = units > 1024


PRESETS = {
  name: functools.partial(resize, units=units) for name, units in UNITS.items()
}
