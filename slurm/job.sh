# shellcheck shell=bash
# The part of every job: settings, and then one function for each thing that is done, in the order in which it is.
# shellcheck disable=SC2154  # find_nodes sets the lists of nodes

readonly NAME=@NAME@
readonly CONFIG=@CONFIG@
readonly OUTPUT=@OUTPUT@
readonly TRAIN_NODES=@TRAIN_NODES@ RANKS_PER_NODE=@RANKS_PER_NODE@
readonly GPUS_PER_NODE=@GPUS_PER_NODE@ # 0 where the run takes none
readonly SERVERS=@SERVERS@ SERVERS_PER_NODE=@SERVERS_PER_NODE@ NODES_PER_SERVER=@NODES_PER_SERVER@
readonly GPUS_PER_SERVER=@GPUS_PER_SERVER@ # on each of its nodes
readonly START_TIMEOUT_S=@START_TIMEOUT_S@ LEAVE_S=@LEAVE_S@ MAX_REQUEUES=@MAX_REQUEUES@
readonly SERVER_COMMAND=(@SERVER_COMMAND@)
readonly SERVER_ARGUMENTS=(@SERVER_ARGUMENTS@)
readonly SERVER_ENVIRONMENT=(@SERVER_ENVIRONMENT@)
readonly PYTHON=@PYTHON@
readonly STEP_CONTAINER=(@STEP_CONTAINER@) # options of srun
readonly CONTAINER_COMMAND=(@CONTAINER_COMMAND@) # stands before the commands of a step
overrides=(@OVERRIDES@)
job_overrides=()
run=@RUN@
seed=@SEED@
server_steps=()
train_pid=""
leave_asked=0

say() { printf '%s %s: %s\n' "$(date '+%F %T')" "$NAME" "$*"; }

load_site() {
  @SITE_LINES@
}

choose_run() {
  run_settings=()
  if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then # an array: one run for each seed
    seed=$SLURM_ARRAY_TASK_ID
    run="${run}_seed$seed"
    run_settings=("run.seed=$seed" "run.name=${NAME}_seed$seed")
  fi
}

choose_verb() {
  if compgen -G "$run/checkpoints/step_*/MANIFEST.json" >/dev/null ||
    compgen -G "$run/checkpoints/tmp_replaced_*/MANIFEST.json" >/dev/null; then
    verb=(resume "$run" "${overrides[@]}")
  else
    verb=(train "$CONFIG" "${overrides[@]}" "${run_settings[@]}" "run.directory=$run")
    move_aside
  fi
}

# A run that ended before its first checkpoint begins anew; its folder moves now, before logs of this job are in it.
move_aside() {
  local number=1
  [[ -e $run/config.yaml ]] || return 0
  if [[ -e $run/run.lock ]] && ! flock --nonblock "$run/run.lock" true; then
    say "$run is in use by another process: wait for it, stop it, or choose another run.directory."
    exit 3
  fi
  while [[ -e $run.$number ]]; do number=$((number + 1)); done
  mv "$run" "$run.$number"
  say "$run had no checkpoint and is now $run.$number"
}

make_logs() {
  logs="$run/logs/slurm_${SLURM_JOB_ID}_${SLURM_RESTART_COUNT:-0}"
  mkdir -p "$logs/servers"
  chmod 700 "$logs/servers" # SGLang writes its keys to its log
  rm -f "$logs/failed" "$logs/left" # of an attempt that had the same number
  ln -sfn "$(basename "$logs")" "$run/logs/latest"
  ln -sfn "$OUTPUT-$SLURM_JOB_ID.out" "$logs/batch.log"
  dump_environment >"$logs/environment.txt"
}

dump_environment() {
  local name
  for name in $(compgen -e | sort); do
    if [[ ${name^^} =~ KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|COOKIE || ${!name} =~ ://[^/]*@ ]]; then
      printf '%s=(hidden)\n' "$name"
    else
      printf '%s=%q\n' "$name" "${!name}"
    fi
  done
}

check_gpus() {
  local found=${SLURM_GPUS_ON_NODE:-$GPUS_PER_NODE}
  if ((GPUS_PER_NODE > 0 && found < GPUS_PER_NODE)); then
    say "SLURM gives $found GPUs a node and the run is laid out for $GPUS_PER_NODE: set cluster.gpus_per_node."
    exit 2
  fi
}

# 20 ports for each job, below those that the kernel hands out (32768 and more).
choose_ports() {
  local base=$((10000 + SLURM_JOB_ID % 1000 * 20))
  master_port=$base
  first_server_port=$((base + 1)) # one for each server of a node, 16 at most
  rendezvous_port=$((base + 17))  # of a server on several nodes; SGLang takes neighbours too
}

# The address by which other nodes reach one; names of this node may stand for 127.0.1.1 here.
address_of() {
  local address
  address=$(getent ahostsv4 "$1" | awk 'NR == 1 { print $1 }') || true
  if [[ $address == 127.* && $1 == "$(hostname -s)" ]]; then
    address=$(hostname -I | awk '{ print $1 }')
  fi
  [[ -n $address ]] || { say "the node $1 has no address"; return 1; }
  printf '%s\n' "$address"
}

random_key() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

make_keys() {
  keys_file="$logs/servers/keys.yaml"
  (umask 077 && printf 'api-key: "%s"\nadmin-api-key: "%s"\n' "$(random_key)" "$(random_key)" >"$keys_file")
}

# Always with &: srun takes the place of the subshell, so that $! is the process that passes signals on.
step() { exec srun --cpu-bind=none --overlap --ntasks-per-node=1 --open-mode=append "${STEP_CONTAINER[@]}" "$@"; }

# Runs on each node of a server, in its container: picks GPUs among those that SLURM shows, and becomes the server.
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
    --output="$logs/servers/server_${number}_%N.log" \
    "${CONTAINER_COMMAND[@]}" bash -c "$(declare -f serve); serve \"\$@\"" serve \
    $((slot * GPUS_PER_SERVER)) "$GPUS_PER_SERVER" "${spread[@]}" \
    env "${SERVER_ENVIRONMENT[@]}" "${SERVER_COMMAND[@]}" "${SERVER_ARGUMENTS[@]}" "${several[@]}" \
    --config "$keys_file" --host "$address" --port "$port" \
    --random-seed $(((seed * 1009 + number) % 2147483648)) &
  server_steps+=($!)
  server_urls+=("$address $port")
}

# A server listens once it has its weights. Those that come in time are used; the others are left out.
wait_for_servers() {
  local deadline=$((SECONDS + START_TIMEOUT_S)) number address port left=("${!server_urls[@]}") waiting
  : >"$logs/servers.tmp"
  while ((${#left[@]} > 0 && SECONDS < deadline && !leave_asked)); do
    waiting=()
    for number in "${left[@]}"; do
      read -r address port <<<"${server_urls[number]}"
      if timeout 5 bash -c ": </dev/tcp/$address/$port" 2>/dev/null; then
        echo "http://$address:$port" >>"$logs/servers.tmp"
      elif kill -0 "${server_steps[number]}" 2>/dev/null; then
        waiting+=("$number")
      else
        say "server $number has ended; see $logs/servers"
      fi
    done
    left=("${waiting[@]}")
    ((${#left[@]} == 0)) || sleep 2
  done
  ((${#left[@]} == 0)) || say "servers ${left[*]} do not answer after $START_TIMEOUT_S s and are left out"
  mv "$logs/servers.tmp" "$logs/servers.txt"
  ((leave_asked)) || [[ -s $logs/servers.txt ]] || { say "no rollout server has started; see $logs/servers"; return 4; }
}

start_servers() {
  local number
  server_urls=()
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

# SLURM's USR1 before the time limit reaches this script alone; srun passes it on to the trainer, which saves and leaves.
# shellcheck disable=SC2317  # called by a trap
leave() {
  leave_asked=1
  say "asked to leave"
  [[ -z $train_pid ]] || kill -USR1 "$train_pid" 2>/dev/null || true
}

start_trainer() {
  MASTER_ADDR=$(address_of "${train_hosts[0]}")
  MASTER_PORT=$master_port
  export MASTER_ADDR MASTER_PORT
  @JOB_OVERRIDES@
  step "${train_step[@]}" --nodes="$TRAIN_NODES" --ntasks="$TRAIN_NODES" --kill-on-bad-exit=1 \
    --nodelist="$(IFS=,; printf '%s' "${train_hosts[*]}")" \
    --output="$logs/trainer_%N.log" \
    "${CONTAINER_COMMAND[@]}" "$PYTHON" -m megacov.launch.node_ranks "$RANKS_PER_NODE" "$LEAVE_S" "$logs" \
    "$PYTHON" -m megacov "${verb[@]}" "${job_overrides[@]}" &
  train_pid=$!
}

# `wait` returns early when a trap runs: then it is asked again.
wait_for_trainer() {
  local asked_before
  while :; do
    asked_before=$leave_asked code=0
    wait "$train_pid" || code=$?
    ((leave_asked != asked_before)) || break
  done
  if [[ -s $logs/failed ]]; then
    code=$(<"$logs/failed")
  elif ((code == 0)) && [[ -s $logs/left ]]; then
    code=75
  fi
}

may_pass() {
  case $1 in
    75 | 4 | 5 | 8) return 0 ;; # left with a checkpoint; a server or a rank was lost
    130) return 1 ;;            # interrupted by hand
  esac
  (($1 >= 128)) # ended by a signal, or by the loss of a node
}

finish() {
  if ! may_pass "$code"; then
    mkdir -p "$run/logs"
    echo "$code" >"$run/logs/ended"
    say "ended with $code"
  elif ((${SLURM_RESTART_COUNT:-0} >= MAX_REQUEUES)); then
    say "ended with $code and is not requeued: slurm.max_requeues is $MAX_REQUEUES"
  elif [[ $(scontrol show job --oneliner "$SLURM_JOB_ID") != *JobState=RUNNING* ]]; then
    say "ended with $code and is not requeued: the job was cancelled"
  else
    say "ended with $code and is requeued"
    scontrol requeue "$SLURM_JOB_ID" || say "SLURM did not requeue the job"
  fi
  exit "$code"
}

# Later jobs of a chain do nothing once the run has ended for good.
leave_if_ended() {
  if ((${1:-0} == 0)); then
    rm -f "$run/logs/ended"
  elif [[ -s $run/logs/ended ]]; then
    say "the run has ended with $(<"$run/logs/ended")"
    exit 0
  fi
}

main() {
  code=0
  load_site
  choose_run
  leave_if_ended "$@"
  if ((${SLURM_RESTART_COUNT:-0} > MAX_REQUEUES)); then
    say "SLURM has requeued the job $SLURM_RESTART_COUNT times, and slurm.max_requeues is $MAX_REQUEUES"
    exit 1
  fi
  choose_verb
  trap leave USR1 TERM
  trap stop_servers EXIT
  find_nodes
  make_logs
  check_gpus
  choose_ports
  say "${verb[0]} on ${train_hosts[*]}, $SERVERS servers; logs in $logs"
  ((SERVERS == 0)) || start_servers || code=$?
  if ((code == 0 && leave_asked)); then
    code=75
  elif ((code == 0)); then
    start_trainer
    wait_for_trainer
  fi
  finish
}

main "$@"
