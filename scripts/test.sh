#!/bin/sh
# Run the tests.
#   sh scripts/test.sh [PYTEST OPTION ...]     the fast tier: CPU only, no downloads, a few minutes
#   sh scripts/test.sh slow                    the slow tier: the main job and similar tests
# Without a POSIX shell: pip install -r requirements.txt, then python -m pytest -n 2 -m "not slow".
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
extras=tests
. scripts/environment.sh
unset PYTHONSAFEPATH # tests start Python in this folder, with module paths of their own
tier="not slow"
workers=3 # on two cores, because some tests wait
if [ "${1:-}" = slow ]; then
    tier=slow
    workers=2
    shift
fi
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # one thread per worker: small models run best that way
export OMP_NUM_THREADS
exec "$PYTHON" -m pytest -n "$workers" --dist loadfile -m "$tier" "$@"
