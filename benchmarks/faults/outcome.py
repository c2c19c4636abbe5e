"""What a fault script found: counts of what happened, and every wrong thing in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cache_store import FeatureStore, shards
from cache_store.shard_file import Shard


@dataclass
class Outcome:
    """Counts by what was counted; `problems` must stay empty."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def expect(self, is_right: bool, problem: str) -> None:
        """Note a problem unless `is_right`."""
        if not is_right:
            self.problems.append(problem)


@dataclass(frozen=True)
class Load:
    """How much a script is to do: `count` of its own unit, or `seconds` for those that run for a time."""

    folder: Path
    count: int
    seconds: float
    seed: int


Script = Callable[[Load], Outcome]


def _features(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.pt") if ".taken" not in path.relative_to(folder).as_posix()]


def _counting(shard: Shard) -> list[tuple[str, int]]:
    return [(shard.name(row), int(shard.bytes[row])) for row in shard.counting().nonzero()[0].tolist()]


def check_books(store: FeatureStore, outcome: Outcome, where: str) -> None:
    """No file is damaged, and the statistics are those of the files."""
    found = store.verify(workers=1)
    outcome.expect(not found.problems, f"{where}: verify found {[problem.reason for problem in found.problems[:3]]}")
    stats = store.stats()
    packed = shards.of(store.root).view()
    # Of every name one: a loose file hides what is packed, and what an unfinished pack has taken.
    sizes = {name: size for shard in packed.shards for name, size in _counting(shard)}
    for folder in [*packed.taken, store.root]:
        sizes.update((path.relative_to(folder).as_posix(), path.stat().st_size) for path in _features(folder))
    files = list(sizes.values())
    outcome.expect(
        (stats.entries, stats.bytes) == (len(files), sum(files)),
        f"{where}: stats say {stats.entries} entries of {stats.bytes} bytes, there are {len(files)} of {sum(files)}",
    )
    outcome.counts["checks of the whole store"] += 1
