# Sourced by the other scripts, with the repository in $root: sets PYTHON to an interpreter that has what the project needs, and finds
# the project's modules from any folder, so that paths are relative to the folder in which the script is called.
# Without an active environment it makes .venv and installs requirements.txt there, once. An active virtual environment (venv, conda) is
# used as it is if its versions lie in the ranges of pyproject.toml; otherwise it is left alone, unless --install (taken out of the script's
# words here) or BA_LORA_INSTALL=1 says to install requirements.txt into it. $extras: extras that the script needs too.

: "${root:?environment.sh is for the other scripts, which set root}"
install=${BA_LORA_INSTALL:-}
for word; do # each word is moved to the end, so that all but --install are back in order
    shift
    if [ "$word" = --install ]; then install=1; else set -- "$@" "$word"; fi
done

environment=
if [ -n "${VIRTUAL_ENV:-}" ]; then
    environment=$VIRTUAL_ENV leave=deactivate
elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
    environment=$CONDA_PREFIX leave="conda deactivate"
fi
if [ -n "$environment" ] && [ "$(cd "$environment" 2>/dev/null && pwd -P)" = "$(cd "$root" && pwd -P)/.venv" ]; then
    environment= # the project's own, activated
fi
own=
if [ -z "$environment" ]; then
    own=1 environment=$root/.venv
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
[ -x "$PYTHON" ] || PYTHON=$environment/python.exe # conda on Windows
if [ ! -x "$PYTHON" ]; then
    if [ -n "$own" ]; then remedy="remove that folder and run this again"; else remedy="leave that environment with: $leave"; fi
    echo "error: no python in $environment; $remedy" >&2
    exit 2
fi

different=
if [ -z "$own" ]; then
    different=$("$PYTHON" "$root/scripts/environment.py" "$root/pyproject.toml" figures ${extras:-}) || {
        if [ -z "$install" ]; then
            cat >&2 <<END
error: the active environment $environment differs from what this project was tested with, and is left as it is:
$different
Either leave it ($leave), and the same command makes .venv for the project with the pinned requirements.txt,
or repeat the command with --install (or BA_LORA_INSTALL=1), which installs requirements.txt into it and replaces these versions.
END
            exit 2
        fi
    }
elif ! cmp -s "$root/requirements.txt" "$environment/ba-lora-requirements.txt"; then
    different="no or another requirements.txt"
fi
if [ -n "$different" ]; then
    echo "Installing requirements.txt into $environment (once)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$root/requirements.txt"
    cp "$root/requirements.txt" "$environment/ba-lora-requirements.txt"
fi
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
PYTHONSAFEPATH=1 # Python 3.11 and newer: an eval.py in the user's folder does not hide ours
export PYTHON PYTHONPATH PYTHONSAFEPATH
