#!/bin/sh
# A virtual environment at $2 made by $1; where Debian's python3 lacks venv, install it or say how.
set -eu
python=$1 venv=$2
[ -x "$venv/bin/pip" ] && exit 0
if "$python" -m venv "$venv" >/dev/null 2>&1; then exit 0; fi
rm -rf "$venv"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing python3-venv" >&2
    apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
    exec "$python" -m venv "$venv"
fi
echo "python3 has no venv here; as root: apt-get install python3-venv (or: make PYTHON=/path/to/another/python3)" >&2
exit 1
