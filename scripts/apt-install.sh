#!/usr/bin/env bash
# Installs Debian packages if this is Debian (or its like) and we may; otherwise says what is missing.
# Usage: apt-install.sh "what needs them" PACKAGE...
set -euo pipefail
what=$1
shift
if ! command -v apt-get >/dev/null; then
  echo "error: $what needs: $* (Debian's names). Please install them and try again." >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" != 0 ]; then
  if sudo -n true 2>/dev/null; then as_root=(sudo); else
    echo "error: $what needs the packages: $*. Please run: sudo apt-get install $*" >&2
    exit 1
  fi
fi
echo "Installing $* ($what)" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive timeout 600 apt-get -o DPkg::Lock::Timeout=300 -qq "$@" >"$log" 2>&1; }
# The lists of a fresh machine are empty, those of an old one may name packages that are gone.
apt install -y --no-install-recommends "$@" || { apt update && apt install -y --no-install-recommends "$@"; } || {
  cat "$log" >&2
  echo "error: apt-get could not install: $*" >&2
  exit 1
}
