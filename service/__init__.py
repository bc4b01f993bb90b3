"""Serving: bytes -> decode -> prepare -> infer -> finish -> answer. docs/architecture.md describes the packages."""
