"""The package's version."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("convserve")
except PackageNotFoundError:  # served from a folder, as a Bento is
    VERSION = "unknown"
