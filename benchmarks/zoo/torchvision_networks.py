"""Torchvision's networks: classification of every family, segmentation, detection backbones, video."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.entry import Input

_MISSING = ("nms", "qnms")
_operators: list[torch.library.Library] = []


def declare_operators() -> None:
    """Declare the operators that torchvision asks for on import: its binary part does not load beside a CPU torch."""
    if _operators:
        return
    _operators.append(torch.library.Library("torchvision", "FRAGMENT"))  # type: ignore[no-untyped-call]
    for name in _MISSING:
        if not hasattr(torch.ops.torchvision, name):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            _operators[0].define(schema)  # type: ignore[no-untyped-call]


def _model(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        declare_operators()
        from torchvision.models import get_model

        model: nn.Module = get_model(name, weights=None, **settings)
        return model

    return make


def _classifier(name: str, px: int = 64, **settings: Any) -> tuple[Callable[[], nn.Module], tuple[Input, ...]]:
    return _model(name, num_classes=100, **settings), ((1, 3, px, px),)


def _segmenter(name: str) -> tuple[Callable[[], nn.Module], tuple[Input, ...]]:
    return _model(name, weights_backbone=None, num_classes=8), ((1, 3, 64, 64),)


def _clip(name: str, px: int, frames: int) -> tuple[Callable[[], nn.Module], tuple[Input, ...]]:
    return _model(name, num_classes=40), ((1, 3, frames, px, px),)


def _pyramid() -> nn.Module:
    """Return the backbone of a Faster R-CNN: a ResNet with a feature pyramid, its norms trainable."""
    declare_operators()
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    model: nn.Module = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    return model


def _ssd_backbone() -> nn.Module:
    declare_operators()
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    model: nn.Module = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=8).backbone
    return model


def _raft_features() -> nn.Module:
    declare_operators()
    from torchvision.models.optical_flow import raft_small

    model: nn.Module = raft_small(weights=None).feature_encoder
    return model


def _mvit(second: bool) -> nn.Module:
    """Return a multiscale transformer for video of four blocks, as version 1 or 2 of it is set up."""
    declare_operators()
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    widths, pooled = ((48, 48), (48, 96), (96, 96), (96, 96)), ((1, 1, 1), (1, 2, 2), (1, 1, 1), (1, 1, 1))
    blocks = [
        MSBlockConfig(
            num_heads=output // 48,
            input_channels=width,
            output_channels=output,
            kernel_q=[3, 3, 3],
            kernel_kv=[3, 3, 3],
            stride_q=list(stride),
            stride_kv=[1, 2, 2],
        )
        for (width, output), stride in zip(widths, pooled, strict=True)
    ]
    model: nn.Module = MViT(
        spatial_size=(64, 64),
        temporal_size=4,
        block_setting=blocks,
        rel_pos_embed=second,
        proj_after_attn=second,
        num_classes=40,
        residual_pool=second,
        residual_with_cls_embed=not second,
    )
    return model


TABLE: dict[str, tuple[Callable[[], nn.Module], tuple[Input, ...]]] = {
    "alexnet": _classifier("alexnet"),
    "vgg11": _classifier("vgg11"),
    "vgg13_bn": _classifier("vgg13_bn"),
    "squeezenet1_1": _classifier("squeezenet1_1"),
    "googlenet": _classifier("googlenet", init_weights=False, aux_logits=False),
    "googlenet_aux": _classifier("googlenet", px=96, init_weights=False, aux_logits=True),
    "inception_v3": _classifier("inception_v3", px=96, init_weights=False, aux_logits=False),
    "resnet18": _classifier("resnet18"),
    "resnet50": _classifier("resnet50"),
    "resnet152": _classifier("resnet152"),
    "resnext50_32x4d": _classifier("resnext50_32x4d"),
    "wide_resnet50_2": _classifier("wide_resnet50_2"),
    "densenet121": _classifier("densenet121"),
    "densenet201": _classifier("densenet201"),
    "mobilenet_v2": _classifier("mobilenet_v2"),
    "mobilenet_v3_small": _classifier("mobilenet_v3_small"),
    "mobilenet_v3_large": _classifier("mobilenet_v3_large"),
    "mnasnet0_5": _classifier("mnasnet0_5"),
    "shufflenet_v2_x0_5": _classifier("shufflenet_v2_x0_5"),
    "shufflenet_v2_x1_0": _classifier("shufflenet_v2_x1_0"),
    "efficientnet_b0": _classifier("efficientnet_b0"),
    "efficientnet_v2_s": _classifier("efficientnet_v2_s"),
    "regnet_x_400mf": _classifier("regnet_x_400mf"),
    "regnet_y_400mf": _classifier("regnet_y_400mf"),
    "convnext_tiny": _classifier("convnext_tiny"),
    "vit_b_16": _classifier("vit_b_16", image_size=64),
    "vit_l_32": _classifier("vit_l_32", image_size=64),
    "swin_t": _classifier("swin_t"),
    "swin_v2_t": _classifier("swin_v2_t"),
    "swin_b": _classifier("swin_b"),
    "maxvit_t": _classifier("maxvit_t", px=224),
    "fcn_resnet50": _segmenter("fcn_resnet50"),
    "deeplabv3_resnet50": _segmenter("deeplabv3_resnet50"),
    "deeplabv3_mobilenet_v3_large": _segmenter("deeplabv3_mobilenet_v3_large"),
    "lraspp_mobilenet_v3_large": _segmenter("lraspp_mobilenet_v3_large"),
    "fasterrcnn_backbone": (_pyramid, ((1, 3, 96, 96),)),
    "ssdlite_backbone": (_ssd_backbone, ((1, 3, 96, 96),)),
    "raft_small_features": (_raft_features, ((1, 3, 64, 64),)),
    "r3d_18": _clip("r3d_18", 48, 4),
    "mc3_18": _clip("mc3_18", 48, 4),
    "r2plus1d_18": _clip("r2plus1d_18", 48, 4),
    "s3d": _clip("s3d", 224, 16),
    "mvit_v1": (partial(_mvit, False), ((1, 3, 4, 64, 64),)),
    "mvit_v2": (partial(_mvit, True), ((1, 3, 4, 64, 64),)),
    "swin3d_t": _clip("swin3d_t", 64, 4),
}
