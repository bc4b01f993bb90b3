"""Who may import whom: the rules of CONTRIBUTING.md, held by walking the imports."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted([*ROOT.glob("service/**/*.py"), *ROOT.glob("models/**/*.py")])
TRAINING_MAY_USE = {"cards", "repository", "engine", "decode", "preprocess", "postprocess", "errors"}
PURE = {"errors", "cards", "preprocess", "postprocess", "schemas"}
HTTP = {"fastapi", "starlette", "uvicorn"}
# From HTTP down to errors; a module imports from below itself only.
LAYERS = [
    {"__main__"},
    {"app"},
    {"api", "door", "tune"},
    {"openapi", "inputs", "pipeline"},
    {"catalogue"},
    {"traces"},
    {"batcher", "settings", "access", "connections", "launch", "wire"},
    {"place"},
    {"decoding"},
    {"admission", "isolation"},
    {"engine", "repository", "postprocess"},
    {"decode", "preprocess", "schemas", "providers", "buffers"},
    {"cards", "metrics", "turns"},
    {"access_log", "errors", "gpu", "handover", "line", "memory", "pace", "quota", "stopwatch", "threads", "throttle"},
]


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


def _layer(module: str) -> int:
    part = module.split(".")[1] if "." in module else ""
    return next(index for index, names in enumerate(LAYERS) if part in names)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_keep_the_rules(path: Path) -> None:
    name = _name(path)
    imported = set(_imported(path))
    roots = {module.partition(".")[0] for module in imported}
    if name.startswith("service"):
        assert not roots & {"torch", "torchvision", "models"}
        assert ("bentoml" in roots) <= (name == "service.app")
        assert not roots & HTTP or name in {
            "service.app",
            "service.http.routes",
            "service.http.body",
            "service.http.connection",
        }
        if name.split(".")[-1] in PURE or name.startswith("service.media"):
            assert not any(module.startswith(("service.telemetry.metrics", "service.settings")) for module in imported)
    if name.startswith("models"):
        used = {module.split(".")[1] for module in imported if module.startswith("service.")}
        assert used <= TRAINING_MAY_USE
        assert not any(module.startswith(("models.train.", "models.export.")) for module in imported)
    if name.startswith("models.architectures"):
        assert roots <= {"torch", "models", "collections", "math", "typing", "functools"}
        assert all(module.startswith("models.architectures") for module in imported if module.startswith("models"))


@pytest.mark.parametrize("path", [path for path in MODULES if _name(path).startswith("service.")], ids=_name)
def test_the_service_imports_downwards_only(path: Path) -> None:
    name = _name(path)
    for module in _imported(path):
        if module.startswith("service.") and module.split(".")[1] != name.split(".")[1]:
            assert _layer(module) > _layer(name), f"{name} imports {module}"


def test_every_module_of_the_service_has_its_layer() -> None:
    here = {_name(path).split(".")[1] for path in MODULES if _name(path).startswith("service.")}
    assert here == set().union(*LAYERS)


def test_the_service_loads_neither_torch_nor_the_training_side() -> None:
    probe = "import sys, service.app; assert not {'torch', 'models', 'tqdm', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", probe], cwd=ROOT, check=True, timeout=120)
