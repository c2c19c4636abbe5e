"""What the pages say of commands, options, links and figures is so."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest

from jobs.arguments import make_parser
from tests.documents import PAGES, REPOSITORY, anchors, blocks, commands, our_arguments, prose

# Options of Slurm that pages name; those of Ray and of our benchmarks are looked up.
SLURM = {"--signal", "--requeue", "--no-kill"}
SHELL = ("", "sh", "bash", "text", "console")


def _subcommands() -> dict[str, argparse.ArgumentParser]:
    actions = make_parser()._subparsers._group_actions
    return dict(actions[0].choices)


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a command, and of what may follow its name."""
    nested = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    of_nested = {option for choices in nested for inner in choices.values() for option in _options(inner)}
    return {option for action in parser._actions for option in action.option_strings} | of_nested


def _names(page):
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=_names)
def test_every_command_of_a_page_parses(page, capsys):
    for command in [command for language in SHELL for block in blocks(page, language) for command in commands(block)]:
        arguments = our_arguments(command)
        if arguments is None or "..." in arguments or not arguments[0].isalpha():
            continue
        try:
            make_parser().parse_args(arguments)
        except SystemExit as exc:
            pytest.fail(f"{command}\n{capsys.readouterr().err}" if exc.code else command)


@pytest.mark.parametrize("page", PAGES, ids=_names)
def test_every_option_named_in_prose_exists(page):
    known = _options(make_parser()) | _ray_options() | _benchmark_options() | SLURM
    # But for the list of what is missing.
    promised = re.sub(r"^- (?:(?!^- ).)*?not built yet", "", prose(page), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`\n]+)`", promised):
        named = _subcommands().get((our_arguments(span) or [""])[0])
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span):
            assert option in (_options(named) if named else known), f"`{span}`: there is no {option}"


def _ray_options() -> set[str]:
    """The options of those commands of Ray that pages name."""
    from ray.dashboard.modules.job.cli import job_cli_group
    from ray.scripts.scripts import cli

    found = [*job_cli_group.commands.values(), *(cli.commands[name] for name in ("start", "get-auth-token", "up"))]
    return {option for command in found for parameter in command.params for option in parameter.opts}


def _benchmark_options() -> set[str]:
    sources = [path.read_text() for path in (REPOSITORY / "benchmarks").rglob("*.py")]
    return {option for source in sources for option in re.findall(r'"(--[a-z][a-z-]*)"', source)}


@pytest.mark.parametrize("page", PAGES, ids=_names)
def test_every_link_and_every_file_named_leads_somewhere(page):
    text = prose(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(linked), f"{linked.name} has no heading {anchor}"
    for name in re.findall(r"(?<![\w/.])((?:docs|examples|tests|benchmarks)/[\w./-]+\.\w+)", page.read_text()):
        assert (REPOSITORY / name).exists(), f"there is no {name}"


def test_every_runnable_command_of_the_clusters_page_is_one_that_a_test_runs():
    """`sh` blocks run in test_cluster.py (ray job submit) and test_slurm.py (the rest); `bash` blocks need a cloud."""
    page = REPOSITORY / "docs" / "clusters.md"
    first_words = [" ".join(command.split()[:2]) for block in blocks(page, "sh") for command in commands(block)]
    assert sorted(set(first_words)) == [
        *["export RAY_AUTH_MODE=token", "ray job", "sbatch --array=0-1", "sbatch --nodes=2"],
        *["vlm-cache stats", "vlm-cache verify"],
    ]


def test_the_commands_of_ray_on_the_clusters_page_exist_with_their_options():
    from ray.scripts.scripts import cli

    page = REPOSITORY / "docs" / "clusters.md"
    written = [
        command for language in ("sh", "bash") for block in blocks(page, language) for command in commands(block)
    ]
    spans = [span for span in re.findall(r"`(ray [a-z][^`\n]*)`", prose(page)) if span != "ray logs"]
    seen = 0
    for words in map(shlex.split, [command for command in written if command.startswith("ray ")] + spans):
        command = cli
        names = words[1:3]
        for name in names:
            if hasattr(command, "commands"):
                assert name in command.commands, words
                command = command.commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        used = [word for word in words[1 : words.index("--") if "--" in words else None] if word.startswith("--")]
        assert set(used) <= options, words
        seen += 1
    assert seen >= 10


def test_the_image_of_the_clusters_page_has_the_pinned_ray():
    (image,) = re.findall(r"FROM rayproject/ray:([\d.]+)-", (REPOSITORY / "docs" / "clusters.md").read_text())
    assert f"ray=={image}" in (REPOSITORY / "constraints.txt").read_text().splitlines()
