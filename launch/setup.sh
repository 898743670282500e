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

# Prints the first of some Pythons whose version is 3.A to 3.B.
find_python() { # A B PYTHON...
  local range=$1,$2 candidate
  shift 2
  for candidate in "$@"; do
    if "$candidate" -c "import sys
a, b = $range
sys.exit(not (3, a) <= sys.version_info[:2] <= (3, b))" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# labmaze, which dm_control requires, has no wheel for Python 3.13. So this takes
# an older Python, or lets uv install one (as on TPU VMs), or leaves it out.
make_venv() {
  local python=${PYTHON:-}
  if [ -n "$python" ]; then
    if ! find_python 11 99 "$python" >/dev/null; then
      echo "setup: PYTHON=$python is not Python 3.11 or newer" >&2
      return 1
    fi
  elif ! python=$(find_python 11 12 python3.11 python3.12 python3); then
    echo 'setup: no Python 3.11 or 3.12; installing 3.11 with uv'
    if python3 -m pip install --quiet --target .venv/uv uv &&
      .venv/uv/bin/uv venv --quiet --seed --allow-existing --python 3.11 .venv
    then
      return
    elif ! python=$(find_python 13 99 python3.13 python3.14 python3); then
      echo 'setup: no Python 3.11 or newer; set one: PYTHON=/path/to/python' >&2
      return 1
    fi
  fi
  if find_python 13 99 "$python" >/dev/null; then
    echo "setup: $python is newer than 3.12, for which labmaze has no wheel:" \
      'leaving out DeepMind Control, locomotion mazes and Memory Maze. For' \
      'these, set PYTHON=/path/to/python3.12 and remove .venv'
  fi
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    debian_packages python3-venv
  fi
  "$python" -m venv --clear .venv
}

pip_install() { .venv/bin/python -m pip install --quiet "$@"; }

# Runs a command that installs what a file lists, unless its stamp is there.
once() { # FILE COMMAND
  local stamp wanted
  stamp=.venv/$(basename "$1").sha256
  wanted=$(sha256sum "$1")
  [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
  echo "setup: installing what $1 lists into .venv (minutes the first time)"
  "${@:2}"
  echo "$wanted" >"$stamp"
}

if [ ! -x .venv/bin/python ]; then
  make_venv
fi
debian_packages
once requirements.txt pip_install --requirement requirements.txt
export PATH="$PWD/.venv/bin:$PATH"
export MUJOCO_GL="${MUJOCO_GL:-egl}"
