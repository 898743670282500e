"""Reads checkpoints of the public DreamerV3 implementation.

They are pickles, which can run any code when loaded. Only a fixed list of
globals is allowed here, and these are replaced by small classes of this file:
nothing in the pickle reaches NumPy's own constructors.
"""

import dataclasses
import pickle
import re
from typing import Any, Literal

import ml_dtypes
import numpy as np
from etils import epath

from dreamer_tpu.checkpoint import layout
from dreamer_tpu.checkpoint.dreamerv3 import names
from dreamer_tpu.errors import UserError

FILE = 'agent.pkl'
_SKIPPED = ('opt/', 'slowval_count/')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicCheckpoint:
  """Content of a public checkpoint.

  Attributes:
    params: Parameters, `slow_value` and `retnorm` by our names.
    public: Public names by our names.
    skipped: Public names without a counterpart (optimizer, counters).
    counters: Updates, batches and actions at the time of the save.
  """

  params: dict[str, np.ndarray]
  public: dict[str, str]
  skipped: list[str]
  counters: dict[str, int]


def find(path: epath.PathLike) -> epath.Path | None:
  """Returns the folder with agent.pkl for a path, or None.

  Args:
    path: That folder, the one above with a file `latest`, or a logdir.
  """
  root = layout.absolute(path)
  if (root / FILE).exists():
    return root
  for folder in (root, root / 'ckpt'):
    latest = folder / 'latest'
    if latest.exists() and not latest.is_dir():
      named = folder / latest.read_text().strip()
      if (named / FILE).exists():
        return named
  return None


def load(folder: epath.Path) -> PublicCheckpoint:
  """Reads agent.pkl without executing code in it.

  Raises:
    UserError: It holds anything but arrays and plain containers, is corrupt,
      or is not an agent.
  """
  path = folder / FILE
  try:
    with path.open('rb') as file:
      content = _Unpickler(file).load()
    arrays = {k: _array(v) for k, v in content['params'].items()}
    counters = {str(k): int(v) for k, v in content['counters'].items()}
  except _Forbidden as error:
    raise UserError(
      f"Refused to load '{path}': its pickle uses '{error}', but only arrays "
      'and plain containers are allowed. Do not trust this file.'
    ) from None
  except OSError as error:
    raise UserError(
      f"Cannot read '{path}': {layout.one_line(error)}."
    ) from error
  except Exception as error:  # A corrupt pickle may raise anything.
    raise UserError(
      f"'{path}' is corrupt or not an agent of the public implementation "
      f'({layout.one_line(error)}).'
    ) from error
  return _translate(path, arrays, counters)


def _translate(
  path: epath.Path, arrays: dict[str, np.ndarray], counters: dict[str, int]
) -> PublicCheckpoint:
  params, public, skipped = {}, {}, []
  for name, value in arrays.items():
    if name.startswith(_SKIPPED):
      skipped.append(name)
      continue
    try:
      ours = names.from_public(name)
    except KeyError:
      raise UserError(
        f"'{path}' holds '{name}', which this implementation lacks; only "
        'checkpoints of the default DreamerV3 agent can be imported.'
      ) from None
    params[ours] = value
    public[ours] = name
  return PublicCheckpoint(
    params=params, public=public, skipped=skipped, counters=counters
  )


class _Forbidden(Exception):
  """The pickle uses a global that no checkpoint needs."""


class _Dtype:
  """Replaces numpy.dtype; numeric dtypes only."""

  def __init__(self, kind: Any, align: bool = False, copy: bool = True):
    plain = isinstance(kind, str) and re.fullmatch(r'[biufc]\d{1,2}', kind)
    if not plain and kind not in _ML_DTYPES.values():
      raise ValueError(f'dtype {kind!r} is not a number')
    self.dtype = np.dtype(kind)

  def __setstate__(self, state: tuple) -> None:
    if state[1] in ('<', '>'):
      self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
  """Replaces numpy.ndarray while the pickle is read."""

  def __init__(self, *unused):
    self.value: np.ndarray | None = None

  def __setstate__(self, state: tuple) -> None:
    _, shape, dtype, fortran, data = state
    self.value = _from_buffer(data, dtype, shape, 'F' if fortran else 'C').value


def _from_buffer(
  data: bytes,
  dtype: _Dtype,
  shape: tuple[int, ...],
  order: Literal['C', 'F'],
) -> _Array:
  array = _Array()
  flat = np.frombuffer(data, dtype.dtype)
  array.value = flat.reshape(shape, order=order)
  return array


def _scalar(dtype: _Dtype, data: bytes) -> _Array:
  return _from_buffer(data, dtype, (), 'C')


def _encode(text: str, encoding: str) -> bytes:
  if encoding != 'latin1':
    raise ValueError(f'bytes encoded as {encoding}')
  return text.encode('latin1')


def _no_bytes() -> bytes:
  return b''


_ML_DTYPES = {
  name: getattr(ml_dtypes, name)
  for name in ('bfloat16', 'float8_e4m3fn', 'float8_e5m2')
}
_ALLOWED: dict[tuple[str, str], Any] = {
  ('numpy', 'ndarray'): _Array,
  ('numpy', 'dtype'): _Dtype,
  ('_codecs', 'encode'): _encode,  # Bytes in old pickles.
  ('__builtin__', 'bytes'): _no_bytes,
  **{('ml_dtypes', name): kind for name, kind in _ML_DTYPES.items()},
}
for _core in ('numpy.core', 'numpy._core'):
  _ALLOWED[_core + '.multiarray', '_reconstruct'] = _Array
  _ALLOWED[_core + '.multiarray', 'scalar'] = _scalar
  _ALLOWED[_core + '.numeric', '_frombuffer'] = _from_buffer


class _Unpickler(pickle.Unpickler):
  """Resolves only the allowed globals."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ALLOWED:
      raise _Forbidden(f'{module}.{name}')
    return _ALLOWED[module, name]


def _array(value: Any) -> np.ndarray:
  if isinstance(value, _Array) and value.value is not None:
    return value.value
  if isinstance(value, bool | int | float):
    return np.asarray(value)
  raise ValueError(f'{type(value).__name__} where an array is expected')
