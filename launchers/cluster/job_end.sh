# Runs on the host before and after a step's processes; job_end.py sets the variables it reads and says what it is for.
maskgit_job=$SLURM_JOB_ID maskgit_index=${SLURM_ARRAY_TASK_ID:-0} maskgit_restart=${SLURM_RESTART_COUNT:-0}
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then maskgit_job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
maskgit_life=$maskgit_index-$MASKGIT_CHAIN_LINK-$maskgit_restart
maskgit_seconds() {  # [days-]hours:minutes:seconds
    local days=0 clock=$1 total=0 part
    case $clock in *-*) days=${clock%%-*}; clock=${clock#*-};; esac
    for part in ${clock//:/ }; do total=$((total * 60 + 10#$part)); done
    echo $((total + 86400 * days))
}
maskgit_show() {  # what SLURM knows of this job, a field a line; patient while slurmctld is away
    local try
    command -v scontrol >/dev/null || return
    for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        maskgit_shown=$(scontrol show job "$maskgit_job" 2>/dev/null | tr ' ' '\n')
        [ -n "$maskgit_shown" ] && return
        sleep 3
    done
}
maskgit_field() { sed -n "s/^$1=//p" <<<"$maskgit_shown" | head -n 1; }
maskgit_note() {  # exit code of a job that never came as far as its step
    [ "$1" = 0 ] && return
    [ -e "$maskgit_notes/began/$maskgit_life" ] && return
    mkdir -p "$maskgit_notes/ends"
    printf '{"code": %d, "message": "the job script ended with exit code %d before the step began; see %s", ' \
        "$1" "$1" "$maskgit_notes" > "$maskgit_notes/ends/.script-$maskgit_life"
    printf '"job": "%s", "node": "%s", "rank": 0, "restart": %d, "began": %d, "time": %d}\n' "$maskgit_job" \
        "${SLURMD_NODENAME:-}" "$maskgit_restart" "$maskgit_started" "$(date +%s)" \
        >> "$maskgit_notes/ends/.script-$maskgit_life"
    mv "$maskgit_notes/ends/.script-$maskgit_life" "$maskgit_notes/ends/$maskgit_index.script.json"
}
maskgit_tried() {  # how often this job was run again for a reason
    local count
    count=$(grep -c "\"reason\": \"$1\"" "$maskgit_notes/retries/$maskgit_index.jsonl" 2>/dev/null)
    echo "${count:-0}"
}
maskgit_log_retry() {  # reason, node, what changes
    mkdir -p "$maskgit_notes/retries"
    printf '{"reason": "%s", "life": "%s", "job": "%s", "node": "%s", "changes": "%s", "time": %d}\n' "$1" \
        "$maskgit_life" "$maskgit_job" "$2" "$3" "$(date +%s)" >> "$maskgit_notes/retries/$maskgit_index.jsonl"
}
maskgit_blame() {  # node, life: counted by launchers.cluster.nodes
    mkdir -p "$maskgit_notes/../../nodes/$1" && touch "$maskgit_notes/../../nodes/$1/$maskgit_job-$2"
}
maskgit_said() {  # life -> what slurmstepd and srun wrote while it ran
    local log
    for log in "$maskgit_notes/${maskgit_job}"_*; do
        if grep -q -x "maskgit life $1" "$log"; then
            sed -n "/^maskgit life $1\$/,/^maskgit life /p" "$log"
        elif ! grep -q "^maskgit life " "$log"; then
            cat "$log"
        fi 2>/dev/null
    done 2>/dev/null | grep -E '^(slurmstepd|srun)'
}
maskgit_links() {  # ids of the jobs after this one in a chain
    local id number=0
    for id in $(tr -d '[]" \n' < "$maskgit_notes/jobs.json" 2>/dev/null | tr ',' ' '); do
        if [ "$number" -gt "$MASKGIT_CHAIN_LINK" ]; then echo "$id${SLURM_ARRAY_JOB_ID:+_$SLURM_ARRAY_TASK_ID}"; fi
        number=$((number + 1))
    done
}
maskgit_again() {  # reason, then what scontrol is to change of the job
    local reason=$1 try job
    shift
    maskgit_log_retry "$reason" "${SLURMD_NODENAME:-}" "$*"
    mkdir -p "$maskgit_notes/again" && touch "$maskgit_notes/again/$maskgit_life"
    echo "run again after $reason${*:+, with $*}"
    if [ "$maskgit_requeue" = chain ]; then  # the next link starts because this one did not end well
        for job in $(maskgit_links); do [ $# = 0 ] || scontrol update JobId="$job" "$@"; done
        exit 75
    fi
    for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        scontrol requeue "$maskgit_job"
        maskgit_show
        if [ "$(maskgit_field Restarts)" != "$maskgit_restart" ]; then
            [ $# = 0 ] || scontrol update JobId="$maskgit_job" "$@"
            break
        fi
        sleep 3
    done
    exit 75
}
maskgit_more_memory() {  # megabytes for the next try; nothing where it is not counted or cannot grow
    local now=${SLURM_MEM_PER_NODE:-0} most wanted
    [ "$now" -gt 0 ] || now=$((${SLURM_MEM_PER_CPU:-0} * ${SLURM_CPUS_ON_NODE:-1}))
    [ "$now" -gt 0 ] || return
    wanted=$(awk -v now="$now" -v by="${maskgit_oom_grow#?}" -v how="${maskgit_oom_grow%"${maskgit_oom_grow#?}"}" \
        'BEGIN { printf "%d", how == "x" ? now * by + 0.5 : now + 1024 * by }')
    most=$(sinfo -h -o %m -p "$SLURM_JOB_PARTITION" 2>/dev/null | tr -d + | sort -n | tail -n 1)
    if [ "${most:-0}" -gt 0 ] && [ "$wanted" -gt "$most" ]; then wanted=$most; fi
    if [ "$wanted" -gt "$now" ]; then echo "$wanted"; fi
}
maskgit_without() {  # nodes -> the job's list of nodes to avoid with these; nothing where too few would be left
    local had avoid usable
    if [ "$maskgit_exclude" != 1 ] || [ "$(maskgit_field ReqNodeList)" != "(null)" ]; then return; fi
    had=$(maskgit_field ExcNodeList)
    if [ "$had" = "(null)" ]; then had=; fi
    avoid=$(scontrol show hostnames "${had:+$had,}${1// /,}" | sort -u)
    usable=$(sinfo -h -N -o '%N %t' -p "$SLURM_JOB_PARTITION" |
        grep -v -E ' (down|drain|fail|drng|maint|unk)' | cut -d ' ' -f 1 | sort -u | grep -v -x -F -c "$avoid")
    [ "${usable:-0}" -ge "${SLURM_JOB_NUM_NODES:-1}" ] || return
    echo "ExcNodeList=$(tr '\n' ',' <<<"$avoid" | sed 's/,*$//')"
}
maskgit_lost() {  # node, since when, life: true where the node went away meanwhile
    local shown start
    shown=$(scontrol show node "$1" 2>/dev/null | tr ' ' '\n')
    if sed -n 's/^State=//p' <<<"$shown" | grep -q -E 'DOWN|FAIL|NOT_RESPONDING|\*'; then return 0; fi
    start=$(sed -n 's/^SlurmdStartTime=//p' <<<"$shown")
    if [[ $start == 2* ]] && [ "$(date -d "$start" +%s)" -gt "$2" ]; then return 0; fi
    maskgit_said "$3" | grep -q -w -F "Node failure on $1" && return 0
    sacct -n -P -D -X -j "$maskgit_job" -o State,NodeList 2>/dev/null | grep -q "^NODE_FAIL|$1\$"
}
maskgit_blame_lost_nodes() {  # sets maskgit_gone: nodes that the life before this one was lost with
    local before=$maskgit_index-$MASKGIT_CHAIN_LINK-$((maskgit_restart - 1)) nodes since node
    maskgit_gone=
    if [ ! -e "$maskgit_notes/lives/$before" ] || [ -e "$maskgit_notes/ended/$before" ]; then return; fi
    read -r since nodes < "$maskgit_notes/lives/$before"
    for node in $nodes; do
        if maskgit_lost "$node" "$since" "$before"; then
            maskgit_blame "$node" "$before"
            maskgit_gone="$maskgit_gone $node"
        fi
    done
    maskgit_gone=${maskgit_gone# }
    [ -z "$maskgit_gone" ] || maskgit_log_retry node_fail "$maskgit_gone" ""
}
maskgit_begin() {  # notes where this life runs; leaves a node that has just been lost
    local here avoid
    here=$(scontrol show hostnames "$SLURM_JOB_NODELIST" 2>/dev/null | tr '\n' ' ')
    [ "$maskgit_restart" = 0 ] || maskgit_blame_lost_nodes
    mkdir -p "$maskgit_notes/lives"
    echo "$maskgit_started ${here:-$SLURMD_NODENAME}" > "$maskgit_notes/lives/$maskgit_life"
    if [ "$maskgit_restart" = 0 ] || [ -z "$maskgit_gone" ] || [ "$maskgit_requeue" != scontrol ]; then return; fi
    grep -q -x -F "${maskgit_gone// /$'\n'}" <<<"${here// /$'\n'}" || return
    maskgit_show
    avoid=$(maskgit_without "$maskgit_gone")
    [ -n "$avoid" ] || return
    maskgit_ended 75
    trap '' TERM EXIT
    maskgit_again left_node "$avoid"
}
maskgit_ended() { mkdir -p "$maskgit_notes/ended" && echo "$1" > "$maskgit_notes/ended/$maskgit_life"; }
maskgit_why() {  # exit code -> oom, before (the step began), disk_full, refused or own_error
    local why=$maskgit_notes/why/$maskgit_life
    [ -e "$why.oom" ] && { echo oom; return; }
    if maskgit_said "$maskgit_life" | grep -q -i -E 'oom[-_ ]?kill|exceeded.* memory limit|out of memory'; then
        echo oom
        return
    fi
    if [ ! -e "$maskgit_notes/began/$maskgit_life" ]; then
        if maskgit_said "$maskgit_life" | grep -q -E 'No space left|Disk quota exceeded'; then echo disk_full
        else echo before; fi
    elif [ -e "$why.disk_full" ] || [ "$1" = 74 ]; then echo disk_full
    elif [ -e "$why.refused" ] || [ "$1" = 2 ]; then echo refused
    elif [ -e "$why.own_error" ]; then echo own_error
    else case $1 in 9 | 137) echo oom ;; *) echo own_error ;; esac
    fi
}
maskgit_mend() {  # exit code of a job that was not asked to end: runs it again where that helps
    local memory avoid
    case $(maskgit_why "$1") in
    oom)
        [ "$(maskgit_tried oom)" -lt "$maskgit_oom_max" ] || return
        memory=$(maskgit_more_memory)
        if [ -z "$memory" ] && [ "${SLURM_MEM_PER_NODE:-${SLURM_MEM_PER_CPU:-0}}" != 0 ]; then
            echo "out of memory, and no node of partition $SLURM_JOB_PARTITION has more"
            return
        fi
        maskgit_again oom ${memory:+MinMemoryNode=$memory}
        ;;
    before)
        if [ "$maskgit_node_fail" != 1 ] || [ "$(maskgit_tried before)" -ge 1 ]; then return; fi
        avoid=$(maskgit_without "$SLURMD_NODENAME")
        [ -z "$avoid" ] || maskgit_again before "$avoid"
        ;;
    disk_full)
        if [ "$(maskgit_tried disk_full)" -ge "$maskgit_disk_max" ] || [ "$maskgit_restart" -ge 100 ]; then return; fi
        maskgit_again disk_full "StartTime=now+${maskgit_disk_wait_s}seconds"
        ;;
    own_error)
        [ "$(maskgit_tried own_error)" -ge "$maskgit_own_error" ] || maskgit_again own_error
        ;;
    esac
}
maskgit_blame_earlier() {  # where the step began here, a node on which it could not begin was at fault
    local node life
    if [ ! -e "$maskgit_notes/began/$maskgit_life" ] || [ "$(maskgit_tried before)" = 0 ]; then return; fi
    sed -n 's/^{"reason": "before", "life": "\([^"]*\)".*"node": "\([^"]*\)".*/\2 \1/p' \
        "$maskgit_notes/retries/$maskgit_index.jsonl" |
        while read -r node life; do maskgit_blame "$node" "$life"; done
}
maskgit_give_up() {  # exit code; no later link of a chain goes on
    mkdir -p "$maskgit_notes/final" && touch "$maskgit_notes/final/$maskgit_index-$MASKGIT_CHAIN_LINK"
    maskgit_tell "$1"
    exit "$1"
}
maskgit_tell() { [ -z "$maskgit_hook" ] || (eval "$maskgit_hook $maskgit_index $1") || true; }  # exit code
maskgit_end() {  # exit code of the step's processes
    local code=$1 state ran limit now
    trap '' TERM USR2 INT  # a requeue ends this shell and its children with TERM
    maskgit_note "$code"
    # srun tells the code of whom it killed; USR2 may come before Python listens to it
    if [ -e "$maskgit_notes/continue/$maskgit_life" ] || [ "$code" = 140 ]; then code=75; fi
    maskgit_blame_earlier
    if [ "$code" = 0 ] && [ -e "$maskgit_notes/done/$maskgit_life" ]; then
        maskgit_ended 0
        maskgit_tell 0
        return
    fi
    maskgit_show  # srun ends with 0, too, when its node is lost
    now=$(maskgit_field Restarts)
    if [ -n "$now" ] && [ "$now" != "$maskgit_restart" ]; then
        exit "$code"  # this is what is left on a lost node; the job has gone on elsewhere
    fi
    if [ "$code" = 0 ]; then
        maskgit_ended 0
        maskgit_tell 0
        return
    fi
    maskgit_ended "$code"
    state=$(maskgit_field JobState)
    ran=$(maskgit_field RunTime) limit=$(maskgit_field TimeLimit)
    ran=$(maskgit_seconds "${ran:-0}")
    if [[ $limit == [0-9]* ]]; then limit=$(maskgit_seconds "$limit"); else limit=; fi
    if maskgit_was_preempted; then
        touch "$maskgit_notes/preempted-$maskgit_life"  # a later life, or status, reads why this one ended
        case $code-$(maskgit_why "$code") in
        75-* | 137-* | 143-* | *-before) [ "$maskgit_preempted" != 1 ] || maskgit_again preempted ;;
        *) maskgit_mend "$code" ;;
        esac
        maskgit_give_up "$code"
    fi
    case $state in
    RUNNING | SUSPENDED | STOPPED | SIGNALING | "") ;;
    *)
        if [ "$state" = TIMEOUT ] || { [ -n "$limit" ] && [ "$ran" -ge "$limit" ]; }; then
            case $code in 75 | 137 | 143) [ "$maskgit_timeout" != 1 ] || maskgit_again timeout ;; esac
        elif [ "$code" = 75 ]; then
            echo "cancelled: not requeued"
            maskgit_give_up 143
        fi
        maskgit_give_up "$code"
        ;;
    esac
    if [ "$code" = 75 ]; then
        if [ "$maskgit_timeout" = 1 ] || [ -z "$limit" ] || [ $((limit - ran)) -gt $((maskgit_signal_s + 60)) ]; then
            maskgit_again saved
        fi
        maskgit_give_up 143
    elif [ "$code" != 143 ] && [ "$code" != 130 ]; then
        maskgit_mend "$code"
    fi
    maskgit_give_up "$code"
}
maskgit_was_preempted() {
    local then
    then=$(maskgit_field PreemptTime)
    [[ $then == 2* && ! $then < $(maskgit_field StartTime) ]]
}
maskgit_on_term() {  # what PreemptMode=CANCEL takes away is requeued at once: this script may not live to see the end
    local try
    for try in 1 2 3 4 5 6 7 8; do  # slurmctld may be away just now
        maskgit_shown=$(scontrol show job "$maskgit_job" 2>/dev/null | tr ' ' '\n')
        [ -z "$maskgit_shown" ] || break
        sleep 1
    done
    if [ "$maskgit_requeue$maskgit_preempted" != scontrol1 ] || ! maskgit_was_preempted; then return; fi
    [ "$(maskgit_field Restarts)" = "$maskgit_restart" ] || return  # SLURM has done so itself
    touch "$maskgit_notes/preempted-$maskgit_life"
    maskgit_ended 143
    trap '' TERM
    maskgit_log_retry preempted "${SLURMD_NODENAME:-}" ""
    scontrol requeue "$maskgit_job"
}
maskgit_wait() {  # process -> its exit code; traps run while it waits
    wait "$1"
    while kill -0 "$1" 2>/dev/null; do wait "$1"; done
    wait "$1"
}
trap maskgit_on_term TERM  # the step's processes get their own; this shell must outlive them
trap : USR2 INT
trap 'maskgit_end $?' EXIT
maskgit_open_log() {  # what this script and srun say; waited for where a full disk lets none be made
    local log=$maskgit_notes/${maskgit_job}_0_log.out try said
    for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        if { : >> "$log"; } 2>/dev/null; then
            exec >> "$log" 2>&1
            return
        fi
        said=$(LC_ALL=C bash -c ': >> "$1"' - "$log" 2>&1)
        case $said in *"Permission denied"* | *"No such file"*) return ;; esac  # no time mends that; the step will fail
        sleep 3
    done
    trap '' TERM EXIT
    if [ "$maskgit_disk_max" = 0 ] || [ "$maskgit_restart" -ge 100 ]; then maskgit_give_up 74; fi
    maskgit_again disk_full "StartTime=now+${maskgit_disk_wait_s}seconds"
}
maskgit_started=$(date +%s) maskgit_shown=
maskgit_open_log
for maskgit_log in "$maskgit_notes/${maskgit_job}"_*; do  # shared by all lives of the job
    [ ! -e "$maskgit_log" ] || echo "maskgit life $maskgit_life" >> "$maskgit_log"
done
maskgit_begin
