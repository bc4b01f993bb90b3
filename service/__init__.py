"""Serving: bytes -> decode -> prepare -> infer -> finish -> answer. docs/architecture.md describes the packages."""

import os

# Nobody is told that, or what, is served here. ONNX Runtime reads its variable while it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
