# Sourced by the other scripts: changes to the root of the project and activates
# .venv, after installing requirements.txt into it if needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# MuJoCo renders through EGL, in software where there is no GPU.
debian_packages() {
  command -v apt-get >/dev/null || return 0
  local missing=() package
  for package in libegl1 libopengl0 libgl1-mesa-dri "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null |
      grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ]; then
    echo "setup: missing Debian packages; run as root: apt-get install" \
      "${missing[*]}" >&2
    return 0
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
    --no-install-recommends "${missing[@]}" >/dev/null
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
      2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

make_venv() {
  local python
  if ! python=$(find_python); then # As on TPU VMs: uv installs one.
    python3 -m pip install --quiet --target .venv/uv uv &&
      .venv/uv/bin/uv venv --quiet --seed --allow-existing --python 3.11 .venv ||
      {
        echo 'setup: no Python 3.11 or newer; set one:' \
          'PYTHON=/path/to/python' >&2
        return 1
      }
    return
  fi
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    debian_packages python3-venv
  fi
  "$python" -m venv .venv
}

stamp=.venv/requirements.sha256
wanted=$(sha256sum requirements.txt)
if [ ! -x .venv/bin/python ]; then
  make_venv
fi
debian_packages
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo 'setup: installing requirements.txt into .venv (minutes the first time)'
  .venv/bin/python -m pip install --quiet --requirement requirements.txt
  echo "$wanted" >"$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
export MUJOCO_GL="${MUJOCO_GL:-egl}"
