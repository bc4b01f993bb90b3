"""The networks: functions from the number of categories to a module, which import torch alone.

Called without arguments, the ImageNet, VOC and Kinetics networks have the shape of torchvision's published checkpoints.
"""

from collections.abc import Callable

from torch import nn

from models.architectures.alexnet import alexnet, alexnet_cifar
from models.architectures.audio_cnn import audio_cnn
from models.architectures.fcn import fcn_basic, fcn_context, fcn_resnet50, fcn_resnet101
from models.architectures.resnet import resnet18, resnet34, resnet50, resnet101
from models.architectures.resnet_cifar import resnet_cifar
from models.architectures.resnet_fast import resnet_fast
from models.architectures.video_cnn import r3d_18, video_cnn

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "alexnet": alexnet,
    "alexnet_cifar": alexnet_cifar,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet_cifar": resnet_cifar,
    "resnet_fast": resnet_fast,
    "fcn_basic": fcn_basic,
    "fcn_context": fcn_context,
    "fcn_resnet50": fcn_resnet50,
    "fcn_resnet101": fcn_resnet101,
    "audio_cnn": audio_cnn,
    "r3d_18": r3d_18,
    "video_cnn": video_cnn,
}
