"""The project's Markdown pages as tests read them: fenced blocks, the commands in them, links and headings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
OURS = ("vlm-cache", "python -m jobs")
_FENCE = re.compile(r"^```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str | None = None) -> list[str]:
    """Return the fenced blocks of a page, of one language if it is named."""
    return [match["text"] for match in _FENCE.finditer(page.read_text()) if language in (None, match["language"])]


def commands(block: str) -> list[str]:
    """Return a block's shell commands, each in one line, without prompts, comments and what they print."""
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    bare = [re.split(r"(?:^|\s)#(?:\s|$)", line)[0].strip() for line in prompted or lines]
    return [line for line in bare if line]


def our_arguments(command: str) -> list[str] | None:
    """Return the arguments of `vlm-cache` in a command, however it is started; None where it is not started."""
    for name in OURS:
        before, found, after = command.partition(f"{name} ")
        # Not in the middle of a word or of a path, such as `docs/vlm-cache` or `RAY=vlm-cache`.
        if found and (not before or before.endswith(" ")):
            return shlex.split(re.split(r"[;|&>]", after)[0])
    return None


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
