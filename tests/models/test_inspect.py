"""Parameters, multiply-accumulates and receptive fields against arithmetic done by hand, and against gradients."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.architectures import ARCHITECTURES
from models.architectures.alexnet import alexnet, alexnet_cifar
from models.architectures.audio_cnn import audio_cnn
from models.architectures.fcn import FCN, fcn_basic, fcn_context, fcn_resnet50
from models.architectures.resnet import Backbone, BasicBlock, Bottleneck
from models.architectures.resnet_cifar import resnet_cifar
from models.architectures.resnet_fast import resnet_fast
from models.architectures.video_cnn import video_cnn
from models.inspect import INPUTS, complexity, main, table
from models.recipes import RECIPES
from models.runs import Run
from service.repository.card import Complexity, Layer
from service.repository.folder import BUNDLED, find_models
from tests import graphs


class Chain(nn.Module):
    """A sequence as a network of its own, whose training mode is on."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


def on_meta(name: str) -> nn.Module:
    """The network's shapes without its numbers: nothing is computed."""
    with torch.device("meta"):
        return ARCHITECTURES[name]()


def conv(macs_per_output: int, channels: int, side: int) -> int:
    """Multiply-accumulates of a convolution that makes ``channels`` x ``side`` x ``side`` outputs."""
    return macs_per_output * channels * side * side


def test_alexnets_first_layers_are_counted_as_by_hand() -> None:
    # 224 pixels: (224 + 4 - 11) / 4 + 1 = 55, pooled (55 - 3) / 2 + 1 = 27, the second convolution keeps 27.
    first = conv(3 * 11 * 11, 64, 55)
    second = conv(64 * 5 * 5, 192, 27)
    assert (first, second) == (70_276_800, 223_948_800)
    with torch.device("meta"):
        found = complexity(Chain(*list(alexnet().features)[:5]), torch.empty(1, 3, 224, 224))
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
    found = complexity(on_meta("alexnet"), torch.empty(1, 3, 224, 224, device="meta"))
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
    found = complexity(on_meta("resnet18"), torch.empty(1, 3, 224, 224, device="meta"))
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
    # At 8 kHz, 256 samples every 80; then 3-tap kernels, a stage's first at the step before its stride, the second of
    # each block dilated by 2 from the second stage on.
    field = 256 + 4 * 80 + (2 * 80 + 10 * 160) + (2 * 160 + 10 * 320) + (2 * 320 + 4 * 640)
    assert complexity(audio_cnn(), torch.zeros(1, 1, 8000)).receptive_field == (field,)
    assert f"{field:,} samples" in str(audio_cnn.__doc__)


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


# --- layer by layer ---


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if not name.endswith("101")])  # 50 with more blocks
def test_the_layers_make_up_the_whole(name: str) -> None:
    network, sample = on_meta(name), torch.empty(1, *INPUTS[name], device="meta")
    found = complexity(network, sample)
    trained = sum(value.numel() for key, value in network.named_parameters() if not key.startswith("aux_classifier"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(sample)
    assert sum(layer.parameters for layer in found.layers) == found.parameters == trained
    assert sum(layer.macs for layer in found.layers) == found.macs == counter.get_total_flops() / 2
    on_path = [layer for layer in found.layers if layer.receptive_field and not layer.aside]
    assert on_path[-1].receptive_field == found.receptive_field


def test_alexnets_first_layers_are_listed_as_by_hand() -> None:
    layers = complexity(on_meta("alexnet"), torch.empty(1, 3, 224, 224, device="meta")).layers
    assert layers[:3] == (
        Layer(
            name="features.0",
            kind="Conv2d",
            output=(64, 55, 55),  # (224 + 2 * 2 - 11) / 4 + 1
            parameters=64 * (3 * 11 * 11 + 1),
            macs=70_276_800,
            kernel=(11, 11),
            stride=(4, 4),
            padding=(2, 2),
            dilation=(1, 1),
            receptive_field=(11, 11),
            jump=(4, 4),
        ),
        Layer(
            name="features.2",
            kind="MaxPool2d",
            output=(64, 27, 27),  # (55 - 3) / 2 + 1
            parameters=0,
            macs=0,
            kernel=(3, 3),
            stride=(2, 2),
            padding=(0, 0),
            dilation=(1, 1),
            receptive_field=(19, 19),  # 11 + 2 * 4
            jump=(8, 8),
        ),
        Layer(
            name="features.3",
            kind="Conv2d",
            output=(192, 27, 27),
            parameters=192 * (64 * 5 * 5 + 1),
            macs=223_948_800,
            kernel=(5, 5),
            stride=(1, 1),
            padding=(2, 2),
            dilation=(1, 1),
            receptive_field=(51, 51),  # 19 + 4 * 8
            jump=(8, 8),
        ),
    )
    assert layers[-1] == Layer(
        name="classifier.6", kind="Linear", output=(1000,), parameters=1000 * 4097, macs=1000 * 4096
    )


def test_resnet18s_stages_are_listed_as_by_hand() -> None:
    layers = complexity(on_meta("resnet18"), torch.empty(1, 3, 224, 224, device="meta")).layers
    rows = {layer.name: layer for layer in layers}
    assert list(rows)[:3] == ["conv1", "bn1", "maxpool"] and list(rows)[-2:] == ["avgpool", "fc"]
    assert (rows["conv1"].receptive_field, rows["maxpool"].receptive_field) == ((7, 7), (11, 11))
    # He et al. 2015, table 1: 64 channels on 56x56, and half the grid at twice the channels with each further stage.
    # A stage's four 3x3 add 2 steps each: the first at the step before the stage's stride, three at the step after it.
    channels, side, step, field = 64, 56, 4, 11
    for stage in range(1, 5):
        before = step
        if stage > 1:
            channels, side, step = channels * 2, side // 2, step * 2
        last = rows[f"layer{stage}.1.conv2"]
        field += 2 * before + 3 * 2 * step
        assert (last.output, last.jump, last.receptive_field) == ((channels, side, side), (step,) * 2, (field,) * 2)
        assert last.parameters == 9 * channels * channels
        norms = [layer for layer in layers if layer.name.startswith(f"layer{stage}.") and layer.kind == "BatchNorm2d"]
        assert {layer.parameters for layer in norms} == {2 * channels} and {layer.macs for layer in norms} == {0}
    assert field == 435
    assert rows["fc"].parameters == 512 * 1000 + 1000


def test_projections_on_shortcuts_are_marked() -> None:
    layers = complexity(on_meta("resnet18"), torch.empty(1, 3, 224, 224, device="meta")).layers
    rows = {layer.name: layer for layer in layers}
    aside = [f"layer{stage}.0.downsample.{index}" for stage in (2, 3, 4) for index in (0, 1)]
    assert [layer.name for layer in layers if layer.aside] == aside
    # It takes every second position of the stage before, and sees no more than that position did.
    for name in aside[:2]:
        assert rows[name].receptive_field == rows["layer1.1.conv2"].receptive_field == (43, 43)
        assert rows[name].jump == (8, 8)
    assert rows["layer2.0.conv1"].receptive_field == (43 + 2 * 4,) * 2


def make_transparent(network: nn.Module) -> None:
    """Lets a gradient through wherever there is a way: 0 will mean that there is none.

    With weights above 0 nothing cancels and no ReLU is shut. A maximum passes the gradient to one of its inputs alone;
    an average over the same window passes it to all.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.MaxPool1d | nn.MaxPool2d):
            average: Callable[..., nn.Module] = nn.AvgPool1d if isinstance(module, nn.MaxPool1d) else nn.AvgPool2d
            network.set_submodule(name, average(module.kernel_size, module.stride, module.padding))
    network.eval()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.1, 1)


def extents(network: nn.Module, names: list[str], shape: tuple[int, ...], axis: int) -> dict[str, int]:
    """Steps from the first to the last along ``axis`` whose input changes the middle of each layer's output."""
    outputs: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: outputs.__setitem__(name, output)
        )
        for name in names
    ]
    sample = torch.rand(1, *shape, requires_grad=True)
    network(sample)
    for handle in handles:
        handle.remove()
    found = {}
    for name, output in outputs.items():
        middle = output.sum(dim=(0, 1))[tuple(size // 2 for size in output.shape[2:])]
        (gradient,) = torch.autograd.grad(middle, sample, retain_graph=True)
        steps = torch.nonzero(gradient)[:, 2 + axis]
        found[name] = int(steps.max() - steps.min() + 1)
    return found


@pytest.mark.parametrize(
    "build",
    [
        lambda: Chain(*alexnet().features),
        lambda: alexnet_cifar(2, hidden=4),
        lambda: resnet_cifar(14, 2, width=2),
        lambda: resnet_fast(2, widths=(2, 2, 2)),
        lambda: FCN(Backbone(Bottleneck, (1, 1, 2, 1), widths=(2, 2, 2, 2)), 2),
        lambda: fcn_basic(2, widths=(4, 4, 4, 4), layers=(1, 1, 2, 1)),
        lambda: fcn_context(2, widths=(2, 3, 4), dilations=(1, 2, 3)),
        lambda: audio_cnn(2, rate_hz=800, bands=4, widths=(2, 2, 2, 2)),
        lambda: video_cnn(2, widths=(1, 1, 2, 2)),
    ],
    ids=[
        "alexnet",
        "alexnet_cifar",
        "resnet_cifar",
        "resnet_fast",
        "fcn",
        "fcn_basic",
        "fcn_context",
        "audio",
        "video",
    ],
)
def test_every_layer_sees_what_its_row_says(build: Callable[[], nn.Module]) -> None:
    network = build()
    make_transparent(network)
    convolution = next(module for module in network.modules() if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d))
    dimensions = convolution.weight.dim() - 2
    whole = complexity(network, torch.zeros(1, convolution.in_channels, *(64,) * dimensions))
    rows = [layer for layer in whole.layers if layer.kernel]
    for axis in range(dimensions):
        # Kernels are boxes, so one axis at a time will do: long enough for the middle's field to end before the border,
        # wherever rounding puts the middle, and the others short.
        shape = [2 * jump for jump in rows[-1].jump]
        shape[axis] = whole.receptive_field[axis] + 4 * rows[-1].jump[axis]
        found = extents(network, [row.name for row in rows], (convolution.in_channels, *shape), axis)
        assert found == {row.name: row.receptive_field[axis] for row in rows}


# --- dilation ---


def undilated(network: nn.Module) -> nn.Module:
    """The same strides and weights, every kernel's taps next to each other."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.dilation != (1, 1):
            module.padding, module.dilation = (1, 1), (1, 1)
    return network


# By hand: 7x7 and pooling, then 3x3 kernels, two steps each. Basic blocks have four a stage, bottlenecks one a block.
FCN_STAGES_1_AND_2 = 7 + 4 + 4 * 2 * 4 + (2 * 4 + 3 * 2 * 8)
FCN_RESNET50_STAGES_1_AND_2 = 7 + 4 + 3 * 2 * 4 + (2 * 4 + 3 * 2 * 8)
CONTEXT_UP_TO_LAYER2 = 3 + 2 * 2 + 2 * 2 * 4 + (2 * 4 + 2 * 8) + 2 * 2 * 8


@pytest.mark.parametrize(
    ("build", "dilated", "plain"),
    [
        (  # on a grid of 8, stage 3 dilates by 1, 2, 2, 2 and stage 4 by 2, 4, 4, 4; the head's kernel is plain
            fcn_basic,
            FCN_STAGES_1_AND_2 + 16 * (1 + 3 * 2) + 16 * (2 + 3 * 4) + 16,
            FCN_STAGES_1_AND_2 + 16 * 4 + 16 * 4 + 16,
        ),
        (
            fcn_resnet50,
            FCN_RESNET50_STAGES_1_AND_2 + 16 * (1 + 5 * 2) + 16 * (2 + 2 * 4) + 16,
            FCN_RESNET50_STAGES_1_AND_2 + 16 * 6 + 16 * 3 + 16,
        ),
        (  # two kernels a block, upsampling between two cells of 8, the joining kernel on a grid of 4
            fcn_context,
            CONTEXT_UP_TO_LAYER2 + 2 * 16 * (1 + 2 + 4 + 8 + 16 + 1) + 8 + 8,
            CONTEXT_UP_TO_LAYER2 + 2 * 16 * 6 + 8 + 8,
        ),
    ],
    ids=["fcn_basic", "fcn_resnet50", "fcn_context"],
)
def test_dilation_widens_the_field_on_the_same_grid_at_no_cost(
    build: Callable[[], nn.Module], dilated: int, plain: int
) -> None:
    with torch.device("meta"):
        sample = torch.empty(1, 3, 360, 480)
        wide, narrow = complexity(build(), sample), complexity(undilated(build()), sample)
    assert [layer.output for layer in wide.layers] == [layer.output for layer in narrow.layers]
    assert max(layer.jump for layer in wide.layers) == (8, 8)  # the coarsest grid
    assert (wide.parameters, wide.macs) == (narrow.parameters, narrow.macs)
    assert (wide.receptive_field, narrow.receptive_field) == ((dilated, dilated), (plain, plain))
    assert dilated > 1.7 * plain  # the context network's, whose dilations grow further, 3.9 times
    if build is not fcn_resnet50:
        assert f"{dilated:,} pixels" in str(build.__doc__) and f"would be {plain:,}" in str(build.__doc__)


# --- the command ---


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(arguments)
    return capsys.readouterr().out


def test_an_architecture_is_printed_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    header, *rows, totals = printed(capsys, "alexnet").splitlines()
    names = [
        "layer",
        "kind",
        "output",
        "parameters",
        "MACs",
        "kernel",
        "stride",
        "padding",
        "dilation",
        "field",
        "jump",
    ]
    assert header.split() == names
    assert rows[0].split() == [
        *("features.0", "Conv2d", "64x55x55", "23,296", "70,276,800"),
        *("11x11", "4x4", "2x2", "1x1", "11x11", "4x4"),
    ]
    assert rows[-1].split() == ["classifier.6", "Linear", "1000", "4,097,000", "4,096,000", *"------"]
    assert totals == (
        "alexnet() with an input of 3x224x224: 61,100,840 parameters, 714,188,480 MACs, receptive field 195x195."
    )


def test_columns_are_aligned() -> None:
    layers = complexity(on_meta("video_cnn"), torch.empty(1, 3, 16, 64, 64, device="meta")).layers
    header, *rows = table(layers).splitlines()
    for name in ("kind", "output", "kernel", "stride", "padding", "dilation", "field", "jump"):
        column = header.index(name)
        assert all(row[column - 2 : column] == "  " and row[column] != " " for row in rows), name
    for name in ("parameters", "MACs"):
        end = header.index(name) + len(name)
        assert all(row[end - 1].isdigit() and row[end] == " " for row in rows), name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["alexnet", "--size", "96"], "an input of 3x96x96"),
        (["alexnet", "--size", "70", "100"], "an input of 3x70x100"),
        (["audio_cnn", "--size", "4000"], "an input of 1x4000"),
        (["video_cnn", "--size", "32"], "an input of 3x16x32x32"),
        (["video_cnn", "--size", "8", "32", "40"], "an input of 3x8x32x40"),
        (["resnet_cifar", "--categories", "7"], "resnet_cifar(num_classes=7) with an input of 3x32x32: 269,527 param"),
        (["resnet_cifar(depth=8, residual=False)"], "resnet_cifar(depth=8, residual=False) with"),
        (["resnet18"], "* on a shortcut, beside the longest path"),
        (["fcn_resnet50"], "In training alone: an auxiliary head of 2,365,205 parameters."),  # with 21 categories
        (["video"], "video_cnn(num_classes=10) with an input of 3x16x64x64"),
        (["classify"], "with an input of 3x32x32"),
        (["segment"], "num_classes=11) with an input of 3x360x480"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_inspected_can_be_varied(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert said in printed(capsys, *arguments)


def test_a_run_is_inspected_with_its_own_network_and_categories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(RECIPES["video"], options={"widths": (2, 2, 4, 4)})
    Run(recipe, ("up", "down", "still"), 1, 1.0, averaged={}, state={}, splits={}).save(tmp_path / "run")
    network = video_cnn(3, widths=(2, 2, 4, 4))
    assert (
        f"video_cnn(widths=(2, 2, 4, 4), num_classes=3) with an input of 3x16x64x64: "
        f"{sum(value.numel() for value in network.parameters()):,} parameters"
    ) in printed(capsys, str(tmp_path / "run"))


def test_a_published_models_table_is_its_cards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = Layer(
        name="only", kind="Conv1d", output=(2, 9), parameters=6, macs=54, kernel=(3,), stride=(1,), padding=(1,),
        dilation=(1,), receptive_field=(3,), jump=(1,),
    )  # fmt: skip
    found = Complexity(parameters=6, macs=54, receptive_field=(3,), layers=(layer,))
    folder = graphs.write_model(tmp_path, "audio", complexity=found.model_dump())
    assert printed(capsys, str(folder)).splitlines()[1:] == [
        "only   Conv1d  2x9              6    54  3       1       1        1         3      1",
        "tiny-audio:1, by hand: 6 parameters, 54 MACs, receptive field 3.",
    ]


def test_a_card_without_layers_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, str(graphs.write_model(tmp_path, "audio")))
    assert "0 parameters" in text and "does not list the layers" in text


def test_bundled_models_are_found_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.match(r"(?s).*^digits:\d+, audio_cnn\(", printed(capsys, "digits"), re.MULTILINE)
    newest = max(model.card.version for model in find_models(BUNDLED)[0] if model.card.name == "digits")
    assert f"digits:{newest}, " in printed(capsys, f"digits:{newest}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nobody"], "there is no 'nobody'.*resnet18.*segment.*digits"),
        (["resnet18("], "not of the form"),
        (["resnet18(10)"], "not of the form"),
        (["resnet18(depth=__import__)"], "not of the form"),
        (["resnet18(depth=3)"], "unexpected keyword argument 'depth'"),
        (["resnet_cifar(depth=9)"], r"depth is 9, but must be 6n\+2"),
        (["alexnet", "--size", "20"], "3x20x20: .*too small"),
        (["audio_cnn", "--size", "10", "10"], "--size names 2 axes, the input of audio_cnn has 1"),
        (["digits", "--size", "10"], "leave out --size and --categories"),
    ],
)
def test_what_cannot_be_inspected_is_said_in_a_sentence(arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=f"^cannot inspect: .*{said}") as refusal:
        main(arguments)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("option", ["--size", "--categories"])
def test_sizes_and_categories_are_counted_from_1(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["resnet18", option, "0"])
    assert "from 1 up" in capsys.readouterr().err


def test_a_broken_card_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"^cannot inspect: .*card\.json cannot be used: Field required$"):
        main([str(tmp_path)])


def test_layers_survive_the_card_and_unknown_figures_do_not() -> None:
    found = complexity(on_meta("video_cnn"), torch.empty(1, 3, 16, 64, 64, device="meta"))
    assert Complexity.model_validate_json(found.model_dump_json()) == found
    content = json.loads(found.model_dump_json())
    content["layers"][0]["colour"] = "red"
    with pytest.raises(ValidationError, match="colour"):
        Complexity.model_validate(content)
