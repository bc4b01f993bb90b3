"""Prints what builds the package: ``build-system.requires`` of pyproject.toml, a line each."""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())
print(*project["build-system"]["requires"], sep="\n")
