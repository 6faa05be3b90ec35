# shellcheck shell=bash
# The part that all jobs share: settings, and then one function for each task, in the order in which they run.
# shellcheck disable=SC2154,SC2034  # find_nodes sets the lists of nodes; other parts read variables that are set here

readonly NAME=@NAME@
readonly CONFIG=@CONFIG@
readonly OUTPUT=@OUTPUT@
readonly MODEL=@MODEL@
readonly TRAIN_NODES=@TRAIN_NODES@ RANKS_PER_NODE=@RANKS_PER_NODE@
readonly GPUS_PER_NODE=@GPUS_PER_NODE@ # 0 if the run uses none
readonly SERVERS=@SERVERS@ SERVERS_PER_NODE=@SERVERS_PER_NODE@ NODES_PER_SERVER=@NODES_PER_SERVER@
readonly GPUS_PER_SERVER=@GPUS_PER_SERVER@ # on each node of a server
readonly START_TIMEOUT_S=@START_TIMEOUT_S@ LEAVE_S=@LEAVE_S@ HANG_S=@HANG_S@ MAX_REQUEUES=@MAX_REQUEUES@
readonly MAX_SERVER_RESTARTS=5 # for each server
readonly ALL_REDUCE=(@ALL_REDUCE@) # backend, MiB, least GB/s; empty for no check
readonly PREFLIGHT=@PREFLIGHT@
readonly SERVER_COMMAND=(@SERVER_COMMAND@)
readonly SERVER_ARGUMENTS=(@SERVER_ARGUMENTS@)
readonly SERVER_ENVIRONMENT=(@SERVER_ENVIRONMENT@)
readonly PYTHON=@PYTHON@
readonly STEP_CONTAINER=(@STEP_CONTAINER@) # options of srun
readonly CONTAINER_COMMAND=(@CONTAINER_COMMAND@) # precedes the command of a step
export SLURM_EXIT_ERROR=233 # srun's exit code if SLURM fails and not the task; a later start may succeed
overrides=(@OVERRIDES@)
job_overrides=()
run=@RUN@
job="" # the name that SLURM's commands take
seed=@SEED@
begun_at=0
starts=0
server_steps=()
server_urls=()
server_restarts=()
server_retry_at=()
listening=() # servers whose URLs the trainer has
train_pid=""
leave_asked=0

say() { printf '%s %s: %s\n' "$(date '+%F %T')" "$NAME" "$*"; }

load_site() {
  @SITE_LINES@
}

choose_run() {
  run_settings=()
  job=$SLURM_JOB_ID
  if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then # an array: one run for each seed
    job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" # one task has the array's own number, which would mean all tasks
    seed=$SLURM_ARRAY_TASK_ID
    run="${run}_seed$seed"
    run_settings=("run.seed=$seed" "run.name=${NAME}_seed$seed")
  fi
}

# Step of the newest checkpoint; 0 if there is none.
newest_step() {
  local path newest=0
  for path in "$run"/checkpoints/step_*/MANIFEST.json; do
    [[ -e $path ]] || continue
    path=${path%/MANIFEST.json}
    ((10#${path##*step_} <= newest)) || newest=$((10#${path##*step_}))
  done
  echo "$newest"
}

# Counts the starts of this job in a row, before this one, that made no checkpoint. The file has a line for each start
# of any job, and is beside the run's folder, which may move.
count_starts() {
  local number step count
  begun_at=$(newest_step) starts=0
  [[ ! -e $run.starts ]] || while read -r number step count; do
    if [[ $number == "$SLURM_JOB_ID" ]]; then starts=$((step == begun_at ? count + 1 : 0)); fi
  done <"$run.starts"
  echo "$SLURM_JOB_ID $begun_at $starts" >>"$run.starts"
}

# A node that lost its connection may hold the lock for a while. If files cannot be locked, the trainer runs without a
# lock, and so does the job.
wait_for_lock() {
  local ended=0
  [[ -e $run/run.lock ]] || return 0
  flock --timeout 300 --conflict-exit-code 100 "$run/run.lock" true || ended=$?
  if ((ended == 100)); then
    say "$run is in use by another process"
    return 8
  fi
  ((ended == 0)) || say "$run/run.lock cannot be locked ($ended): make sure that no other run writes there"
}

choose_verb() {
  if compgen -G "$run/checkpoints/step_*/MANIFEST.json" >/dev/null ||
    compgen -G "$run/checkpoints/tmp_replaced_*/MANIFEST.json" >/dev/null; then
    verb=(resume "$run" "${overrides[@]}" "${run_settings[@]}")
  else
    verb=(train "$CONFIG" "${overrides[@]}" "${run_settings[@]}" "run.directory=$run")
    move_aside
  fi
}

# A run that ended before its first checkpoint begins anew. Its folder is moved now, before it holds logs of this job. What
# is left of a start that failed before its first step stays, and the new run takes its place.
move_aside() {
  local number=1
  [[ -e $run/config.yaml ]] || return 0
  [[ -e $run/status.json ]] || compgen -G "$run/samples/*" >/dev/null || return 0
  while [[ -e $run.$number ]]; do number=$((number + 1)); done
  mv "$run" "$run.$number"
  say "$run had no checkpoint and is now $run.$number"
}

make_logs() {
  logs="$run/logs/slurm_${SLURM_JOB_ID}_${SLURM_RESTART_COUNT:-0}"
  rm -rf "$logs/failed" "$logs/asked" "$logs/left" "$logs/preflight" # left by an attempt with the same number
  mkdir -p "$logs/servers" "$logs/preflight"
  chmod 700 "$logs/servers" # SGLang writes its keys to its log
  ln -sfn "$(basename "$logs")" "$run/logs/latest"
  ln -sfn "$OUTPUT-$SLURM_JOB_ID.out" "$logs/batch.log"
  dump_environment >"$logs/environment.txt"
}

dump_environment() {
  local name
  for name in $(compgen -e | sort); do
    if [[ ${name^^} =~ KEY|TOKEN|SECRET|PASS|CRED|AUTH|COOKIE|BEARER|JWT|(^|_)(PAT|PW)(_|$) ]] ||
      [[ ${!name} =~ ://[^/]*@|(^|[^A-Za-z0-9_])(hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abprs]-|AKIA)[A-Za-z0-9_-]{16} ]] ||
      [[ ${!name^^} =~ [?\&\;][A-Z0-9_.-]*(KEY|TOKEN|SECRET|PASS|AUTH)[A-Z0-9_.-]*=|BEARER\ |PRIVATE\ KEY ]]; then
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
    return 2
  fi
}

# Each job has 20 ports, below those that the kernel assigns (32768 and more).
choose_ports() {
  local base=$((10000 + SLURM_JOB_ID % 1000 * 20))
  master_port=$base
  first_server_port=$((base + 1)) # one for each server of a node, 16 at most
  rendezvous_port=$((base + 17))  # for a server on several nodes; SGLang uses neighbouring ports too
  preflight_port=$((base + 19))
}

# The address at which other nodes reach a node. On the node itself, its name may resolve to 127.0.1.1.
address_of() {
  local address
  address=$(getent ahostsv4 "$1" | awk 'NR == 1 { print $1 }') || true
  if [[ $address == 127.* && $1 == "$(hostname -s)" ]]; then
    address=$(hostname -I | awk '{ print $1 }')
  fi
  [[ -n $address ]] || { say "the node $1 has no address" >&2; return 233; }
  printf '%s\n' "$address"
}

# Call this with &: srun replaces the subshell, so that $! is the process that passes signals on.
step() { exec srun --cpu-bind=none --overlap --ntasks-per-node=1 --open-mode=append "${STEP_CONTAINER[@]}" "$@"; }

@PREFLIGHT_PART@

@SERVERS_PART@

# SLURM sends USR1 before the time limit to this script alone; srun passes it on to the trainer, which saves and leaves.
# shellcheck disable=SC2317  # called by a trap
leave() {
  leave_asked=1
  say "asked to leave"
  [[ -z $train_pid ]] || kill -USR1 "$train_pid" 2>/dev/null || true
}

start_trainer() {
  MASTER_ADDR=$(address_of "${train_hosts[0]}") || return
  MASTER_PORT=$master_port
  export MASTER_ADDR MASTER_PORT
  @JOB_OVERRIDES@
  step "${train_step[@]}" --nodes="$TRAIN_NODES" --ntasks="$TRAIN_NODES" --kill-on-bad-exit=1 \
    --nodelist="$(IFS=,; printf '%s' "${train_hosts[*]}")" \
    --job-name=trainer --output="$logs/trainer_%N.log" \
    "${CONTAINER_COMMAND[@]}" "$PYTHON" -m megacov.launch.node_ranks "$RANKS_PER_NODE" "$LEAVE_S" "$HANG_S" "$logs" \
    "$PYTHON" -m megacov "${verb[@]}" "${job_overrides[@]}" &
  train_pid=$!
}

# Waits in short intervals, because `wait` for the trainer itself would return early when a trap runs.
wait_for_trainer() {
  while kill -0 "$train_pid" 2>/dev/null; do
    if ((leave_asked)); then
      # The signal is repeated, because srun passes nothing on before its tasks exist. Once they have the signal it is
      # not sent again: SLURM signals all processes of a step, and a second signal would kill a rank that has saved and
      # is shutting down.
      [[ -e $logs/asked ]] || ((SECONDS % 5)) || kill -USR1 "$train_pid" 2>/dev/null || true
    else
      revive_servers
      admit_servers
    fi
    sleep 1 &
    wait $! || true
  done
  code=0
  wait "$train_pid" || code=$?
  if [[ -s $logs/failed ]]; then
    code=$(<"$logs/failed")
  elif ((code == 0)) && [[ -s $logs/left ]]; then
    code=75
  fi
}

may_pass() {
  case $1 in
    75 | 4 | 5 | 8 | 11) return 0 ;; # left with a checkpoint; a server or a rank was lost; a node is bad
    1 | 9) (($(newest_step) > begun_at)); return ;; # unexpected error or failed save; a mistake would show at once
    130) return 1 ;; # interrupted by hand
  esac
  (($1 >= 128)) # ended by a signal, or by the loss of a node
}

# Repeats scontrol for as long as the replacement of a controller takes.
ask_controller() {
  local deadline=$((SECONDS + 300))
  until scontrol "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 10
  done
}

finish() {
  if ! may_pass "$code"; then
    mkdir -p "$run/logs"
    echo "$code" >"$run/logs/ended"
    say "ended with $code"
  elif ((starts >= MAX_REQUEUES && $(newest_step) <= begun_at)); then
    say "ended with $code and is not requeued: $((starts + 1)) starts in a row have made no checkpoint"
  elif shown=$(ask_controller show job --oneliner "$job") && [[ $shown != *JobState=RUNNING* ]]; then
    say "ended with $code; SLURM has ended the job (cancelled, or a node was lost) and decides about a requeue"
  else
    say "ended with $code and is requeued"
    trap '' TERM # the requeue sends it
    ask_controller requeue "$job" || say "SLURM did not requeue the job"
    ((code != 11)) || exclude_bad_nodes
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
  trap leave USR1 TERM
  trap stop_servers EXIT
  wait_for_lock || code=$?
  count_starts
  if ((starts > MAX_REQUEUES)); then
    say "$starts starts in a row have made no checkpoint, and slurm.max_requeues is $MAX_REQUEUES"
    exit 1
  fi
  ((code == 0)) || finish
  choose_verb
  find_nodes
  all_hosts=("${train_hosts[@]}")
  [[ ${server_hosts[0]} == "${train_hosts[0]}" ]] || all_hosts+=("${server_hosts[@]}")
  make_logs
  check_gpus || code=$?
  choose_ports
  say "${verb[0]} on ${train_hosts[*]}, $SERVERS servers; logs in $logs"
  ((code)) || preflight || code=$?
  ((code || leave_asked)) || check_network || code=$?
  ((code || leave_asked || SERVERS == 0)) || start_servers || code=$?
  if ((code == 0 && leave_asked)); then
    code=75
  elif ((code == 0)); then
    start_trainer && wait_for_trainer || code=$?
  fi
  finish
}

main "$@"
