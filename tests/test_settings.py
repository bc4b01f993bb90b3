import re
from pathlib import Path

import pytest

from service import settings as module
from service.media import Limits
from service.settings import Settings, SettingsError, usable_cores

TABLE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("CONVSERVE_")]:
        monkeypatch.delenv(name)


def test_defaults() -> None:
    settings = Settings.read()
    assert (settings.timeout_ms, settings.max_body_bytes, settings.max_files) == (30_000, 64 * 2**20, 64)
    assert settings.limits() == Limits()
    assert settings.repository.is_absolute() and settings.repository.name == "repository"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TIMEOUT_MS", "0"),
        ("TIMEOUT_MS", "soon"),
        ("WORKERS", "-1"),
        ("WORKERS", "many"),
        ("MAX_BATCH", "0"),
        ("MAX_BATCH", "cifar10=0"),
        ("MAX_BATCH", "cifar10=many"),
        ("MAX_SECONDS", "nan"),
        ("MAX_SECONDS", "inf"),
        ("KEEP_ALIVE_SECONDS", "0"),
        ("KEEP_ALIVE_SECONDS", "1.5"),
        ("DRAIN_SECONDS", "-1"),
        ("DRAIN_SECONDS", "inf"),
        ("DEVICE", "tpu"),
        ("ACCESS_LOG", "perhaps"),
        ("DEFAULT_MODELS", "classify"),
        ("DEFAULT_MODELS", "guess=x"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"CONVSERVE_{name}", value)
    with pytest.raises(SettingsError, match=f"CONVSERVE_{name}") as caught:
        Settings.read()
    assert repr(value) in str(caught.value)


def test_a_setting_that_does_not_exist_is_named_with_the_one_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSERVE_TIMEOUT", "5")
    with pytest.raises(SettingsError, match="CONVSERVE_TIMEOUT_MS"):
        Settings.read()


def test_default_models_are_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSERVE_DEFAULT_MODELS", "classify=a:2, audio=b,")
    assert Settings.read().default_models == {"classify": "a:2", "audio": "b"}


def test_batches_are_a_number_for_all_or_for_each_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSERVE_MAX_BATCH", "8")
    assert Settings.read().max_batch == 8
    monkeypatch.setenv("CONVSERVE_MAX_BATCH", "cifar10=16, camvid=1,")
    assert Settings.read().max_batch == {"cifar10": 16, "camvid": 1}


def test_auto_is_a_worker_per_core_with_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gpu_memory_bytes", lambda: 0)
    settings = Settings.read()
    assert settings.worker_count() == usable_cores()
    assert settings.threads_per_worker() == 1
    monkeypatch.setenv("CONVSERVE_WORKERS", "1")
    assert Settings.read().threads_per_worker() == usable_cores()


@pytest.mark.parametrize(
    "cores, gibibytes, workers",
    [(16, 140, 8), (16, 15, 3), (8, 24, 4), (2, 15, 1), (1, 80, 1), (8, 2, 1)],
)
def test_on_a_gpu_workers_share_its_memory_and_each_has_two_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, gibibytes: int, workers: int
) -> None:
    monkeypatch.setattr(module, "gpu_memory_bytes", lambda: gibibytes * 2**30)
    monkeypatch.setattr(module, "usable_cores", lambda: cores)
    assert Settings.read().worker_count() == workers
    assert Settings.read().threads_per_worker() == cores // workers
    monkeypatch.setenv("CONVSERVE_DEVICE", "cpu")
    assert Settings.read().worker_count() == cores
    monkeypatch.setenv("CONVSERVE_WORKERS", "3")
    assert Settings.read().worker_count() == 3


def test_a_hidden_gpu_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert module.gpu_memory_bytes() == 0


def test_what_tensorrt_is_told_is_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not Settings.read().gpu_options().tensorrt_float16
    monkeypatch.setenv("CONVSERVE_TENSORRT_FP16", "true")
    monkeypatch.setenv("CONVSERVE_TENSORRT_CACHE", str(tmp_path))
    options = Settings.read().gpu_options()
    assert options.tensorrt_float16 and options.tensorrt_cache == tmp_path


def test_the_documentation_has_every_setting_with_its_default() -> None:
    stated = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| (.+?) \|", TABLE.read_text(), re.MULTILINE))
    for name, field in Settings.model_fields.items():
        assert name.upper() in stated, f"{name.upper()} is missing from the table in docs/settings.md"
        default = stated[name.upper()].strip("`")
        if isinstance(field.default, bool) or field.default == "auto":
            assert default == str(field.default).lower()
        elif isinstance(field.default, (int, float)):
            assert float(default) == field.default
