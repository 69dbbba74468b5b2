#!/usr/bin/env bash
# A Chromium for the tests of Dagster's user interface: found, or on a Debian machine installed.
set -euo pipefail
for program in chromium chromium-browser google-chrome google-chrome-stable; do
  if command -v "$program" >/dev/null; then exit 0; fi
done
"$(cd "$(dirname "$0")" && pwd)/apt-install.sh" "the tests of the user interface" chromium
