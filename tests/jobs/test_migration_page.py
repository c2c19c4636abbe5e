"""docs/migration-of-caches.md shows what happens: its caches are made, its commands run, and every line compared."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

from jobs.__main__ import main

PAGE = (Path(__file__).parents[2] / "docs" / "migration-of-caches.md").read_text()
STATUS = '; echo "exit status $?"'


def output_of(line: str, capsys) -> str:
    if not line.startswith("vlm-cache "):
        return subprocess.run(line, shell=True, stdout=subprocess.PIPE, text=True, check=True).stdout
    status = main(shlex.split(line.removesuffix(STATUS))[1:])
    shown = f"exit status {status}\n" if line.endswith(STATUS) else ""
    return capsys.readouterr().out + shown


def test_the_two_migrations_run_as_the_page_shows_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")  # as in a file, whatever terminal the tests run in
    (made,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(made, {})
    transcripts = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    assert len(transcripts) == 2
    for transcript in transcripts:
        seen = []
        for line in re.findall(r"^\$ (.*)$", transcript, re.MULTILINE):
            seen += [f"$ {line}", *output_of(line, capsys).splitlines()]
        assert [line.rstrip() for line in seen] == transcript.splitlines()


def test_every_way_of_the_table_is_one_that_the_command_knows():
    from jobs.arguments import make_parser

    commands = re.findall(r"`vlm-cache (migrate --store .*?)` \|", PAGE)
    assert len(commands) == 5
    for command in commands:
        assert make_parser().parse_args(shlex.split(command)).command == "migrate"
