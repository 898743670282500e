"""How strongly each term of the loss pulls at the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Tree = dict[str, Any]


def norms(
  terms_fn: Callable[[Tree], tuple[dict[str, jax.Array], Any]], params: Tree
) -> tuple[dict[str, jax.Array], Any]:
  """The gradient norm of every term of a loss.

  The forward pass is made once, the backward pass for one term after another.

  Args:
    terms_fn: From parameters to scalar terms by name, and what goes along.
    params: Parameters.

  Returns:
    The L2 norm over all parameters of each term's gradient, and what went
    along.
  """
  terms, backward, aux = jax.vjp(terms_fn, params, has_aux=True)
  names = sorted(terms)

  def norm(row):
    (grads,) = backward(dict(zip(names, row, strict=True)))
    return optax.tree.norm(grads)

  values = jax.lax.map(norm, jnp.eye(len(names)))
  return dict(zip(names, values, strict=True)), aux
