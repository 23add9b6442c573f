"""Settings in a TOML file that people edit: unknown words are errors, and "none" stands for nothing."""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Self

import tomli_w

from fedsim.check import Component, Invalid, nearest


@dataclass(frozen=True, kw_only=True)
class Settings(Component):
    """A component that lies in a file of its own."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises `Invalid` where the file cannot be read, misses something, or says something unknown."""
        try:
            said: dict[str, Any] = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise Invalid(f"{path}: not a readable TOML file ({error})") from None
        known = {field.name: field for field in fields(cls)}
        for name in said:
            if name not in known:
                raise Invalid(f"{path}: {name!r} is unknown; {nearest(name, known)}")
        for name, field in known.items():
            if name not in said and field.default is MISSING and field.default_factory is MISSING:
                raise Invalid(f"{path}: {name} is missing")
        values: dict[str, Any] = {name: None if value == "none" else value for name, value in said.items()}
        return cls(**values)

    def save(self, path: Path, comment: str = "") -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: "none" if value is None else value for name, value in values.items()}
        path.write_text(comment + tomli_w.dumps(plain))
