"""Downloads every object of a remote root and checks its checksums; sets damaged ones aside if asked to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cache_store import naming
from cache_store.archive import open_content
from cache_store.errors import DamagedFeature
from cache_store.name_sample import Sample
from cache_store.remote.objects import ObjectInfo, Objects
from cache_store.reports import Problem, VerifyProgress, VerifyReport

Progress = Callable[[VerifyProgress], None]


def check_objects(
    objects: Objects, progress: Progress | None, *, workers: int, repair: bool, sample: Sample | None = None
) -> VerifyReport:
    """As `FeatureStore.verify` for the objects below a URL, `workers` at a time.

    Raises:
        StoreReadError, StoreWriteError: the service refused or could not be reached.
    """
    infos, others = _listed(objects)
    if sample is not None:
        chosen = sample.draw(info.name for info in infos)
        infos = [info for info in infos if info.name in chosen]
    problems: list[Problem] = []
    done, done_bytes = 0, 0
    lock = threading.Lock()

    def check(info: ObjectInfo) -> None:
        nonlocal done, done_bytes
        problem = _problem_of(objects, info, repair=repair)
        with lock:
            done, done_bytes = done + 1, done_bytes + info.bytes
            problems.extend([problem] if problem is not None else [])
            if progress is not None:
                progress(VerifyProgress(done, len(infos), done_bytes, len(problems)))

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(check, infos):
            pass
    problems.sort(key=lambda problem: problem.path)
    return VerifyReport(done, problems, repair, done_bytes, sorted(others), None if sample is None else sample.seed)


def _listed(objects: Objects) -> tuple[list[ObjectInfo], list[str]]:
    infos: list[ObjectInfo] = []
    others: list[str] = []
    for page in objects.pages():
        for info in page:
            if naming.is_feature(info.name):
                infos.append(info)
            elif info.name.endswith(naming.SUFFIX):
                others.append(info.name)
    return infos, others


def _problem_of(objects: Objects, info: ObjectInfo, *, repair: bool) -> Problem | None:
    for _ in range(2):  # what was damaged on its way is not damaged
        got = objects.get(info.name, lambda content, now: (content, now))
        if got is None:
            return None
        content, now = got
        try:
            with open_content(f"{objects.url}/{info.name}", content) as opened:
                opened.verify()
                opened.record()
            return None
        except DamagedFeature as exc:
            reason = exc.reason
    if not repair or objects.head(info.name) != now:
        return Problem(info.name, reason)
    moved_to = naming.quarantine_name(info.name)
    objects.put(moved_to, content)
    objects.delete(info.name)
    return Problem(info.name, reason, moved_to)
