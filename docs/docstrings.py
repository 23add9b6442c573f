"""Docstrings, which are plain text, as Markdown: for the pages of components, and for the API reference."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


def paragraphs(text: str) -> list[str]:
    """Docstring paragraphs; one whose columns are aligned keeps its lines."""
    return [
        f"```text\n{block}\n```" if re.search(r"\S  +\S", block) else prose(block)
        for block in text.split("\n\n")
    ]


def prose(text: str) -> str:
    """Plain text as Markdown, with papers as links."""
    pieces = re.split(r"(`[^`]*`)", text)
    safe = [p if p.startswith("`") else re.sub(r"([\\*_<>|\[\]])", r"\\\1", p) for p in pieces]
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", "".join(safe))


class PlainText(Extension):
    """For mkdocstrings, which takes a docstring for Markdown."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = "\n\n".join(paragraphs(obj.docstring.value))
