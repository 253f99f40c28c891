"""From a model's graph to a smaller model: folded layers, and channels that really go."""

from tfcompress.structured.dead import DeadChannels, dead_channels, remove_dead_channels
from tfcompress.structured.fold import fold_batch_norm
from tfcompress.structured.groups import ChannelGroups, Group, Member, channel_groups
from tfcompress.structured.prune import prune_channels
from tfcompress.structured.removal import keep_channels

__all__ = [
    "ChannelGroups",
    "DeadChannels",
    "Group",
    "Member",
    "channel_groups",
    "dead_channels",
    "fold_batch_norm",
    "keep_channels",
    "prune_channels",
    "remove_dead_channels",
]
