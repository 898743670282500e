"""All networks of the agent, named as in checkpoints."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from dreamer_tpu.agent import heads, spaces
from dreamer_tpu.agent.decoder import Decoder
from dreamer_tpu.agent.encoder import Encoder
from dreamer_tpu.agent.rssm import RSSM


class Model(nnx.Module):
  """World model, actor and critic.

  Args:
    obs_space: Space per observation key.
    act_space: Space per action key.
    config: `agent` of the configuration.
    dtype: Compute dtype.
    rngs: Source of the initial parameters.
  """

  def __init__(
    self,
    obs_space: Mapping[str, spaces.Space],
    act_space: Mapping[str, spaces.Space],
    config: Any,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    action = sum(v.size for v in act_space.values())
    self.encoder = Encoder(obs_space, config.encoder, **kw)
    self.rssm = RSSM(self.encoder.size, action, config.rssm, **kw)
    deter, feat = self.rssm.deter, self.rssm.feat_size
    self.decoder = Decoder(obs_space, deter, feat - deter, config.decoder, **kw)
    self.reward = heads.ScalarHead(feat, config.reward, **kw)
    self.cont = heads.BinaryHead(feat, config.cont, **kw)
    self.policy = heads.PolicyHead(feat, act_space, config.policy, **kw)
    self.value = heads.ScalarHead(feat, config.value, **kw)
