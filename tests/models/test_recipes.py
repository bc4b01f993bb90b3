"""The bundled recipes: complete, of one piece, and small enough to live in git."""

from collections.abc import Iterator

import pytest
import torch

from models import recipes
from models.architectures import ARCHITECTURES
from models.recipes import AUDIO, CAMVID_PALETTE, CLASSIFY, DEPTHS, RECIPES, SEGMENT, SOUNDS, VIDEO, Recipe
from models.runs import build_network
from models.tasks import TASKS
from service.repository.card import AudioPreprocess, ImagePreprocess, VideoPreprocess
from service.repository.folder import BUNDLED, next_version

# How many categories the data that is not named in the recipe has.
CIFAR_10, CAMVID, ESC_10 = 10, 11, 10
ALL = list(RECIPES.values())
MEGABYTE = 10**6


def categories(recipe: Recipe) -> int:
    return len(recipe.categories or ()) or {"classify": CIFAR_10, "segment": CAMVID, "audio": ESC_10}[recipe.task]


def sample_shapes(recipe: Recipe) -> Iterator[tuple[int, ...]]:
    spec = recipe.preprocess
    if isinstance(spec, ImagePreprocess):
        yield from ((*size, 3) for size in spec.sizes)
    elif isinstance(spec, AudioPreprocess):
        yield (1, spec.window_samples)
    elif isinstance(spec, VideoPreprocess):
        yield (spec.frames, *spec.size, 3)


def test_there_is_a_recipe_for_each_task_under_its_own_name() -> None:
    assert {recipe.task for recipe in ALL} == set(TASKS)
    assert all(name == recipe.name for name, recipe in RECIPES.items())


@pytest.mark.parametrize("recipe", ALL, ids=RECIPES)
def test_every_sample_that_can_come_fits_the_network(recipe: Recipe) -> None:
    assert isinstance(recipe.preprocess, TASKS[recipe.task].serving.preprocess)
    for shape in sample_shapes(recipe):
        with torch.device("meta"), torch.no_grad():  # shapes without arithmetic
            served = TASKS[recipe.task].wrap(build_network(recipe, categories(recipe)), recipe)
            logits = served.network(served.prepare(torch.empty(2, *shape)))
        pixels = shape[:2] if recipe.task == "segment" else ()
        assert logits.shape == (2, categories(recipe), *pixels)


@pytest.mark.parametrize("recipe", ALL, ids=RECIPES)
def test_a_recipes_settings_make_sense(recipe: Recipe) -> None:
    assert recipe.architecture in ARCHITECTURES
    assert recipe.epochs >= 1 and recipe.batch_size >= 1 and recipe.peak_rate > 0
    assert recipe.optimizer in ("sgd", "adamw")
    assert 0 <= recipe.label_smoothing < 0.5 and 0 < recipe.average_decay < 1
    assert 0 <= recipe.mixup <= 1 and (recipe.mixup == 0 or recipe.task == "audio")
    assert recipe.description and recipe.source.name and recipe.source.source and recipe.source.licence
    assert next_version(BUNDLED, recipe.name) >= 1  # a name that can stand in a repository


def test_all_networks_together_live_in_git_in_24_megabytes() -> None:
    parameters = 0
    for recipe in (recipe for recipe in ALL if recipe not in DEPTHS):  # they are compared, not served
        with torch.device("meta"):
            network = build_network(recipe, categories(recipe))
        parameters += sum(
            value.numel() for name, value in network.state_dict().items() if not name.startswith("aux_classifier")
        )
    assert 4 * parameters < 23.5 * MEGABYTE


def test_each_data_set_lies_in_a_folder_of_its_own() -> None:
    sources = {recipe.source for recipe in ALL}
    assert len({source.folder for source in sources}) == len(sources)


def test_the_spoken_digits_stand_in_their_order() -> None:
    digits = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    assert AUDIO.categories == (*digits, "background")
    assert isinstance(AUDIO.preprocess, AudioPreprocess)
    assert (AUDIO.preprocess.sample_rate_hz, AUDIO.preprocess.window_samples) == (8000, 8000)


def test_networks_of_sounds_hear_at_the_rate_of_their_samples() -> None:
    for recipe in (AUDIO, SOUNDS):
        assert isinstance(recipe.preprocess, AudioPreprocess)
        assert recipe.options.get("rate_hz", 8000) == recipe.preprocess.sample_rate_hz


def test_camera_motions_are_ten_and_each_direction_has_its_opposite() -> None:
    assert VIDEO.categories is not None and len(set(VIDEO.categories)) == 10
    opposites = [
        ("pan left", "pan right"),
        ("tilt up", "tilt down"),
        ("zoom in", "zoom out"),
        ("roll clockwise", "roll counter-clockwise"),
    ]
    assert set(VIDEO.categories) == {"static", "shake", *(name for pair in opposites for name in pair)}
    assert isinstance(VIDEO.preprocess, VideoPreprocess)
    assert (VIDEO.preprocess.frames, VIDEO.preprocess.frame_rate_hz) == (16, 8)


def test_street_scenes_have_eleven_colours_that_differ() -> None:
    assert SEGMENT.palette == CAMVID_PALETTE
    assert len(set(CAMVID_PALETTE)) == CAMVID


def test_only_segmentation_has_a_palette_and_cut_outs_that_fit_its_samples() -> None:
    for recipe in ALL:
        assert (recipe.palette is not None) == (recipe.crop is not None) == (recipe.task == "segment")
    assert SEGMENT.crop is not None and isinstance(SEGMENT.preprocess, ImagePreprocess)
    for height, width in SEGMENT.preprocess.sizes:
        assert SEGMENT.crop[0] <= height and SEGMENT.crop[1] <= width


def test_recipes_cannot_be_changed_by_accident() -> None:
    with pytest.raises(AttributeError):
        CLASSIFY.epochs = 1  # type: ignore[misc]


def test_a_sources_card_says_where_the_data_is_from() -> None:
    card = recipes.ESC_10.card({"train": 5})
    assert (card.name, card.licence, card.splits) == ("ESC-10", "CC BY 3.0 (Piczak 2015)", {"train": 5})
    assert card.source == "https://github.com/karolpiczak/ESC-10"
