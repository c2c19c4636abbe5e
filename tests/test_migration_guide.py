"""docs/migration.md is right: its new imports import, its commands parse, its examples print what they say."""

from __future__ import annotations

import ast
import re
import shlex

import pytest

from jobs.arguments import make_parser
from tests.documents import REPOSITORY, blocks

PAGE = REPOSITORY / "docs" / "migration.md"
ROWS = [line.strip("|").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
NEW = [span for row in ROWS for span in re.findall(r"`([^`]+)`", row[-1])]
IMPORTS = [span for span in NEW if span.startswith("from ")]
COMMANDS = [span for span in NEW if span.startswith("vlm-cache ") and "--" in span]


def test_the_tables_are_read_whole():
    assert len(IMPORTS) == 13
    assert len(COMMANDS) == 12


@pytest.mark.parametrize("line", IMPORTS)
def test_every_new_import_imports(line):
    exec(line, {})


def test_every_name_that_users_of_the_scripts_import_is_on_the_page():
    named = {alias.name for line in IMPORTS for alias in ast.parse(line).body[0].names}
    assert named == {
        *("VLACacheManager", "get_cache_manager", "FeatureStore", "VideoKey", "LongVA_Cached"),
        *("UnifiedVLADataset", "unified_collate_fn", "create_unified_dataloader"),
        *("KVCacheManager", "VideoStreamingInference", "StreamQwenModel", "EvictionConfig", "SmartFrameManager"),
        *("VideoSampler", "DelayedBatchInferenceEngine", "QwenInferenceWrapper"),
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_new_command_parses(command):
    assert make_parser().parse_args(shlex.split(command)[1:]).command == command.split()[1]


def test_the_examples_print_what_the_page_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in blocks(PAGE, "python"):
        exec(compile(block, "docs/migration.md", "exec"), {})
    assert capsys.readouterr().out == "".join(blocks(PAGE, "text"))
