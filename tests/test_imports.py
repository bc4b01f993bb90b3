"""Imports keep the rules of docs/architecture.md, held by walking them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted([*ROOT.glob("service/**/*.py"), *ROOT.glob("models/**/*.py")])
TRAINING_MAY_USE = {"tasks", "media", "engines", "repository", "errors"}
HTTP = {"fastapi", "starlette", "uvicorn"}
# What each part of the service may import of the others. `settings`, `telemetry` and `errors` serve all of them.
MAY_IMPORT = {
    "errors": set[str](),
    "telemetry": {"settings", "errors"},
    "engines": {"repository.card", "errors"},
    "repository.card": {"errors"},
    "media": {"repository.card", "errors"},
    "tasks": {"media", "engines", "repository.card", "errors"},
    "settings": {"tasks", "media", "engines", "repository.folder", "errors"},
    "repository": {"repository.card", "engines", "tasks", "settings", "telemetry", "errors"},
    "scheduling": {"engines", "telemetry", "errors"},
    "pipeline": {"tasks", "scheduling", "media", "engines", "repository", "settings", "telemetry", "errors"},
    "http": {"pipeline", "tasks", "repository", "settings", "telemetry", "version", "errors"},
    "memory": set[str](),
    "version": set[str](),
    "launch": {"version"},
    "app": {"http", "pipeline", "scheduling", "tasks", "repository", "engines", "telemetry", "settings", "launch",
            "memory", "errors"},
    "__main__": {"launch"},
}  # fmt: skip


def _name(path: Path) -> str:
    """``service/media/image.py`` -> ``service.media.image``"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _part(module: str) -> str:
    """The part of the service that a module belongs to; the card is a part of its own."""
    names = module.split(".")[1:]
    if names[:2] in (["repository", "card"], ["repository", "folder"]):
        return ".".join(names[:2])
    return names[0] if names else ""


def _may_import(part: str, other: str) -> bool:
    allowed = MAY_IMPORT["repository" if part == "repository.folder" else part]
    return other in allowed or other.partition(".")[0] in {*allowed, part.partition(".")[0]}


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_keep_the_rules(path: Path) -> None:
    name = _name(path)
    imported = set(_imported(path))
    roots = {module.partition(".")[0] for module in imported}
    if name.startswith("service"):
        assert not roots & {"torch", "torchvision", "models"}
        assert ("bentoml" in roots) <= (name == "service.app")
        assert not roots & HTTP or name == "service.app" or name.startswith("service.http.")
    if name.startswith("models"):
        used = {module.split(".")[1] for module in imported if module.startswith("service.")}
        assert used <= TRAINING_MAY_USE
        assert not any(module.startswith(("models.train.", "models.export.")) for module in imported)
    if name.startswith("models.architectures"):
        assert roots <= {"torch", "models", "collections", "math", "typing", "functools"}
        assert all(module.startswith("models.architectures") for module in imported if module.startswith("models"))


@pytest.mark.parametrize("path", [path for path in MODULES if _name(path).startswith("service.")], ids=_name)
def test_each_part_of_the_service_imports_what_is_below_it(path: Path) -> None:
    name = _name(path)
    part = _part(name)
    for module in _imported(path):
        if module.startswith("service."):
            assert _may_import(part, _part(module)), f"{name} imports {module}"


def test_the_service_loads_neither_torch_nor_the_training_side() -> None:
    probe = "import sys, service.app; assert not {'torch', 'models', 'tqdm', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", probe], cwd=ROOT, check=True, timeout=120)
