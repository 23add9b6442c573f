"""Text as windows of tokens, whose labels are the tokens that follow."""

from __future__ import annotations

import gzip
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.check import Chance, Component, Count, File, Invalid
from fedsim.datasets.files import located, require_room
from fedsim.types import Data, Dataset, Examples

__all__ = ["Characters", "Shakespeare", "Text"]

ASCII = "\n" + "".join(map(chr, range(32, 127)))
PIECE = 2**20  # bytes of a packed file at a time
SHAKESPEARE = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Tokenizer(Component):
    """Text to whole numbers below `size`."""

    size: int

    @abstractmethod
    def __call__(self, text: str) -> Sequence[int]: ...


@dataclass(frozen=True)
class Characters(Tokenizer):
    """A token a character, in the order of `alphabet`; all other characters are one more token.

    The alphabet is declared, not read off the text: as it stands it is printable ASCII and the line end: size 97.
    """

    alphabet: str = ASCII

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.alphabet) + 1

    def __call__(self, text: str) -> Sequence[int]:
        places = {c: i for i, c in enumerate(self.alphabet)}
        return [places.get(c, len(self.alphabet)) for c in text]


@dataclass(frozen=True)
class OwnTokenizer(Tokenizer):
    """A user's function encode(text) -> whole numbers below `size`, known by the place where it stands."""

    size: Count
    function: ClassVar[Callable[[str], Sequence[int]]]

    def __call__(self, text: str) -> Sequence[int]:
        return type(self).function(text)


def tokens_of(tokenizer: Tokenizer, text: Any, field: str) -> Tensor:
    """The tokens (T,) of a text, int64; raises `Invalid` where it is none, or the tokenizer does not give such."""
    name = f"{field} = {type(tokenizer).__name__}"
    if not isinstance(text, str):
        raise Invalid(f"{name}: {str(text)[:40]!r} is no text")
    try:
        tokens = np.asarray(tokenizer(text))
    except Exception as error:
        raise Invalid(f"{name}: raises {type(error).__name__}: {str(error)[:200]}") from error
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise Invalid(
            f"{name}: gives {tokens.dtype} of shape {tokens.shape}; must be a list of whole numbers"
        )
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < tokenizer.size:
        raise Invalid(
            f"{name}: gives tokens outside of 0 to {tokenizer.size - 1}; must be a list of such, or its size other"
        )
    return torch.from_numpy(tokens.astype(np.int64))


@cache
def own(function: Callable[[str], Sequence[int]]) -> type[Tokenizer]:
    """The tokenizer that a function is, as a component."""
    place = {"__module__": function.__module__, "__qualname__": function.__qualname__}
    members = {**place, "__doc__": function.__doc__, "function": staticmethod(function)}
    return dataclass(frozen=True)(type(function.__name__, (OwnTokenizer,), members))


@dataclass(frozen=True)
class Text(Data):
    """A text file (.txt, also .gz) in windows of `window` tokens; labels are the tokens that follow.

    Text("plays.txt", by="speaker", window=64)

    by         whose a text is, for the split `Natural`: "speaker", blocks apart by blank lines that begin with NAME:;
               "file", where `path` is a folder of one .txt an owner; "nobody"
    target     "window": the label of every place is the next token, (N, T); "last": that after the window, (N,)
    tokenizer  Characters(), or a function of one's own module:encode(size=...), text -> whole numbers
    step       tokens from one window to the next, by default a whole window; test: the last share of each owner's text
    No window is cut from both sides of that cut. Owners with too little text for a window are left out.
    """

    path: File
    by: Literal["speaker", "file", "nobody"] = "nobody"
    window: Count = 64
    target: Literal["window", "last"] = "window"
    tokenizer: Tokenizer = Characters()
    step: Count | None = None
    test: Chance = 0.1

    def load(self) -> Dataset:
        return windows(self, _owned(located(self.path, "Text.path"), self.by))


@dataclass(frozen=True)
class Shakespeare(Data):
    """The plays of "tiny Shakespeare" (Karpathy, char-rnn), 1,115,394 characters by some 300 speakers; next character.

    From tinyshakespeare/input.txt (or .gz) in the folder FEDSIM_DATA; its 65 characters are a constant. Windows as in
    `Text`; speakers with fewer than `least` characters are left out.
    """

    window: Count = 64
    target: Literal["window", "last"] = "window"
    step: Count | None = None
    least: Count = 1000
    test: Chance = 0.1
    tokenizer: ClassVar[Tokenizer] = Characters(SHAKESPEARE)

    def load(self) -> Dataset:
        from fedsim.datasets.files import data_root

        folder = data_root() / "tinyshakespeare"
        found = [file for file in (folder / "input.txt", folder / "input.txt.gz") if file.is_file()]
        if not found:
            raise Invalid(
                f"Shakespeare: no input.txt or input.txt.gz in {folder.absolute()}; FEDSIM_DATA names the folder"
            )
        owned = _owned(found[0], "speaker")
        return windows(self, {who: said for who, said in owned.items() if len(said) >= self.least})


def windows(data: Text | Shakespeare, owned: dict[str, str]) -> Dataset:
    """The windows of what each owner said; the last share of it, in windows of its own, is for testing."""
    sides: dict[bool, list[tuple[Tensor, int]]] = {False: [], True: []}
    size, name, held = data.tokenizer.size, type(data).__name__, 0
    for owner, said in enumerate(owned.values()):
        tokens = tokens_of(data.tokenizer, said, f"{name}.tokenizer")
        cut = len(tokens) - round(data.test * len(tokens))
        for test, part in ((False, tokens[:cut]), (True, tokens[cut:])):
            if len(part) > data.window:
                pieces = part.unfold(0, data.window + 1, data.step or data.window)
                held += 16 * pieces.numel()
                sides[test].append((pieces, owner))
        require_room(held, name)
    if not sides[False] or not sides[True]:
        raise Invalid(
            f"{name}.window = {data.window}: no owner has so much text on both sides of test = {data.test}"
        )
    parts = {test: torch.cat([pieces for pieces, _ in side]) for test, side in sides.items()}
    groups = {
        test: torch.cat([torch.full((len(p),), who) for p, who in side]) for test, side in sides.items()
    }

    def examples(whole: Tensor) -> Examples:
        y = whole[:, 1:] if data.target == "window" else whole[:, -1]
        return Examples(whole[:, :-1].contiguous(), y.contiguous())

    named = len(owned) > 1
    return Dataset(
        examples(parts[False]), examples(parts[True]), size, *([groups[False], groups[True]] if named else [])
    )


def _owned(path: Path, by: str) -> dict[str, str]:
    """What each owner said."""
    if by == "file":
        files = sorted(path.glob("*.txt")) if path.is_dir() else []
        if not files:
            raise Invalid(f"Text.path = {str(path)!r} with by = 'file': must be a folder of .txt files")
        return {file.stem: _text(file) for file in files}
    text = _text(path)
    if by == "nobody":
        return {"": text}
    return spoken(text.split("\n\n"))


def spoken(blocks: Iterable[str]) -> dict[str, str]:
    """The lines of each speaker, of blocks that begin with a line NAME:; one without it is nobody's."""
    said: dict[str, list[str]] = {}
    for block in blocks:
        who, colon, lines = block.strip("\n").partition(":\n")
        if colon and "\n" not in who:
            said.setdefault(who, []).append(lines)
    if not said:
        raise Invalid("Text.by = 'speaker': no block of the text begins with a line NAME:")
    return {who: "\n".join(lines) for who, lines in said.items()}


def _text(path: Path) -> str:
    try:
        require_room(4 * path.stat().st_size, f"Text {path}")
        return (_unpacked(path) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise Invalid(f"Text {path}: not a readable text in UTF-8 ({error})") from None


def _unpacked(path: Path) -> bytes:
    """What a .gz file holds: piece by piece, since nothing says before how much it is."""
    whole = bytearray()
    with gzip.open(path) as packed:
        while piece := packed.read(PIECE):
            whole += piece
            require_room(4 * len(whole), f"Text {path}")
    return bytes(whole)
