"""Models: networks in the box, a module of one's own, and what changes another model."""

from fedsim.models.adapted import Frozen as Frozen
from fedsim.models.adapted import GroupNormed as GroupNormed
from fedsim.models.adapted import Pretrained as Pretrained
from fedsim.models.modules import Module as Module
from fedsim.models.modules import own as own
from fedsim.models.networks import CNN as CNN
from fedsim.models.networks import MLP as MLP
from fedsim.models.networks import Logistic as Logistic
from fedsim.models.networks import ResNet as ResNet
from fedsim.models.text import GPT as GPT
from fedsim.models.text import LSTM as LSTM

__all__ = ["CNN", "GPT", "LSTM", "MLP", "Frozen", "GroupNormed", "Logistic", "Module", "Pretrained", "ResNet"]
