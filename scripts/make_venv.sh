#!/usr/bin/env bash
# Makes a virtual environment with the first Python >= 3.12 that really runs, and installs this project into it.
# Candidates are run, not only looked up: a name on PATH may be a shim whose interpreter is missing.
set -euo pipefail
venv=${1:?usage: make_venv.sh FOLDER}

runs() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.12 python3.13 python3.14 python3 python; do
    if runs "$candidate"; then echo "$candidate"; return 0; fi
  done
  if command -v pyenv >/dev/null 2>&1; then
    for candidate in "$(pyenv root)"/versions/3.1[2-9]*/bin/python; do
      if runs "$candidate"; then echo "$candidate"; return 0; fi
    done
  fi
  return 1
}

if ! python=$(find_python); then
  echo "subq_jax needs Python >= 3.12 and found none; install one or name it: make PYTHON=/path/to/python3.12 test" >&2
  exit 1
fi
echo "using $("$python" --version) ($python)"

"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
