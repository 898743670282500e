#!/usr/bin/env bash
# Writes the API reference as web pages; a warning is an error.
#   launch/docs.sh [FOLDER]
out=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../runs/docs}")
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python -c 'import pdoc' 2>/dev/null ||
  python -m pip install --quiet "$(sed -n 's/.*"\(pdoc==.*\)".*/\1/p' pyproject.toml)"
JAX_PLATFORMS=cpu python - "$out" <<'END_PYTHON'
import pathlib
import sys
import warnings

import pdoc

warnings.filterwarnings('error', module=r'pdoc\.')
# Packages are given with all of their modules: some list only a few.
warnings.filterwarnings('ignore', 'The module specification')
modules = [
  '.'.join(path.with_suffix('').parts).removesuffix('.__init__')
  for path in sorted(pathlib.Path('dreamer_tpu').rglob('*.py'))
  if path.name != '__main__.py'
]
pdoc.render.configure(docformat='google')
pdoc.pdoc(*modules, output_directory=pathlib.Path(sys.argv[1]))
print(f'API reference: {sys.argv[1]}/index.html, {len(modules)} modules')
END_PYTHON
