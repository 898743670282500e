"""The agent's state on the mesh, and its updates."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from dreamer_tpu.agent import Agent
from dreamer_tpu.learner.steps import Steps
from dreamer_tpu.sharding import arrays

Tree = dict[str, Any]


class Result(NamedTuple):
  """Results of an update on the host.

  Attributes:
    stepid: int64 [local rows, T], addresses of the trained steps.
    latents: [local rows, T, ...] to write back to the replay.
    priority: float32 [local rows, T], the world model's loss of each step.
    metrics: Scalars.
    nonfinite: Name of the first parameter with a non-finite gradient, for
      which the update was skipped; or ''.
  """

  stepid: np.ndarray
  latents: dict[str, np.ndarray]
  priority: np.ndarray
  metrics: dict[str, float]
  nonfinite: str


class Learner:
  """Holds the agent's state on the mesh and trains it.

  Updates are dispatched without waiting. The results of an update are returned
  when the next one has been dispatched, or by `flush`.

  Args:
    agent: The agent's functions.
    mesh: The device mesh.
    sharding_rules: Mesh axis per logical axis.
    batch_size: Rows of the global batch.
    seed: Seed of parameters and training.
    report_grads: Adds the gradient norm of every loss term to reports.

  Attributes:
    state: The agent's state.
    carry: Carry of the sequences that are trained in parts.
  """

  def __init__(
    self,
    agent: Agent,
    mesh: Mesh,
    sharding_rules: Mapping[str, str | None],
    *,
    batch_size: int,
    seed: int,
    report_grads: bool = False,
  ):
    self.agent = agent
    self.steps = Steps(agent, mesh, sharding_rules, batch_size=batch_size)
    self._report_grads = report_grads
    self.shardings = self.steps.shardings
    self.abstract = self.steps.abstract
    self.state: Tree = {}
    # As an argument, so that all seeds share one compiled program.
    self._seed = self._scalar(np.uint32(seed))
    self.carry = self.steps.new_carry()
    self._pending: tuple | None = None

  def init(self) -> None:
    """Creates a fresh state, every shard on its own device."""
    self.state = self.steps.init(self._seed)

  def parameter_counts(self) -> dict[str, int]:
    """Counts parameters per module."""
    return {
      name: sum(x.size for x in jax.tree.leaves(tree))
      for name, tree in self.abstract['params'].items()
    }

  def put(self, data: Mapping[str, np.ndarray]) -> Tree:
    """Starts to copy this host's rows of a batch to its devices."""
    return arrays.to_global(self.steps.rows, dict(data))

  def update(self, batch: Tree, stepid: np.ndarray) -> Result | None:
    """Dispatches an update.

    Args:
      batch: From `put`, K context steps first.
      stepid: int64 [local rows, K + T].

    Returns:
      The result of the update before it, if not yet handed out.
    """
    self.state, self.carry, latents, metrics = self.steps.train(
      self.state, self.carry, batch, self._seed
    )
    previous = self._pending
    self._pending = (stepid[:, self.agent.context :], latents, metrics)
    return self._fetch(previous)

  def flush(self) -> Result | None:
    """Waits for the last update and returns its result."""
    previous, self._pending = self._pending, None
    return self._fetch(previous)

  def report(
    self, parts: Sequence[Tree], count: int
  ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Computes losses without an update, videos and histograms.

    Args:
      parts: Consecutive parts of one batch, from `put`.
      count: Index of the report, for its random numbers.

    Returns:
      Scalars, averaged over the parts, and arrays of the first one: uint8
      [T, H, W, 3] per video, [n] per histogram.
    """
    carry = self.steps.new_carry()
    number = self._scalar(np.int32(count))
    results = []
    for part in parts:
      inputs = (self.state, carry, part, self._seed, number)
      carry, *result = self.steps.report(*inputs)
      metrics, shown = jax.device_get(result)
      if self._report_grads:
        metrics |= self._gradient_norms(metrics, inputs)
      results.append((metrics, shown))
    mean = lambda *xs: float(np.mean(xs))
    return jax.tree.map(mean, *(r[0] for r in results)), results[0][1]

  def _gradient_norms(self, metrics: Tree, inputs: tuple) -> Tree:
    """Computes 'grad_norm/TERM' for every term in the metrics of a report."""
    names = sorted(k for k in metrics if k.startswith('loss/'))
    names.remove('loss/total')
    norms = {
      name.replace('loss', 'grad_norm', 1): self.steps.gradient_norm(
        *inputs, self._scalar(np.int32(term))
      )
      for term, name in enumerate(names)
    }
    return jax.device_get(norms)

  def publish(self, device: jax.Device) -> Tree:
    """Copies the policy's weights, in the compute dtype, to a device."""
    published = self.steps.publish(self.state['params'])
    return jax.device_put(arrays.on_one_device(published), device)

  def _scalar(self, value: np.generic) -> jax.Array:
    return arrays.to_global(self.steps.whole, np.asarray(value))

  def _fetch(self, pending: tuple | None) -> Result | None:
    if pending is None:
      return None
    stepid, latents, scalars = pending
    metrics = scalars.to_host()
    culprit = int(metrics.pop('opt/nonfinite'))
    name = '' if culprit < 0 else self._parameter_names()[culprit]
    latents = arrays.to_local(latents)
    priority = latents.pop('priority')
    return Result(stepid, latents, priority, metrics, name)

  def _parameter_names(self) -> list[str]:
    flat = traverse_util.flatten_dict(self.abstract['params'], sep='/')
    return sorted(flat, key=lambda name: name.split('/'))
