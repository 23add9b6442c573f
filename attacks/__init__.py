"""What Byzantine clients do: forge messages or poison data; each attack declares what it needs to know."""

from fedsim.attacks.adaptive import Adaptive
from fedsim.attacks.broken import Gaussian, Inf, NaN, Zero
from fedsim.attacks.data import Backdoor, LabelFlip
from fedsim.attacks.hidden import MinMax, MinSum
from fedsim.attacks.mimic import Mimic
from fedsim.attacks.portfolio import Portfolio
from fedsim.attacks.replay import Replay
from fedsim.attacks.sign import BlindSignFlip, OmniscientSign
from fedsim.attacks.sparse import Concentrated, FillVote
from fedsim.attacks.vector import ALIE, IPM, SignFlip
from fedsim.attacks.worst_case import WorstCase

__all__ = [
    "ALIE",
    "IPM",
    "Adaptive",
    "Backdoor",
    "BlindSignFlip",
    "Concentrated",
    "FillVote",
    "Gaussian",
    "Inf",
    "LabelFlip",
    "Mimic",
    "MinMax",
    "MinSum",
    "NaN",
    "OmniscientSign",
    "Portfolio",
    "Replay",
    "SignFlip",
    "WorstCase",
    "Zero",
]
