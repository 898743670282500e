"""Stand-in of kubectl with JobSet: objects are files of $CLOUD.

An object is refused as by a server that validates strictly: for a field that
its definition does not have, a missing one, or a value of another kind.
"""

import os
import pathlib
import re
import sys
from typing import Any

import yaml

NAME = re.compile(r'[a-z]([-a-z0-9]*[a-z0-9])?')
TOLERATION = {
  'key': str,
  'operator': {'Equal', 'Exists'},
  'value': str,
  'effect': {'NoSchedule', 'NoExecute', 'PreferNoSchedule'},
}
CONTAINER = {
  'name!': NAME,
  'image!': str,
  'command': [str],
  'args': [str],
  'envFrom': [{'secretRef': {'name!': NAME, 'optional': bool}}],
  'ports': [{'containerPort!': int}],
  'resources': {'limits': dict, 'requests': dict},
}
POD = {
  'restartPolicy!': {'Never', 'OnFailure'},
  'terminationGracePeriodSeconds': int,
  'hostNetwork': bool,
  'dnsPolicy': {'ClusterFirst', 'ClusterFirstWithHostNet', 'Default', 'None'},
  'serviceAccountName': NAME,
  'nodeSelector': dict,
  'tolerations': [TOLERATION],
  'containers!': [CONTAINER],
}
RULE = {
  'action!': {'FailJob', 'FailIndex', 'Ignore', 'Count'},
  'onExitCodes': {'operator!': {'In', 'NotIn'}, 'values!': [int]},
  'onPodConditions': [{'type!': str, 'status': str}],
}
JOB = {
  'parallelism': int,
  'completions': int,
  'backoffLimit': int,
  'podFailurePolicy': {'rules!': [RULE]},
  'template!': {'metadata': dict, 'spec!': POD},
}
RESTART = {
  'name!': re.compile('[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?'),
  'action!': {
    'FailJobSet',
    'RestartJobSet',
    'RestartJobSetAndIgnoreMaxRestarts',
  },
  'onJobFailureReasons': [
    {'BackoffLimitExceeded', 'DeadlineExceeded', 'PodFailurePolicy'}
  ],
}
JOB_SET = {
  'apiVersion!': {'jobset.x-k8s.io/v1alpha2'},
  'kind!': {'JobSet'},
  'metadata!': {'name!': NAME, 'annotations': dict, 'labels': dict},
  'spec!': {
    'failurePolicy': {'maxRestarts': int, 'rules': [RESTART]},
    'replicatedJobs!': [
      {'name!': NAME, 'replicas': int, 'template!': {'spec!': JOB}}
    ],
  },
}


def check(value: Any, form: Any, path: str) -> None:
  """Refuses a value that does not have a form."""
  if isinstance(form, dict):
    names = {name.rstrip('!'): each for name, each in form.items()}
    if not isinstance(value, dict):
      fail(f'{path} must be an object')
    for name in value.keys() - names.keys():
      fail(f'unknown field "{path}.{name}"')
    for name in form:
      if name.endswith('!') and name[:-1] not in value:
        fail(f'{path}.{name[:-1]}: Required value')
    for name, each in value.items():
      check(each, names[name], f'{path}.{name}')
  elif isinstance(form, list):
    if not isinstance(value, list):
      fail(f'{path} must be an array')
    for i, each in enumerate(value):
      check(each, form[0], f'{path}[{i}]')
  elif isinstance(form, set):
    if value not in form:
      fail(f'{path}: Unsupported value: "{value}"')
  elif isinstance(form, re.Pattern):
    if not form.fullmatch(value):
      fail(f'{path}: Invalid value: "{value}"')
  elif type(value) is not form:
    fail(f'{path}: Invalid value: {value!r}, must be {form.__name__}')


def fail(reason: str) -> None:
  sys.exit(f'Error from server: {reason}')


def main(command: str, *arguments: str) -> None:
  cloud = pathlib.Path(os.environ['CLOUD'])
  with (cloud / 'calls').open('a') as file:
    print('kubectl', command, *arguments, file=file)
  match command, *arguments:
    case 'apply', '-f', '-':
      for item in yaml.safe_load_all(sys.stdin):
        check(item, JOB_SET, 'JobSet')
        name = item['metadata']['name']
        (cloud / f'jobset.{name}').write_text(yaml.safe_dump(item))
        print(f'jobset.jobset.x-k8s.io/{name} created')
    case (('get' | 'delete'), 'jobset', name):
      path = cloud / f'jobset.{name}'
      if not path.exists():
        fail(f'(NotFound): jobsets.jobset.x-k8s.io "{name}" not found')
      if command == 'delete':
        path.unlink()
      print(f'jobset.jobset.x-k8s.io "{name}"')
    case ('get', 'pods', '-l', selector, *_) | (
      'logs',
      '-f',
      _,
      '-l',
      selector,
    ):
      labels = dict(pair.split('=') for pair in selector.split(','))
      path = cloud / f'jobset.{labels["jobset.sigs.k8s.io/jobset-name"]}'
      (job,) = yaml.safe_load(path.read_text())['spec']['replicatedJobs']
      index = labels.get('batch.kubernetes.io/job-completion-index')
      for i in range(job['template']['spec']['completions']):
        if index in (None, str(i)):
          print(f'{path.suffix[1:]}-{job["name"]}-0-{i}')
    case _:
      fail(f'unknown command "{command}"')


if __name__ == '__main__':
  main(*sys.argv[1:])
