"""Getting accuracy back: fine-tuning, distillation, BatchNorm recalibration."""

from __future__ import annotations

from edgeprune.training.batches import model_inputs
from edgeprune.training.fake_quantise import FakeQuantised
from edgeprune.training.features import feature_weight, features_of
from edgeprune.training.loop import finetune
from edgeprune.training.recalibrate import recalibrate
from edgeprune.training.records import EpochRecord, FinetuneResult, Progress

__all__ = [
    "EpochRecord",
    "FakeQuantised",
    "FinetuneResult",
    "Progress",
    "feature_weight",
    "features_of",
    "finetune",
    "model_inputs",
    "recalibrate",
]
