#!/usr/bin/env bash
# Plain machines that reach each other by ssh: the first is the head. Usage: machines.sh HOST1 HOST2 HOST3 -- COMMAND...
# for example: configs/cluster/machines.sh a b c -- python -m cache_tools extract --engine ray --address auto ...
# Run it in a folder that every machine has under the same name.
set -euo pipefail

hosts=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do
  hosts+=("$1")
  shift
done
if [ ${#hosts[@]} -eq 0 ] || [ $# -lt 2 ]; then
  echo "usage: $0 HOST1 HOST2 ... -- COMMAND" >&2
  exit 2
fi
shift

PORT=${PORT:-6379}
head_host=${hosts[0]}
here=$(printf '%q' "$PWD")
# Of every Ray that you have running on these machines.
stop() {
  for host in "${hosts[@]}"; do
    ssh "$host" "ray stop" || true
  done
}
trap stop EXIT

# Ray's token, by which only you can use this cluster, goes to every machine's home. Older Rays have none.
auth="RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}"
token=$(ssh "$head_host" "ray get-auth-token --generate" || true)
ssh "$head_host" "cd $here && $auth ray start --head --port=$PORT"
for host in "${hosts[@]:1}"; do
  if [ -n "$token" ]; then
    printf %s "$token" | ssh "$host" "umask 077; mkdir -p ~/.ray && cat > ~/.ray/auth_token"
  fi
  ssh "$host" "cd $here && $auth ray start --address=$head_host:$PORT"
done
ssh "$head_host" "cd $here && $auth $(printf '%q ' "$@")"
