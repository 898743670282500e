"""Memory that processes share."""

import os
import tempfile


def anonymous_file(size: int) -> int:
  """Returns the descriptor of a file in memory, or of a temporary one.

  It has no name, so that nothing is left of it.

  Args:
    size: Bytes.
  """
  if hasattr(os, 'memfd_create'):
    descriptor = os.memfd_create('environment')
  else:
    descriptor, path = tempfile.mkstemp()
    os.unlink(path)
  os.truncate(descriptor, size)
  return descriptor
