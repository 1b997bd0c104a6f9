"""Timm's networks: the smallest of every family."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from benchmarks.zoo.entry import Input


def _create(name: str, settings: dict[str, Any]) -> nn.Module:
    from benchmarks.zoo.torchvision_networks import declare_operators

    declare_operators()  # timm imports torchvision
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=50, **settings)
    return model


# Name, side of the input in pixels, settings.
_CONVOLUTIONAL: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("resnet26d", 64, {}),
    ("resnet50", 64, {}),
    ("resnetv2_50", 64, {}),
    ("resnest14d", 64, {}),
    ("res2net50_26w_4s", 64, {}),
    ("res2next50", 64, {}),
    ("skresnet18", 64, {}),
    ("seresnet18", 64, {}),
    ("senet154", 64, {}),
    ("legacy_seresnet18", 64, {}),
    ("ecaresnet26t", 64, {}),
    ("gcresnext26ts", 64, {}),
    ("lambda_resnet26t", 128, {}),
    ("halonet26t", 256, {}),
    ("botnet26t_256", 256, {}),
    ("cspresnet50", 64, {}),
    ("cspdarknet53", 64, {}),
    ("darknet53", 64, {}),
    ("dla34", 64, {}),
    ("dla60_res2net", 64, {}),
    ("hrnet_w18_small", 64, {}),
    ("ese_vovnet19b_dw", 64, {}),
    ("ghostnet_100", 64, {}),
    ("ghostnetv2_100", 64, {}),
    ("mixnet_s", 64, {}),
    ("mobilenetv1_100", 64, {}),
    ("mobilenetv4_conv_small", 64, {}),
    ("mobilenetv4_hybrid_medium", 96, {}),
    ("efficientnetv2_rw_t", 64, {}),
    ("tinynet_e", 64, {}),
    ("fbnetc_100", 64, {}),
    ("spnasnet_100", 64, {}),
    ("hardcorenas_a", 64, {}),
    ("lcnet_050", 64, {}),
    ("rexnet_100", 64, {}),
    ("repvgg_a0", 64, {}),
    ("mobileone_s0", 64, {}),
    ("dm_nfnet_f0", 64, {}),
    ("nf_resnet26", 64, {}),
    ("nf_regnet_b0", 64, {}),
    ("resnetv2_50x1_bit", 64, {}),
    ("regnetz_b16", 64, {}),
    ("selecsls42b", 64, {}),
    ("xception41", 64, {}),
    ("inception_resnet_v2", 96, {}),
    ("inception_v4", 96, {}),
    ("densenet121", 64, {}),
    ("dpn48b", 64, {}),
    ("vgg11_bn", 64, {}),
    ("hgnet_tiny", 64, {}),
    ("hgnetv2_b0", 64, {}),
    ("repghostnet_050", 64, {}),
    ("starnet_s1", 64, {}),
    ("convnext_atto", 64, {}),
    ("convnextv2_atto", 64, {}),
    ("inception_next_tiny", 64, {}),
    ("focalnet_tiny_srf", 64, {}),
    ("rdnet_tiny", 64, {}),
    ("convmixer_768_32", 64, {}),
)

_ATTENTION: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("vit_tiny_patch16_224", 64, {"img_size": 64}),
    ("vit_relpos_small_patch16_224", 64, {"img_size": 64}),
    ("vit_large_patch32_224", 64, {"img_size": 64}),
    ("deit_tiny_distilled_patch16_224", 64, {"img_size": 64}),
    ("deit3_small_patch16_224", 64, {"img_size": 64}),
    ("cait_xxs24_224", 64, {"img_size": 64}),
    ("xcit_nano_12_p16_224", 64, {"img_size": 64}),
    ("crossvit_tiny_240", 240, {}),
    ("coat_lite_tiny", 64, {"img_size": 64}),
    ("coatnet_nano_rw_224", 224, {}),
    ("maxvit_nano_rw_256", 128, {"img_size": 128}),
    ("swin_tiny_patch4_window7_224", 64, {"img_size": 64, "window_size": 2}),
    ("swinv2_tiny_window8_256", 64, {"img_size": 64, "window_size": 2}),
    ("swinv2_cr_tiny_224", 64, {"img_size": 64, "window_size": 2}),
    ("twins_pcpvt_small", 64, {"img_size": 64}),
    ("twins_svt_small", 64, {"img_size": 64}),
    ("pvt_v2_b0", 64, {}),
    ("volo_d1_224", 64, {"img_size": 64}),
    ("tnt_s_patch16_224", 64, {"img_size": 64}),
    ("convit_tiny", 64, {"img_size": 64}),
    ("beit_base_patch16_224", 64, {"img_size": 64}),
    ("eva02_tiny_patch14_224", 56, {"img_size": 56}),
    ("mixer_s32_224", 64, {"img_size": 64}),
    ("gmixer_24_224", 64, {"img_size": 64}),
    ("gmlp_ti16_224", 64, {"img_size": 64}),
    ("resmlp_12_224", 64, {"img_size": 64}),
    ("sequencer2d_s", 64, {"img_size": 64}),
    ("gcvit_xxtiny", 224, {}),
    ("davit_tiny", 64, {}),
    ("poolformer_s12", 64, {}),
    ("poolformerv2_s12", 64, {}),
    ("convformer_s18", 64, {}),
    ("caformer_s18", 64, {}),
    ("edgenext_xx_small", 64, {}),
    ("mobilevit_xxs", 64, {}),
    ("mobilevitv2_050", 64, {}),
    ("efficientformer_l1", 224, {}),
    ("efficientformerv2_s0", 224, {}),
    ("efficientvit_b0", 64, {}),
    ("efficientvit_m0", 224, {}),
    ("levit_128s", 224, {}),
    ("pit_ti_224", 224, {}),
    ("fastvit_t8", 64, {}),
    ("tiny_vit_5m_224", 224, {}),
    ("visformer_tiny", 224, {}),
    ("nest_tiny", 128, {"img_size": 128}),
    ("hiera_tiny_224", 224, {}),
    ("repvit_m0_9", 64, {}),
    ("mvitv2_tiny", 64, {"img_size": 64}),
    ("shvit_s1", 64, {}),
    ("nextvit_small", 64, {}),
    ("swiftformer_xs", 224, {}),
)

TABLE: dict[str, tuple[Callable[[], nn.Module], tuple[Input, ...]]] = {
    name: (partial(_create, name, settings), ((1, 3, px, px),)) for name, px, settings in _CONVOLUTIONAL + _ATTENTION
}
