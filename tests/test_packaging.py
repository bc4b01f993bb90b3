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
from packaging.utils import canonicalize_name

from service.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BENTO = yaml.safe_load((ROOT / "bentofile.yaml").read_text())


def test_the_bento_installs_what_the_package_depends_on() -> None:
    assert BENTO["python"]["packages"] == PROJECT["project"]["dependencies"]


EXTRAS = {"serve": [], **PROJECT["project"]["optional-dependencies"]}
LOCKS = sorted([*ROOT.glob("requirements/*.txt"), *ROOT.glob("docker/requirements-*.txt")])
MACHINES = {
    "linux": {"platform_machine": "x86_64", "sys_platform": "linux"},
    "arm": {"platform_machine": "aarch64", "sys_platform": "linux"},
    "mac": {"platform_machine": "arm64", "sys_platform": "darwin"},
}


def _asked(extra: str, machine: dict[str, str]) -> dict[str, Requirement]:
    """What pyproject.toml asks for with an extra, by name."""
    asked = {}
    for requirement in map(Requirement, [*PROJECT["project"]["dependencies"], *EXTRAS[extra]]):
        if requirement.name == PROJECT["project"]["name"]:
            for other in requirement.extras:
                asked.update(_asked(other, machine))
        elif requirement.marker is None or requirement.marker.evaluate(machine):
            asked[canonicalize_name(requirement.name)] = requirement
    return asked


def _locked(path: Path, machine: dict[str, str]) -> dict[str, str]:
    """Versions by name. Blocks of several lines have hashes."""
    locked = {}
    for block in re.split(r"\n(?=\S)", path.read_text()):
        if not block.startswith("#"):
            pinned = Requirement(block.partition("\\")[0].strip())
            assert ("--hash=sha256:" in block) == (path.parent.name == "docker")
            if pinned.marker is None or pinned.marker.evaluate(machine):
                assert pinned.name not in locked
                locked[pinned.name] = str(pinned.specifier).removeprefix("==")
    return locked


@pytest.mark.parametrize("python", ["3.11", "3.14"])
@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_lock_holds_what_the_package_depends_on(path: Path, machine: dict[str, str], python: str) -> None:
    """`make lock` renews it."""
    machine = {**machine, "python_version": python, "python_full_version": f"{python}.0"}
    name = path.stem.removeprefix("requirements-")
    extra = {"cpu": "serve"}.get(name, name.removesuffix("-cpu"))
    on_cpu, locked = name.endswith("cpu"), _locked(path, machine)
    for requirement in _asked(extra, machine).values():
        chosen = str(canonicalize_name(requirement.name))
        if on_cpu and chosen == "onnxruntime-gpu":
            chosen = "onnxruntime"
        if not (on_cpu and chosen == "torch"):  # installed by itself
            assert requirement.specifier.contains(locked[chosen]), chosen
    assert ("onnxruntime-gpu" in locked) + ("onnxruntime" in locked) == 1
    if on_cpu:
        cuda = {name for name in locked if name.startswith(("nvidia", "cuda", "triton", "torch"))}
        assert "onnxruntime" in locked and cuda == {"nvidia-ml-py"}
    if name in ("serve", "gpu"):
        assert "torch" not in locked


@pytest.mark.parametrize("extra", ["serve", "train", "docs", "dev"])
def test_locks_without_a_gpu_name_the_versions_of_those_with_one(extra: str) -> None:
    machine = {**MACHINES["linux"], "python_full_version": "3.11.0"}
    with_gpu = _locked(ROOT / "requirements" / f"{extra}.txt", machine)
    without = _locked(ROOT / "requirements" / f"{extra}-cpu.txt", machine)
    assert {**with_gpu, "onnxruntime": without["onnxruntime"]}.items() >= without.items()


def test_every_extra_has_its_lock() -> None:
    assert {path.stem for path in ROOT.glob("requirements/*.txt") if not path.stem.endswith("-cpu")} == set(EXTRAS)


@pytest.mark.parametrize("gpu", [False, True], ids=["without a GPU", "with a GPU"])
@pytest.mark.parametrize("extra", ["serve", "dev"])
def test_the_installer_asks_pip_for_the_locked_versions_and_says_one_line(
    tmp_path: Path, extra: str, gpu: bool
) -> None:
    """pip is one that notes down what it is asked for."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\n[ "$3" = show ] || echo "$@" >> {tmp_path}/asked\nexit 0\n')
    python.chmod(0o755)
    done = subprocess.run(
        [ROOT / "requirements" / "install.sh", tmp_path, extra],
        cwd=ROOT,
        env={**os.environ, "ONNXRUNTIME": "gpu" if gpu else "cpu"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert len((done.stdout + done.stderr).splitlines()) == 1
    asked = (tmp_path / "asked").read_text()
    assert f"--constraint requirements/{extra}.txt" in asked
    assert (f"--no-deps --requirement requirements/{extra}-cpu.txt" in asked) == (not gpu)
    assert all(line.endswith("-qq") for line in asked.splitlines())


def test_the_image_and_the_bento_turn_telemetry_off() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    for variable in BENTO["envs"]:
        assert f"{variable['name']}={variable['value']}" in dockerfile
    assert {variable["name"] for variable in BENTO["envs"]} == {"ORT_DISABLE_TELEMETRY", "BENTOML_DO_NOT_TRACK"}


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


def test_make_help_says_a_line_of_each_target() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    phony = re.search(r"^\.PHONY:((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert {name for name, _ in lines} == set(phony[1].replace("\\", "").split())


def test_nothing_in_the_tree_names_a_registry_or_this_machine() -> None:
    written = [ROOT / name for name in ("pyproject.toml", "bentofile.yaml", "Makefile", "mkdocs.yml")]
    written += [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".ci/*"), *ROOT.glob("requirements/*")]
    for path in [*written, *LOCKS]:
        text = path.read_text().replace("--no-emit-index-url --no-emit-find-links", "")
        assert not re.search(r"index-url|find-links|file://|/home/|/root/", text), path
