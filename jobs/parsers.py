"""How each command's parser is made: help that shows defaults and examples, and the options that many share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from pipeline.sources import MediaPath, parse_media_path

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
# What takes arguments: a parser, or one headed group of it.
Arguments: TypeAlias = "argparse._ActionsContainer"


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, fills the description, and keeps the examples' line breaks."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # "(default: None)" tells nobody anything.
        if action.default in (None, False, [], ""):
            return action.help
        return super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        # An example must stay as it can be pasted.
        if text.startswith("example"):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


class Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, where argparse would print every option before it."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help lists the options\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is unknown here, in the command's own name: argparse would leave that to the first parser."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def add_command(commands: Commands, name: str, summary: str, *examples: str) -> Parser:
    """Add and return the parser of one command; the list of commands shows the summary's first sentence."""
    lines = "\n".join(f"  {example}" for example in examples)
    return commands.add_parser(
        name,
        help=summary.partition(". ")[0].partition(":")[0].rstrip(".") + ".",
        description=summary,
        epilog=f"example{'s' if len(examples) > 1 else ''}:\n{lines}",
        formatter_class=_Help,
    )


def given_path(text: str) -> MediaPath:
    """Return where media or annotations lie as it is typed: a path, or a URL."""
    _require(text)
    return parse_media_path(text)


def _require(text: str) -> None:
    if not text:
        # The path of an unset variable would be the folder that one happens to be in.
        raise argparse.ArgumentTypeError("an empty path; name a folder, or . for this one")


def whole_text(text: str) -> str:
    """Return a text that is part of a recipe, which bytes that are no UTF-8 cannot be."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise argparse.ArgumentTypeError(f"{text!a} is no text: {exc.reason}") from exc
    return text


def store_root(text: str) -> Path | str:
    """Return a store's root as it is typed: a folder, or a URL as it is."""
    _require(text)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return text.rstrip("/") if "://" in text else Path(text)


def add_store(arguments: Arguments) -> None:
    """Add `--store` and `--json`."""
    arguments.add_argument(
        "--store", required=True, type=store_root, metavar="ROOT", help="folder or URL of the feature store"
    )
    add_json(arguments)


def add_json(arguments: Arguments) -> None:
    """Add `--json`."""
    arguments.add_argument("--json", action="store_true", help="print JSON instead of text")
