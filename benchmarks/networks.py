"""What is asked of every contestant: a model, and the file that is sent to it.

Two networks have random weights, for how well they answer does not matter: ResNet-20 at 32x32 shows what serving costs,
ResNet-50 at 224x224 what computing costs. The others are the bundled models.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from service.repository.card import ModelCard
from service.repository.folder import BUNDLED, CARD, find_models

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".bench"  # everything that the benchmark makes and keeps: environments, models, logs
RANDOM = ("resnet20", "resnet50")
_SAMPLES = {"segment": "tower.jpg", "audio": "seven.wav", "video": "pan-left.mp4"}
_CONTENT_TYPES = {"classify": "image/jpeg", "segment": "image/jpeg", "audio": "audio/wav", "video": "video/mp4"}
_MAX_BATCH = {"classify": 64, "segment": 4, "audio": 64, "video": 8}


@dataclass(frozen=True)
class Network:
    card: ModelCard
    repository: Path  # in its own, this model stands alone
    body: bytes

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def folder(self) -> Path:
        return self.repository / self.card.name / str(self.card.version)

    @property
    def route(self) -> str:
        return f"/{self.card.task}"

    @property
    def content_type(self) -> str:
        return _CONTENT_TYPES[self.card.task]

    @property
    def max_batch(self) -> int:
        """What a peer may put together: as much as the service does on a CPU."""
        return _MAX_BATCH[self.card.task]


def names() -> list[str]:
    """The two random networks, and each route's bundled model."""
    return [*RANDOM, *(stored.card.name for stored in find_models(BUNDLED)[0] if stored.card.default)]


def network(name: str, work: Path = WORK) -> Network:
    """In a repository of its own below ``work``, which is made if it is not there. Raises ``KeyError`` for a name that
    is neither bundled nor one of the random ones."""
    repository = work / "repositories" / name
    if name in RANDOM:
        if not repository.is_dir():
            # Here, because torch takes seconds to load and is wanted only when these models are made.
            from benchmarks.random_networks import publish_random

            publish_random(name, repository)
        folder = repository / name / "1"
    else:
        # Of several versions the last, as the service chooses.
        stored = {model.card.name: model for model in find_models(BUNDLED)[0]}[name]
        folder = repository / name / str(stored.card.version)
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(stored.folder)
    card = ModelCard.model_validate_json((folder / CARD).read_bytes())
    return Network(card, repository, body(card))


def together(networks: Sequence[Network], work: Path = WORK) -> list[Network]:
    """The same networks, all in one repository."""
    repository = work / "repositories" / "-".join(network.name for network in networks)
    for network in networks:
        place = repository / network.name / str(network.card.version)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(network.folder.resolve())
    return [replace(network, repository=repository) for network in networks]


def body(card: ModelCard) -> bytes:
    """The file that a client of ``card``'s route sends."""
    if card.task == "classify":
        return photograph()
    return (ROOT / "samples" / _SAMPLES[card.task]).read_bytes()


def photograph() -> bytes:
    """A JPEG of 26 kB, 500x375: what a picture on the web is."""
    with Image.open(ROOT / "samples" / "tower.jpg") as image:
        small = image.convert("RGB").resize((500, 375), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=50)
    return buffer.getvalue()
