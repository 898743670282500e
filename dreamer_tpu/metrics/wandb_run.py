"""Weights & Biases output: one run per logdir, across resumes."""

import contextlib
import io
import json
import secrets
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.errors import UserError, describe
from dreamer_tpu.metrics import video
from dreamer_tpu.metrics.process import Process
from dreamer_tpu.paths import atomic_write, is_local

FILE = 'wandb.json'
_REMEDY = "or leave 'wandb' out of metrics.outputs."
# Errors of W&B that are mistakes of the user.
_REFUSALS = 'UsageError', 'AuthenticationError'


class Wandb:
  """Target of metrics: the W&B run whose id is stored in the logdir.

  W&B's own settings choose the project and the account: WANDB_PROJECT,
  WANDB_ENTITY, WANDB_MODE=offline and `wandb login`. Code, terminal output and
  machine details are not uploaded.

  W&B only accepts increasing steps. A run resumed from an earlier step skips
  the steps that it has already written.

  Args:
    logdir: Directory of the run, whose name becomes the name of the W&B run.
    config: The configuration, nested or not.
    log_status: Shows the location of the W&B run.
  """

  def __init__(
    self,
    logdir: epath.PathLike,
    config: Mapping[str, Any],
    log_status: Callable[[str], None],
  ) -> None:
    self._log_status = log_status
    self._process = Process(_Run, str(logdir), dict(config))

  def write(self, item: tuple[int, Mapping[str, np.ndarray]] | None) -> None:
    """Writes (step, metrics); None only starts.

    Raises:
      UserError: W&B refuses to start.
      RuntimeError: It cannot be reached.
    """
    if item is None:
      location = self._process.call('location')
      self._log_status(f'Weights & Biases: {location or "disabled"}')
    else:
      self._process.call('write', *item)

  def close(self) -> None:
    """Ends the run, which waits for uploads."""
    self._process.close()


class _Run:
  """A W&B run, in its own process."""

  def __init__(self, logdir: str, config: Mapping[str, Any]) -> None:
    self._path = epath.Path(logdir) / FILE
    self._state: dict[str, Any] = {'id': secrets.token_hex(8), 'step': -1}
    if self._path.exists():
      self._state = json.loads(self._path.read_text())
    self._last_step = self._state['step']
    self._run = self._start(epath.Path(logdir), config)
    self._save()

  def location(self) -> str:
    """Returns the URL of the run, or the folder of an offline run."""
    return self._run.settings.sync_dir if self._run.offline else self._run.url

  def write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Writes metrics, unless the run has written this step before.

    Raises:
      ValueError: W&B cannot take a value, with or without a connection.
      Exception: Any other failure.
    """
    if step <= self._last_step:
      return
    try:
      values = {k: _convert(v) for k, v in metrics.items() if v.size}
    except Exception as error:
      raise ValueError(describe(error)) from error
    self._run.log(values, step=step)
    self._state['step'] = step
    with contextlib.suppress(OSError):  # For resumes; saved with the next step.
      self._save()

  def close(self) -> None:
    self._run.finish()

  def _start(self, logdir: epath.Path, config: Mapping[str, Any]) -> Any:
    import wandb

    try:
      return wandb.init(
        id=self._state['id'],
        resume='allow',
        name=logdir.name,
        dir=str(logdir) if is_local(logdir) else tempfile.gettempdir(),
        config=dict(config),
        settings=wandb.Settings(
          silent=True,
          console='off',
          save_code=False,
          disable_git=True,
          x_disable_meta=True,
          x_disable_stats=True,
        ),
      )
    except Exception as error:
      if type(error).__name__ not in _REFUSALS:
        raise  # Such as a lost connection.
      text = ' '.join(str(error).split())
      raise UserError(
        f"metrics.outputs: 'wandb' cannot start ({text}); run `wandb login`, "
        f'set WANDB_MODE=offline, {_REMEDY}'
      ) from error

  def _save(self) -> None:
    atomic_write(self._path, json.dumps(self._state))


def _convert(value: np.ndarray) -> Any:
  import wandb

  match value.ndim:
    case 0:
      return value.item()
    case 1:
      return wandb.Histogram(value.tolist())
    case 3:
      return wandb.Image(value)
    case _:
      return wandb.Video(io.BytesIO(video.encode_gif(value)), format='gif')
