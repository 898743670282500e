"""Records of TensorFlow: files of `tf.train.Example`, read without TensorFlow.

Importing TensorFlow takes seconds and 700 MB. A record is its length, a
checksum of that, its bytes and their checksum, which is not verified. The bytes
are a protocol buffer: Example{1: Features{1: map of names to Feature}}. Feature
is one of {1: bytes, 2: float32, 3: int64} lists, whose elements have number 1.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

# Bytes of images and texts are a list of them; numbers are an array.
Values = list[bytes] | np.ndarray

_BYTES, _FLOATS, _INTEGERS = 1, 2, 3
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_POLYNOMIAL = 0x82F63B78  # Of CRC-32C.


def records(file: BinaryIO) -> Iterator[bytes]:
  """Yields the records of a file.

  Raises:
    ValueError: It is truncated or corrupt.
  """
  number = 0
  while header := file.read(12):
    if len(header) < 12:
      raise ValueError(f'the file is truncated in record {number}')
    length, crc = struct.unpack('<QI', header)
    if crc != _masked_crc(header[:8]):
      raise ValueError(f'record {number} is corrupt (wrong checksum)')
    record = file.read(length + 4)
    if len(record) < length + 4:
      raise ValueError(f'the file is truncated in record {number}')
    yield record[:-4]
    number += 1


def parse(record: bytes) -> dict[str, Values]:
  """Returns the features of an Example by name.

  Raises:
    ValueError: It is no Example.
  """
  try:
    return {
      name: _values(feature)
      for _, features in _fields(memoryview(record))
      for _, entry in _fields(features)
      for name, feature in [_entry(entry)]
    }
  except (IndexError, TypeError, KeyError, struct.error) as error:
    raise ValueError('it is no tf.train.Example') from error


def _entry(entry: memoryview) -> tuple[str, memoryview]:
  fields = dict(_fields(entry))
  return bytes(fields[1]).decode(), fields[2]


def _values(feature: memoryview) -> Values:
  for kind, values in _fields(feature):
    elements = [x for _, x in _fields(values)]
    if kind == _BYTES:
      return [bytes(x) for x in elements]
    if kind == _FLOATS:
      return np.frombuffer(b''.join(elements), '<f4')
    if kind == _INTEGERS:
      return np.concatenate([np.zeros(0, np.int64), *map(_integers, elements)])
  return []


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
  """Yields numbers and contents of the fields of a message."""
  position = 0
  while position < len(data):
    tag, position = _varint(data, position)
    kind = tag & 7
    start = position
    if kind == _LENGTH:
      size, start = _varint(data, position)
    elif kind == _VARINT:
      size = _varint(data, position)[1] - position
    else:
      size = {_FIXED64: 8, _FIXED32: 4}[kind]
    position = start + size
    if position > len(data):
      raise IndexError
    yield tag >> 3, data[start:position]


def _varint(data: memoryview, position: int) -> tuple[int, int]:
  """Returns an integer of seven bits per byte, and the position after it."""
  value = shift = 0
  while True:
    byte = data[position]
    position += 1
    value |= (byte & 127) << shift
    shift += 7
    if byte < 128:
      return value, position


def _integers(data: memoryview) -> np.ndarray:
  """Returns consecutive varints as int64 [n]."""
  octets = np.frombuffer(data, np.uint8)
  ends = np.flatnonzero(octets < 128) + 1
  starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
  sizes = ends - starts
  values = np.zeros(len(ends), np.uint64)
  for i in range(int(sizes.max(initial=0))):
    longer = sizes > i
    part = octets[starts[longer] + i].astype(np.uint64) & np.uint64(127)
    values[longer] |= part << np.uint64(7 * i)
  return values.view(np.int64)


def _masked_crc(data: bytes) -> int:
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
  crc ^= 0xFFFFFFFF
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
