#!/bin/sh
# A stand-in for python:3.11-slim-bookworm where no container registry can be reached: Debian's own Python 3.11, from a
# Debian mirror alone. Needs root, debootstrap, and a Docker engine.
#
# tests/docker/stand_in_base.sh TAG
set -eu
tag=${1:?the tag of the image to make}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv bookworm "$folder" >&2
tar -C "$folder" --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' -c . | docker import - "$tag"
