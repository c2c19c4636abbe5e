"""`vlm-cache ls` and `vlm-cache show`: the features of a store, and what one of them says of itself."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.markup import escape

from cache_store import EntryInfo, FeatureKey, FeatureStore, StepKey, VideoKey, describe
from cache_store.codec import described
from cache_store.dataset_patterns import DatasetPatterns
from cache_store.opening import is_file, is_packed, open_feature
from cache_store.reader import candidates
from cache_store.remote.store import RemoteStore
from jobs.printing import open_store, printable, results
from jobs.sizes import format_size
from pipeline.errors import BuildRefused

_LINES_AT_ONCE = 1000
_SORT_KEYS = {
    "bytes": lambda entry: (-entry.bytes, entry.name),
    "written": lambda entry: (-entry.mtime, entry.name),
    "used": lambda entry: (-entry.last_use, entry.name),
}


def ls(args: argparse.Namespace) -> int:
    """List the features, one line each: aligned for a terminal, separated by tabs for everything else."""
    with open_store(args.store) as store:
        entries = _wanted(store.entries(), args.dataset)
        if args.sort != "name":
            entries = iter(sorted(entries, key=_SORT_KEYS[args.sort]))
        if args.json:
            _print_json_array(entry.to_json() for entry in entries)
        elif sys.stdout.isatty():
            _print_aligned(entries)
        else:
            _print_lines(map(_tab_separated, entries))
    return 0


def _wanted(entries: Iterator[EntryInfo], datasets: list[str] | None) -> Iterator[EntryInfo]:
    if datasets is None:
        yield from entries
        return
    patterns = DatasetPatterns(datasets)
    for entry in entries:
        dataset, _, fingerprint8 = entry.dataset.partition("@")
        if patterns.matches(dataset, fingerprint8 or None):
            yield entry


def _print_json_array(values: Iterable[Any]) -> None:
    """Print a JSON array of any length, a line for each value."""
    separator = "["
    for value in values:
        print(separator + json.dumps(value), end="")
        separator = ",\n"
    print("[]" if separator == "[" else "]")


def _print_lines(lines: Iterator[str]) -> None:
    while some := list(itertools.islice(lines, _LINES_AT_ONCE)):
        print("\n".join(some))


def _print_aligned(entries: Iterator[EntryInfo]) -> None:
    # The name comes last, so that columns align without knowing how long the longest name will be.
    print(f"{'size':>9}  {'written':19}  {'last used':19}  {'recipe':8}  file")
    _print_lines(map(_aligned, entries))


def _aligned(entry: EntryInfo) -> str:
    recipe = entry.recipe_fingerprint8 or "-"
    times = f"{_time(entry.mtime)}  {_time(entry.last_use)}"
    return f"{format_size(entry.bytes):>9}  {times}  {recipe:8}  {printable(entry.name)}"


def _tab_separated(entry: EntryInfo) -> str:
    recipe = entry.recipe_fingerprint8 or "-"
    return f"{entry.name}\t{entry.bytes}\t{_time(entry.mtime, 'T')}\t{_time(entry.last_use, 'T')}\t{recipe}"


def _time(seconds: float, separator: str = " ") -> str:
    minute, second = divmod(int(seconds), 60)
    return f"{_minute(minute, separator)}:{second:02d}"


@functools.cache
def _minute(minute: int, separator: str) -> str:
    return datetime.fromtimestamp(minute * 60).isoformat(sep=separator, timespec="minutes")


def show(args: argparse.Namespace) -> int:
    """Print what one file says of itself, found by its path or by its key in a store."""
    key = _key(args)
    if isinstance(args.store, str):
        info = _object_described(args.store, key, args.file)
    else:
        info = _described(_path_shown(args, key), args.store)
    if args.json:
        print(json.dumps(info))
        return 0
    console = results()
    console.print(f"[bold]{escape(printable(info['path']))}[/]  {format_size(info['bytes'])}", soft_wrap=True)
    for tensor in info["tensors"]:
        where = escape(printable(tensor["path"] or "tensor"))
        console.print(f"  {where}: {tensor['dtype']} {tensor['shape']}", soft_wrap=True, markup=True)
    if info["int8_loss"] is not None:
        console.print(f"  kept as int8, which cost {_loss_in_words(info['int8_loss'])}", soft_wrap=True)
    for part in ("key", "recipe", "provenance"):
        if info[part] is None:
            why = " (written by a plain torch.save)" if info["key"] is None else ""
            console.print(f"[bold]{part}[/]: none{why}")
            continue
        fingerprint = f" {info['recipe_fingerprint']}" if part == "recipe" else ""
        console.print(f"[bold]{part}[/]{fingerprint}")
        console.print_json(json.dumps(_short_lists(info[part])))
    return 0


def _loss_in_words(loss: dict[str, float]) -> str:
    return (
        f"a cosine of {loss['worst_cosine']:.6f} in the worst token and {loss['mean_cosine']:.6f} in the mean, "
        f"errors up to {loss['max_error']:.3g}, {100 * loss['relative_error']:.2f} % of the norm"
    )


def _described(path: Path, store: Path | None) -> dict[str, Any]:
    packed = None if path.is_file() else _packed_at(path, store)
    if packed is None:
        return describe(path).to_json()
    with open_feature(*packed) as opened:
        return described(opened).to_json()


def _packed_at(path: Path, store: Path | None) -> tuple[Path, str] | None:
    """The root and name of a packed feature whose file would lie at `path`; without `store` the folders are tried."""
    path = path.absolute()
    for root in path.parents[:2] if store is None else [store.absolute()]:
        if path.is_relative_to(root) and is_packed(root, path.relative_to(root).as_posix()):
            return root, path.relative_to(root).as_posix()
    return None


def _path_shown(args: argparse.Namespace, key: FeatureKey | None) -> Path:
    if key is None:
        if args.file is None:
            raise BuildRefused("say which feature: a FILE, or --store ROOT with --dataset and --vlm-idx or --video-id")
        path = args.file if args.store is None else args.store / args.file
        if not path.is_file() and _packed_at(path, args.store) is None:
            raise BuildRefused(f"{path} is no file")
        return Path(path)
    if args.store is None or args.file is not None:
        raise BuildRefused("a key (--dataset and what goes with it) needs --store ROOT, and no FILE")
    with open_store(args.store) as store:
        return _path_of(store, key)


def _object_described(url: str, key: FeatureKey | None, file: Path | None) -> dict[str, Any]:
    if (key is None) == (file is None):
        raise BuildRefused(
            f"say which feature of {url}: a FILE, relative to it, or a key (--dataset and what goes with it)"
        )
    with open_store(url) as store:
        assert isinstance(store, RemoteStore)
        names = [str(file)] if key is None else store.possible_names(key)
        found = next(filter(None, map(store.describe, names)), None)
    if found is None:
        raise BuildRefused(f"{file if key is None else next(candidates(key, None))} is not in {url}")
    return found.to_json()


def _key(args: argparse.Namespace) -> FeatureKey | None:
    """Return the key that the options spell; None when they spell none."""
    of_video = (args.video_id, args.nframe, args.model_signature)
    if args.dataset is None and args.vlm_idx is None and all(field is None for field in of_video):
        return None
    if args.dataset is not None and args.vlm_idx is not None and all(field is None for field in of_video):
        return StepKey(args.dataset, args.vlm_idx, args.prompt_hash)
    if None not in (args.dataset, *of_video) and args.vlm_idx is None:
        return VideoKey(args.dataset, args.video_id, args.nframe, args.model_signature)
    raise BuildRefused(
        "a step is --dataset and --vlm-idx (and perhaps --prompt-hash); "
        "a video is --dataset, --video-id, --nframe and --model-signature"
    )


def _path_of(store: FeatureStore, key: FeatureKey) -> Path:
    """Where the feature lies: where a reader finds it, else in the folder of a second recipe."""
    plain = list(candidates(key, None))
    names = [name for name in plain if is_file(store.root, name)]
    if not names and isinstance(key, VideoKey):
        file = plain[0].rpartition("/")[2]
        second = {entry.name.rpartition("/")[0] for entry in store.entries() if entry.name.endswith(f"/{file}")}
        second = {folder for folder in second if folder.startswith(f"{key.dataset}@")}
        names = [f"{folder}/{file}" for folder in sorted(second)]
    if not names:
        raise BuildRefused(f"{key} is not in {store.root}; a reader would look for {plain[0]}")
    if len(names) > 1:
        print(f"also stored as {', '.join(names[1:])}", file=sys.stderr)
    return store.root / names[0]


def _short_lists(value: Any) -> Any:
    """Cut long lists of numbers, such as 128 frame indices, for the eye; `--json` has them whole."""
    if isinstance(value, dict):
        return {name: _short_lists(inner) for name, inner in value.items()}
    if isinstance(value, list) and len(value) > 8:
        return f"[{', '.join(map(str, value[:3]))}, ... {value[-1]}] ({len(value)} values)"
    return value
