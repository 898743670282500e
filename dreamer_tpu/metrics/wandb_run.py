"""The Weights & Biases output: one run for a logdir, however often resumed."""

import concurrent.futures
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

FILE = 'wandb.json'
_WAY_OUT = "or leave 'wandb' out of metrics.outputs."


class WandbRun:
  """Writes metrics to the run whose id the logdir keeps.

  Where it goes and who may write there is W&B's own affair: WANDB_PROJECT,
  WANDB_ENTITY, WANDB_MODE=offline and `wandb login` are as its documentation
  has them. Neither code nor the terminal nor the machine is captured.

  Steps of a run can only grow there. What a process that is resumed from an
  earlier step writes once more, up to where the one before it was, is left
  out.
  """

  def __init__(
    self,
    logdir: epath.PathLike,
    submit: Callable[..., concurrent.futures.Future[Any]],
    config: Mapping[str, Any],
  ) -> None:
    """Starts the run or goes on with it.

    Args:
      logdir: Its name is the name of the run.
      submit: Runs a function with its arguments on the background thread.
      config: The configuration, nested or not.

    Raises:
      UserError: W&B is not installed, or refuses.
    """
    spec = importlib.util.find_spec('wandb')
    if spec is None or spec.origin is None:  # its folder of runs has none
      raise UserError(
        "metrics.outputs: 'wandb' needs the package wandb, which is not "
        f'installed; pip install wandb, {_WAY_OUT}'
      )
    self._submit = submit
    self._path = epath.Path(logdir) / FILE
    self._state: dict[str, Any] = {'id': secrets.token_hex(8), 'step': -1}
    if self._path.exists():
      self._state = json.loads(self._path.read_text())
    self._earlier = self._state['step']
    self._run = self._start(epath.Path(logdir), config)
    self._save()

  @property
  def place(self) -> str:
    """Where to see it: an address, or the folder of an offline run."""
    return self._run.settings.sync_dir if self._run.offline else self._run.url

  def write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Queues scalars, histograms [N], images [H, W, C], videos [T, H, W, C]."""
    self._submit(self._write, step, metrics)

  def close(self) -> None:
    """Queues the end; waits there until all is uploaded."""
    self._submit(self._run.finish)

  def _start(self, logdir: epath.Path, config: Mapping[str, Any]) -> Any:
    import wandb

    local = '://' not in str(logdir)
    try:
      return wandb.init(
        id=self._state['id'],
        resume='allow',
        name=logdir.name,
        dir=str(logdir) if local else tempfile.gettempdir(),
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
        f'set WANDB_MODE=offline, {_WAY_OUT}'
      ) from error

  def _write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
    if step <= self._earlier:
      return
    values = {k: _convert(v) for k, v in metrics.items() if v.size}
    self._run.log(values, step=step)
    self._state['step'] = step
    self._save()

  def _save(self) -> None:
    partial = self._path.with_name(FILE + '.partial')
    partial.write_text(json.dumps(self._state))
    partial.replace(self._path)


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
