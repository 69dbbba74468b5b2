#!/usr/bin/env bash
# Sees to it that a Docker engine answers. Does nothing where one runs already; on a Debian machine, as root,
# it installs and starts one.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # iptables, dockerd

# An engine that hangs must not hang us.
answers() { timeout 20 docker info >/dev/null 2>&1; }

wait_for_engine() {
  for _ in $(seq 300); do
    if answers; then return 0; fi
    sleep 0.1
  done
  return 1
}

if answers; then exit 0; fi

if [ "$(uname)" != Linux ]; then
  echo "error: no Docker engine answers. Please start Docker (Docker Desktop, colima, ...) and try again." >&2
  exit 1
fi
if [ "$(id -u)" != 0 ]; then
  if command -v docker >/dev/null; then
    echo "error: no Docker engine answers. Please start it (sudo systemctl start docker), or if it runs, add yourself to the group docker (sudo usermod -aG docker $USER), log in again, and try again." >&2
  else
    echo "error: there is no Docker here. Please install it (sudo apt-get install docker.io), or run this as root." >&2
  fi
  exit 1
fi

# Two makes at once must start one engine.
exec 9>/run/kafka-backup-docker.lock
flock -w 600 9
if answers; then exit 0; fi

missing=()
if ! command -v dockerd >/dev/null || ! command -v docker >/dev/null; then missing+=(docker.io); fi
if ! command -v iptables >/dev/null; then missing+=(iptables); fi
if [ ${#missing[@]} -gt 0 ]; then "$here/apt-install.sh" "the Kafka container" "${missing[@]}"; fi
# From Debian 13 on, the client is a package of its own.
if ! command -v docker >/dev/null; then "$here/apt-install.sh" "the Kafka container" docker-cli; fi

if [ -d /run/systemd/system ]; then
  systemctl start docker
else
  # No systemd (a container, a CI machine): the package has started nothing. The lock is not for the engine to keep.
  log=/var/log/dockerd.log
  setsid nohup dockerd --log-level warn >>"$log" 2>&1 </dev/null 9>&- &
fi
if ! wait_for_engine; then
  echo "error: the Docker engine did not start within 30 seconds. Its last words (all: ${log:-journalctl -u docker}):" >&2
  if [ -n "${log:-}" ]; then tail -n 15 "$log" >&2; fi
  exit 1
fi
