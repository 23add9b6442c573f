"""Compressed messages: which numbers of a vector are sent, how a number is written, and what travels."""

from fedsim.messages.coder import Coder
from fedsim.messages.compressor import Compressor
from fedsim.messages.floats import BFloat16, Float16, Float32, NaturalCompression
from fedsim.messages.layers import ByLayer, RankK
from fedsim.messages.selection import All, RandK, Threshold, TopK
from fedsim.messages.signs import QSGD, Signs, StochasticSigns, Ternary, Votes

__all__ = [
    "QSGD",
    "All",
    "BFloat16",
    "ByLayer",
    "Coder",
    "Compressor",
    "Float16",
    "Float32",
    "NaturalCompression",
    "RandK",
    "RankK",
    "Signs",
    "StochasticSigns",
    "Ternary",
    "Threshold",
    "TopK",
    "Votes",
]
