"""What goes together: the channel groups of a network, found on its ATen graph."""

from edgeprune.graph.groups import ChannelGraph, Group, trace

__all__ = ["ChannelGraph", "Group", "trace"]
