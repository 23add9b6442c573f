"""A module of one's own as a model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, make_dataclass
from functools import cache
from typing import Any, ClassVar, cast

from torch import nn

from fedsim.check import Invalid
from fedsim.held import Held, held_network, value_of
from fedsim.types import Model

GIVEN = ("shape", "classes")  # what the task knows


@dataclass(frozen=True)
class Module(Model):
    """A network that is there: Module(net) with any nn.Module, which starts from the numbers that it has.

    A definition names it by a digest of these: it has a fingerprint, and elsewhere it can be read but not run. What can
    be built anew from the experiment's seed is named by its place: module:name, with arguments as fields.
    """

    net: Any

    def __post_init__(self) -> None:
        if isinstance(self.net, nn.Module):
            object.__setattr__(self, "net", held_network(copy.deepcopy(self.net)))
        elif not isinstance(self.net, str | Held):
            raise Invalid(f"Module.net: is a {type(self.net).__name__}; must be an nn.Module")

    def build(self, shape: Any, classes: int) -> nn.Module:
        net: nn.Module = copy.deepcopy(value_of(self.net, "Module.net"))
        return net


class Own(Model):
    """A user's nn.Module class, or a function that returns one, with its arguments as fields."""

    maker: ClassVar[Callable[..., Any]]
    given: ClassVar[tuple[str, ...]]
    arguments: ClassVar[tuple[str, ...]]

    def build(self, shape: Any, classes: int) -> nn.Module:
        known = {"shape": shape, "classes": classes}
        arguments = {name: getattr(self, name) for name in self.arguments}
        arguments |= {name: known[name] for name in self.given if arguments.get(name) is None}
        name = type(self).__name__
        try:
            net = type(self).maker(**arguments)
        except Invalid:
            raise
        except Exception as error:
            raise Invalid(f"model = {name}: raises {type(error).__name__}: {str(error)[:200]}") from error
        if not isinstance(net, nn.Module):
            raise Invalid(f"model = {name}: gives a {type(net).__name__}; must be an nn.Module")
        return net


@cache
def own(made: Callable[..., Any]) -> type[Model]:
    """The model that an nn.Module class, or a function that returns a module, is as a component.

    Its arguments are the component's fields. The task gives those called `shape` (of an input) and `classes` (how many
    outputs) where they are not set.
    """
    fields: list[Any] = []
    for p in inspect.signature(made).parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        if p.name in GIVEN:
            fields.append((p.name, Any | None, field(default=None, kw_only=True)))
        elif p.default is p.empty:
            fields.append((p.name, Any | None, field(kw_only=True)))
        else:
            fields.append((p.name, Any | None, field(default=_frozen(p.default), kw_only=True)))
    names = tuple(name for name, _, _ in fields)
    members = {
        "__doc__": inspect.getdoc(made) or "A model of one's own.",
        "maker": staticmethod(made),
        "given": tuple(name for name in names if name in GIVEN),
        "arguments": names,
    }
    cls = make_dataclass(made.__name__, fields, bases=(Own,), namespace=members, frozen=True)
    cls.__module__, cls.__qualname__ = made.__module__, made.__qualname__
    return cls


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else MISSING if value is inspect.Parameter.empty else value


def as_model(value: Any) -> Any:
    """An nn.Module as `Module`, a class of one or a function as what `own` makes of it; anything else as it is."""
    if isinstance(value, nn.Module):
        return Module(value)
    if inspect.isfunction(value) or (inspect.isclass(value) and issubclass(value, nn.Module)):
        cls = own(cast(Any, value))
        missing = [p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty]
        if missing:
            raise Invalid(
                f"model = {cls.__name__}: {missing[0]} is missing; own({cls.__name__})({missing[0]}=...) has it"
            )
        return cls()
    return value
