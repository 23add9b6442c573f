"""Components to plain values and back: dicts for JSON and TOML, expressions such as `ALIE(z=1.5)` for commands."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from fedsim.check import FILE, Component, Invalid, nearest
from fedsim.config.catalog import Allowed, find, fitting, place
from fedsim.config.unread import Unread

C = TypeVar("C", bound=Component)
OWN = re.compile(r"""('[^']*'|"[^"]*")|[^\W\d][\w.]*:[^\W\d]\w*""")  # module:name, outside of quotes


def encode(value: Any) -> Any:
    """A component as a dict with its name under "name"; tuples as lists, None as "none"."""
    if isinstance(value, Unread):
        return value.table
    if isinstance(value, Component):
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"name": place(type(value)), **fields}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return "none" if value is None else value


def decode(cls: type[C], data: Mapping[str, Any], field: str = "", own: Allowed = False) -> C:
    """The inverse of `encode` for a component of class `cls`; raises `Invalid`.

    With `own` a user's own components too, whose modules are imported. Of what came over a network none, or those alone
    that this machine's owner named; and no file.
    """
    hints = get_type_hints(cls, include_extras=True)
    known = {f.name for f in dataclasses.fields(cls)}
    plain = {name: value for name, value in data.items() if name != "name"}
    for name in plain:
        if name not in known:
            raise Invalid(
                f"{field or cls.__name__}.{name}: {cls.__name__} has no such field; {nearest(name, known)}"
            )
    return _construct(
        cls, {name: _value(hints[name], v, f"{field}.{name}".strip("."), own) for name, v in plain.items()}
    )


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file; raises `Invalid` where it cannot be read."""
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Invalid(f"{path}: not a readable TOML file ({error})") from None


def parse(cls: type[Component], field: str, text: str) -> Any:
    """The text of a command line as a value of field `field` of `cls`; components of one's own as module:name."""
    hint = get_type_hints(cls, include_extras=True)[field]
    tree = (
        _own_tree(text) if text.lstrip().startswith(("[", "(")) else _tree(text)
    )  # a list may hold module:name
    return _value(hint, text if tree is None else _expression(tree, field), field, own=True)


def update(component: C, changes: Sequence[tuple[str, str]]) -> C:
    """The component with fields at dotted paths, as in ("method.tau", "0.1"), set from the texts of a command line.

    All changes of a component are made at once, so that checks across its fields see the outcome alone.
    """
    known = [f.name for f in dataclasses.fields(component)]
    new: dict[str, Any] = {}
    inner: dict[str, list[tuple[str, str]]] = {}
    for path, text in changes:
        name, _, rest = path.partition(".")
        if name not in known:
            raise Invalid(f"{path}: {type(component).__name__} has no field {name!r}; {nearest(name, known)}")
        if rest:
            inner.setdefault(name, []).append((rest, text))
        else:
            new[name] = parse(type(component), name, text)
    for name, deeper in inner.items():
        held = new.get(name, getattr(component, name))
        if not isinstance(held, Component):
            raise Invalid(f"{name}.{deeper[0][0]}: {name} = {held!r} has no fields")
        new[name] = update(held, deeper)
    return dataclasses.replace(component, **new)


@dataclasses.dataclass(frozen=True)
class _Call:
    """A component written as an expression, before its class is known."""

    name: str
    args: list[Any]
    fields: dict[str, Any]


def _expression(node: ast.expr, field: str) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.Name(id):
            return _Call(id, [], {})
        case ast.Call(ast.Name(id), args, keywords) if all(k.arg for k in keywords):
            values = {str(k.arg): _expression(k.value, str(k.arg)) for k in keywords}
            return _Call(id, [_expression(a, field) for a in args], values)
        case ast.Tuple(elts) | ast.List(elts):
            return [_expression(e, field) for e in elts]
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as number)):
            return -number
        case ast.UnaryOp(ast.USub(), ast.Name("inf")):
            return float("-inf")
    raise Invalid(
        f"{field} = {ast.unparse(node)!r}: allowed are values and names such as ALIE(z=1.5) or Chain(NNM, Median)"
    )


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What a type hint admits: components, lists of `item`, None, numbers with a point."""

    bases: tuple[type, ...]
    item: Any  # the hint of what a list holds; None where there is no list
    only_lists: bool
    none: bool
    float: bool

    @classmethod
    def of(cls, hint: Any) -> _Kind:
        options = list(_options(hint))
        items = [get_args(o)[0] for o in options if get_origin(o) is tuple]
        return cls(
            bases=tuple(o for o in options if isinstance(o, type) and issubclass(o, Component)),
            item=items[0] if items else None,
            only_lists=len(items) == len(options),
            none=types.NoneType in options,
            float=float in options,
        )


def _value(hint: Any, raw: Any, field: str, own: Allowed) -> Any:
    """A raw value as what a type hint asks for; the bounds themselves are checked by the component that takes it."""
    if isinstance(raw, str) and own is not True and raw != "none" and _of_a_file(hint):
        raise Invalid(
            f"{field} = {raw!r}: names a file of this machine, which what came over a network may not"
        )
    kind = _Kind.of(hint)
    match _parsed(raw, kind, field):
        case _Call() as call:
            return _named(call, kind, field, own)
        case Mapping() as table:
            return _from_table(table, kind, field, own)
        case list() | tuple() as parts:
            return tuple(parts if kind.item is None else (_value(kind.item, p, field, own) for p in parts))
        case plain:
            return plain


def _parsed(raw: Any, kind: _Kind, field: str) -> Any:
    """A raw value by its form: a call (of words too), a table, a list, or what is plain."""
    if kind.only_lists and not isinstance(raw, list | tuple):
        return [raw]  # one word where a list is meant
    if not isinstance(raw, str):
        return raw
    if raw.isidentifier():
        return _Call(raw, [], {})
    if not kind.bases:
        return raw
    if (tree := _own_tree(raw)) is None:
        raise Invalid(f"{field} = {raw!r}: allowed are names such as {_example(kind.bases)}")
    return _expression(tree, field)


def _from_table(table: Mapping[str, Any], kind: _Kind, field: str, own: Allowed) -> Any:
    """The component that a table describes; without a name, the one that the field's type is."""
    if not kind.bases:
        raise Invalid(f"{field} = {dict(table)!r}: must be a plain value")
    cls = kind.bases[0] if "name" not in table else find(str(table["name"]), field, kind.bases, own)
    return decode(cls, table, field, own)


def _named(call: _Call, kind: _Kind, field: str, own: Allowed) -> Any:
    """A bare word or a call: None, inf, a component, or just text."""
    bases, word = kind.bases, call.name.lower()
    if word == "none" and kind.none:
        return None
    if call.name in ("inf", "nan") and kind.float:
        return float(call.name)
    if not bases:
        return call.name
    if word == "none" or (kind.float and not _is_known(call.name, bases, own)):
        number = "a number, or " if kind.float else ""
        instead = "; a field that cannot be left out is no switch" if word == "none" else ""
        raise Invalid(f"{field} = {call.name!r}: allowed is {number}{', '.join(fitting(bases))}{instead}")
    return _called(call, bases, field, own)


def _called(call: _Call, bases: tuple[type, ...], field: str, own: Allowed) -> Component:
    """The component that a call makes, from values by place and by name."""
    cls = find(call.name, field, bases, own)
    hints = get_type_hints(cls, include_extras=True)
    parameters = list(inspect.signature(cls).parameters.values())
    fields: dict[str, Any] = {}
    for position, raw in enumerate(call.args):
        slot = parameters[min(position, len(parameters) - 1)] if parameters else None
        if slot is None or (position >= len(parameters) and slot.kind is not slot.VAR_POSITIONAL):
            raise Invalid(
                f"{field} = {call.name}(...): takes {len(parameters)} values, {len(call.args)} given"
            )
        if slot.kind is slot.VAR_POSITIONAL:
            item = _Kind.of(hints[slot.name]).item
            fields[slot.name] = (*fields.get(slot.name, ()), _value(item, raw, field, own))
        else:
            fields[slot.name] = _value(hints[slot.name], raw, f"{field}.{slot.name}", own)
    known = [f.name for f in dataclasses.fields(cls)]
    for name, raw in call.fields.items():
        if name not in known:
            raise Invalid(f"{field}.{name}: {cls.__name__} has no such field; {nearest(name, known)}")
        fields[name] = _value(hints[name], raw, f"{field}.{name}", own)
    return _construct(cls, fields)


def _is_known(name: str, bases: tuple[type, ...], own: Allowed) -> bool:
    return (own is not False and ":" in name) or name.lower() in map(str.lower, fitting(bases))


def _example(bases: tuple[type, ...]) -> str:
    """A name that a field of these types takes."""
    return next(iter(fitting(bases)), "module:name")


def _construct(cls: type[C], fields: dict[str, Any]) -> C:
    """The component from its fields; one that takes its parts one by one gets them so."""
    star = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.VAR_POSITIONAL]
    rest = {name: value for name, value in fields.items() if name not in star}
    missing = [
        p.name
        for p in inspect.signature(cls).parameters.values()
        if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and p.name not in rest
    ]
    if missing:
        raise Invalid(f"{cls.__name__}: {missing[0]} is missing, as in {cls.__name__}({missing[0]}=...)")
    return cls(*(part for name in star for part in fields.get(name, ())), **rest)


def _tree(text: str) -> ast.expr | None:
    """The text as a Python expression; None where it is none."""
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return None


def _own_tree(text: str) -> ast.expr | None:
    """As `_tree`, where names may be module:name too, which is no Python: words stand in for them."""
    names: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        names[word := f"own{len(names)}"] = match[0]
        return word

    tree = _tree(OWN.sub(stand_in, text))
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Name):
            node.id = names.get(node.id, node.id)
    return tree


def _of_a_file(hint: Any) -> bool:
    """Whether the text that a type hint takes is the path of a file."""
    return FILE in get_args(hint) or any(map(_of_a_file, get_args(hint)))


def _options(hint: Any) -> list[Any]:
    """The alternatives of a type hint, without what is only annotation."""
    if get_origin(hint) is Annotated:
        return _options(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [option for part in get_args(hint) for option in _options(part)]
    return [hint]
