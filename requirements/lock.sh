#!/bin/sh
# requirements/lock.sh VENV [OPTIONS]
#
# Writes the versions that are installed: requirements/EXTRA.txt for each extra of pyproject.toml, EXTRA-cpu.txt for those that
# run without a GPU, and docker/requirements-*.txt with hashes. Pins stay as they are unless OPTIONS hold --upgrade.
set -eu
venv=$1
shift
cpu=requirements/cpu.overrides

lock() {
    "$venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links \
        --custom-compile-command 'make lock' "$@"
}

with_builds() { "$venv/bin/python" requirements/builds.py | lock pyproject.toml - --no-annotate "$@"; }

for extra in serve gpu tensorrt train docs dev; do
    [ $extra = serve ] && option= || option="--extra $extra"
    with_builds $option --output-file requirements/$extra.txt "$@"
    case $extra in serve | train | docs | dev)
        with_builds $option --overrides $cpu --constraints requirements/$extra.txt --output-file requirements/$extra-cpu.txt "$@" ;;
    esac
done
lock pyproject.toml --generate-hashes --overrides $cpu --output-file docker/requirements-cpu.txt "$@"
lock pyproject.toml --generate-hashes --extra gpu --output-file docker/requirements-gpu.txt "$@"
