#!/bin/sh
# The tests.
#   sh scripts/test.sh [PYTEST OPTION ...]     the fast tier: processor only, no downloads, a few minutes
#   sh scripts/test.sh slow                    the slow tier: the main job and its like
# Without a POSIX shell: pip install -r requirements.txt, then python -m pytest -m "not slow".
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
tier="not slow"
if [ "${1:-}" = slow ]; then
    tier=slow
    shift
fi
exec "$PYTHON" -m pytest -m "$tier" "$@"
