"""What a network is made of: parameters, multiply-accumulates, receptive field."""

from typing import Any

import torch
from torch import Tensor, nn

from service.cards import Complexity

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ASIDE = ("downsample", "aux_classifier")  # beside the longest path, or not in the graph at all


def complexity(network: nn.Module, sample: Tensor) -> Complexity:
    """Of ``network`` in evaluation mode on one prepared ``sample`` (1, C, …).

    The receptive field is that of one position of the last feature map, in input steps per axis: along the layers,
    r += (kernel - 1) * dilation * jump and jump *= stride (Araujo et al. 2019, section 2). Layers beside the longest
    path (shortcuts) do not widen it. It can be larger than the input.
    """
    dimensions = sample.dim() - 2
    field, jump = [1] * dimensions, [1] * dimensions
    macs = 0

    def count(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal macs
            macs += _macs(module, output)
            if isinstance(module, _CONVOLUTIONS + _POOLS) and not any(part in name for part in _ASIDE):
                kernel, stride, dilation = (_per_axis(getattr(module, key, 1), dimensions) for key in _GEOMETRY)
                for axis in range(dimensions):
                    field[axis] += (kernel[axis] - 1) * dilation[axis] * jump[axis]
                    jump[axis] *= stride[axis]

        return hook

    handles = [module.register_forward_hook(count(name)) for name, module in network.named_modules()]
    with torch.inference_mode():
        network.eval()(sample)
    for handle in handles:
        handle.remove()
    parameters = sum(
        parameter.numel() for name, parameter in network.named_parameters() if not name.startswith("aux_classifier")
    )
    return Complexity(parameters=parameters, macs=macs, receptive_field=tuple(field))


_GEOMETRY = ("kernel_size", "stride", "dilation")


def _per_axis(value: int | tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,) * dimensions


def _macs(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, _CONVOLUTIONS):
        return output.numel() * module.weight[0].numel()
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    return 0
