"""Scripts of launch/ without a cloud: lint, manifests, dry runs, sweeps."""

import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


def run(script, *arguments, code=0, **env):
  done = subprocess.run(
    ['bash', ROOT / 'launch' / script, *arguments],
    env={**os.environ, **env},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == code, done.stderr
  return done.stdout if code == 0 else done.stderr


@pytest.mark.skipif(not shutil.which('shellcheck'), reason='needs shellcheck')
def test_shellcheck():
  stand_ins = [x for x in HERE.iterdir() if x.is_file() and not x.suffix]
  done = subprocess.run(
    [
      *('shellcheck', '--shell=bash', '--source-path=SCRIPTDIR', '-x'),
      *(ROOT / 'launch').glob('*.sh'),
      *stand_ins,
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout


def manifest(topology, *arguments, **env):
  words = ('train', 'pod', topology, 'image', '--logdir=gs://b/r', *arguments)
  (text,) = yaml.safe_load_all(run('gke.sh', '--dry_run', *words, **env))
  (job,) = text['spec']['replicatedJobs']
  return text, job, job['template']['spec']['template']['spec']


@pytest.mark.parametrize(
  ('topology', 'hosts', 'chips', 'kind'),
  [
    ('v5e:4x4', 4, 4, 'tpu-v5-lite-podslice'),
    ('v6e:1x1', 1, 1, 'tpu-v6e-slice'),
    ('v5p:2x2x4', 4, 4, 'tpu-v5p-slice'),
    ('tpu7x:2x2x2', 2, 4, 'tpu7x'),
  ],
)
def test_job_set_has_a_pod_per_host(topology, hosts, chips, kind):
  _, job, pod = manifest(topology)
  work = job['template']['spec']
  assert (work['parallelism'], work['completions']) == (hosts, hosts)
  (container,) = pod['containers']
  assert container['resources']['limits'] == {'google.com/tpu': chips}
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': kind,
    'cloud.google.com/gke-tpu-topology': topology.split(':')[1],
  }


def test_job_set_of_spot_nodes_with_any_arguments():
  odd = '--config.env.gym.kwargs={"a": "b\\c", "d": \'e\'}'
  text, job, pod = manifest('v6e:2x4', odd, SPOT='1', NODE_COUNT='3')
  assert job['replicas'] == 3
  assert pod['nodeSelector']['cloud.google.com/gke-spot'] == 'true'
  assert pod['tolerations'][0]['key'] == 'cloud.google.com/gke-spot'
  assert pod['containers'][0]['args'] == ['--logdir=gs://b/r', odd]
  # Saved runs and lost nodes start again without an end.
  (rule,) = text['spec']['failurePolicy']['rules']
  assert rule['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
  codes = job['template']['spec']['podFailurePolicy']['rules'][0]
  assert codes['onExitCodes']['values'] == [75]


@pytest.mark.parametrize(
  ('topology', 'machine', 'machines'),
  [
    ('v6e:4x4', 'ct6e-standard-4t', 4),
    ('v6e:1x1', 'ct6e-standard-1t', 1),
    ('tpu7x:2x2x2', 'tpu7x-standard-4t', 2),
  ],
)
def test_managed_instance_group(topology, machine, machines):
  words = ('train', 'pod', topology, 'us-east5-b', '--logdir=gs://b/r')
  text = run('gce.sh', *words, '--dry_run', PROJECT='mine')
  calls = [shlex.split(line) for line in text.splitlines()]
  kinds = [call[3] for call in calls]
  policy = ['resource-policies'] if machines > 1 else []
  assert kinds == ['cp', 'instance-templates', *policy, 'instance-groups']
  assert f'--machine-type={machine}' in calls[1]
  assert f'--size={machines}' in calls[-1]
  if policy:
    assert f'--accelerator-topology={topology.split(":")[1]}' in calls[2]


@pytest.mark.parametrize(
  ('script', 'arguments', 'message'),
  [
    (
      'gce.sh',
      ['train', 'a', 'v5e:4x4', 'z', '--logdir=gs://b'],
      'launch/tpu.sh',
    ),
    ('gce.sh', ['train', 'a', 'v6e-16', 'z', '--logdir=gs://b'], 'v6e:4x4'),
    ('gce.sh', ['train', 'a', 'v6e:4x4', 'z', '--logdir=b'], 'gs://BUCKET/RUN'),
    ('gke.sh', ['train', 'a', 'v3:4x4', 'i', '--logdir=gs://b'], 'tpu7x'),
    ('gke.sh', ['train', 'a', 'v6e:4x4', 'i', '--logdir=b'], 'gs://BUCKET/RUN'),
    ('gke.sh', ['trian', 'a'], 'launch/gke.sh train NAME'),
  ],
)
def test_bad_arguments_are_one_line_or_the_usage(script, arguments, message):
  assert message in run(script, *arguments, code=1, PROJECT='mine')


def test_container_file_fits_the_project():
  text = (ROOT / 'launch/Dockerfile').read_text().replace('\\\n', ' ')
  steps = re.findall(r'^([A-Z]+) (.*)$', text, re.M)
  sources = [
    x for step, words in steps if step == 'COPY' for x in words.split()[:-1]
  ]
  assert sources
  assert all((ROOT / source).exists() for source in sources)
  with (ROOT / 'pyproject.toml').open('rb') as file:
    project = tomllib.load(file)['project']
  ((command,),) = [json.loads(x) for step, x in steps if step == 'ENTRYPOINT']
  assert command in project['scripts']
  (base,) = [words for step, words in steps if step == 'FROM']
  assert base.split(':')[1] >= project['requires-python'].strip('>=')
  setup = (ROOT / 'launch/setup.sh').read_text()
  packages = re.search(r'for package in (.*) "\$@"', setup)[1]
  (apt,) = [words for step, words in steps if 'apt-get' in words]
  assert packages in ' '.join(apt.split())


# Plays main.py; all else is run.
PYTHON = f"""#!/usr/bin/env bash
[ "$1" = main.py ] || exec {sys.executable} "$@"
echo "$@" >>calls
logdir=${{*: -1}}
logdir=${{logdir#--logdir=}}
for i in {{1..50}}; do
  printf '{{"step": %d, "episode/score": %d, %s}}\\n' "$i" "$i" \\
    '"episode/length": 1, "mode": "train"'
done >"$logdir/scores.jsonl"
echo a line
exit "$(cat "code.${{logdir##*/}}" 2>/dev/null || echo 0)"
"""


def test_a_sweep_resumes_what_is_not_done_and_plots(tmp_path):
  (tmp_path / 'launch').mkdir()
  for name in ('setup.sh', 'sweep.sh'):
    shutil.copy(ROOT / 'launch' / name, tmp_path / 'launch')
  for name in ('dreamer_tpu', 'configs', 'requirements.txt'):
    (tmp_path / name).symlink_to(ROOT / name)
  (tmp_path / '.venv/bin').mkdir(parents=True)
  python = tmp_path / '.venv/bin/python'
  python.write_text(PYTHON)
  python.chmod(0o755)
  digest = hashlib.sha256((ROOT / 'requirements.txt').read_bytes()).hexdigest()
  stamp = tmp_path / '.venv/requirements.txt.sha256'
  stamp.write_text(f'{digest}  requirements.txt\n')

  def sweep(code):
    words = (
      'runs',
      'gym_A-v1,bsuite_catch/0',
      '0,1',
      '--config=configs/gym.py',
    )
    done = subprocess.run(
      ['bash', tmp_path / 'launch/sweep.sh', *words],
      env={**os.environ, 'JOBS': '1'},
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout

  (tmp_path / 'code.1').write_text('3')
  output = sweep(1)
  assert 'sweep: gym_A-v1, seed 1: a line\n' in output
  assert 'sweep: bsuite_catch/0, seed 0: done\n' in output
  curves = tmp_path / 'runs/curves.png'
  assert curves.stat().st_size > 10_000
  curves.unlink()
  (tmp_path / 'code.1').write_text('75')
  assert 'seed 1: stopped' in sweep(75)
  assert not curves.exists()
  (tmp_path / 'code.1').unlink()
  sweep(0)
  calls = (tmp_path / 'calls').read_text().splitlines()
  # The stop ended the second sweep before its third run.
  assert len(calls) == 4 + 2 + 4
  assert calls[-1] == (
    'main.py --config=configs/gym.py --config.task=bsuite_catch/0 '
    '--config.seed=1 --logdir=runs/bsuite_catch_0/1'
  )
