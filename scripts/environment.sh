# Sourced by the other scripts, with the repository in $root: sets PYTHON to an interpreter that has requirements.txt, and finds
# the project's modules from any folder, so that paths are relative to the folder in which the script is called.
# Uses an active virtual environment, or creates .venv. Packages that are already installed are not installed again.

: "${root:?environment.sh is for the other scripts, which set root}"
if [ -n "${VIRTUAL_ENV:-}" ]; then
    environment=$VIRTUAL_ENV
elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
    environment=$CONDA_PREFIX
else
    environment=$root/.venv
    if [ ! -f "$environment/pyvenv.cfg" ]; then
        for candidate in python3 python python3.13 python3.12 python3.11 python3.10; do
            if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then break; fi
            candidate=
        done
        [ -n "$candidate" ] || { echo "error: no Python 3.10 or newer was found; install it and run this again" >&2; exit 2; }
        "$candidate" -c 'import ensurepip, venv' 2>/dev/null ||
            { echo "error: $candidate has no venv module; install it (on Debian: apt-get install python3-venv)" >&2; exit 2; }
        echo "Making .venv with $("$candidate" --version)"
        "$candidate" -m venv "$environment"
    fi
fi

PYTHON=$environment/bin/python
[ -x "$PYTHON" ] || PYTHON=$environment/Scripts/python.exe
[ -x "$PYTHON" ] || { echo "error: no python in $environment; remove that folder and run this again" >&2; exit 2; }

if ! cmp -s "$root/requirements.txt" "$environment/ba-lora-requirements.txt"; then
    echo "Installing requirements.txt into $environment (once)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$root/requirements.txt"
    cp "$root/requirements.txt" "$environment/ba-lora-requirements.txt"
fi
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
PYTHONSAFEPATH=1 # Python 3.11 and newer: an eval.py in the user's folder does not hide ours
export PYTHON PYTHONPATH PYTHONSAFEPATH
