"""Arrays from pickle files, without what else a pickle may do: nothing is called but what makes an array of numbers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.check import Invalid


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes) -> Any:
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"an array of {kind!r}")
    return np.ndarray(shape, np.uint8)  # its content follows, as a state


def _bytes(text: str, code: str) -> bytes:
    """Bytes as Python 3 writes them in an old protocol."""
    return text.encode("latin1")


# what a pickled array names, by the modules of NumPy 1 and 2
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _bytes,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array of numbers")
        return ALLOWED[module, name]


def arrays(path: Path) -> dict[str, Any]:
    """The dict of arrays and lists in a pickle file; raises `Invalid` for anything else."""
    try:
        with path.open("rb") as file:
            found = _Arrays(file, encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in found.items()}
    except Exception as error:  # a pickle may raise anything
        raise Invalid(
            f"{path}: not a pickle of arrays ({type(error).__name__}: {str(error)[:120]})"
        ) from None
