"""Normalisation and softmax in the graph, against arithmetic done by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.graph import ServedAudioClassifier, ServedClassifier, ServedSegmenter, ServedVideoClassifier
from models.tasks import TASKS

# Of ImageNet's photographs, in 0..1, as they stand in every paper (He et al. and torchvision): written out once more.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def by_hand(level: int, channel: int) -> float:
    return (level / 255 - MEAN[channel]) / STD[channel]


class Fixed(nn.Module):
    """Answers the same logits whatever it sees, and keeps what it saw."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.seen = torch.empty(0)

    def forward(self, batch: Tensor) -> Tensor:
        self.seen = batch
        return self.logits


def test_pictures_are_normalised_per_colour_and_their_channels_come_first() -> None:
    pictures = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    pictures[1, 3, 2] = torch.tensor([255, 128, 7], dtype=torch.uint8)
    prepared = ServedClassifier(nn.Identity()).prepare(pictures)
    assert prepared.shape == (2, 3, 4, 5) and prepared.dtype == torch.float32
    assert prepared[0, :, 0, 0].tolist() == pytest.approx([by_hand(0, channel) for channel in range(3)], abs=1e-5)
    seen = [by_hand(level, channel) for channel, level in enumerate((255, 128, 7))]
    assert prepared[1, :, 3, 2].tolist() == pytest.approx(seen, abs=1e-5)


def test_clips_are_normalised_per_colour_and_their_channels_come_before_time() -> None:
    clips = torch.zeros(1, 4, 5, 6, 3, dtype=torch.uint8)
    clips[0, 1, 2, 3, 2] = 200
    prepared = ServedVideoClassifier(nn.Identity()).prepare(clips)
    assert prepared.shape == (1, 3, 4, 5, 6)
    assert float(prepared[0, 2, 1, 2, 3]) == pytest.approx(by_hand(200, 2), abs=1e-5)
    assert float(prepared[0, 2, 1, 2, 4]) == pytest.approx(by_hand(0, 2), abs=1e-5)


def test_bytes_and_the_same_numbers_as_floats_are_prepared_alike() -> None:
    """Serving sends bytes, augmentation makes floats."""
    pictures = torch.arange(2 * 3 * 3 * 3).reshape(2, 3, 3, 3) * 4
    served = ServedClassifier(nn.Identity())
    assert torch.equal(served.prepare(pictures.to(torch.uint8)), served.prepare(pictures.float()))


def test_the_means_are_no_part_of_a_checkpoint() -> None:
    network = nn.Linear(2, 2)
    keys = ServedClassifier(network).state_dict().keys()
    assert {key.removeprefix("network.") for key in keys} == network.state_dict().keys()


def test_every_window_is_heard_at_the_same_loudness_about_zero() -> None:
    tone = torch.sin(torch.arange(800) * 0.3)[None, None]
    prepare = ServedAudioClassifier(nn.Identity()).prepare
    loud, soft, raised = prepare(0.9 * tone), prepare(0.09 * tone), prepare(0.5 * tone + 0.25)
    for prepared in (loud, soft, raised):
        assert abs(float(prepared.mean())) < 1e-5
    # Root mean square over itself plus 0.001: 0.9 / sqrt(2) is 0.636, so 0.636 / 0.637; a tenth of it, 0.0636 / 0.0646.
    assert float(loud.square().mean().sqrt()) == pytest.approx(0.9984, abs=5e-4)
    assert float(soft.square().mean().sqrt()) == pytest.approx(0.9845, abs=5e-4)


def test_silence_stays_silence_and_faint_noise_is_not_blown_up() -> None:
    prepare = ServedAudioClassifier(nn.Identity()).prepare
    assert prepare(torch.zeros(1, 1, 800)).abs().max() == 0
    assert prepare(torch.full((1, 1, 800), 0.5)).abs().max() < 1e-3  # a constant is silence, too
    noise = 1e-5 * torch.randn(1, 1, 800, generator=torch.Generator().manual_seed(0))
    assert prepare(noise).abs().max() < 0.05


def test_each_window_is_prepared_by_itself() -> None:
    sounds = (
        torch.rand(3, 1, 100, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 0.1, 0.01])[:, None, None]
    )
    prepare = ServedAudioClassifier(nn.Identity()).prepare
    assert torch.allclose(prepare(sounds)[1:2], prepare(sounds[1:2]))


@pytest.mark.parametrize("task, shape", [("classify", (2, 4, 4, 3)), ("audio", (2, 1, 50)), ("video", (2, 3, 4, 4, 3))])
def test_a_classifiers_outputs_are_the_softmax_of_its_logits(task: str, shape: tuple[int, ...]) -> None:
    logits = torch.tensor([[0.0, 1.0, -2.0], [100.0, 100.0, -100.0]])
    samples = torch.zeros(shape, dtype=torch.float32 if task == "audio" else torch.uint8)
    probabilities = TASKS[task].served(Fixed(logits))(samples)
    total = 1 + np.e + np.exp(-2)
    assert probabilities[0].tolist() == pytest.approx([1 / total, np.e / total, np.exp(-2) / total], abs=1e-6)
    assert probabilities[1].tolist() == pytest.approx([0.5, 0.5, 0.0], abs=1e-6)
    assert probabilities.sum(dim=1).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_a_segmenter_answers_the_likeliest_category_and_its_softmax() -> None:
    logits = 5 * torch.randn(2, 7, 6, 5, generator=torch.Generator().manual_seed(0))
    mask, confidence = ServedSegmenter(Fixed(logits))(torch.zeros(2, 6, 5, 3, dtype=torch.uint8))
    exponentials = np.exp(logits.double().numpy())
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert mask.dtype == torch.uint8 and mask.shape == confidence.shape == (2, 6, 5)
    assert np.array_equal(mask.numpy(), probabilities.argmax(axis=1))
    assert np.allclose(confidence.numpy(), probabilities.max(axis=1), atol=1e-6)


def test_a_segmenter_is_sure_of_large_logits_without_overflow() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 2] = 1000.0
    mask, confidence = ServedSegmenter(Fixed(logits))(torch.zeros(1, 2, 2, 3, dtype=torch.uint8))
    assert (mask == 2).all() and torch.equal(confidence, torch.ones(1, 2, 2))


def test_a_segmenter_tells_255_categories_apart() -> None:
    logits = torch.zeros(1, 255, 1, 2)
    logits[0, 254, 0, 0], logits[0, 0, 0, 1] = 9.0, 9.0
    mask, _ = ServedSegmenter(Fixed(logits))(torch.zeros(1, 1, 2, 3, dtype=torch.uint8))
    assert mask.tolist() == [[[254, 0]]]


def test_the_network_sees_what_prepare_makes() -> None:
    network = Fixed(torch.zeros(1, 2))
    served = ServedClassifier(network)
    picture = torch.randint(0, 256, (1, 4, 4, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    served(picture)
    assert torch.equal(network.seen, served.prepare(picture))


class Corner(nn.Module):
    """Answers with the upper left pixel."""

    def forward(self, batch: Tensor) -> Tensor:
        return batch[:, :, 0, 0]


def test_six_views_answer_with_their_mean() -> None:
    pictures = torch.randint(0, 256, (2, 5, 7, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    served = ServedClassifier(Corner())
    served.views = 6
    for picture, logits in zip(served.prepare(pictures), served.logits(pictures), strict=True):
        # Rows and columns of the upper left and right pixels, of the picture and of those a pixel before and after,
        # where what lies outside is mirrored about the border.
        expected = 0.25 * (picture[:, 0, 0] + picture[:, 0, 6]) + 0.125 * (
            picture[:, 1, 1] + picture[:, 1, 5] + picture[:, 1, 1] + picture[:, 1, 5]
        )
        assert logits.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
