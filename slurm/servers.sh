# shellcheck shell=bash
# The part of a job that starts rollout servers, restarts them and ends them.
# shellcheck disable=SC2154,SC2034  # job.sh has the settings

# Runs on each node of a server, in its container: chooses from the GPUs that SLURM shows, and becomes the server.
# shellcheck disable=SC2317  # called by name
serve() {
  local first=$1 count=$2 devices
  shift 2
  if ((count > 0)); then
    IFS=, read -ra devices <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((first + count - 1)))}"
    CUDA_VISIBLE_DEVICES=$(IFS=,; printf '%s' "${devices[*]:first:count}")
    export CUDA_VISIBLE_DEVICES
  fi
  [[ $1 != --spread ]] || { shift; set -- "$@" --node-rank "$SLURM_PROCID"; }
  exec "$@"
}

start_server() {
  local number=$1 group slot hosts address port spread=() several=()
  group=$((number / SERVERS_PER_NODE)) slot=$((number % SERVERS_PER_NODE))
  hosts=("${server_hosts[@]:group*NODES_PER_SERVER:NODES_PER_SERVER}")
  address=$(address_of "${hosts[0]}") || return
  port=$((first_server_port + slot))
  if ((NODES_PER_SERVER > 1)); then
    spread=(--spread)
    several=(--nnodes "$NODES_PER_SERVER" --dist-init-addr "$address:$rendezvous_port")
  fi
  step "${server_step[@]}" --nodes="$NODES_PER_SERVER" --ntasks="$NODES_PER_SERVER" --kill-on-bad-exit=1 \
    --nodelist="$(IFS=,; printf '%s' "${hosts[*]}")" \
    --job-name="server_$number" --output="$logs/servers/server_${number}_%N.log" \
    "${CONTAINER_COMMAND[@]}" bash -c "$(declare -f serve); serve \"\$@\"" serve \
    $((slot * GPUS_PER_SERVER)) "$GPUS_PER_SERVER" "${spread[@]}" \
    env "${SERVER_ENVIRONMENT[@]}" "${SERVER_COMMAND[@]}" "${SERVER_ARGUMENTS[@]}" "${several[@]}" \
    --config "$keys_file" --host "$address" --port "$port" \
    --random-seed $(((seed * 1009 + number) % 2147483648)) &
  server_steps[number]=$!
  server_urls[number]="$address $port"
}

# Adds servers that have begun to listen to the file that the trainer reads before each step.
admit_servers() {
  local number address port
  for number in "${!server_urls[@]}"; do
    read -r address port <<<"${server_urls[number]}"
    if [[ -z ${listening[number]:-} ]] && timeout 5 bash -c ": </dev/tcp/$address/$port" 2>/dev/null; then
      listening[number]=yes
      echo "http://$address:$port" >>"$logs/servers.txt"
    fi
  done
}

# Restarts each server that has ended, on its own node. If the node is gone too, the run continues without the server.
revive_servers() {
  local number
  for number in "${!server_steps[@]}"; do
    kill -0 "${server_steps[number]}" 2>/dev/null && continue
    ((${server_restarts[number]:-0} < MAX_SERVER_RESTARTS && SECONDS >= ${server_retry_at[number]:-0})) || continue
    server_restarts[number]=$((${server_restarts[number]:-0} + 1))
    server_retry_at[number]=$((SECONDS + 30 * server_restarts[number]))
    say "server $number has ended and is started again; see $logs/servers"
    start_server "$number" || true
  done
}

random_key() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

make_keys() {
  keys_file="$logs/servers/keys.yaml"
  (umask 077 && printf 'api-key: "%s"\nadmin-api-key: "%s"\n' "$(random_key)" "$(random_key)" >"$keys_file")
}

# A server listens once it has loaded its weights. The trainer uses later servers as soon as they listen.
wait_for_servers() {
  local deadline=$((SECONDS + START_TIMEOUT_S)) number alive=1
  : >"$logs/servers.txt"
  while ((alive && ${#listening[@]} < SERVERS && SECONDS < deadline && !leave_asked)); do
    admit_servers
    alive=0
    for number in "${!server_steps[@]}"; do
      if [[ -z ${listening[number]:-} ]] && kill -0 "${server_steps[number]}" 2>/dev/null; then alive=1; fi
    done
    ((${#listening[@]} == SERVERS)) || sleep 1
  done
  ((leave_asked)) || ((${#listening[@]} == SERVERS)) || say "${#listening[@]} of $SERVERS servers have started"
  ((leave_asked)) || ((${#listening[@]})) || { say "no rollout server has started; see $logs/servers"; return 4; }
}

start_servers() {
  local number
  make_keys
  for ((number = 0; number < SERVERS; number++)); do start_server "$number" || return; done
  wait_for_servers || return
  job_overrides+=("rollout.addresses_file=$logs/servers.txt" "rollout.keys_file=$keys_file")
}

# shellcheck disable=SC2317  # called by a trap
stop_servers() {
  ((${#server_steps[@]} == 0)) || kill -TERM "${server_steps[@]}" 2>/dev/null || true
  [[ -z ${keys_file:-} ]] || rm -f "$keys_file"
}
