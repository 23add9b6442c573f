"""Robust aggregation: rules and mixers on rows (n, d), and the methods that use them."""

from fedsim.strategies.kernels.base import Chain
from fedsim.strategies.methods.adam import Adam
from fedsim.strategies.methods.buffers import (
    AsyncSGD,
    DelayAdaptiveSGD,
    FedAsync,
    FedBuff,
    Rennala,
    Ringmaster,
)
from fedsim.strategies.methods.clip21 import ByzClip21SGD2M, ByzClip21SGD2MPlus, Clip21SGD2M
from fedsim.strategies.methods.differences import DIANA, MARINA
from fedsim.strategies.methods.dshb import ByzClipSGD, SafeDSHB
from fedsim.strategies.methods.ef21 import EF14, EF21, EControl, EF21Muon
from fedsim.strategies.methods.fedmuon import FedMuon
from fedsim.strategies.methods.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from fedsim.strategies.methods.jaguar import JaguarMuon, JaguarSignSGD
from fedsim.strategies.methods.local import SCAFFOLD, FedDyn, FedNova, FedProx
from fedsim.strategies.methods.local_sgd import DecayingLocalSGD, DualLocalSGD, MinibatchSGD
from fedsim.strategies.methods.monna import MoNNA
from fedsim.strategies.methods.muon import ClientMuon, Muon, SignMuon
from fedsim.strategies.methods.personal import QFFL, Ditto, FedBN, FedPer
from fedsim.strategies.methods.scion import DropMuon, Gluon, Scion
from fedsim.strategies.methods.servers import FRUGAL, NGNM, SWAN, DiffGrad, SGDSaI
from fedsim.strategies.methods.sgd import FedAvg, FedSGD, HeavyBall
from fedsim.strategies.methods.signsgd import HeavyTailSign, SignSGD, Signum
from fedsim.strategies.methods.tables import IA2SGD, Malenia, Ringleader
from fedsim.strategies.methods.votes import SSDM, SSVRMV, DVRSign, StochasticVote
from fedsim.strategies.rules.coordinate import MeanAroundMedian, Median, Phocas, TrimmedMean
from fedsim.strategies.rules.diameter import MDA
from fedsim.strategies.rules.geometric import RFA, CenteredClipping, GeometricMedian
from fedsim.strategies.rules.krum import Bulyan, Krum, MultiKrum
from fedsim.strategies.rules.layers import PerLayer
from fedsim.strategies.rules.mixers import ARC, Bucketing, Clipping
from fedsim.strategies.rules.neighbours import NNA, NNM
from fedsim.strategies.rules.noisy import NoisyMajorityVote, NoisyMedian
from fedsim.strategies.rules.penalty import EDiT
from fedsim.strategies.rules.recalling import FLDetector, FoolsGold
from fedsim.strategies.rules.sign import MajorityVote
from fedsim.strategies.rules.spectral import CAF, SMEA
from fedsim.strategies.rules.weighted import CGE, FLTrust, Mean

__all__ = [
    "ARC",
    "CAF",
    "CGE",
    "DIANA",
    "EF14",
    "EF21",
    "FRUGAL",
    "IA2SGD",
    "MARINA",
    "MDA",
    "NGNM",
    "NNA",
    "NNM",
    "QFFL",
    "RFA",
    "SCAFFOLD",
    "SMEA",
    "SSDM",
    "SSVRMV",
    "SWAN",
    "Adam",
    "AsyncSGD",
    "Bucketing",
    "Bulyan",
    "ByzClip21SGD2M",
    "ByzClip21SGD2MPlus",
    "ByzClipSGD",
    "CenteredClipping",
    "Chain",
    "ClientMuon",
    "Clip21SGD2M",
    "Clipping",
    "DVRSign",
    "DecayingLocalSGD",
    "DelayAdaptiveSGD",
    "DiffGrad",
    "Ditto",
    "DropMuon",
    "DualLocalSGD",
    "EControl",
    "EDiT",
    "EF21Muon",
    "FLDetector",
    "FLTrust",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedBN",
    "FedBuff",
    "FedDyn",
    "FedMuon",
    "FedNova",
    "FedPer",
    "FedProx",
    "FedSGD",
    "FedYogi",
    "FoolsGold",
    "GeometricMedian",
    "Gluon",
    "HeavyBall",
    "HeavyTailSign",
    "JaguarMuon",
    "JaguarSignSGD",
    "Krum",
    "MajorityVote",
    "Malenia",
    "Mean",
    "MeanAroundMedian",
    "Median",
    "MinibatchSGD",
    "MoNNA",
    "MultiKrum",
    "Muon",
    "NoisyMajorityVote",
    "NoisyMedian",
    "PerLayer",
    "Phocas",
    "Rennala",
    "Ringleader",
    "Ringmaster",
    "SGDSaI",
    "SafeDSHB",
    "Scion",
    "SignMuon",
    "SignSGD",
    "Signum",
    "StochasticVote",
    "TrimmedMean",
]
