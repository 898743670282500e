"""Stands in for the package W&B, in tests of lost connections.

It takes numbers and histograms, no images. What is logged is appended to the
file `logged` of the folder `WANDB_STANDIN`. While that folder has a file
`down`, calls raise; while it has a file `hangs`, they do not return.
"""

import json
import os
import pathlib
import time

FOLDER = pathlib.Path(os.environ['WANDB_STANDIN'])


class Error(Exception):
  """Raised without a connection."""


def Settings(**kwargs):  # noqa: N802 (W&B's name)
  return kwargs


def connect():
  if (FOLDER / 'down').exists():
    raise Error('Run initialization has timed out after 90.0 sec.')
  while (FOLDER / 'hangs').exists():
    time.sleep(0.01)


def Histogram(values):  # noqa: N802 (W&B's name)
  return values


class Run:
  offline, url = False, 'https://wandb.invalid/run'

  def log(self, values, step):
    connect()
    with (FOLDER / 'logged').open('a') as file:
      file.write(json.dumps({'step': step, **values}) + '\n')

  def finish(self):
    connect()
    (FOLDER / 'finished').touch()


def init(**kwargs):
  connect()
  return Run()
