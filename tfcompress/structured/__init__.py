"""From a model's graph to a smaller model: folded layers, and channels that really go."""

from tfcompress.structured.correct_bias import BiasCorrection, correct_bias
from tfcompress.structured.crop_inputs import Border, crop_inputs
from tfcompress.structured.dead import (
    FLOAT32_ROUNDING,
    DeadChannels,
    dead_channels,
    remove_dead_channels,
)
from tfcompress.structured.drop_layers import DroppedLayers, drop_layers
from tfcompress.structured.equalize import Equalization, equalize
from tfcompress.structured.fold import fold_batch_norm
from tfcompress.structured.groups import ChannelGroups, Group, Member, channel_groups
from tfcompress.structured.merge import merge_channels
from tfcompress.structured.pool_head import pool_head
from tfcompress.structured.prune import prune_channels
from tfcompress.structured.removal import keep_channels
from tfcompress.structured.scores import SCORES
from tfcompress.structured.select_features import kept_features, select_features
from tfcompress.structured.sensitivity import Sensitivity, sensitivity
from tfcompress.structured.trim import trim

__all__ = [
    "FLOAT32_ROUNDING",
    "SCORES",
    "BiasCorrection",
    "Border",
    "ChannelGroups",
    "DeadChannels",
    "DroppedLayers",
    "Equalization",
    "Group",
    "Member",
    "Sensitivity",
    "channel_groups",
    "correct_bias",
    "crop_inputs",
    "dead_channels",
    "drop_layers",
    "equalize",
    "fold_batch_norm",
    "keep_channels",
    "kept_features",
    "merge_channels",
    "pool_head",
    "prune_channels",
    "remove_dead_channels",
    "select_features",
    "sensitivity",
    "trim",
]
