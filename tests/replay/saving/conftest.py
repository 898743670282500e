import os

import pytest


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
  """Skips fsync, which is slow and only matters after a power cut."""
  monkeypatch.setattr(os, 'fsync', lambda handle: None)
