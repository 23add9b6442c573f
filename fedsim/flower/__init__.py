"""Flower: the same experiment over Flower's messages; loaded only where an engine or a deployment needs it.

`InProcessGrid` runs any Flower app in this process.
"""

from fedsim.flower.grid import InProcessGrid

__all__ = ["InProcessGrid"]
