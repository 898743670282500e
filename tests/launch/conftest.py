"""A stand-in of the cloud: gcloud is a script, workers are local processes."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


def runs(pid: int) -> bool:
  """Returns whether a process runs: one that was killed has no command."""
  try:
    return bool(pathlib.Path(f'/proc/{pid}/cmdline').read_bytes())
  except (FileNotFoundError, ProcessLookupError):
    return False


def read(path: pathlib.Path) -> str:
  """Returns the text of a file, '' if somebody has deleted it."""
  try:
    return path.read_text()
  except FileNotFoundError:
    return ''


class Cloud:
  """Folder of the stand-in; `gcloud` describes the files in it.

  Args:
    folder: An empty folder.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._started: list[subprocess.Popen] = []
    (folder / 'bin').mkdir()
    for name in ('gcloud', 'sudo', 'curl'):
      shutil.copy(HERE / name, folder / 'bin' / name)
      (folder / 'bin' / name).chmod(0o755)
    kubectl = folder / 'bin' / 'kubectl'
    kubectl.write_text(
      f'#!/usr/bin/env bash\nexec {sys.executable} {HERE}/kubectl.py "$@"\n'
    )
    kubectl.chmod(0o755)
    (folder / 'venv').symlink_to(sys.prefix)

  def write(self, **files: object) -> None:
    """Writes files of the cloud, which nobody sees half written."""
    for name, text in files.items():
      new = self.folder / f'{name}.new'
      new.write_text(f'{text}\n')
      new.rename(self.folder / name)

  def run_program(self, text: str) -> None:
    """Sets a Bash script that workers run in place of Python."""
    self.write(program=f'#!/usr/bin/env bash\n{text}')
    (self.folder / 'program').chmod(0o755)

  def start(self, *arguments: object, script='tpu.sh', **env: str):
    """Starts a script of launch/, with its output as text."""
    environment = {
      **os.environ,
      'PATH': f'{self.folder}/bin:{os.environ["PATH"]}',
      'CLOUD': str(self.folder),
      'POLL': '0',
      'TMPDIR': str(self.folder),
      **env,
    }
    # Bash cannot trap what was ignored when it started, as in a job with `&`.
    bash = ('env', '--default-signal=INT', 'bash')
    process = subprocess.Popen(
      [*bash, ROOT / 'launch' / script, *arguments],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,
    )
    self._started.append(process)
    return process

  def end(self, *arguments: object, code: int = 0, **env: str) -> str:
    """Runs a script to its end and returns its output."""
    process = self.start(*arguments, **env)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    return output

  def calls(self, *words: str) -> list[str]:
    """Returns the calls of gcloud that contain all words."""
    path = self.folder / 'calls'
    calls = path.read_text().splitlines() if path.exists() else []
    return [x for x in calls if all(f' {word} ' in f'{x} ' for word in words)]

  def pids(self, worker: str = '*') -> list[int]:
    """Returns the processes of the run on a worker, or on all."""
    files = self.folder.glob(f'*/{worker}/dreamer_tpu/.pid')
    found = [read(path).split() for path in files]
    return [int(x[1]) for x in found if x and runs(int(x[1]))]

  def reboot(self, worker: str) -> None:
    """Kills all that runs on a worker; its files stay."""
    for pid in self.pids(worker):
      with contextlib.suppress(ProcessLookupError):
        os.killpg(os.getpgid(pid), signal.SIGKILL)

  def log(self, worker: str = 'pod/0') -> str:
    """Returns the output of the run on a worker."""
    return read(self.folder / worker / 'dreamer_tpu/run.log')

  def wait(self, condition, process: subprocess.Popen) -> None:
    """Waits for a condition, while the process runs."""
    deadline = time.monotonic() + 240
    while not condition():
      assert time.monotonic() < deadline
      if process.poll() is not None:
        self.close()  # What still runs may hold its output open.
        raise AssertionError(process.stdout.read())
      time.sleep(0.05)

  def close(self) -> None:
    """Kills what still runs."""
    for process in self._started:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    self.reboot('*')


@pytest.fixture
def cloud(tmp_path):
  cloud = Cloud(tmp_path)
  yield cloud
  cloud.close()
