"""Pytorchcv's networks: the smallest of families that the other libraries do not have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.entry import Input


def _create(name: str, settings: dict[str, Any]) -> nn.Module:
    from benchmarks.zoo.torchvision_networks import declare_operators

    declare_operators()  # pytorchcv imports torchvision
    from pytorchcv.model_provider import get_model

    model: nn.Module = get_model(name, pretrained=False, **settings)
    features: Any = getattr(model, "features", None)
    if isinstance(getattr(features, "final_pool", None), nn.AvgPool2d):  # of 7 x 7 pixels, for inputs of 224
        features.final_pool = nn.AdaptiveAvgPool2d(1)
    for name, buffer in model.named_buffers():
        if name.endswith(".index"):  # CondenseNet reads channels in a learnt order, fresh ones channel 0 throughout
            buffer.copy_(torch.randperm(len(buffer)))
    return model


_TABLE: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("shufflenet_g1_w1", 64, {}),
    ("shufflenet_g3_wd4", 64, {}),
    ("shufflenetv2_wd2", 64, {}),
    ("menet108_8x1_g3", 64, {}),
    ("menet128_8x1_g4", 64, {}),
    ("condensenet74_c4_g4", 64, {}),
    ("igcv3_wd4", 64, {}),
    ("msdnet22", 224, {}),
    ("polynet", 96, {}),
    ("nasnet_4a1056", 96, {}),
    ("pnasnet5large", 96, {}),
    ("dpn68", 224, {}),
    ("sknet50", 64, {}),
    ("bam_resnet18", 64, {}),
    ("cbam_resnet18", 64, {}),
    ("airnet50_1x64d_r16", 64, {}),
    ("airnext50_32x4d_r2", 64, {}),
    ("diracnet18v2", 64, {}),
    ("mnasnet_b1", 64, {}),
    ("proxylessnas_mobile", 64, {}),
    ("fishnet99", 64, {}),
    ("xdensenet121_2", 64, {}),
    ("resattnet56", 64, {}),
    ("ror3_56_cifar10", 32, {}),
    ("rir_cifar10", 32, {}),
    ("pyramidnet110_a48_cifar10", 32, {}),
    ("wrn16_10_cifar10", 32, {}),
    ("sparsenet121", 64, {}),
    ("peleenet", 64, {}),
    ("hardnet39ds", 64, {}),
    ("sqnxt23_w1", 64, {}),
    ("darts", 64, {}),
    ("ibn_resnet50", 64, {}),
    ("ibnb_resnet50", 64, {}),
    ("bninception", 64, {}),
    ("zfnet", 224, {}),
    ("nin_cifar10", 32, {}),
    ("shakeshakeresnet20_2x16d_cifar10", 32, {}),
    ("xception", 299, {}),
    ("lwopenpose2d_mobilenet_cmupan_coco", 64, {}),
    ("pspnet_resnetd50b_voc", 96, {"in_size": (96, 96)}),
    ("deeplabv3_resnetd50b_voc", 96, {"in_size": (96, 96)}),
    ("icnet_resnetd50b_cityscapes", 480, {}),
    ("fastscnn_cityscapes", 64, {"in_size": (64, 64)}),
    ("sinet_cityscapes", 256, {"in_size": (256, 256)}),
    ("bisenet_resnet18_celebamaskhq", 64, {"in_size": (64, 64)}),
    ("alphapose_fastseresnet101b_coco", 64, {}),
    ("simplepose_resnet18_coco", 64, {"in_size": (64, 64)}),
    ("ibppose_coco", 64, {"in_size": (64, 64)}),
    ("centernet_resnet18_voc", 64, {"in_size": (64, 64)}),
    ("octresnet10_ad2", 64, {}),
    ("dla34", 64, {}),
)

TABLE: dict[str, tuple[Callable[[], nn.Module], tuple[Input, ...]]] = {
    name: (partial(_create, name, settings), ((1, 3, px, px),)) for name, px, settings in _TABLE
}
