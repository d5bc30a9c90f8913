#!/usr/bin/env bash
# All tests, as `make test` runs them: PYTHON of the virtual environment, WORKERS processes.
#
# The simulation computes, without a clock, a port or a file, and takes what time the others leave
# of the cores, of which they leave much: they wait for processes. What measures time runs while no
# other test does, then all the rest in several processes.
set -uo pipefail
cd "$(dirname "$0")/.."
python=$1
workers=${2:-3}
report=$(mktemp)
simulation=
ended() {
    # With the processes that it has started: it leads a group of its own, see below.
    [ -z "$simulation" ] || kill -- "-$simulation" 2>/dev/null
    rm -f "$report"
}
trap ended EXIT
trap 'exit 130' INT TERM
set -m
nice -n 19 "$python" -m pytest tests/sim >"$report" 2>&1 &
simulation=$!
set +m
status=0
"$python" -m pytest -m alone tests/unit tests/chaos tests/cluster || status=1
"$python" -m pytest -m "not alone" --ignore=tests/sim --ignore=tests/tidy \
    -n "$workers" --dist loadscope --no-loadscope-reorder || status=1
wait "$simulation" || status=1
simulation=
cat "$report"
exit $status
