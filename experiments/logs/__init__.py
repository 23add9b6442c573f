"""Callbacks that hand a run's metrics to a tool which draws them; each asks for its package when it is made."""

from fedsim.experiments.logs.mlflow import MLflow as MLflow
from fedsim.experiments.logs.tensorboard import TensorBoard as TensorBoard
from fedsim.experiments.logs.wandb import WandB as WandB
