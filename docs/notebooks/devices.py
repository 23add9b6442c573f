# %% [markdown]
# # Devices: the same experiment over messages
#
# An experiment is a value. On the engine `loop` clients are function calls; on `grid` each is a Flower ClientApp
# behind messages, in this process; on real devices it is that ClientApp behind `fedsim deploy`. The models are equal
# to the bit.

# %%
import torch

from fedsim import Experiment, Task, run
from fedsim.attacks import ALIE
from fedsim.batches import Fixed
from fedsim.datasets.load import Digits
from fedsim.datasets.split import Dirichlet
from fedsim.models import Logistic
from fedsim.strategies import NNM, ByzClip21SGD2M, Chain, Median

experiment = Experiment(
    task=Task(Digits(), Logistic()),
    method=ByzClip21SGD2M(lr=0.3, tau=0.5, beta=0.5, beta_hat=0.5),
    rule=Chain(NNM(), Median()),
    attack=ALIE(),
    split=Dirichlet(1.0),
    batches=Fixed(16),
    clients=7,
    byzantine=2,
    rounds=10,
    evaluate_every=5,
)
here, over_messages = run(experiment, engine="loop"), run(experiment, engine="grid")
{name: torch.equal(here.model[name], over_messages.model[name]) for name in here.model}

# %% [markdown]
# What a device gets is one string, which names the experiment and nothing else; and its fingerprint, by which both
# sides know that they mean the same.

# %%
print(experiment.fingerprint)
print(experiment.to_json()[:200], "...")

# %% [markdown]
# A strategy of one's own Flower app changes in two lines, and needs neither Ray nor a SuperLink to be tried:
# see [Use the rules in a Flower app](../flower.md). How devices enrol, what they insist on and what holds against
# whom is in [Deploy to devices](../deploy.md).
