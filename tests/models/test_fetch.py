"""Each layout from a tiny archive made here; downloads from file: addresses and a server on this machine."""

import dataclasses
import functools
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from models import fetch
from models.background import NOISES
from models.fetch import Content, FetchError
from tests.folders import sound_wav

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
RECORDINGS = {f"{digit}_{speaker}_{take}.wav" for digit in (0, 7) for speaker in ("ann", "bob") for take in (4, 5)}
FSDD = {f"fsdd/recordings/{name}": name.encode() for name in RECORDINGS}


def archive_of(files: dict[str, bytes], path: Path, mode: str = "w:gz") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]  # any mode
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def accept(monkeypatch: pytest.MonkeyPatch, name: str, *contents: Content, **changes: str) -> None:
    """Lets data set `name` be as small as the archives here."""
    data_set = dataclasses.replace(fetch.DATA_SETS[name], contents=contents, **changes)  # type: ignore[arg-type]
    monkeypatch.setitem(fetch.DATA_SETS, name, data_set)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def png(pixels: list[list[int]]) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(np.array(pixels, np.uint8)).save(file, "PNG")
        return file.getvalue()


def digest_by_hand(files: dict[str, bytes]) -> str:
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return whole.hexdigest()


@pytest.fixture
def small_fsdd(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = digest_by_hand({name: name.encode() for name in RECORDINGS})
    accept(monkeypatch, "fsdd", Content("**/recordings/*.wav", len(RECORDINGS), digest))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of an HTTP server of the folder `public`."""
    (tmp_path / "public").mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path / "public")) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


# --- layouts ---


@pytest.mark.usefixtures("small_fsdd")
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_fsdd_is_laid_out_by_digit_with_the_first_five_takes_as_test(mode: str, tmp_path: Path) -> None:
    place = fetch.fetch("fsdd", tmp_path / "data", archive_of(FSDD, tmp_path / "fsdd.tar", mode))
    assert place == tmp_path / "data/fsdd"
    assert files_below(place) == {
        f"{split}/{word}/{digit}_{speaker}_{take}.wav"
        for digit, word in ((0, "zero"), (7, "seven"))
        for speaker in ("ann", "bob")
        for take, split in ((4, "test"), (5, "train"))
    }
    assert (place / "test/zero/0_ann_4.wav").read_bytes() == b"0_ann_4.wav"


def test_esc10_is_laid_out_by_category_with_the_fifth_fold_as_test(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    accept(monkeypatch, "esc10", Content("**/??? - */*.ogg", 3))
    names = ("001 - Dog bark/1-10-A.ogg", "001 - Dog bark/5-20-B.ogg", "003 - Sea waves/4-5-A.ogg")
    archive = archive_of({f"ESC-10-master/{name}": b"ogg" for name in names}, tmp_path / "esc10.tar.gz")
    assert files_below(fetch.fetch("esc10", tmp_path, archive)) == {
        "train/dog bark/1-10-A.ogg",
        "test/dog bark/5-20-B.ogg",
        "train/sea waves/4-5-A.ogg",
    }


@pytest.mark.parametrize(
    ("images", "masks", "suffix"),
    [("camvid/{}/images", "camvid/{}/masks", "jpg"), ("S-master/CamVid/{}", "S-master/CamVid/{}annot", "png")],
    ids=["local", "public"],
)
def test_camvid_is_laid_out_with_255_as_its_only_void(
    images: str, masks: str, suffix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    accept(monkeypatch, "camvid", Content("**/masks/*.png", 3), Content("**/*annot/*.png", 3))
    files = {}
    for split in ("train", "val", "test"):
        files[f"{images.format(split)}/{split}_1.{suffix}"] = b"a picture"
        files[f"{masks.format(split)}/{split}_1.png"] = png([[0, 11], [10, 3]])
    place = fetch.fetch("camvid", tmp_path, archive_of(files, tmp_path / "camvid.tar"))
    expected = {f"{split}/images/{split}_1.{suffix}" for split in ("train", "val", "test")}
    expected |= {f"{split}/masks/{split}_1.png" for split in ("train", "val", "test")}
    assert files_below(place) == {*expected, "categories.txt"}
    with Image.open(place / "val/masks/val_1.png") as mask:
        assert np.array_equal(np.asarray(mask), [[0, 255], [10, 3]])
    categories = (place / "categories.txt").read_text().split()
    assert (len(categories), categories[0], categories[10]) == (11, "Sky", "Bicyclist")


def test_cifar10_of_the_binary_original_is_written_as_png(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    accept(monkeypatch, "cifar10", Content("**/*_batch*.bin", 3))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    records = [
        bytes([category]) + picture.transpose(2, 0, 1).tobytes()
        for category, picture in zip((3, 9, 0), pixels, strict=True)
    ]
    files = {f"cifar-10-batches-bin/data_batch_{index + 1}.bin": records[index] for index in range(2)}
    files["cifar-10-batches-bin/test_batch.bin"] = records[2]
    files["cifar-10-batches-bin/batches.meta.txt"] = "\n".join([*CIFAR10, "", ""]).encode()
    place = fetch.fetch("cifar10", tmp_path, archive_of(files, tmp_path / "cifar10.tar.gz"))
    assert {str(Path(name).parent) for name in files_below(place)} == {"train/cat", "train/truck", "test/airplane"}
    assert {path.name for path in (place / "train").iterdir()} == set(CIFAR10)
    for folder, picture in zip(("train/cat", "train/truck", "test/airplane"), pixels, strict=True):
        (path,) = (place / folder).iterdir()
        with Image.open(path) as image:
            assert (image.format, np.array_equal(np.asarray(image), picture)) == ("PNG", True)


def test_cifar10_of_folders_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    accept(monkeypatch, "cifar10", Content("**/*.jpg", 20))
    names = {f"{split}/{category}/0000.jpg" for split in ("train", "test") for category in CIFAR10}
    archive = archive_of({f"cifar10/{name}": b"jpeg" for name in names}, tmp_path / "cifar10.tar.xz", "w:xz")
    assert files_below(fetch.fetch("cifar10", tmp_path, archive)) == names


def jpeg_of_noise(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(noise).save(file, "JPEG")
        return file.getvalue()


def test_camera_motion_is_rendered_from_photographs_and_street_scenes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    accept(monkeypatch, "photos", Content("**/*.JPEG", 10))
    accept(monkeypatch, "camvid", Content("**/masks/*.png", 3))
    photos = {f"images-master/n{index}_thing.JPEG": jpeg_of_noise(index) for index in range(10)}
    scenes = {f"camvid/{split}/images/1.jpg": jpeg_of_noise(99) for split in ("train", "val", "test")}
    masks = {f"camvid/{split}/masks/1.png": png([[0]]) for split in ("train", "val", "test")}
    archive_of(photos, tmp_path / "archives/photos.tar")
    archive_of(scenes | masks, tmp_path / "archives/camvid.tar")
    counts = {"--train": 2, "--val": 0, "--test": 1, "--test-camvid": 1, "--test-footage": 1}
    options = [str(word) for option in counts.items() for word in option]
    arguments = ["--to", str(tmp_path / "data"), "--archives", str(tmp_path / "archives"), *options]
    monkeypatch.setattr("sys.argv", ["fetch", "camera-motion", *arguments])
    fetch.main()
    clips = {"train/static/00000.mp4", "train/pan left/00000.mp4", "test/static/00000.mp4"}
    clips |= {"test-camvid/static/00000.mp4", "test-footage/static/00000.mp4"}
    assert files_below(tmp_path / "data/camera_motion") == clips
    sizes = {}
    for clip in clips:
        with av.open(tmp_path / "data/camera_motion" / clip) as container:
            stream = container.streams.video[0]
            sizes[clip] = (min(stream.width, stream.height), stream.average_rate)
    footage_side, footage_rate = sizes.pop("test-footage/static/00000.mp4")
    assert footage_side == 360 and footage_rate is not None and 24 <= footage_rate <= 60
    assert all(side <= 112 and rate == 8 for side, rate in sizes.values())


@pytest.mark.usefixtures("small_fsdd")
def test_digits_are_made_of_the_spoken_ones_and_of_a_background(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    accept(monkeypatch, "esc10", Content("**/??? - */*.ogg", 3))
    monkeypatch.setattr(fetch, "NOISES_OF_A_KIND", {"train": 2, "test-background": 1})
    sound = sound_wav(np.sin(np.arange(5 * 8000)))  # formats are recognised by their bytes
    names = ("001 - Dog bark/1-10-A.ogg", "001 - Dog bark/5-20-B.ogg", "003 - Sea waves/4-5-A.ogg")
    archive_of({f"ESC-10-master/{name}": sound for name in names}, tmp_path / "archives/esc10.tar")
    archive_of(FSDD, tmp_path / "archives/fsdd.tar.xz", "w:xz")
    place = fetch.make_spoken_digits(tmp_path / "data", tmp_path / "archives")
    assert place == tmp_path / "data/digits"
    found = files_below(place)
    spoken = files_below(tmp_path / "data/fsdd")
    assert len(spoken) == len(FSDD) and spoken <= found
    assert (place / "test/zero/0_ann_4.wav").read_bytes() == b"0_ann_4.wav"
    noises = {f"train/background/{kind}-1-{number}.wav" for kind in NOISES for number in range(2)}
    noises |= {f"test-background/background/{kind}-2-0.wav" for kind in NOISES}
    pieces = {f"train/background/{name}-{number}.wav" for name in ("1-10-A", "4-5-A") for number in range(2)}
    pieces |= {f"test-background/background/5-20-B-{number}.wav" for number in range(2)}
    assert found - spoken == noises | pieces
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["digits", "esc10", "fsdd"]


# --- what is refused ---


def test_digits_cannot_be_made_of_one_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["fetch", "digits", "--to", str(tmp_path), "--archive", "fsdd.tar.xz"])
    with pytest.raises(SystemExit, match="digits is made of fsdd and esc10; give a folder of both"):
        fetch.main()


@pytest.mark.usefixtures("small_fsdd")
@pytest.mark.parametrize(
    "files",
    [dict(list(FSDD.items())[1:]), {**FSDD, "fsdd/recordings/0_ann_4.wav": b"other bytes"}],
    ids=["a file is missing", "a file has other bytes"],
)
def test_archive_with_other_content_is_refused_and_leaves_nothing(files: dict[str, bytes], tmp_path: Path) -> None:
    archive = archive_of(files, tmp_path / "fsdd.tar.gz")
    with pytest.raises(FetchError, match="not fsdd: it must hold 8 files"):
        fetch.fetch("fsdd", tmp_path / "data", archive)
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.usefixtures("small_fsdd")
@pytest.mark.parametrize("name", ["../escaped.txt", "/tmp/convserve-escaped.txt", "fsdd/../../../escaped.txt"])
def test_path_that_leads_out_of_the_archive_is_never_written(name: str, tmp_path: Path) -> None:
    archive = archive_of({**FSDD, name: b"escaped"}, tmp_path / "fsdd.tar")
    if name.startswith("/"):  # taken as relative by tarfile's data filter, which is safe, too
        fetch.fetch("fsdd", tmp_path / "data", archive)
    else:
        with pytest.raises(FetchError, match=r"fsdd\.tar cannot be unpacked: .*outside the destination"):
            fetch.fetch("fsdd", tmp_path / "data", archive)
    assert not list(tmp_path.rglob("*escaped.txt"))
    assert not Path("/tmp/convserve-escaped.txt").exists()


@pytest.mark.usefixtures("small_fsdd")
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_truncated_archive_is_refused(mode: str, tmp_path: Path) -> None:
    archive = archive_of(FSDD, tmp_path / "fsdd.tar", mode)
    archive.write_bytes(archive.read_bytes()[: 700 if mode == "w" else 60])
    with pytest.raises(FetchError):
        fetch.fetch("fsdd", tmp_path / "data", archive)
    assert not list((tmp_path / "data").iterdir())


# --- downloads ---


@pytest.mark.usefixtures("small_fsdd")
def test_original_is_downloaded_and_laid_out(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = archive_of(FSDD, tmp_path / "public/fsdd.tar.gz")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    accept(monkeypatch, "fsdd", *fetch.DATA_SETS["fsdd"].contents, url=f"{server}/fsdd.tar.gz", md5=md5)
    assert len(files_below(fetch.fetch("fsdd", tmp_path / "data"))) == len(FSDD)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["fsdd"]


@pytest.mark.usefixtures("small_fsdd")
def test_download_with_another_digest_is_refused(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive_of(FSDD, tmp_path / "public/fsdd.tar.gz")
    accept(monkeypatch, "fsdd", *fetch.DATA_SETS["fsdd"].contents, url=f"{server}/fsdd.tar.gz", md5="0" * 32)
    with pytest.raises(FetchError, match=r"fsdd\.tar\.gz has md5 [0-9a-f]{32}; its publisher states 0{32}"):
        fetch.fetch("fsdd", tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_what_is_missing_on_the_server_is_named_with_the_way_out(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    accept(monkeypatch, "esc10", url=f"{server}/gone.tar.gz")
    with pytest.raises(FetchError, match=r"gone\.tar\.gz could not be reached \(.*404.*\).*esc10 --archive FILE"):
        fetch.fetch("esc10", tmp_path / "data")


def test_unreachable_server_ends_the_command_with_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    accept(monkeypatch, "fsdd", url=(tmp_path / "nowhere.tar.gz").as_uri())
    monkeypatch.setattr("sys.argv", ["fetch", "fsdd", "--to", str(tmp_path / "data")])
    with pytest.raises(SystemExit, match=r"nowhere\.tar\.gz could not be reached .* by hand and give it: .*--archive"):
        fetch.main()


# --- the command ---


@pytest.mark.usefixtures("small_fsdd")
def test_command_takes_its_archive_from_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive_of(FSDD, tmp_path / "archives" / fetch.DATA_SETS["fsdd"].archive, "w:xz")
    arguments = ["fetch", "fsdd", "--to", str(tmp_path / "data"), "--archives", str(tmp_path / "archives")]
    monkeypatch.setattr("sys.argv", arguments)
    fetch.main()
    assert f"fsdd: {tmp_path / 'data/fsdd'} (CC BY-SA 4.0)" in capsys.readouterr().out


@pytest.mark.usefixtures("small_fsdd")
def test_what_is_laid_out_is_left_as_it_is(tmp_path: Path) -> None:
    place = fetch.fetch("fsdd", tmp_path, archive_of(FSDD, tmp_path / "fsdd.tar"))
    (place / "mine.txt").write_text("kept")
    assert fetch.fetch("fsdd", tmp_path, tmp_path / "no such archive") == place
    assert (place / "mine.txt").read_text() == "kept"


def test_bytes_that_were_not_published_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"published")
    whole = hashlib.sha256(b"a\0" + hashlib.sha256(b"published").digest()).hexdigest()
    assert fetch.content_digest([tmp_path / "a"]) == whole
    contents = (Content("**/a", 1, whole),)
    monkeypatch.setitem(fetch.DATA_SETS, "fsdd", dataclasses.replace(fetch.DATA_SETS["fsdd"], contents=contents))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        (tmp_path / "a").write_bytes(b"changed")
        tar.add(tmp_path / "a", "a")
    with pytest.raises(FetchError, match="bytes that were published"):
        fetch.fetch("fsdd", tmp_path / "data", tmp_path / "a.tar")
