"""Progress of a run at a terminal, drawn by rich."""

import io
import os
from collections.abc import Mapping


def render(
  head: str, share: float, rows: Mapping[str, str], size: os.terminal_size
) -> str:
  """Returns a headline with a progress bar, and a table of values below.

  Args:
    head: Text before the bar.
    share: Length of the bar, in 0..1.
    rows: Values by their label; empty ones are left out.
    size: Columns and lines of the terminal, which the text fits.
  """
  # Only terminals need it.
  from rich.console import Console
  from rich.progress_bar import ProgressBar
  from rich.table import Table
  from rich.text import Text

  width = size.columns - 1  # A full line would wrap.
  console = Console(file=io.StringIO(), force_terminal=True, width=width)
  bar = Table.grid(padding=(0, 1), expand=True)
  bar.add_column(no_wrap=True)
  bar.add_column(ratio=1)
  line = ProgressBar(total=1.0, completed=share, complete_style='green')
  bar.add_row(Text(head), line)
  values = Table.grid(padding=(0, 2))
  values.add_column(style='dim', no_wrap=True)
  for label, value in rows.items():
    if value:
      values.add_row(f'  {label}', Text(value))
  with console.capture() as capture:
    console.print(bar, values)
  lines = capture.get().rstrip('\n').split('\n')
  return '\n'.join(lines[: size.lines - 1])
