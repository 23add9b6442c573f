"""Linear minimization oracles of norms on layers: which way a layer moves, whatever the length of its gradient."""

from fedsim.strategies.oracles.base import Oracle as Oracle
from fedsim.strategies.oracles.entries import RMS, Columns, Frobenius, Rows, Sign
from fedsim.strategies.oracles.polar import ExactPolar, NewtonSchulz, PolarExpress
from fedsim.strategies.oracles.polar import Polar as Polar
from fedsim.strategies.oracles.roles import Norms
from fedsim.strategies.oracles.spectral import KyFan, Mix, Spectral

__all__ = [
    "RMS",
    "Columns",
    "ExactPolar",
    "Frobenius",
    "KyFan",
    "Mix",
    "NewtonSchulz",
    "Norms",
    "PolarExpress",
    "Rows",
    "Sign",
    "Spectral",
]
