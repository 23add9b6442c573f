"""The ledger of a run: which rounds every client took part in, and what that costs it. A client pays for no other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fedsim.check import Invalid
from fedsim.privacy.base import Privacy
from fedsim.privacy.plan import Ids, Payers, Plan, Rounds, histories, payments


@dataclass(frozen=True)
class Ledger:
    """`paid`: who paid for each of the rounds so far. Clients who did not cost nothing here either."""

    privacy: Privacy
    plan: Plan
    paid: tuple[Payers, ...] = ()

    @classmethod
    def open(cls, privacy: Privacy, plan: Plan) -> Ledger:
        """Nothing spent yet; raises `Invalid` where not even one round is affordable."""
        ledger = cls(privacy, plan)
        if not ledger.affords(np.arange(plan.clients)):
            first = ledger.charge(np.arange(plan.clients)).epsilon
            raise Invalid(
                f"{type(privacy).__name__}.stop_at_epsilon = {privacy.stop_at_epsilon}: "
                f"the first round alone costs {first:.4g}; allow more, or add noise"
            )
        return ledger

    def charge(self, ids: Ids) -> Ledger:
        """The ledger after one more round, in which clients `ids` took part; ids from n on are nobody's."""
        payers = self.privacy.payers(ids, self.plan.clients, self.plan.secret)
        return replace(self, paid=(*self.paid, payers))

    def affords(self, ids: Ids) -> bool:
        """Whether one more round with clients `ids` stays within `stop_at_epsilon`."""
        limit = self.privacy.stop_at_epsilon
        if limit is None:
            return True
        after = self.charge(ids)
        spent = self.privacy.spent(self.plan, after._histories(after.paid[-1]))  # the others paid less
        return spent <= limit * (1 + 1e-9)

    @property
    def epsilon(self) -> float:
        """What the client has spent that spent most."""
        return self.privacy.spent(self.plan, self._histories())

    @property
    def multiplier(self) -> float:
        """The noise multiplier in use, before the schedule."""
        return self.privacy.multiplier(self.plan)

    def statement(self) -> str:
        """Epsilon and all that it means, and how often clients paid where they paid differently."""
        said = self.privacy.statement(self.plan, self._histories())
        who, _, always = payments(self.paid)
        counts = np.bincount(who, minlength=self.plan.clients) + len(always)
        if counts.min() == counts.max():
            return said
        return f"{said}; clients took part in {counts.min()} to {counts.max()} of {len(self.paid)} rounds"

    def warnings(self) -> list[str]:
        return self.privacy.warnings(self.plan)

    def dump(self) -> dict[str, Any]:
        """The payments, for a checkpoint."""
        counts = [-1 if ids is None else len(ids) for ids in self.paid]
        return {"payers": torch.from_numpy(payments(self.paid)[0]), "payers_of_round": torch.tensor(counts)}

    def load(self, saved: dict[str, Any]) -> Ledger:
        """The ledger with the payments of a checkpoint."""
        ids, counts = saved["payers"].numpy(), saved["payers_of_round"].numpy()
        parts = iter(np.split(ids, np.cumsum(counts[counts >= 0])))
        return replace(self, paid=tuple(None if count < 0 else next(parts) for count in counts))

    def _histories(self, of: Payers = None) -> frozenset[Rounds]:
        counted = self.privacy.counts_rounds(self.plan.batches)
        return histories(self.paid, self.plan.clients, counted, of)
