# shellcheck shell=bash
# The part of a job that checks its nodes, and makes the job begin again without the bad ones.
# shellcheck disable=SC2154,SC2034  # job.sh has the settings

# Checks all nodes at once, before anything else starts there. Reports come through srun, since a bad node may be unable
# to write files.
preflight() {
  local host places=() pids=() meeting_s=45 code=0
  ((PREFLIGHT)) || return 0
  # The first step on a node unpacks the image, which takes longer on some nodes than on others.
  ((${#STEP_CONTAINER[@]} + ${#CONTAINER_COMMAND[@]} == 0)) || meeting_s=600
  for host in "${all_hosts[@]}"; do places+=("$host=$(address_of "$host")") || return; done
  printf '%s\n' "$SLURM_JOB_ID" >"$logs/preflight/canary"
  examine "${train_hosts[*]}" "${train_step[@]}"
  if ((${#all_hosts[@]} > TRAIN_NODES)); then examine "${server_hosts[*]}" "${server_step[@]}"; fi
  wait_until_ended $((meeting_s + 100)) "${pids[@]}"
  ((!leave_asked)) || return 0
  (step "${train_step[@]}" --nodes=1 --ntasks=1 --nodelist="${train_hosts[0]}" --time=$((meeting_s / 60 + 2)) \
    "${CONTAINER_COMMAND[@]}" "$PYTHON" -m megacov.launch.preflight judge "$logs/preflight" "${all_hosts[@]}") || code=$?
  if ((code != 0 && code != 3 && code != 11 && code != SLURM_EXIT_ERROR)) && grep -q megacov-report "$logs/preflight/reports"; then
    say "preflight: ${train_hosts[0]} is bad: it cannot judge the others ($code)"
    echo "${train_hosts[0]}" >"$logs/preflight/bad_nodes"
    code=11
  fi
  return "$code"
}

# Starts the check of some nodes. Reads places and meeting_s, and appends to pids.
examine() {
  local names count
  read -ra names <<<"$1"
  count=${#names[@]}
  shift
  step "$@" --nodes="$count" --ntasks="$count" --nodelist="$(IFS=,; printf '%s' "${names[*]}")" \
    --job-name=preflight "${CONTAINER_COMMAND[@]}" \
    "$PYTHON" -m megacov.launch.preflight node "$logs/preflight" "$preflight_port" "$GPUS_PER_NODE" "$meeting_s" "$MODEL" \
    "${places[@]}" >>"$logs/preflight/reports" 2>>"$logs/preflight/log" &
  pids+=($!)
}

wait_until_ended() {
  local deadline=$((SECONDS + $1)) pid
  shift
  for pid in "$@"; do
    while kill -0 "$pid" 2>/dev/null && ((SECONDS < deadline && !leave_asked)); do sleep 0.2; done
    kill -TERM "$pid" 2>/dev/null || true
  done
}

# Runs one all-reduce over all ranks of the trainer. If it fails or is slow, pairs of neighbours show the node at fault.
check_network() {
  local count=${#train_hosts[@]} failures=() at_fault=() how=alone
  ((${#ALL_REDUCE[@]})) || return 0
  if all_reduce all "${train_hosts[@]}"; then
    grep -h "an all-reduce of" "$logs/preflight/all_reduce_all.log" || true
    return 0
  fi
  say "the all-reduce over all nodes fails or is slow; see $logs/preflight"
  find_fault
  ((!leave_asked)) || return 0
  if ((${#at_fault[@]} == 0)); then
    ((count > 2 && ${#failures[@]} == 0)) && all_reduce again "${train_hosts[@]}" && return 0
    say "no node fails or is slow $how"
    return 8
  elif ((count > 1 && ${#at_fault[@]} == count)); then
    say "all nodes fail $how, or are slow: the cause is not a node"
    return 8
  fi
  say "preflight: ${at_fault[*]} fail $how, or are slow"
  printf '%s\n' "${at_fault[@]}" >"$logs/preflight/bad_nodes"
  return 11
}

# Sets at_fault and how. Of two nodes with one rank each, neither can be identified as the cause.
find_fault() {
  local i turn
  if ((count > 2)); then
    how="with both neighbours"
    # The pairs of one turn have no node in common.
    for turn in even odd last; do ((leave_asked)) || try_pairs "$turn"; done
    for ((i = 0; i < count; i++)); do
      ((${failures[i]:-0} && ${failures[(i + count - 1) % count]:-0})) && at_fault+=("${train_hosts[i]}")
    done
  elif ((count == 1)); then
    at_fault=("${train_hosts[0]}")
  elif ((RANKS_PER_NODE > 1)); then
    for i in 0 1; do all_reduce "alone_$i" "${train_hosts[i]}" || at_fault+=("${train_hosts[i]}"); done
  fi
}

# Sets failures, which has an entry for each node whose pair with the next node fails.
try_pairs() {
  local i pair pids=() places=()
  for ((i = 0; i < count; i++)); do
    case $1 in
      even) ((i % 2 == 0 && i + 1 < count)) || continue ;;
      odd) ((i % 2 == 1 && (count % 2 == 0 || i + 1 < count))) || continue ;;
      last) ((count % 2 == 1 && i + 1 == count)) || continue ;;
    esac
    pair=("${train_hosts[i]}" "${train_hosts[(i + 1) % count]}")
    # srun numbers tasks in the order of the job's nodes, and the others look for rank 0 on the first node of the pair.
    ((i + 1 < count)) || pair=("${train_hosts[0]}" "${train_hosts[i]}")
    all_reduce "pair_$i" "${pair[@]}" &
    pids+=($!) places+=("$i")
  done
  for i in "${!pids[@]}"; do wait "${pids[i]}" || failures[places[i]]=1; done
}

all_reduce() {
  local folder="$logs/preflight/all_reduce_$1" address count
  shift
  address=$(address_of "$1") || return
  count=$#
  mkdir -p "$folder"
  (MASTER_ADDR=$address MASTER_PORT=$preflight_port step "${train_step[@]}" --nodes="$count" --ntasks="$count" \
    --nodelist="$(IFS=,; printf '%s' "$*")" --kill-on-bad-exit=1 --time=20 \
    --job-name=all_reduce --output="$folder.log" "${CONTAINER_COMMAND[@]}" \
    "$PYTHON" -m megacov.launch.node_ranks "$RANKS_PER_NODE" 10 inf "$folder" \
    "$PYTHON" -m megacov.trainer.all_reduce_check "${ALL_REDUCE[@]}")
}

# If all of several nodes are bad, the cause is not a node, and none is excluded.
nodes_to_exclude() {
  local bad
  mapfile -t bad <"$logs/preflight/bad_nodes"
  ((${#bad[@]} > 1 && ${#bad[@]} == ${#all_hosts[@]})) || (IFS=,; echo "${bad[*]}")
}

# While a requeued job ends, SLURM accepts changes to its list of excluded nodes. Each component of a job has a list.
exclude_bad_nodes() {
  local bad components component component_id excluded
  bad=$(nodes_to_exclude)
  [[ -n $bad ]] || return 0
  echo "$SLURM_JOB_ID ${SLURM_RESTART_COUNT:-0} $bad" >>"$run/logs/bad_nodes.txt"
  components=("${!SLURM_JOB_ID_HET_GROUP_@}")
  ((${#components[@]})) || components=(job)
  for component in "${components[@]}"; do
    component_id=${!component}
    excluded=$(scontrol show job --oneliner "$component_id" | grep -m1 -oE ' ExcNodeList=[^ ]*' || true)
    excluded=${excluded#*=}
    [[ $excluded != "(null)" ]] || excluded=""
    scontrol update "JobId=$component_id" "ExcNodeList=${excluded:+$excluded,}$bad" ||
      say "SLURM did not exclude $bad from job $component_id"
  done
}
