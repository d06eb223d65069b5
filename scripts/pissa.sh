#!/bin/sh
# PiSSA instead of BA-LoRA, all else equal; see scripts/ba-lora.sh.
#   sh scripts/pissa.sh [CONFIG] [--option value ...]
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
case "${1:-}" in "" | -*) set -- configs/nlg/tiny.yaml "$@" ;; esac
exec sh "$(dirname "$0")/ba-lora.sh" "$@" --method pissa
