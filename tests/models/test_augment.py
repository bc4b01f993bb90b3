"""Training-only transforms: what they may change, what they must not, and that labels go along."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import augment
from models.datasets import VOID
from models.recipes import VIDEO

N_FRAMES = 8
SIDE = 48  # pixels


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Each transform as a function of its generator alone: samples of the same kind, large enough to show any difference.
PICTURES = torch.randint(0, 256, (6, 32, 32, 3), generator=generator(1), dtype=torch.uint8)
MASKS = torch.randint(0, 3, (6, 32, 32), generator=generator(2), dtype=torch.uint8)
SOUNDS = torch.rand(6, 1, 800, generator=generator(3)) - 0.5
CLIPS = torch.randint(0, 256, (6, 4, 8, 8, 3), generator=generator(4), dtype=torch.uint8)
TRANSFORMS: dict[str, Callable[[torch.Generator], Tensor]] = {
    "flip_and_shift": lambda g: augment.flip_and_shift(PICTURES, g),
    "scale_and_crop": lambda g: augment.scale_and_crop(PICTURES, MASKS, (24, 16), g)[0],
    "scale_and_crop masks": lambda g: augment.scale_and_crop(PICTURES, MASKS, (24, 16), g)[1],
    "jitter_colours": lambda g: augment.jitter_colours(PICTURES, g),
    "augment_sound": lambda g: augment.augment_sound(SOUNDS, g),
    "mix_sounds": lambda g: augment.mix_sounds(SOUNDS, torch.arange(6), 6, g)[0],
    "flip_motion": lambda g: augment.flip_motion(CLIPS, torch.zeros(6, dtype=torch.long), ("static",), g)[0],
}
SHAPES = {
    "flip_and_shift": (6, 32, 32, 3),
    "scale_and_crop": (6, 24, 16, 3),
    "scale_and_crop masks": (6, 24, 16),
    "jitter_colours": (6, 32, 32, 3),
    "augment_sound": (6, 1, 800),
    "mix_sounds": (6, 1, 800),
    "flip_motion": (6, 4, 8, 8, 3),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_generator_in_the_same_state_gives_the_same_samples(name: str) -> None:
    torch.manual_seed(0)
    first = TRANSFORMS[name](generator(5))
    torch.manual_seed(1)  # torch's own generator has no part in it
    assert torch.equal(first, TRANSFORMS[name](generator(5)))
    assert not torch.equal(first, TRANSFORMS[name](generator(6)))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_samples_keep_their_axes(name: str) -> None:
    assert tuple(TRANSFORMS[name](generator()).shape) == SHAPES[name]


@pytest.mark.parametrize("name", ["flip_and_shift", "scale_and_crop", "jitter_colours"])
def test_pictures_stay_within_0_and_255(name: str) -> None:
    for seed in range(20):
        pictures = TRANSFORMS[name](generator(seed))
        assert pictures.min() >= 0 and pictures.max() <= 255


# Pictures


def test_a_shifted_picture_is_a_cut_out_of_its_mirrored_surroundings() -> None:
    pictures = augment.flip_and_shift(PICTURES.repeat(40, 1, 1, 1), generator(), pad=4)
    sources = np.pad(PICTURES.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    found = set()
    for index, picture in enumerate(pictures.numpy()):
        source = sources[index % len(sources)]
        matches = [
            (mirrored, top, left)
            for mirrored, own in ((False, source), (True, source[:, ::-1]))
            for top in range(9)
            for left in range(9)
            if np.array_equal(own[top : top + 32, left : left + 32], picture)
        ]
        assert len(matches) == 1
        found.add(matches[0])
    assert {mirrored for mirrored, _, _ in found} == {False, True}
    assert {top for _, top, _ in found} == {left for _, _, left in found} == set(range(9))


def test_light_varies_between_pictures_but_not_within_one() -> None:
    grey = torch.full((50, 6, 5, 3), 100, dtype=torch.uint8)
    varied = augment.jitter_colours(grey, generator())
    assert torch.equal(varied, varied[:, :1, :1].expand_as(varied))
    levels = varied[:, 0, 0].mean(dim=1)
    assert levels.max() - levels.min() > 30 and abs(float(levels.mean()) - 100) < 10


def test_strength_0_leaves_the_light_as_it_is() -> None:
    assert torch.allclose(augment.jitter_colours(PICTURES, generator(), strength=0), PICTURES.float(), atol=1e-4)


def test_a_clips_frames_are_lit_the_same() -> None:
    clips = torch.full((8, 4, 6, 6, 3), 90, dtype=torch.uint8)
    varied = augment.jitter_colours(clips, generator())
    assert torch.equal(varied, varied[:, :1].expand_as(varied))


# Masks: the picture's colours spell the mask in corners of the colour cube, which no change of light confuses.


def coded_scenes(count: int, height: int = 40, width: int = 56) -> tuple[Tensor, Tensor]:
    """Pictures of coloured tiles, and masks whose category is the number that the colour spells in binary."""
    tiles = torch.randint(0, 8, (count, height // 8, width // 8), generator=generator(7))
    masks = tiles.repeat_interleave(8, 1).repeat_interleave(8, 2)
    colours = torch.stack([(masks >> bit & 1) * 255 for bit in range(3)], dim=-1)
    return colours.to(torch.uint8), masks.to(torch.uint8)


def spelled(pictures: Tensor) -> Tensor:
    bits = (pictures > 125).long()
    return bits[..., 0] + 2 * bits[..., 1] + 4 * bits[..., 2]


def uniform(masks: Tensor) -> Tensor:
    """Pixels whose 3x3 neighbourhood has one category: beside an edge, the picture's colours mix."""
    around = masks.unfold(1, 3, 1).unfold(2, 3, 1).flatten(3)
    inner = (around == around[..., :1]).all(dim=3)
    return torch.nn.functional.pad(inner, (1, 1, 1, 1))


@pytest.mark.parametrize("size", [(40, 56), (24, 24), (64, 32)])
def test_pictures_and_masks_stay_aligned(size: tuple[int, int]) -> None:
    pictures, masks = coded_scenes(12)
    cut, cut_masks = augment.scale_and_crop(pictures, masks, size, generator())
    assert cut_masks.dtype == torch.long
    judged = uniform(cut_masks) & (cut_masks != VOID)
    assert float(judged.float().mean()) > 0.2
    assert torch.equal(spelled(cut)[judged], cut_masks[judged])
    # Were they a little apart, that would show.
    assert not torch.equal(spelled(cut.roll(3, 2))[judged], cut_masks[judged])


def test_at_scale_1_masks_are_the_whole_mask_or_its_mirror_image() -> None:
    pictures, masks = coded_scenes(24)
    _, cut_masks = augment.scale_and_crop(pictures, masks, (40, 56), generator(), scales=(1.0, 1.0))
    same = (cut_masks == masks).flatten(1).all(dim=1)
    mirrored = (cut_masks == masks.flip(2)).flatten(1).all(dim=1)
    assert (same ^ mirrored).all() and same.any() and mirrored.any()


def test_what_lies_outside_of_the_picture_is_void() -> None:
    pictures, masks = coded_scenes(4)
    _, cut_masks = augment.scale_and_crop(pictures, masks, (40, 56), generator(), scales=(0.5, 0.5))
    inside = torch.zeros(40, 56, dtype=torch.bool)
    inside[10:30, 14:42] = True  # half the size, in the middle
    assert torch.equal(cut_masks != VOID, inside.expand_as(cut_masks))


def test_a_cut_out_of_an_enlarged_picture_holds_no_void_and_lies_anywhere_in_it() -> None:
    rows = torch.arange(40, dtype=torch.uint8)[None, :, None].expand(64, 40, 56)
    pictures = rows[..., None].expand(64, 40, 56, 3)
    _, cut_masks = augment.scale_and_crop(pictures, rows, (40, 56), generator(), scales=(2.0, 2.0))
    assert (cut_masks != VOID).all()
    heights = cut_masks.flatten(1).max(dim=1).values - cut_masks.flatten(1).min(dim=1).values
    assert ((heights >= 19) & (heights <= 20)).all()  # half the rows
    assert cut_masks.min() < 3 and cut_masks.max() > 36


def test_void_in_the_mask_stays_void_and_categories_are_not_mixed() -> None:
    pictures, _ = coded_scenes(8)
    masks = torch.tensor([0, 10, VOID], dtype=torch.uint8)[torch.randint(0, 3, (8, 40, 56), generator=generator(9))]
    _, cut_masks = augment.scale_and_crop(pictures, masks, (32, 32), generator())
    assert set(cut_masks.flatten().tolist()) == {0, 10, VOID}


# Sounds


def tones(count: int, length: int = 4000, width: int = 150) -> Tensor:
    """A burst of a quarter of the sample rate in the middle of a window, (count, 1, length)."""
    times = torch.arange(length) - (length - 1) / 2
    burst = torch.cos(torch.pi / 2 * times) * torch.exp(-0.5 * (times / width).square())
    return burst.expand(count, 1, length)


def test_sounds_are_shifted_by_up_to_the_stated_share_of_the_window() -> None:
    """The noise is far below, and the burst's energy is somewhere else by that much, and further where it is played
    slower, as much as 1 / 0.8."""
    disturbed = augment.augment_sound(tones(600), generator(), shift=0.2)[:, 0]
    smooth = torch.nn.functional.avg_pool1d(disturbed.square()[:, None], 301, stride=1, padding=150)[:, 0]
    clean = smooth.max(dim=1).values > 20 * smooth.median(dim=1).values
    assert clean.sum() > 150
    moved = (smooth.argmax(dim=1)[clean] - 1999.5) / 4000
    assert moved.abs().max() <= 0.2 / 0.8 + 0.03
    assert moved.min() < -0.16 and moved.max() > 0.16 and abs(float(moved.mean())) < 0.03


def test_sounds_are_played_a_fifth_faster_or_slower_at_most() -> None:
    """A cosine's pitch, found as the loudest frequency, where the noise leaves it to be found."""
    times = torch.arange(4000) / 4000
    before = torch.cos(2 * torch.pi * 500 * times).expand(300, 1, 4000)
    power = torch.fft.rfft(augment.augment_sound(before, generator(), shift=0.0)[:, 0]).abs()
    pitches = power.argmax(dim=1)[power.max(dim=1).values > 50 * power.median(dim=1).values]
    assert len(pitches) > 150
    assert pitches.min() >= 500 * 0.8 - 2 and pitches.max() <= 500 * 1.2 + 2
    assert pitches.min() < 500 * 0.83 and pitches.max() > 500 * 1.17


def test_sounds_are_much_softer_and_a_little_louder() -> None:
    before = tones(400)
    after = augment.augment_sound(before, generator(), shift=0.0)
    change_db = 10 * torch.log10(after.square().mean(dim=(1, 2)) / before.square().mean(dim=(1, 2)))
    # The gain is -40 to 6 dB; filter, room and noise, which may be as loud as the sound, come on top.
    assert -70 < change_db.min() < -40 and 3 < change_db.max() < 25


def test_silence_stays_silence() -> None:
    assert augment.augment_sound(torch.zeros(3, 1, 800), generator()).abs().max() == 0


def test_half_of_the_sounds_lie_over_noise_that_is_no_louder() -> None:
    """At the window's beginning, where neither the burst nor its echo is."""
    after = augment.augment_sound(tones(300, width=60), generator(), shift=0.0)
    beginning = after[..., :600].square().mean(dim=(1, 2))
    below_db = 10 * torch.log10(after.square().mean(dim=(1, 2)) / beginning)
    noisy = below_db < 50
    assert 0.4 < noisy.float().mean() < 0.6
    assert -1 < below_db.min() < 4 and below_db[noisy].max() > 35


def test_some_sounds_are_clipped() -> None:
    after = augment.augment_sound(tones(300, width=400), generator())[:, 0].abs()
    at_the_rail = (after >= after.max(dim=1, keepdim=True).values * 0.9999).float().mean(dim=1)
    assert 0.03 < (at_the_rail > 0.01).float().mean() < 0.15


def test_an_echo_comes_after_the_sound_not_before() -> None:
    after = augment.augment_sound(tones(400, width=30), generator(), shift=0.0)[:, 0].square()
    before_it, behind_it = after[:, 1200:1700].sum(dim=1), after[:, 2300:2800].sum(dim=1)
    loudness = after.sum(dim=1)
    echoing = ((behind_it > 1e-4 * loudness) & (behind_it > 10 * before_it)).float().mean()
    reversed_ = ((before_it > 1e-4 * loudness) & (before_it > 10 * behind_it)).float().mean()  # the murmur is backwards
    assert echoing > 0.05 and echoing > 3 * reversed_


def test_mixed_sounds_state_how_much_of_each_category_they_hold() -> None:
    """Two pitches of other loudness. With half of each they are as loud as each other (Tokozume et al. 2018)."""
    times = torch.arange(1000) / 1000
    low, high = torch.cos(2 * torch.pi * 50 * times), 10 * torch.cos(2 * torch.pi * 200 * times)
    sounds = torch.stack([low, high] * 100)[:, None]
    targets = torch.tensor([0, 2] * 100)
    mixed, shares = augment.mix_sounds(sounds, targets, 3, generator())
    assert mixed.shape == sounds.shape and shares.shape == (200, 3)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(200))
    assert not shares[:, 1].any() and shares[:, 0].std() > 0.2
    power = torch.fft.rfft(mixed[:, 0]).abs()
    heard = power[:, 50] / (power[:, 50] + power[:, 200])
    torch.testing.assert_close(heard, shares[:, 0], rtol=0, atol=1e-3)
    assert not torch.equal(mixed, sounds)


def test_as_many_sounds_are_mixed_as_stated() -> None:
    sounds, targets = torch.randn(400, 1, 50, generator=generator()), torch.arange(400) % 2
    mixed, shares = augment.mix_sounds(sounds, targets, 2, generator(), share=0.25)
    alone = shares.max(dim=1).values == 1
    assert 0.65 < alone.float().mean() < 0.85
    torch.testing.assert_close(mixed[alone], sounds[alone])


# Clips whose motion is known. A category names what the camera does; what it shows does the opposite.


def waves(motion: str, sign: int) -> NDArray[np.uint8]:
    """(T, H, W, 3): a pattern that moves right, down, outwards or clockwise by ``sign`` a frame."""
    rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    phases = {
        "right": 2 * np.pi * columns / 24,
        "down": 2 * np.pi * rows / 24,
        "outwards": 4 * np.log(np.hypot(rows, columns) + 1e-9),
        "clockwise": 3 * np.arctan2(rows, columns),  # rows grow downwards, so the angle grows clockwise
    }
    frames = [np.cos(phases[motion] - 0.6 * sign * number) for number in range(N_FRAMES)]
    grey = np.rint(127 + 100 * np.stack(frames)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=3)


# What is seen, and what the camera does then.
SHOWN = {
    ("right", 1): "pan left",
    ("right", -1): "pan right",
    ("down", 1): "tilt up",
    ("down", -1): "tilt down",
    ("outwards", 1): "zoom in",
    ("outwards", -1): "zoom out",
    ("clockwise", 1): "roll counter-clockwise",
    ("clockwise", -1): "roll clockwise",
}


def measured(clip: NDArray[np.generic]) -> str:
    """The camera's motion, from how the brightness changes along each of four ways (Horn & Schunck 1981, equation 1).

    Along the way that the pattern moves, dI/dt = -speed * dI/ds holds everywhere; along the others it does not.
    """
    grey = clip[..., 0].astype(np.float64)
    over_time, down, right = (np.asarray(np.gradient(grey, axis=axis)) for axis in range(3))
    rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    radius = np.hypot(rows, columns)
    along = {
        "right": right,
        "down": down,
        "outwards": (rows * down + columns * right) / radius,
        "clockwise": (columns * down - rows * right) / radius,
    }
    inner = (radius > 8) & (radius < SIDE / 2 - 1)
    changes = over_time[1:-1, inner]
    correlations = {
        way: np.sum(changes * gradient[1:-1, inner]) / (np.linalg.norm(gradient[1:-1, inner]) + 1e-9)
        for way, gradient in along.items()
    }
    way = max(correlations, key=lambda name: abs(correlations[name]))
    return SHOWN[way, 1 if correlations[way] < 0 else -1]


@pytest.mark.parametrize("seen", SHOWN, ids=SHOWN.values())
def test_a_turned_clip_is_named_after_the_motion_that_it_then_shows(seen: tuple[str, int]) -> None:
    assert VIDEO.categories is not None
    clip = waves(*seen)
    assert measured(clip) == SHOWN[seen]  # the measure itself, on the clip as it was made
    clips = torch.from_numpy(clip).expand(24, *clip.shape)
    targets = torch.full((24,), VIDEO.categories.index(SHOWN[seen]))
    turned, names = augment.flip_motion(clips, targets, VIDEO.categories, generator())
    assert turned.dtype == torch.uint8
    told = [VIDEO.categories[int(index)] for index in names]
    assert told == [measured(one) for one in turned.numpy()]
    assert len(set(told)) == 2  # some were turned to the opposite


@pytest.mark.parametrize("category", ["static", "shake"])
def test_a_clip_without_direction_keeps_its_name(category: str) -> None:
    assert VIDEO.categories is not None
    targets = torch.full((6,), VIDEO.categories.index(category))
    turned, names = augment.flip_motion(CLIPS, targets, VIDEO.categories, generator())
    assert torch.equal(names, targets)
    assert not torch.equal(turned, CLIPS)


def test_clips_are_turned_each_by_itself_and_their_frames_alike() -> None:
    count = 40
    clips = CLIPS[:1].expand(count, *CLIPS.shape[1:])
    turned, _ = augment.flip_motion(clips, torch.zeros(count, dtype=torch.long), ("static",), generator())
    ways = {
        tuple(axes)
        for clip in turned
        for axes in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
        if torch.equal(CLIPS[0].flip(axes), clip)
    }
    assert len(ways) == 8


def test_cutting_out_takes_one_square_of_each_picture_and_leaves_its_mean() -> None:
    pictures = torch.rand(400, 32, 32, 3, generator=torch.Generator().manual_seed(3)) * 255
    cut = augment.cut_out(pictures, torch.Generator().manual_seed(4), side=10)
    gone = (cut != pictures).any(dim=3)
    sizes = set()
    for picture, mask, before in zip(cut, gone, pictures, strict=True):
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert int(mask.sum()) == height * width  # a rectangle: at the border, a part of the square
        sizes.add((height, width))
        assert torch.allclose(picture[mask], before.mean(dim=(0, 1)).expand(height * width, 3), atol=1e-3)
    assert max(sizes) == (10, 10) and (5, 10) in sizes  # the square's centre lies inside of the picture
    assert gone.any(dim=0).all()
