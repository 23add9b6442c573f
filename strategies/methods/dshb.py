"""The two private baselines of arXiv:2603.23472, Appendix F: clipping without error feedback."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.check import ClipNorm, Share
from fedsim.method import Env
from fedsim.strategies.methods.sgd import FedSGD
from fedsim.strategies.methods.traits import Clipped
from fedsim.types import Batch, State


@dataclass(frozen=True)
class ByzClipSGD(Clipped, FedSGD):
    """Byz-Clip-SGD, Algorithm 3 of arXiv:2603.23472: clients send clip_tau(grad f_i(x)) + noise, no memory."""

    tau: ClipNorm


@dataclass(frozen=True)
class SafeDSHB(ByzClipSGD):
    """Safe-DSHB: m_i <- (1 - beta) m_i + beta (clip_tau(grad f_i(x)) + noise), and clients send m_i.

    As in Algorithm 4 of arXiv:2603.23472 with a finite tau and message-level privacy (one clip and one noise a batch).
    The original, Algorithm 1 of arXiv:2302.04787, clips and noises per example: tau = inf and example-level privacy.
    `beta` is the weight of the new gradient; beta = 1 is Byz-Clip-SGD.
    """

    beta: Share = 0.1

    @property
    def message_clip(self) -> float | None:
        return None  # what is sent is a mean of clipped gradients

    def client_init(self, x: Tensor) -> State:
        return {"m": x.new_zeros(x.shape)}

    def client_step(self, state: State, x: Tensor, batch: Batch, env: Env) -> tuple[State, Tensor]:
        _, noisy = super().client_step({}, x, batch, env)
        m = torch.lerp(state["m"], noisy, self.beta, out=env.buffer("m"))
        return {"m": m}, m
