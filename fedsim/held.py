"""Values that no text can hold, such as arrays and networks, by a text that names what is in them."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.check import Invalid


class Held(str):
    """The digest of a value, equal for equal contents, with the value itself.

    Where the text alone came, from a record or over a network, there is no value: `value_of` says so.
    """

    value: Any

    def __new__(cls, text: str, value: Any) -> Held:
        made = super().__new__(cls, text)
        made.value = value
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Held, (str(self), self.value)


def held_tensors(value: Any, field: str) -> Held | str:
    """One array or several (a tuple or a dict) as tensors: numbers with a point float32, others int64.

    Raises `Invalid` for what is no array of numbers. A text stays as it is: the digest of arrays of another process.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        parts = {str(name): tensor(item, f"{field}.{name}") for name, item in value.items()}
        text = ", ".join(f"{name}: {_digest(part)}" for name, part in parts.items())
        return Held(f"{{{text}}}", parts)
    if isinstance(value, tuple):
        several = tuple(tensor(item, f"{field}[{i}]") for i, item in enumerate(value))
        return Held(f"({', '.join(map(_digest, several))})", several)
    whole = tensor(value, field)
    return Held(_digest(whole), whole)


def held_network(net: nn.Module) -> Held:
    """A network, by its class and its numbers."""
    state = sha256("".join(f"{name} {_digest(t)}\n" for name, t in net.state_dict().items()).encode())
    frozen = "".join(str(int(p.requires_grad)) for p in net.parameters())
    state.update((frozen + repr(net)).encode())
    return Held(f"{type(net).__name__} {state.hexdigest()[:16]}", net)


def value_of(text: str, what: str) -> Any:
    """The value behind a digest; raises `Invalid` where only the digest is here."""
    if not isinstance(text, Held):
        raise Invalid(
            f"{what} = {text!r}: was in the memory of another process, and this is its digest alone; allowed are "
            "files and names that can be read again, or the objects themselves"
        )
    return text.value


def tensor(value: Any, field: str) -> Tensor:
    """An array of numbers as a tensor: float32, or int64 where it holds whole numbers."""
    try:
        whole = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError, RuntimeError) as error:
        if np.asarray(value).dtype.kind in "OSU":
            raise Invalid(
                f"{field}: holds words or other objects; must be numbers, classes from 0 on "
                "(`numpy.unique(y, return_inverse=True)[1]` numbers words)"
            ) from None
        raise Invalid(f"{field}: not an array of numbers ({str(error)[:120]})") from None
    if whole.is_complex():
        raise Invalid(f"{field}: complex numbers; allowed are real ones")
    return (whole.float() if whole.is_floating_point() else whole.long()).contiguous()


def _digest(t: Tensor) -> str:
    raw = np.ascontiguousarray(t.detach().cpu().numpy())
    shape = "x".join(map(str, t.shape)) or "1"
    return f"{str(t.dtype).removeprefix('torch.')} {shape} {sha256(raw.tobytes()).hexdigest()[:16]}"
