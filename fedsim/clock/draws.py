"""Random numbers of a client's attempts, one by one, from addresses: they are drawn in blocks and kept for a while."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedsim.keys import Keys

BLOCK = 64  # attempts whose numbers are drawn together


def uniform(keys: Keys, purpose: str, client: int, attempt: int = 0) -> float:
    """A number in [0, 1)."""
    return float(_block(keys, purpose, client, attempt // BLOCK)[attempt % BLOCK])


def normal(keys: Keys, purpose: str, client: int, attempt: int = 0) -> float:
    """A standard normal number, by the inverse of its distribution function."""
    from scipy.special import ndtri

    return float(ndtri(min(max(uniform(keys, purpose, client, attempt), 2.0**-54), 1 - 2.0**-53)))


@lru_cache(maxsize=2**14)
def _block(keys: Keys, purpose: str, client: int, block: int) -> NDArray[np.float64]:
    attempts = np.arange(block * BLOCK, (block + 1) * BLOCK)
    return keys.uniform(purpose, attempts, client, 1)[:, 0]


@lru_cache(maxsize=8)
def ranks(keys: Keys) -> NDArray[np.int64]:
    """A rank of each client, 0 the fastest, in an order drawn once for a run."""
    return keys.numpy("speed").permutation(keys.clients)
