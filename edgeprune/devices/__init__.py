"""Where artifacts run: the agent program and the ways to reach a machine. Never imports torch."""

from __future__ import annotations

from edgeprune.devices.device import Device, connect

__all__ = ["Device", "connect"]
