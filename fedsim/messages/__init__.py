"""Compressed messages: which numbers of a vector are sent, how a number is written, and what travels."""

from fedsim.messages.coders import (
    QSGD,
    BFloat16,
    Coder,
    Float16,
    Float32,
    NaturalCompression,
    Signs,
    StochasticSigns,
    Ternary,
)
from fedsim.messages.compressor import Compressor
from fedsim.messages.layers import ByLayer, RankK
from fedsim.messages.selection import All, RandK, Threshold, TopK

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
]
