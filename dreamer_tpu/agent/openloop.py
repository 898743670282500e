"""Open-loop video predictions next to ground truth."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

SEQUENCES = 6
GREEN, RED = (0, 255, 0), (255, 0, 0)


def videos(
  model: Any,
  start: Mapping[str, jax.Array],
  obs: Mapping[str, jax.Array],
  last_action: jax.Array,
  key: jax.Array,
) -> dict[str, jax.Array]:
  """Returns videos that observe half of a sequence and imagine the rest.

  Args:
    model: Networks, see `model.Model`.
    start: State [B, ...] before the first step.
    obs: [B, T, ...] observations.
    last_action: float32 [B, T, A], the action before each step.
    key: PRNG key.

  Returns:
    uint8 [T, 3 H, B W, 3] by 'openloop/KEY' for each image key: truth,
    prediction and error from top to bottom, sequences from left to right. The
    border is green while observing and red while imagining.
  """
  if not model.decoder.images:
    return {}
  cut = lambda x: x[:SEQUENCES]
  start, obs, last_action = jax.tree.map(
    cut, (dict(start), dict(obs), last_action)
  )
  states = _states(model, start, obs, last_action, key)
  stoch = states['stoch'].reshape(*states['stoch'].shape[:2], -1)
  heads = model.decoder(states['deter'], stoch)
  half = last_action.shape[1] // 2
  return {
    f'openloop/{k}': grid(obs[k], heads[k].prediction, half)
    for k in model.decoder.images
  }


def _states(model, start, obs, last_action, key) -> dict[str, Any]:
  half = last_action.shape[1] // 2
  first = {k: v[:, :half] for k, v in obs.items()}
  observe_key, imagine_key = jax.random.split(key)
  observed = model.rssm.observe(
    start,
    model.encoder(first),
    last_action[:, :half],
    first['is_first'],
    observe_key,
  )

  imagine = model.rssm.imagine()

  def step(state, inputs):
    state = imagine(state, *inputs)
    return state, state

  rest = jnp.swapaxes(last_action[:, half:], 0, 1)
  noise = model.rssm.noise(imagine_key, rest.shape[:2])
  state = {'deter': observed.deter, 'stoch': observed.stoch}
  last = jax.tree.map(lambda x: x[:, -1], state)
  _, imagined = jax.lax.scan(step, last, (rest, noise))
  return {
    k: jnp.concatenate([state[k], jnp.swapaxes(imagined[k], 0, 1)], 1)
    for k in state
  }


def grid(truth: jax.Array, prediction: jax.Array, half: int) -> jax.Array:
  """Lays out images [B, T, H, W, C] as one video [T, 3 H, B W, 3].

  Args:
    truth: uint8 images.
    prediction: float32 images in [0, 1].
    half: Number of observed steps; the rest is imagined.
  """
  truth = truth.astype(jnp.float32)
  prediction = prediction * 255
  error = (prediction - truth + 255) / 2
  frames = jnp.concatenate([truth, prediction, error], 2)
  frames = jnp.clip(frames, 0, 255).astype(jnp.uint8)
  if frames.shape[-1] % 3:
    frames = jnp.repeat(frames[..., -1:], 3, -1)
  frames = frames[..., -3:]  # The newest of stacked images.
  batch, steps, height, width, _ = frames.shape
  observed = (jnp.arange(steps) < half)[:, None, None, None]
  color = jnp.where(observed, jnp.array(GREEN), jnp.array(RED))
  inside = jnp.zeros((height, width, 1), bool).at[2:-2, 2:-2].set(True)
  frames = jnp.where(inside, frames, color.astype(jnp.uint8))
  return jnp.moveaxis(frames, 0, 2).reshape(steps, height, batch * width, 3)
