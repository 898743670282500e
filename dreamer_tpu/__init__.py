"""DreamerV3 from a laptop to a TPU pod."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from dreamer_tpu.policy import load_policy as load_policy

__version__ = '0.1.0'


def __getattr__(name: str) -> Any:
  # Importing the package alone must not wait for JAX.
  if name == 'load_policy':
    from dreamer_tpu.policy import load_policy

    return load_policy
  raise AttributeError(f"module 'dreamer_tpu' has no attribute '{name}'")
