"""Suggests a mesh: compiles a few candidates and compares their floors."""

import copy

from ml_collections import ConfigDict

from dreamer_tpu.agent import Agent
from dreamer_tpu.errors import UserError
from dreamer_tpu.learner.steps import Steps
from dreamer_tpu.metrics.terminal import Terminal
from dreamer_tpu.sharding import mesh as mesh_lib
from dreamer_tpu.tools.plan import step, topology

Sizes = tuple[int, int, int]


def suggest(
  config: ConfigDict,
  agent: Agent,
  name: str,
  chips: int | None,
  terminal: Terminal,
) -> list[step.UpdatePlan]:
  """Compiles the candidate meshes, at most four, and ranks them.

  Args:
    config: Configuration of the run; `mesh` is ignored.
    agent: Agent from `step.make_agent`.
    name: Name of the topology.
    chips: Number of chips to use of it; None for all.
    terminal: Shows the stages of the work, which take minutes.

  Returns:
    The plans, best first: those that fit by their largest floor, then the
    others by their peak memory.

  Raises:
    UserError: No mesh divides the chips, hosts, blocks and batch.
  """
  sizes = candidates(config, agent, name, chips)
  if not sizes:
    raise UserError(
      f'No mesh of {name} divides batch_size={config.batch_size} and the '
      f'{config.agent.rssm.blocks} blocks; choose another batch_size.'
    )
  terminal.log_status(f'Comparing {len(sizes)} meshes, one after another.')
  plans = [
    step.make(_with_mesh(config, x), agent, name, chips, terminal)
    for x in sizes
  ]
  return sorted(plans, key=rank)


def rank(plan: step.UpdatePlan) -> tuple[float, ...]:
  """Returns the sort key of a plan; lower is better."""
  if not plan.floors:
    return 1, plan.peak
  x = plan.floors
  return 0, x.largest, x.compute + x.memory + x.network


def candidates(
  config: ConfigDict, agent: Agent, name: str, chips: int | None = None
) -> list[Sizes]:
  """Returns the meshes to compare, at most four.

  These are the smallest and the largest model axis that is valid, each with
  the remaining chips all on `data` or all on `fsdp`.
  """
  devices = topology.devices(name, chips)
  valid: dict[int, list[Sizes]] = {}
  for model in mesh_lib.divisors(len(devices)):
    rest = len(devices) // model
    for sizes in dict.fromkeys([(rest, 1, model), (1, rest, model)]):
      if _is_valid(_with_mesh(config, sizes), agent, devices):
        valid.setdefault(model, []).append(sizes)
  extremes = sorted({min(valid), max(valid)}) if valid else []
  return [sizes for model in extremes for sizes in valid[model]]


def _is_valid(config: ConfigDict, agent: Agent, devices: list) -> bool:
  try:
    mesh = mesh_lib.make(config.mesh, devices)
    mesh_lib.check_batch(mesh, config.batch_size)
    Steps(agent, mesh, config.sharding.rules, batch_size=config.batch_size)
  except UserError:
    return False
  return True


def _with_mesh(config: ConfigDict, sizes: Sizes) -> ConfigDict:
  changed = copy.deepcopy(config)
  changed.mesh.update(dict(zip(mesh_lib.AXES, sizes, strict=True)))
  return changed
