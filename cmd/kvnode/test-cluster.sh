#!/usr/bin/env bash
#
# Shows a cluster of five at work, and checks every step: founding, learners,
# voters, reads everywhere, a transfer of leadership, the death of a leader, and
# its restart.
#
#   cmd/kvnode/test-cluster.sh
#
# Ends by itself, in less than a minute, with 0 if all went well. Needs go, bash
# and five free ports: 21001 to 21005, or from PORT on.

set -euo pipefail

PORT=${PORT:-21001}
NODES=5
SECONDS_MAX=58

work=$(mktemp -d)
kvnode=$work/kvnode
pids=()

# Variables of the caller's own cluster must not reach this one.
for name in $(compgen -v KVNODE_ || true); do unset "$name"; done

cleanup() {
	# By SIGTERM, because it has a child of its own to end.
	[[ -n ${watchdog:-} ]] && kill "$watchdog" 2>/dev/null || true
	for pid in "${pids[@]:-}"; do
		[[ -n $pid ]] && kill -9 "$pid" 2>/dev/null || true
	done
	wait 2>/dev/null || true
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'echo "FAILED: not done after $SECONDS_MAX s" >&2; exit 1' TERM

step() { printf '\n== %s\n' "$*"; }

# shown prints a command before it runs it.
shown() {
	echo "\$ kvnode $*"
	"$kvnode" "$@"
}

failed() {
	echo "FAILED: $*" >&2
	for log in "$work"/*.log; do
		echo "-- the end of $(basename "$log"):" >&2
		tail -n 15 "$log" >&2
	done
	exit 1
}

addr() { echo "127.0.0.1:$((PORT + $1 - 1))"; }

start() {
	"$kvnode" --id "$1" --addr "$(addr "$1")" >>"$work/node$1.log" 2>&1 &
	pids[$1]=$!
}

# field ID NAME prints a number from a member's status.
field() {
	"$kvnode" status -o json --endpoints "$(addr "$1")" --timeout 1s 2>/dev/null |
		sed -nE "s/.*\"$2\":\"?([0-9a-f]+).*/\1/p"
}

# until_true SECONDS COMMAND... repeats a command until it succeeds.
until_true() {
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		((SECONDS < end)) || failed "still not true: $*"
		sleep 0.2
	done
}

answers() { [[ -n $(field "$1" term) ]]; }
leads() { [[ $(field "$1" leader) == "$1" ]]; }
follows() { local leader && leader=$(field "$1" leader) && [[ ${leader:-0} != 0 && $leader != "$2" ]]; }
equal() { [[ $(field "$1" "$3") == $(field "$2" "$3") ]]; }

# expect WANT COMMAND... compares what a command prints.
expect() {
	local want=$1 got
	shift
	echo "\$ kvnode $*"
	got=$("$kvnode" "$@") || failed "exit code $? of: kvnode $*"
	[[ $got == "$want" ]] || failed "got '$got', want '$want' from: kvnode $*"
	echo "$got"
}

# exits CODE COMMAND... compares the exit code.
exits() {
	local want=$1 got=0
	shift
	echo "\$ kvnode $*"
	"$kvnode" "$@" || got=$?
	((got == want)) || failed "exit code $got, want $want from: kvnode $*"
}

step "Build kvnode"
(cd "$(dirname "$0")" && go build -o "$kvnode" .)
"$kvnode" version
# Building does not count: the first time it may take long.
SECONDS=0
(trap 'kill $!' TERM; sleep $SECONDS_MAX & wait $! && kill -TERM $$) &
watchdog=$!

step "Start $NODES nodes"
for id in $(seq $NODES); do start "$id"; done
for id in $(seq $NODES); do until_true 10 answers "$id"; done
cat "$work/node1.log"

step "Found a cluster of member 1"
shown init --endpoints "$(addr 1)"
echo "A second time it only says so:"
shown init --endpoints "$(addr 1)"

step "Add the others as learners"
for id in $(seq 2 $NODES); do
	shown add-learner "$id=$(addr "$id")" --endpoints "$(addr 1)" | tail -n 1
done

step "Let all of them vote"
shown change-membership $(seq $NODES) --endpoints "$(addr 1)"

step "Write on one member, read on every other"
shown put greeting hello --endpoints "$(addr 2)"
for id in 1 3 4 5; do
	expect hello get greeting --endpoints "$(addr "$id")"
done

step "Conditions, and keys that do not exist"
exits 3 get nothing --endpoints "$(addr 3)"
exits 3 put greeting bonjour --if-revision 0 --endpoints "$(addr 3)"
expect hello get greeting --endpoints "$(addr 4)"

step "Hand leadership over to member 3"
shown transfer-leader 3 --endpoints "$(addr 5)"
until_true 5 leads 3

step "Kill the leader with kill -9; writes go on"
# In a group, so that the shell's own word about it is not shown.
{ kill -9 "${pids[3]}"; wait "${pids[3]}" || true; } 2>/dev/null
for id in 1 2 4 5; do
	shown put "after-$id" "written-on-$id" --timeout 10s --endpoints "$(addr "$id")"
done
for id in 1 2 4 5; do until_true 5 follows "$id" 3; done
expect written-on-1 get after-1 --endpoints "$(addr 3),$(addr 5)"
exits 4 get after-1 --endpoints "$(addr 3)"

step "Start the dead member again: the cluster takes it up by itself"
start 3
until_true 10 answers 3
shown status --wait-ready --endpoints "$(addr 3)" --timeout 10s
expect written-on-5 get after-5 --endpoints "$(addr 3)"
until_true 10 equal 3 1 state_hash

step "The cluster as its leader sees it"
shown status --endpoints "$(addr "$(field 1 leader)")"
shown list after- --endpoints "$(addr 3)"

step "All went well, in $SECONDS s"
