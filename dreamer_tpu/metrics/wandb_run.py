"""Weights & Biases output: one run per logdir, across resumes."""

import importlib.util
import io
import json
import secrets
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics import video
from dreamer_tpu.paths import atomic_write, is_local

FILE = 'wandb.json'
_REMEDY = "or leave 'wandb' out of metrics.outputs."


class WandbRun:
  """Writes metrics to the W&B run whose id is stored in the logdir.

  W&B's own settings choose the project and the account: WANDB_PROJECT,
  WANDB_ENTITY, WANDB_MODE=offline and `wandb login`. Code, terminal output and
  machine details are not uploaded.

  W&B only accepts increasing steps. A run resumed from an earlier step skips
  the steps that it has already written.

  Args:
    logdir: Directory of the run, whose name becomes the name of the W&B run.
    submit: Runs a function with its arguments on the background thread.
    config: The configuration, nested or not.

  Raises:
    UserError: W&B is not installed or cannot start.
  """

  def __init__(
    self,
    logdir: epath.PathLike,
    submit: Callable[..., None],
    config: Mapping[str, Any],
  ) -> None:
    spec = importlib.util.find_spec('wandb')
    if spec is None or spec.origin is None:  # A folder of runs has no origin.
      raise UserError(
        "metrics.outputs: 'wandb' needs the package wandb, which is not "
        f'installed; pip install wandb, {_REMEDY}'
      )
    self._submit = submit
    self._path = epath.Path(logdir) / FILE
    self._state: dict[str, Any] = {'id': secrets.token_hex(8), 'step': -1}
    if self._path.exists():
      self._state = json.loads(self._path.read_text())
    self._last_step = self._state['step']
    self._run = self._start(epath.Path(logdir), config)
    self._save()

  @property
  def location(self) -> str:
    """URL of the run, or the folder of an offline run."""
    return self._run.settings.sync_dir if self._run.offline else self._run.url

  def write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Queues metrics, see `Writers.write`."""
    self._submit(self._write, step, metrics)

  def close(self) -> None:
    """Queues the end of the run, which waits for all uploads."""
    self._submit(self._run.finish)

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
    except wandb.Error as error:
      text = ' '.join(str(error).split())
      raise UserError(
        f"metrics.outputs: 'wandb' cannot start ({text}); run `wandb login`, "
        f'set WANDB_MODE=offline, {_REMEDY}'
      ) from error

  def _write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
    if step <= self._last_step:
      return
    values = {k: _convert(v) for k, v in metrics.items() if v.size}
    self._run.log(values, step=step)
    self._state['step'] = step
    self._save()

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
