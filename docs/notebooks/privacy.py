# %% [markdown]
# # Privacy: what an epsilon costs, and what it stands for
#
# Ten honest clients with the handwritten digits; every example's gradient is clipped and noise is added on the client.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd

from fedsim import ExampleDP, Experiment, Task, run
from fedsim.batches import Poisson
from fedsim.datasets.load import Digits
from fedsim.datasets.split import IID
from fedsim.models import Logistic
from fedsim.strategies import HeavyBall, Mean

base = Experiment(
    task=Task(Digits(), Logistic()),
    method=HeavyBall(lr=0.5),
    rule=Mean(),
    split=IID(),
    batches=Poisson(size=16),
    clients=10,
    rounds=100,
    evaluate_every=20,
)
plain = run(base)

# %% [markdown]
# The budget is given, the noise follows from it: each run below spends what it says, and no more.

# %%
budgets = [0.5, 1, 2, 4, 8]
runs = {
    epsilon: run(replace(base, privacy=ExampleDP(clip=1.0, epsilon=epsilon, delta=1e-4)))
    for epsilon in budgets
}
print(runs[2].notes[0])
pd.DataFrame(
    {
        "accuracy": {epsilon: result.accuracy for epsilon, result in runs.items()},
        "spent": {epsilon: result.summary["epsilon"] for epsilon, result in runs.items()},
        "noise multiplier": {epsilon: result.summary["noise_multiplier"] for epsilon, result in runs.items()},
    }
).round(3)

# %%
figure, axis = plt.subplots(figsize=(5, 3))
axis.plot(budgets, [result.accuracy for result in runs.values()], marker="o", label="example-level privacy")
axis.axhline(plain.accuracy, color="grey", linestyle="--", label="no privacy")
axis.set(xlabel="epsilon at delta = 1e-4", ylabel="test accuracy", xscale="log")
axis.legend()
figure.tight_layout()

# %% [markdown]
# An epsilon is an upper bound that holds against any adversary. What one adversary does get out of a run is a lower
# bound: `fedsim audit` plants an example of its own, trains many times with and without it, and counts how often it is
# told apart. Where a lower bound is above the ledger's epsilon, something is wrong.
#
# The ledger grows with every round:

# %%
frame = runs[2].frame
frame[["round", "epsilon", "accuracy"]].round(3)
