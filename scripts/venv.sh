#!/usr/bin/env bash
# Makes the virtual environment: this project, editable, with everything the tests need, in tested versions.
# Usage: venv.sh FOLDER; the interpreter is $PYTHON, or the first that fits.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=$1

fits() { command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
find_python() {
  for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.13}; do
    if fits "$candidate"; then
      python=$candidate
      return
    fi
  done
  return 1
}

if ! find_python; then
  if [ -n "${PYTHON:-}" ]; then
    echo "error: $PYTHON is not Python 3.11 or newer." >&2
    exit 1
  fi
  "$here/apt-install.sh" "Python 3.11 or newer" python3 python3-venv
  find_python || { echo "error: no Python 3.11 or newer here; set PYTHON=/its/path" >&2; exit 1; }
fi

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  rm -rf "$venv"
  # Debian splits ensurepip off; without it, venv makes an environment that has no pip.
  if ! "$python" -c 'import ensurepip' 2>/dev/null && ! "$python" -m virtualenv --version >/dev/null 2>&1; then
    "$here/apt-install.sh" "the virtual environment" python3-venv
  fi
  if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv "$venv"
  elif "$python" -m virtualenv --version >/dev/null 2>&1; then
    "$python" -m virtualenv -q "$venv"
  else
    echo "error: $python has neither ensurepip nor virtualenv: install its venv package." >&2
    exit 1
  fi
fi

echo "Installing Python packages into $venv (one to three minutes the first time)" >&2
timeout 1500 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --editable '.[dev]' --constraint constraints.txt
# Only packages come compiled; without this each start of an editable one compiles it again where
# PYTHONDONTWRITEBYTECODE is set.
"$venv/bin/python" -m compileall -q core kafka_backup_dagster
