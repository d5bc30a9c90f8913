#!/usr/bin/env bash
# All tests, as `make test` runs them: PYTHON of the virtual environment, WORKERS processes.
#
# The simulation computes, without a clock, a port or a file, and takes what time the others leave
# of the cores, of which they leave much: they wait for processes. It is a session of its own, since
# Linux shares the cores among sessions first, as each node of a test cluster is one, and looks at
# `nice` only within one. What measures time runs while no other test does, then all the rest in
# several processes.
set -uo pipefail
cd "$(dirname "$0")/.."
python=$1
workers=${2:-2}
report=$(mktemp)
simulation=
ended() {
    # With the processes that it has started: it leads a group of its own, being a session.
    [ -z "$simulation" ] || kill -- "-$simulation" 2>/dev/null
    rm -f "$report"
}
trap ended EXIT
trap 'exit 130' INT TERM
yielding() {
    # The last in the session (nice), and the session the last of all (autogroup, where there is one).
    { echo 19 >/proc/self/autogroup; } 2>/dev/null
    exec nice -n 19 "$@"
}
export -f yielding
setsid bash -c 'yielding "$@"' yielding "$python" -m pytest tests/sim >"$report" 2>&1 &
simulation=$!
status=0
"$python" -m pytest -m "alone and not gpu" tests/unit tests/chaos tests/cluster || status=1
"$python" -m pytest -m "not alone and not gpu" --ignore=tests/sim --ignore=tests/tidy \
    -n "$workers" --max-worker-restart 0 --dist loadscope --no-loadscope-reorder || status=1
wait "$simulation" || status=1
simulation=
cat "$report"
exit $status
