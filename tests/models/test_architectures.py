"""The networks against torchvision's, where it is installed, and against arithmetic done by hand, where it is not."""

import math
import sys
import types
import warnings
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from models.architectures import ARCHITECTURES
from models.architectures.alexnet import alexnet
from models.architectures.audio_cnn import audio_cnn
from models.architectures.fcn import FCN, Segmenter, fcn_basic, fcn_context, fcn_resnet50, fcn_resnet101
from models.architectures.resnet import Backbone, BasicBlock, Block, Bottleneck, ResNet, resnet18, resnet50
from models.architectures.resnet_cifar import CifarBlock, resnet_cifar
from models.architectures.resnet_fast import FastResNet, resnet_fast
from models.architectures.video_cnn import r3d_18, video_cnn

# Published beside torchvision's checkpoints; those of ResNet-20 (0.27 M in He et al. 2015, table 6) by hand:
# convolutions 432 + 6 x 2304 + (4608 + 5 x 9216) + (18432 + 5 x 36864), batch norms 7 x 32 + 6 x 64 + 6 x 128, linear
# 64 x 10 + 10.
PARAMETERS = {
    "alexnet": 61_100_840,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "fcn_resnet50": 35_322_218,
    "fcn_resnet101": 54_314_346,
    "r3d_18": 33_371_472,
    "resnet_cifar": 269_722,
}

# What torchvision's state dicts hold: one entry for each kind of layer, so that nothing rests on a skipped test.
CHECKPOINT_ENTRIES = {
    "alexnet": {
        "features.0.weight": (64, 3, 11, 11),
        "features.3.bias": (192,),
        "features.10.weight": (256, 256, 3, 3),
        "classifier.1.weight": (4096, 9216),
        "classifier.4.weight": (4096, 4096),
        "classifier.6.bias": (1000,),
    },
    "resnet18": {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.1.conv2.weight": (64, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.num_batches_tracked": (),
        "layer4.1.bn2.bias": (512,),
        "fc.weight": (1000, 512),
    },
    "resnet50": {
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer3.5.conv2.weight": (256, 256, 3, 3),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "layer4.2.bn3.running_mean": (2048,),
        "fc.bias": (1000,),
    },
    "resnet101": {"layer3.22.conv3.weight": (1024, 256, 1, 1), "fc.weight": (1000, 2048)},
    "fcn_resnet50": {
        "backbone.conv1.weight": (64, 3, 7, 7),
        "backbone.layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
        "classifier.0.weight": (512, 2048, 3, 3),
        "classifier.1.running_mean": (512,),
        "classifier.4.weight": (21, 512, 1, 1),
        "aux_classifier.0.weight": (256, 1024, 3, 3),
        "aux_classifier.4.bias": (21,),
    },
    "fcn_resnet101": {"backbone.layer3.22.conv3.weight": (1024, 256, 1, 1), "classifier.4.bias": (21,)},
    "r3d_18": {
        "stem.0.weight": (64, 3, 3, 7, 7),
        "stem.1.running_mean": (64,),
        "layer1.0.conv1.0.weight": (64, 64, 3, 3, 3),
        "layer1.0.conv1.1.weight": (64,),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1, 1),
        "layer2.0.downsample.1.bias": (128,),
        "layer4.1.conv2.0.weight": (512, 512, 3, 3, 3),
        "fc.weight": (400, 512),
    },
}
CHECKPOINT_LENGTHS = {"alexnet": 16, "resnet18": 122, "resnet50": 320, "fcn_resnet50": 334, "r3d_18": 122}

INPUT_SHAPES = {"audio_cnn": (2, 1, 8000), "r3d_18": (2, 3, 8, 64, 64), "video_cnn": (2, 3, 8, 64, 64)}
IMAGES = (2, 3, 64, 64)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def on_meta(name: str, **arguments: int) -> nn.Module:
    """The network's shapes without its numbers: 60 M parameters in no time and no memory."""
    with torch.device("meta"):
        return ARCHITECTURES[name](**arguments).eval()


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_parameters_are_as_many_as_published(name: str, expected: int) -> None:
    assert count(on_meta(name)) == expected


@pytest.mark.parametrize(("name", "entries"), CHECKPOINT_ENTRIES.items())
def test_state_dict_has_the_published_names_and_shapes(name: str, entries: dict[str, tuple[int, ...]]) -> None:
    state = on_meta(name).state_dict()
    assert {key: tuple(state[key].shape) for key in entries} == entries


@pytest.mark.parametrize(("name", "expected"), CHECKPOINT_LENGTHS.items())
def test_state_dict_is_as_long_as_the_published_one(name: str, expected: int) -> None:
    assert len(on_meta(name).state_dict()) == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_network_has_as_many_logits_as_categories(name: str) -> None:
    shape = INPUT_SHAPES.get(name, IMAGES)
    logits = on_meta(name, num_classes=7)(torch.empty(shape, device="meta"))
    assert logits.shape == ((2, 7, 64, 64) if name.startswith("fcn") else (2, 7))


@pytest.mark.parametrize(
    ("name", "limit"),
    [("resnet_cifar", 300_000), ("audio_cnn", 600_000), ("video_cnn", 1_000_000), ("alexnet_cifar", 1_500_000)],
)
def test_networks_to_train_on_a_cpu_are_small(name: str, limit: int) -> None:
    assert count(on_meta(name)) < limit


# --- torchvision ---


@pytest.fixture(scope="module")
def torchvision_models() -> Any:
    """torchvision.models, whose Python part is all that is needed: its compiled operators may not fit this torch."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setitem(sys.modules, "torchvision._meta_registrations", types.ModuleType("_meta_registrations"))
        return pytest.importorskip("torchvision.models", exc_type=ImportError)


@pytest.mark.parametrize(
    ("name", "build", "shape"),
    [
        ("resnet18", resnet18, (2, 3, 70, 64)),
        ("resnet50", resnet50, (2, 3, 70, 64)),
        ("alexnet", alexnet, (2, 3, 96, 80)),
        ("video.r3d_18", r3d_18, (1, 3, 8, 36, 32)),
    ],
    ids=["resnet18", "resnet50", "alexnet", "r3d_18"],
)
def test_logits_are_torchvisions(
    torchvision_models: Any, name: str, build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    reference = attrgetter(name)(torchvision_models)(weights=None).eval()
    unsettle_batch_norms(reference)
    network = build().eval()
    network.load_state_dict(reference.state_dict(), strict=True)
    inputs = torch.randn(shape)
    with torch.inference_mode():
        assert_close(network(inputs), reference(inputs), rtol=1e-4, atol=1e-4)


def test_both_heads_of_the_fcn_are_torchvisions(torchvision_models: Any) -> None:
    build = torchvision_models.segmentation.fcn_resnet50
    reference = build(weights=None, weights_backbone=None, aux_loss=True).eval()
    unsettle_batch_norms(reference)
    network = fcn_resnet50().eval()
    network.load_state_dict(reference.state_dict(), strict=True)
    images = torch.randn(1, 3, 50, 61)
    with torch.inference_mode():
        expected = reference(images)
        logits, auxiliary = network.forward_with_auxiliary(images)
    assert_close(logits, expected["out"], rtol=1e-4, atol=1e-4)
    assert_close(auxiliary, expected["aux"], rtol=1e-4, atol=1e-4)


# --- dilation ---


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_dilation_computes_the_strided_features_on_a_finer_grid(block: Block) -> None:
    """Every fourth pixel of the dilated feature map is the strided one's, from the same parameters."""
    widths, layers = (4, 6, 8, 10), (1, 1, 2, 2)
    strided = Backbone(block, layers, widths=widths).eval()
    unsettle_batch_norms(strided)
    dilated = Backbone(block, layers, widths=widths, replace_stride_with_dilation=(False, True, True)).eval()
    dilated.load_state_dict(strided.state_dict(), strict=True)
    images = torch.randn(1, 3, 97, 128)
    with torch.inference_mode():
        coarse3, coarse4 = strided.features(images)
        fine3, fine4 = dilated.features(images)
    assert_close(fine3[:, :, ::2, ::2], coarse3)
    assert_close(fine4[:, :, ::4, ::4], coarse4)


@pytest.mark.parametrize("build", [fcn_basic, fcn_resnet50, fcn_resnet101])
def test_fcn_computes_on_a_grid_of_8_pixels(build: Callable[[], FCN]) -> None:
    with torch.device("meta"):
        layer3, layer4 = build().backbone.features(torch.empty(1, 3, 96, 128))
    assert layer3.shape[-2:] == layer4.shape[-2:] == (96 // 8, 128 // 8)


def test_dilation_adds_no_parameters() -> None:
    dilate = (True, True, True)
    assert count(ResNet(BasicBlock, (1, 1, 1, 1), replace_stride_with_dilation=dilate)) == count(
        ResNet(BasicBlock, (1, 1, 1, 1))
    )


@pytest.mark.parametrize(("dilations", "samples"), [((1, 2, 2, 2), 9056), ((1, 1, 1, 1), 5856)])
def test_dilation_widens_what_the_audio_network_hears(dilations: tuple[int, int, int, int], samples: int) -> None:
    """By hand, kernel - 1 times stride so far, layer by layer; dilation d makes a kernel of 3 one of 2d + 1.

    256, layer1 (2 + 2d)x80, layer2 2x80 + (2d + 2 + 2d)x160, layer3 2x160 + (2d + 2 + 2d)x320, layer4 2x320 + 2dx640.
    """
    waveform = torch.zeros(1, 1, 32_000)
    waveform[..., 16_000] = torch.nan  # spreads to every position that hears it, through ReLU too
    with torch.inference_mode():
        features = audio_cnn(dilations=dilations).eval().features(waveform)
    hearing = features.isnan().any(dim=1).sum().item()
    assert hearing in (samples // 640, samples // 640 + 1)


def test_the_audio_networks_filters_begin_along_the_mel_scale() -> None:
    """48 bands between 60 Hz (92.6 mel by 2595 log10(1 + f / 700)) and 4,000 Hz (2,146.1 mel): 41.91 mel apart, the
    first at 134.5 mel, 88.7 Hz, the last at 2,104.2 mel, 3,829 Hz. Each has as much of a sine as of a cosine."""
    weight = audio_cnn().filters.conv1.weight.detach()[:, 0]
    power = torch.fft.rfft(weight, 8192).abs().square()
    peaks_hz = power[::2].argmax(dim=1) * 8000 / 8192
    assert abs(float(peaks_hz[0]) - 88.7) < 8 and abs(float(peaks_hz[-1]) - 3829) < 15
    assert (peaks_hz.diff() > 0).all()
    assert_close(weight.square().sum(dim=1), torch.full((96,), 0.5), rtol=0, atol=0.02)


def test_the_audio_networks_bands_are_log_energies_and_silence_is_0() -> None:
    """A cosine of amplitude 2 at a band's centre has the energy |sum of 2 cos x envelope x e^(i phase)|^2, that is the
    square of the envelope's sum, times 1000 (the floor's inverse), plus 1, under the logarithm."""
    network = audio_cnn().eval()
    times = torch.arange(8000) / 8000
    centre_hz = 700 * (10 ** ((92.6 + 20 * 41.91) / 2595) - 1)  # the 20th band's
    tone = 2 * torch.cos(2 * torch.pi * centre_hz * times)
    with torch.inference_mode():
        bands, silence = network.filters(torch.stack((tone, torch.zeros(8000)))[:, None])
    assert bands.shape == (48, 100) and not silence.any()
    assert bands[:, 50].argmax() == 19
    cosine, sine = network.filters.conv1.weight.detach()[38:40, 0]
    envelope = (cosine.square() + sine.square()).sqrt()
    assert_close(float(bands[19, 50]), math.log(1 + 1000 * float(envelope.sum()) ** 2), rtol=0.01, atol=0)


# --- convolution ---


@pytest.mark.parametrize(
    ("features", "shape", "stride"),
    [
        (lambda x: resnet_cifar(8).eval().features(x), (1, 3, 4, 96), 4),
        (lambda x: whitened(x).features(x), (1, 3, 16, 192), 8),
        (lambda x: fcn_basic(layers=(1, 1, 1, 1)).eval().backbone.features(x)[1], (1, 3, 8, 320), 8),
        (lambda x: audio_cnn().eval().features(x), (1, 1, 128 * 640), 640),
        (lambda x: video_cnn().eval().features(x.movedim(-1, 2)).movedim(2, -1), (1, 3, 16, 16, 96), 8),
    ],
    ids=["resnet_cifar", "resnet_fast", "fcn", "audio", "video over time"],
)
def test_shifted_input_shifts_the_feature_map(
    features: Callable[[Tensor], Tensor], shape: tuple[int, ...], stride: int
) -> None:
    """Something in the middle eighth, silence around it that is wider than the receptive field's half."""
    length = shape[-1]
    inputs = torch.zeros(shape)
    inputs[..., 7 * length // 16 : 9 * length // 16] = torch.randn(*shape[:-1], length // 8)
    both = torch.cat((inputs, inputs.roll(stride, dims=-1)))
    with torch.inference_mode():
        here, there = features(both)
    assert here.abs().max() > 0.01
    assert_close(there, here.roll(1, dims=-1))


# --- the CIFAR family ---


@pytest.mark.parametrize("depth", [8, 32, 56])
def test_each_six_layers_add_one_block_a_stage(depth: int) -> None:
    block_a_stage = 2 * 9 * (16 * 16 + 32 * 32 + 64 * 64) + 2 * 2 * (16 + 32 + 64)
    assert count(resnet_cifar(depth)) == PARAMETERS["resnet_cifar"] + (depth - 20) // 6 * block_a_stage


@pytest.mark.parametrize("depth", [-4, 2, 18, 21, 54])
def test_depth_other_than_6n_plus_2_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth is {depth}, but must be 6n\+2"):
        resnet_cifar(depth)


def test_plain_network_has_the_parameters_of_the_residual_one() -> None:
    plain, residual = resnet_cifar(20, residual=False), resnet_cifar(20)
    plain.load_state_dict(residual.state_dict(), strict=True)
    assert count(plain) == count(residual)


@pytest.mark.parametrize(("residual", "passes"), [(True, True), (False, False)])
def test_only_the_shortcut_passes_where_the_convolutions_are_silent(residual: bool, passes: bool) -> None:
    network = resnet_cifar(8, residual=residual).eval()
    for module in network.modules():
        if isinstance(module, CifarBlock):
            nn.init.zeros_(module.bn2.weight)
    with torch.inference_mode():
        one, other = network(torch.randn(2, 3, 32, 32))
    assert torch.equal(one, other) != passes


def test_shortcut_takes_every_second_pixel_and_adds_empty_channels() -> None:
    x = torch.randn(2, 4, 7, 8)
    expected = torch.cat((nn.functional.avg_pool2d(x, 1, stride=2), torch.zeros(2, 4, 4, 4)), dim=1)
    assert torch.equal(CifarBlock(4, 8, stride=2).shortcut(x), expected)


# --- the fast family ---


def whitened(images: Tensor) -> FastResNet:
    network = resnet_fast().eval()
    network.initialise_from(images)
    return network


def test_whitening_makes_of_patches_directions_of_unit_variance_that_do_not_correlate() -> None:
    # Neighbouring pixels and colours are alike, as in photographs: each is noise of its own over noise in common.
    images = torch.randn(16, 3, 33, 33) + torch.randn(16, 1, 33, 33)
    images = images + nn.functional.avg_pool2d(images, 3, stride=1, padding=1) * 3
    network = whitened(images)
    with torch.inference_mode():
        responses = network.whiten(images).movedim(1, -1).reshape(-1, 24)
    assert_close(torch.cov(responses[:, :12].T), torch.eye(12), atol=0.01, rtol=0)
    assert_close(responses[:, 12:], -responses[:, :12])
    before = nn.functional.unfold(images, 2).movedim(1, -1).reshape(-1, 12)
    assert (torch.corrcoef(before.T) - torch.eye(12)).abs().max() > 0.5


def test_whitening_does_not_blow_up_what_hardly_varies() -> None:
    network = whitened(torch.full((4, 3, 16, 16), 0.5) + 1e-6 * torch.randn(4, 3, 16, 16))
    assert network.whiten.weight.isfinite().all()
    assert network.whiten.weight.abs().max() <= (1 / 5e-4) ** 0.5  # directions are of length 1, the floor is 5e-4


def test_the_first_convolution_of_each_stage_begins_by_passing_its_input_on() -> None:
    network = resnet_fast()
    for stage, channels in ((network.layer1, 24), (network.layer2, 64), (network.layer3, 128)):
        x = torch.randn(2, channels, 9, 9)
        passed = stage.conv1(x)
        assert_close(passed[:, :channels], x)
        assert passed.shape[1] > channels and passed[:, channels:].std() > 0.1


def test_the_stems_filters_are_not_trained() -> None:
    network = resnet_fast(4).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    before = network.whiten.weight.clone()
    loss = nn.functional.cross_entropy(network(torch.randn(8, 3, 32, 32)), torch.arange(8) % 4)
    torch.autograd.backward(loss)
    optimizer.step()
    assert network.whiten.weight.grad is None and torch.equal(network.whiten.weight, before)
    others = [parameter for key, parameter in network.named_parameters() if key != "whiten.weight"]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in others)


@pytest.mark.parametrize(("size", "grid"), [((9, 9), (1, 1)), ((17, 33), (2, 4)), ((32, 32), (3, 3))])
def test_the_fast_network_halves_three_times_what_the_stem_leaves(size: tuple[int, int], grid: tuple[int, int]) -> None:
    network = resnet_fast(7).eval()
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        assert network.features(images).shape == (2, 256, *grid)
        assert network(images).shape == (2, 7)


def test_the_fast_network_needs_9_pixels() -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match="too small"):
        resnet_fast().eval()(torch.randn(1, 3, 8, 9))


# --- free sizes ---


@pytest.mark.parametrize("samples", [80, 4001, 8000, 5 * 16_000])
def test_audio_network_takes_any_length(samples: int) -> None:
    with torch.inference_mode():
        logits = audio_cnn(num_classes=50).eval()(torch.randn(1, 1, samples))
    assert logits.shape == (1, 50)
    assert logits.isfinite().all()


SMALL_FCNS: dict[str, Callable[[], Segmenter]] = {
    "fcn_basic": lambda: fcn_basic(3, widths=(4, 8, 8, 16), layers=(1, 1, 1, 1)),
    "fcn_context": lambda: fcn_context(3, widths=(4, 8, 8), dilations=(1, 4)),
}


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (33, 150)])
@pytest.mark.parametrize("build", SMALL_FCNS.values(), ids=SMALL_FCNS)
def test_fcn_answers_at_the_size_of_the_image(build: Callable[[], Segmenter], size: tuple[int, int]) -> None:
    network = build().eval()
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        logits, auxiliary = network.forward_with_auxiliary(images)
        assert_close(network(images), logits)
    assert logits.shape == auxiliary.shape == (2, 3, *size)


@pytest.mark.parametrize("build", SMALL_FCNS.values(), ids=SMALL_FCNS)
def test_exported_fcn_answers_at_the_size_of_the_image(build: Callable[[], Segmenter], tmp_path: Path) -> None:
    network = build().eval()
    path = tmp_path / "fcn.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.randn(2, 3, 64, 72),), path, dynamic_shapes=({0: "N", 2: "H", 3: "W"},), verbose=False
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = torch.randn(1, 3, 97, 131)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(logits, network(images).numpy(), atol=1e-4)


def test_fcn_without_auxiliary_head_says_so() -> None:
    for network in (fcn_basic(3, aux_loss=False), fcn_context(3, aux_loss=False)):
        assert not any(name.startswith("aux_classifier") for name in network.state_dict())
        with pytest.raises(ValueError, match="aux_loss=True"):
            network.forward_with_auxiliary(torch.randn(1, 3, 64, 64))


def test_the_context_fcn_sees_detail_on_a_grid_of_4_and_surroundings_on_one_of_8() -> None:
    with torch.device("meta"):
        detail, context = fcn_context(11).features(torch.empty(1, 3, 360, 480))
    assert detail.shape == (1, 40, 90, 120) and context.shape == (1, 96, 45, 60)


def test_a_pixel_reaches_as_far_as_its_dilations() -> None:
    """By hand, on the grid of 8: what comes before reaches some 5 positions to each side (39 pixels: 1 and 2 by the
    strided layers, 2 x 4 by layer1, 4 + 8 + 2 x 8 by layer2), the blocks of dilation d reach 2d each."""
    network = fcn_context(3, widths=(4, 4, 4), dilations=(1, 2, 4)).eval()
    images = torch.zeros(1, 3, 16, 800)
    images[..., 400] = torch.nan
    with torch.inference_mode():
        _, context = network.features(images)
    reached = context.isnan().any(dim=1)[0, 0].nonzero()
    assert (int(reached.min()) + int(reached.max())) // 2 in (49, 50)
    assert len(reached) in range(2 * (4 + 14), 2 * (5 + 14) + 2)


# --- training ---


@pytest.mark.parametrize(
    "name", ["alexnet_cifar", "resnet_cifar", "fcn_basic", "fcn_context", "audio_cnn", "video_cnn"]
)
def test_a_training_step_reaches_every_parameter(name: str) -> None:
    network = ARCHITECTURES[name](num_classes=4)
    inputs = torch.randn(INPUT_SHAPES.get(name, IMAGES))
    outputs = network.forward_with_auxiliary(inputs) if isinstance(network, Segmenter) else (network(inputs),)
    targets = torch.randint(4, (2, *outputs[0].shape[2:]))
    sum(nn.functional.cross_entropy(logits, targets) for logits in outputs).backward()  # type: ignore[union-attr]
    silent = [
        key for key, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def unsettle_batch_norms(network: nn.Module) -> None:
    """Batch norms start as the identity; as they stand after training, a mix-up of two would show."""
    for key, values in network.state_dict().items():
        if key.endswith("running_var"):
            values.uniform_(0.5, 1.5)
        elif key.endswith("running_mean"):
            values.normal_(std=0.1)
