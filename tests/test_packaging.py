"""What is installed, built and started, held against each other: one list in several files must stay one list."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from service.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BENTO = yaml.safe_load((ROOT / "bentofile.yaml").read_text())


def test_the_bento_installs_what_the_package_depends_on() -> None:
    assert BENTO["python"]["packages"] == PROJECT["project"]["dependencies"]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_image_s_lock_holds_what_the_package_depends_on(device: str) -> None:
    """`make lock` renews it."""
    blocks = re.split(r"\n(?=\S)", (ROOT / "docker" / f"requirements-{device}.txt").read_text())
    here = {"platform_machine": "x86_64", "sys_platform": "linux", "python_version": "3.11"}
    locked = {}
    for block in blocks:
        if not block.startswith("#"):
            pinned = Requirement(block.partition("\\")[0])
            assert "--hash=sha256:" in block
            if pinned.marker is None or pinned.marker.evaluate(here):
                locked[pinned.name] = str(pinned.specifier).removeprefix("==")
    for requirement in map(Requirement, PROJECT["project"]["dependencies"]):
        if requirement.marker is None or requirement.marker.evaluate(here):
            name = "onnxruntime" if (device, requirement.name) == ("cpu", "onnxruntime-gpu") else requirement.name
            assert requirement.specifier.contains(locked[name]), name
    assert ("onnxruntime-gpu" in locked, "onnxruntime" in locked) == (device == "gpu", device == "cpu")
    assert any(name.startswith("nvidia-cudnn") for name in locked) == (device == "gpu")
    assert "torch" not in locked


def test_serving_depends_on_no_torch() -> None:
    assert not any(re.match(r"torch", dependency) for dependency in PROJECT["project"]["dependencies"])


def test_the_bento_carries_the_service_and_the_bundled_models_and_nothing_of_training(tmp_path: Path) -> None:
    """That it serves from them alone is shown where a Docker engine is: tests/docker."""
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", "build", "--version=test"],
        cwd=ROOT,
        env={**os.environ, "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    source = tmp_path / "bentos" / "convserve" / "test" / "src"
    carried = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    needed = {
        path.relative_to(ROOT).as_posix()
        for folder, pattern in (("service", "*.py"), ("models/repository", "*.onnx"), ("models/repository", "*.json"))
        for path in (ROOT / folder).rglob(pattern)
    }
    assert carried - needed == {"README.md", "LICENSE", "docker/NOTICE", "bentofile.yaml"}
    assert needed <= carried and len(needed) > 30


def test_every_package_of_the_tree_is_installed() -> None:
    packages = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for folder in ("service", "models")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages


def test_the_calls_that_are_advised_have_their_files() -> None:
    for name, task in TASKS.items():
        assert task.sample and (ROOT / task.sample).is_file(), name


def test_nothing_in_the_tree_names_a_registry_or_this_machine() -> None:
    for path in [ROOT / "pyproject.toml", ROOT / "Makefile", ROOT / "README.md", *ROOT.glob(".ci/*")]:
        assert not re.search(r"index-url|find-links|/home/|/root/", path.read_text()), path
