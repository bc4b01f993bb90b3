"""Parameters, multiply-accumulates and receptive fields against arithmetic done by hand."""

import pytest
import torch
from torch import Tensor, nn

from models.architectures.alexnet import alexnet
from models.architectures.audio_cnn import audio_cnn
from models.architectures.fcn import FCN, fcn_basic
from models.architectures.resnet import Backbone, BasicBlock, resnet18
from models.architectures.resnet_cifar import resnet_cifar
from models.architectures.video_cnn import video_cnn
from models.inspect import complexity


class Chain(nn.Module):
    """A sequence as a network of its own, whose training mode is on."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


def conv(macs_per_output: int, channels: int, side: int) -> int:
    """Multiply-accumulates of a convolution that makes ``channels`` x ``side`` x ``side`` outputs."""
    return macs_per_output * channels * side * side


def test_alexnets_first_layers_are_counted_as_by_hand() -> None:
    # 224 pixels: (224 + 4 - 11) / 4 + 1 = 55, pooled (55 - 3) / 2 + 1 = 27, the second convolution keeps 27.
    first = conv(3 * 11 * 11, 64, 55)
    second = conv(64 * 5 * 5, 192, 27)
    assert (first, second) == (70_276_800, 223_948_800)
    found = complexity(Chain(*list(alexnet().features)[:5]), torch.zeros(1, 3, 224, 224))
    assert found.macs == first + second
    assert found.parameters == 3 * 11 * 11 * 64 + 64 + 64 * 5 * 5 * 192 + 192
    # 11, then (3 - 1) * 4 more by the pooling, then (5 - 1) * 8 more.
    assert found.receptive_field == (51, 51)


def test_alexnet_is_counted_as_by_hand() -> None:
    macs = (
        conv(3 * 11 * 11, 64, 55)
        + conv(64 * 5 * 5, 192, 27)
        + conv(192 * 3 * 3, 384, 13)
        + conv(384 * 3 * 3, 256, 13)
        + conv(256 * 3 * 3, 256, 13)
        + 9216 * 4096
        + 4096 * 4096
        + 4096 * 1000
    )
    found = complexity(alexnet(), torch.zeros(1, 3, 224, 224))
    assert (found.macs, found.parameters) == (macs, 61_100_840)
    # 51 after the second convolution, 67 after its pooling, three 3x3 at steps of 16, a pooling: + 4 * 2 * 16.
    assert found.receptive_field == (195, 195)


def test_resnet18_is_counted_as_by_hand() -> None:
    stem = conv(3 * 7 * 7, 64, 112)
    stages = 4 * conv(64 * 9, 64, 56)
    for width, side in ((128, 28), (256, 14), (512, 7)):
        stages += conv(width // 2 * 9, width, side) + 3 * conv(width * 9, width, side)  # four convolutions
        stages += conv(width // 2, width, side)  # the shortcut's
    macs = stem + stages + 512 * 1000
    assert macs == 1_814_073_344
    found = complexity(resnet18(), torch.zeros(1, 3, 224, 224))
    assert (found.macs, found.parameters) == (macs, 11_689_512)
    # 7, pooling + 2 * 2, then per stage: first convolution at the step before its stride, three at the step after it.
    field = 7 + 2 * 2 + 4 * 2 * 4 + sum(2 * step // 2 + 3 * 2 * step for step in (8, 16, 32))
    assert field == 435
    assert found.receptive_field == (field, field)


def test_a_stack_of_dilated_convolutions_sees_exponentially_far() -> None:
    # Yu & Koltun 2016, section 2: 3x3 kernels of dilation 1, 2, 4 see 3, 7, 15 pixels.
    for depth, field in ((1, 3), (2, 7), (3, 15)):
        layers = [nn.Conv2d(4, 4, 3, padding=2**level, dilation=2**level) for level in range(depth)]
        found = complexity(Chain(*layers), torch.zeros(1, 4, 20, 20))
        assert found.receptive_field == (field, field)
        assert found.macs == depth * conv(4 * 9, 4, 20)


def test_axes_are_counted_apart() -> None:
    layers = nn.Conv3d(3, 5, (3, 7, 5), stride=(1, 2, 1)), nn.MaxPool3d((2, 2, 1))
    found = complexity(Chain(*layers), torch.zeros(1, 3, 8, 16, 16))
    assert found.receptive_field == (3 + 1, 7 + 2, 5)
    assert found.macs == 3 * 3 * 7 * 5 * 5 * (6 * 5 * 12)


def test_groups_are_counted_by_what_each_output_sees() -> None:
    found = complexity(Chain(nn.Conv2d(8, 8, 3, padding=1, groups=4)), torch.zeros(1, 8, 10, 10))
    assert found.macs == conv(2 * 9, 8, 10)


@pytest.mark.parametrize(
    "pool, sample", [(nn.AvgPool1d, (1, 1, 9)), (nn.AvgPool2d, (1, 1, 9, 9)), (nn.AvgPool3d, (1, 1, 9, 9, 9))]
)
def test_average_pooling_widens_the_field_and_costs_nothing(pool: type[nn.Module], sample: tuple[int, ...]) -> None:
    found = complexity(Chain(pool(3), pool(2)), torch.zeros(sample))
    assert found.receptive_field == (3 + 1 * 3,) * (len(sample) - 2)
    assert (found.macs, found.parameters) == (0, 0)


def test_shortcuts_do_not_widen_the_field() -> None:
    # resnet_cifar: 3, then 2n convolutions a stage at steps 1, 2, 4, the first of a stage at the step before.
    found = complexity(resnet_cifar(depth=8), torch.zeros(1, 3, 32, 32))
    assert found.receptive_field == (3 + 2 * 2 + (2 + 4) + (4 + 8),) * 2


def field_of_fcn(dilated: bool) -> int:
    """Four stages of one block: 7x7 and pooling, then two 3x3 a stage, then the head's 3x3 and 1x1."""
    field = 7 + 2 * 2 + 2 * 2 * 4
    field += 2 * 4 + 2 * 8  # stage 2 strides
    if dilated:  # on a grid of 8: dilations 1 and 2, then 2 and 4; the head's kernel spans 3 cells
        return field + 2 * 8 * (1 + 2) + 2 * 8 * (2 + 4) + 2 * 8
    return field + 2 * 8 + 2 * 16 + 2 * 16 + 2 * 32 + 2 * 32


def test_dilation_keeps_the_field_of_striding_on_a_finer_grid() -> None:
    layers, widths = (1, 1, 1, 1), (4, 4, 8, 8)
    sample = torch.zeros(1, 3, 64, 64)
    dilated = complexity(fcn_basic(2, widths, layers), sample)
    strided = complexity(FCN(Backbone(BasicBlock, layers, widths=widths), 2), sample)
    assert dilated.receptive_field == (field_of_fcn(True),) * 2
    assert strided.receptive_field == (field_of_fcn(False),) * 2
    # Up to the head, whose kernel spans 3 cells of 8 pixels rather than of 32, the two see as far.
    assert field_of_fcn(True) - 2 * 8 == field_of_fcn(False) - 2 * 32
    assert dilated.macs > strided.macs


def test_the_auxiliary_head_is_not_counted() -> None:
    sample = torch.zeros(1, 3, 64, 64)
    settings = {"num_classes": 3, "widths": (4, 4, 8, 8), "layers": (1, 1, 1, 1)}
    with_head = fcn_basic(**settings, aux_loss=True)  # type: ignore[arg-type]
    without = fcn_basic(**settings, aux_loss=False)  # type: ignore[arg-type]
    assert complexity(with_head, sample) == complexity(without, sample)
    assert complexity(with_head, sample).parameters == sum(value.numel() for value in without.parameters())


def test_the_audio_networks_field_is_the_one_it_states() -> None:
    assert complexity(audio_cnn(), torch.zeros(1, 1, 8000)).receptive_field == (2940,)


def test_the_video_networks_field_is_counted_for_time_and_space() -> None:
    # Time: 3 by the stem, then two 3-tap convolutions a stage at steps 1, (1 2), (2 4), (4 8).
    time = 3 + 4 + (2 + 4) + (4 + 8) + (8 + 16)
    # Space: 7 by the stem at stride 2, so everything after it at twice the steps.
    space = 7 + 2 * (4 + (2 + 4) + (4 + 8) + (8 + 16))
    assert complexity(video_cnn(widths=(2, 2, 2, 2)), torch.zeros(1, 3, 16, 32, 32)).receptive_field == (
        time,
        space,
        space,
    )


def test_inspection_leaves_no_hooks_and_does_not_change_the_weights() -> None:
    network = resnet_cifar(depth=8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    complexity(network, torch.ones(1, 3, 32, 32))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
