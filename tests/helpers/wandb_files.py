"""Reader for the files of offline runs of Weights & Biases."""

import json
import struct


def records(path):
  """Yields the protocol buffers in a file: a LevelDB log after 7 bytes."""
  from wandb.proto import wandb_internal_pb2

  data, at, parts = path.read_bytes(), 7, b''
  while at + 7 <= len(data):
    if 32768 - at % 32768 < 7:
      at += 32768 - at % 32768
      continue
    length, kind = struct.unpack_from('<HB', data, at + 4)
    parts += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # Full, or the last part.
      record = wandb_internal_pb2.Record()
      record.ParseFromString(parts)
      yield record
      parts = b''


def history(logdir):
  """Returns (run id, step, values) of all runs of a logdir, oldest first."""
  paths = sorted((logdir / 'wandb').glob('offline-run-*/*.wandb'))
  paths.sort(key=lambda path: path.stat().st_mtime_ns)
  found = []
  for path in paths:
    for record in records(path):
      if record.WhichOneof('record_type') == 'run':
        name = record.run.run_id
      elif record.WhichOneof('record_type') == 'history':
        values = {
          '.'.join(x.nested_key) or x.key: json.loads(x.value_json)
          for x in record.history.item
        }
        found.append((name, record.history.step.num, values))
  return found
