"""The page's blocks run as they stand."""

from __future__ import annotations

from tests.documents import REPOSITORY, blocks


def test_every_block_of_the_page_runs(capsys):
    names: dict = {}
    for block in blocks(REPOSITORY / "docs" / "streaming.md", "python"):
        exec(compile(block, "docs/streaming.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "'chunks_evicted': " in printed
    assert "'Yes': " in printed
