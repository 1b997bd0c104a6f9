"""Reconstruction: the weights that are left are solved for, so that each layer repeats what the dense one computed.

Closed-form least squares on a few unlabelled inputs, layer by layer from input to output; no training. The idea is that
of ThiNet (Luo et al. 2017) and of channel pruning by He et al. (2017), done for all weights of a layer at once.
"""

from edgeprune.reconstruct.network import Reconstructed, Settings, reconstruct
from edgeprune.reconstruct.plan import reconstruct_plan, settings_of
from edgeprune.reconstruct.synthetic import made_up

__all__ = ["Reconstructed", "Settings", "made_up", "reconstruct", "reconstruct_plan", "settings_of"]
