"""The JSON files of LEAF (Caldas et al., arXiv:1812.01097)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.check import Count, File, Invalid
from fedsim.datasets.files import located, require_room
from fedsim.types import Data, Dataset, Examples

PIXELS, CLASSES = 28 * 28, 62


@dataclass(frozen=True)
class FEMNIST(Data):
    """Handwritten digits and letters by their writers, 62 classes, grey 28 x 28 (white is 1), as LEAF writes them.

    FEMNIST("femnist/data", users=100)

    path   a folder with `train` and `test`, each of LEAF's .json files: users, user_data {user: {x, y}}
    users  the first so many writers; by default all
    Owners are the writers: `Natural()` gives each to one client. A writer may be in both parts.
    """

    path: File = "femnist"
    users: Count | None = None

    def load(self) -> Dataset:
        folder = located(self.path, "FEMNIST.path")
        writers: dict[str, int] = {}
        train, owners = self._part(folder / "train", writers)
        test, theirs = self._part(folder / "test", writers)
        if not len(train):
            raise Invalid(f"FEMNIST.path = {self.path!r}: its train part holds no example")
        return Dataset(train, test, CLASSES, owners, theirs)

    def _part(self, folder: Path, writers: dict[str, int]) -> tuple[Examples, torch.Tensor]:
        """The examples of a part, file by file; numbers new writers."""
        files = sorted(folder.glob("*.json"))
        if not files:
            raise Invalid(f"FEMNIST: no .json files in {folder}; LEAF's preprocess.sh writes them there")
        xs, ys, owners = [np.zeros((0, PIXELS), np.float32)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        held = 0
        for file in files:
            for user, x, y in _users(file):
                if user not in writers and (self.users is None or len(writers) < self.users):
                    writers[user] = len(writers)
                if user in writers:
                    xs.append(x)
                    ys.append(y)
                    owners.append(np.full(len(y), writers[user]))
                    held += 2 * x.nbytes  # and once more as one
            require_room(held, f"FEMNIST {folder}")
        x = torch.from_numpy(np.concatenate(xs)).view(-1, 1, 28, 28)
        return Examples(x, torch.from_numpy(np.concatenate(ys))), torch.from_numpy(np.concatenate(owners))


def _users(file: Path) -> list[tuple[str, Any, Any]]:
    """Who is in a file, with pictures (m, 784) and labels (m,); raises `Invalid` where it is another file."""
    require_room(8 * file.stat().st_size, f"FEMNIST {file}")  # as Python's own numbers
    try:
        found = json.loads(file.read_text())
        parts = []
        for user in found["users"]:
            x = np.asarray(found["user_data"][user]["x"], np.float32).reshape(-1, PIXELS)
            y = np.asarray(found["user_data"][user]["y"], np.int64)
            if y.shape != (len(x),) or (len(y) and not 0 <= y.min() <= y.max() < CLASSES):
                raise ValueError(f"user {user}: {len(x)} pictures, labels {y.shape}")
            parts.append((user, x, y))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Invalid(
            f"FEMNIST {file}: not a file of LEAF ({type(error).__name__}: {str(error)[:100]})"
        ) from None
    return parts
