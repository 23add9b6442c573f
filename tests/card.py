"""A pretended accelerator: real numbers in the CPU's memory that say of themselves that they lie on another device.

Torch's fake tensors hold no numbers, so a branch on one ends there. A tensor here is a wrapper around a CPU tensor and
names as its device "meta", which every build of torch has and nothing else here uses. So the code takes its way for
accelerators, with the right answers, and what would fail on a card fails here: tensors of two devices in one operation,
numpy, a generator of the CPU. Each read of a number by the host is noted with the function of fedsim that it came from.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CARD = "meta"
ROOT = Path(__file__).resolve().parents[1]
PRODUCT = tuple(f"{ROOT / name}/" for name in ("fedsim", "strategies", "attacks", "datasets", "experiments"))
aten = torch.ops.aten
READS = {  # operations whose answer the host must see
    aten._local_scalar_dense.default: "number",
    aten.equal.default: "number",
    aten.nonzero.default: "shape",
    aten.masked_select.default: "shape",
    aten.unique_dim.default: "shape",
    aten._unique2.default: "shape",
    aten.repeat_interleave.Tensor: "shape",
}
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
BUILDERS = (torch.tensor, torch.as_tensor, torch.asarray)


class OnCard(Tensor):
    """A tensor on the card."""

    elem: Tensor
    card: Card

    @staticmethod
    def __new__(cls, elem: Tensor, card: Card) -> OnCard:
        made: OnCard = Tensor._make_wrapper_subclass(
            cls,
            elem.shape,
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=torch.device(CARD),
        )
        made.elem, made.card = elem, card
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = next(t for t in tree_leaves((args, kwargs)) if isinstance(t, OnCard))
        return first.card.work(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnCard({self.elem})"

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: OnCard) -> None:
        self.elem = value.elem

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.elem.untyped_storage()

    def tolist(self) -> Any:
        self.card.note("number")
        return self.elem.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.card.note("copy")
        return self.elem.__reduce_ex__(protocol)

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert a tensor on the card to numpy: copy it to the CPU first")

    def new_tensor(self, data: Any, **options: Any) -> Tensor:  # type: ignore[override]
        device = options.pop("device", CARD)
        return torch.tensor(data, **{"dtype": self.dtype, **options}).to(device)


class CardGenerator(torch.Generator):
    """A generator of any device, which gives the numbers of the CPU's."""

    place: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> CardGenerator:
        made: CardGenerator = super().__new__(cls, "cpu")
        made.place = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place


class _Dispatch(TorchDispatchMode):
    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.card.work(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """What an operation does not show: tensors of Python numbers, made on the CPU first, and whose a generator is."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in BUILDERS and "device" in kwargs:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func in (Tensor.__getitem__, Tensor.__setitem__):  # a list of indices is such a tensor
            args = (args[0], _without_lists(args[1]), *args[2:])
        generator = kwargs.get("generator")
        self.card.chance = generator and generator.device.type
        try:
            return func(*args, **kwargs)
        finally:
            self.card.chance = None


def _without_lists(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_without_lists, index))
    return torch.tensor(index, dtype=torch.int64) if isinstance(index, list) and index else index


class Card:
    """The accelerator. `reads` counts what the host saw of it, by kind and function."""

    def __init__(self) -> None:
        self.reads: Counter[tuple[str, str]] = Counter()
        self.chance: str | None = None  # where the generator of the call under way is

    @contextmanager
    def there(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
        """In the body tensors can be made on CARD, and generators of it."""
        with monkeypatch.context() as patched:
            for module in [m for name, m in sys.modules.items() if name.split(".")[0] == "fedsim"]:
                for name, value in list(vars(module).items()):
                    if value is torch.Generator:
                        patched.setattr(module, name, CardGenerator)
            patched.setattr(torch, "Generator", CardGenerator)
            with _Calls(self), _Dispatch(self):
                yield self

    def note(self, kind: str) -> None:
        frame = sys._getframe(1)
        while not frame.f_code.co_filename.startswith(PRODUCT):
            if frame.f_back is None:
                return  # the test's own
            frame = frame.f_back
        file = Path(frame.f_code.co_filename).relative_to(ROOT)
        parts = frame.f_code.co_qualname.split(".")
        self.reads[kind, f"{file}:{'.'.join(part for part in parts if part[0] != '<')}"] += 1

    def work(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operation of torch, on the wrapped tensors."""
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        on_card = [t for t in given if isinstance(t, OnCard)]
        goes_to = kwargs.get("device")
        if goes_to is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        to_card = bool(on_card) if goes_to is None else torch.device(goes_to).type == CARD
        if goes_to is None or func is not aten._to_copy.default:
            self._check(func, args, given, to_card)
        if func in READS and on_card:
            self.note(READS[func])
        if func in INDEXED and on_card and any(_is_mask(i) for i in args[1]):
            self.note("shape")
        if on_card and func is aten._to_copy.default and not to_card:
            self.note("copy")
        inner = lambda t: t.elem if isinstance(t, OnCard) else t  # noqa: E731
        out = func(*tree_map(inner, args), **tree_map(inner, kwargs))
        if torch.Tag.inplace_view in func.tags and on_card:  # the wrapper's own shape changes with it
            with no_dispatch():
                func(*args, **kwargs)
        if func is aten.copy_.default:
            if on_card and not isinstance(args[0], OnCard):
                self.note("copy")
            return args[0]
        if not to_card:
            return out
        known = {id(t.elem): t for t in on_card}  # an operation in place gives back what it was given

        def wrapped(t: Any) -> Any:
            if not isinstance(t, Tensor):
                return t
            return known[id(t)] if id(t) in known else OnCard(t, self)

        return tree_map(wrapped, out)

    def _check(self, func: Any, args: Any, given: list[Tensor], to_card: bool) -> None:
        """Raise where a card would: for tensors of two devices, but for single numbers and indices of the CPU."""
        if self.chance and (self.chance == CARD) != to_card:
            raise RuntimeError(f"{func}: a generator of the device {self.chance}, a tensor of the other one")
        if not to_card or func is aten.copy_.default:
            return
        may_differ = [id(i) for i in args[1] if i is not None] if func in INDEXED else []
        for t in given:
            if not isinstance(t, OnCard) and t.dim() and id(t) not in may_differ:
                raise RuntimeError(f"{func}: tensors of two devices, one of them {tuple(t.shape)} on the CPU")


def _is_mask(index: Tensor | None) -> bool:
    return isinstance(index, OnCard) and index.dtype in (torch.bool, torch.uint8)
