# %% [markdown]
# # Robustness: which rule holds against which attack
#
# Handwritten digits, 15 clients of unlike data, 3 of them Byzantine and omniscient. Each cell of the table is the test
# accuracy after 100 rounds of heavy ball. One seed: a study takes several (`fedsim sweep`).

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd

from fedsim import Experiment, Task, run
from fedsim.attacks import ALIE, IPM, SignFlip
from fedsim.batches import Fixed
from fedsim.datasets.load import Digits
from fedsim.datasets.split import Dirichlet
from fedsim.models import MLP
from fedsim.strategies import NNM, Chain, HeavyBall, Krum, Mean, Median, TrimmedMean

base = Experiment(
    task=Task(Digits(), MLP(hidden=32)),
    method=HeavyBall(lr=0.3),
    rule=Mean(),
    split=Dirichlet(1.0),
    batches=Fixed(32),
    clients=15,
    byzantine=3,
    attack=IPM(10.0),
    rounds=100,
    evaluate_every=20,
)

# %%
rules = {
    "mean": Mean(),
    "median": Median(),
    "Krum": Krum(),
    "trimmed mean": TrimmedMean(),
    "NNM + trimmed mean": Chain(NNM(), TrimmedMean()),
}
attacks = {"sign flip": SignFlip(), "IPM": IPM(10.0), "ALIE": ALIE()}
results = {
    (rule_name, attack_name): run(replace(base, rule=rule, attack=attack))
    for rule_name, rule in rules.items()
    for attack_name, attack in attacks.items()
}
table = pd.Series({key: result.accuracy for key, result in results.items()}).unstack()
table.loc[list(rules), list(attacks)].round(3)

# %% [markdown]
# The same runs over time: what the mean loses is lost in the first rounds.

# %%
figure, axes = plt.subplots(1, len(attacks), figsize=(11, 3), sharey=True)
for axis, attack_name in zip(axes, attacks, strict=True):
    for rule_name in rules:
        frame = results[rule_name, attack_name].frame
        axis.plot(frame["round"], frame["accuracy"], label=rule_name)
    axis.set(title=attack_name, xlabel="round", ylim=(0, 1))
axes[0].set_ylabel("test accuracy")
axes[-1].legend(fontsize=8)
figure.tight_layout()

# %% [markdown]
# Who was kept out? The weight of the Byzantine rows in the answer: their share is 3 of 15 in a mean, 0 where all of
# them were filtered.

# %%
pd.Series(
    {rule: results[rule, "IPM"].frame["byzantine_weight"].iloc[-1] for rule in rules}, name="byzantine weight"
).round(3)
