#!/usr/bin/env bash
# Makes the object stores that the tests run against: versitygw (S3) and azurite (Azure), once per user, in a cache.
# Prints the folder. What is there already is used; CONTAINERS_ONLY=1 pretends that there is neither Go nor npm.
set -euo pipefail
versitygw=1.8.0
azurite=3.35.0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kafka-backup-dagster
mkdir -p "$cache"

has() { [ -z "${CONTAINERS_ONLY:-}" ] && command -v "$1" >/dev/null; }

# Two makes at once must not build twice into one place.
exec 9>"$cache/lock"
if command -v flock >/dev/null; then flock -w 900 9; fi

made=$(mktemp -d "$cache/made.XXXXXX")
trap 'rm -rf "$made"' EXIT

failed() {
  tail -n 15 "$made/log" >&2
  echo "error: $1" >&2
  exit 1
}

if [ ! -x "$cache/versitygw-$versitygw" ]; then
  echo "Building versitygw $versitygw, an S3 server (one to three minutes, once)" >&2
  install="go install -ldflags='-s -w' github.com/versity/versitygw/cmd/versitygw@v$versitygw"
  if has go; then
    env CGO_ENABLED=0 GOFLAGS=-modcacherw GOBIN="$made" bash -c "$install" >"$made/log" 2>&1
  else
    # For this system, not for the container's; such a binary lands in a folder of its own below bin.
    system=$(uname -s | tr '[:upper:]' '[:lower:]')
    machine=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
    docker run --rm -e CGO_ENABLED=0 -e GOOS="$system" -e GOARCH="$machine" -v "$made:/made" golang:1 \
      bash -c "$install && find /go/bin -name versitygw -exec cp {} /made/ \;" >"$made/log" 2>&1
  fi || failed "versitygw could not be built; the tests of S3 need it. Install Go, or let Docker pull golang:1."
  mv "$made/versitygw" "$cache/versitygw-$versitygw"
fi

# Without npm the tests run it in a container.
if [ ! -d "$cache/azurite-$azurite" ] && has npm; then
  echo "Installing azurite $azurite, an emulator of Azure's blob storage (once)" >&2
  mkdir "$made/azurite"
  npm install --silent --no-fund --no-audit --prefix "$made/azurite" "azurite@$azurite" >"$made/log" 2>&1 ||
    failed "npm could not install azurite; the tests of Azure need it."
  mv "$made/azurite" "$cache/azurite-$azurite"
fi
echo "$cache"
