"""Messages of errors."""

import pytest

from dreamer_tpu.errors import describe


class Silent(Exception):
  def __str__(self):
    raise RuntimeError('no text')


@pytest.mark.parametrize(
  ('error', 'text'),
  [
    (ValueError('two\n  lines'), 'ValueError: two lines'),
    (ValueError('\x1b[31mred\x1b[0m'), 'ValueError: red'),
    (OSError('lost\udcff.bin'), r'OSError: lost\udcff.bin'),
    (KeyError(), 'KeyError'),
    (Silent(), 'Silent'),
  ],
)
def test_errors_of_others_in_a_line(error, text):
  assert describe(error) == text
