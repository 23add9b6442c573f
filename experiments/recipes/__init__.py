"""Published settings and studies, each a function: one experiment, one with others beside it, or a study of many."""

from fedsim.experiments.comparison import Comparison as Comparison
from fedsim.experiments.recipes.baselines import baselines, pfl_cifar10
from fedsim.experiments.recipes.batch_budget import batch_budget
from fedsim.experiments.recipes.byz_clip21 import (
    byz_clip21_cnn,
    byz_clip21_label_flip,
    byz_clip21_mlp,
    byz_clip21_plus,
)
from fedsim.experiments.recipes.cifar import cifar_robust
from fedsim.experiments.recipes.compression import compression
from fedsim.experiments.recipes.damage import damage
from fedsim.experiments.recipes.demo import mnist_robust, quickstart
from fedsim.experiments.recipes.history import bucketing, centred_clipping
from fedsim.experiments.recipes.layer_bits import layer_bits, layer_bits_mnist
from fedsim.experiments.recipes.layer_steps import layer_attacks, newton_schulz
from fedsim.experiments.recipes.local_time import local_time
from fedsim.experiments.recipes.median_mean import median_versus_mean
from fedsim.experiments.recipes.mixing import fixing_by_mixing
from fedsim.experiments.recipes.monna import monna
from fedsim.experiments.recipes.private_signs import private_signs
from fedsim.experiments.recipes.private_utility import private_utility
from fedsim.experiments.recipes.replays import replays
from fedsim.experiments.recipes.ringleader import ringleader
from fedsim.experiments.recipes.sign_votes import sign_votes
from fedsim.experiments.recipes.speeds import speeds
from fedsim.experiments.recipes.surface import surface
from fedsim.experiments.recipes.untuned import untuned, untuned_resnet
from fedsim.experiments.recipes.writers import writers

__all__ = [
    "baselines",
    "batch_budget",
    "bucketing",
    "byz_clip21_cnn",
    "byz_clip21_label_flip",
    "byz_clip21_mlp",
    "byz_clip21_plus",
    "centred_clipping",
    "cifar_robust",
    "compression",
    "damage",
    "fixing_by_mixing",
    "layer_attacks",
    "layer_bits",
    "layer_bits_mnist",
    "local_time",
    "median_versus_mean",
    "mnist_robust",
    "monna",
    "newton_schulz",
    "pfl_cifar10",
    "private_signs",
    "private_utility",
    "quickstart",
    "replays",
    "ringleader",
    "sign_votes",
    "speeds",
    "surface",
    "untuned",
    "untuned_resnet",
    "writers",
]
