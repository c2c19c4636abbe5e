"""The only place that knows file names: of features, of second recipes, and of the store's own files."""

from __future__ import annotations

import functools
import hashlib
import itertools
import operator
import os
import re
import unicodedata
import uuid
from dataclasses import dataclass

from cache_store.errors import InvalidKey, StoreFormatError
from cache_store.keys import FeatureKey, StepKey, VideoKey
from cache_store.processes import HERE

STORE_FOLDER = ".vlm-cache"
SETTINGS = f"{STORE_FOLDER}/store.json"
LEASE = f"{STORE_FOLDER}/compactor.lock"
PACK_LEASE = f"{STORE_FOLDER}/packing.lock"
JOURNALS = f"{STORE_FOLDER}/journals.2"  # apart from those of format 1, whose lines mean something else
JOURNALS_OF_FORMAT_1 = f"{STORE_FOLDER}/journals"
RECIPES = f"{STORE_FOLDER}/recipes"
PLANS = f"{STORE_FOLDER}/plans"
QUARANTINE = f"{STORE_FOLDER}/quarantine"
PINS = f"{STORE_FOLDER}/pins"
FORGOTTEN = f"{STORE_FOLDER}/forgotten"  # of a store of copies: a byte for each one that was to be deleted
# Of the builds that write into the store; the store itself never looks there.
RUNS = f"{STORE_FOLDER}/runs"
CLAIMS = f"{STORE_FOLDER}/claims"
BATCH_SIZES = f"{STORE_FOLDER}/batch_sizes.json"
META = "cache_meta.json"
# Not under the store's folder, which anyone may delete: what lies here is features.
PACKED = "packed"
SHARD_INDEX = f"{PACKED}/index.parquet"
TAKEN_SUFFIX = ".taken"

SUFFIX = ".pt"
_SHARD_SUFFIX = ".arrow"
SHARD_PATTERN = r"^packed/[0-9a-f]{32}\.arrow$"
TEMP_PREFIX = ".vlm-tmp-"
# A regular expression for what follows the data set in a feature's name.
GROUP_SUFFIX = r"_vlm[0-9]+\.pt$|/[0-9a-f]{32}\.pt$"
# Entries below are judged apart from larger ones, so that one large entry does not push out a thousand small ones.
SMALL_BELOW_BYTES = 1 << 20
MAX_DATASET_BYTES = 180  # + "_vlm", 20 digits, ".pt" and a recipe's "@12345678" stay under the 255 of a name

_HASH8 = re.compile(r"[0-9a-f]{8}")
_HEX32 = re.compile(r"[0-9a-f]{32}")  # an MD5, or a UUID without its hyphens
_INDEX = re.compile(r"0|[1-9][0-9]*")
_SAFE_DATASETS: set[str] = set()  # names that passed; a reader asks for the same ones a million times
_MAX_SAFE_DATASETS = 1 << 16
_SNAPSHOT = re.compile(r"snapshot(?:\.([1-9][0-9]*))?")
_SHORTENED_URL = re.compile(r"[a-z][a-z0-9+.-]+:/(?!/)")
_RUN_ID = re.compile(r"[A-Za-z0-9._:-]{1,80}")


@dataclass(frozen=True)
class ParsedName:
    """What a feature's relative path tells: `key` only for steps (a video's MD5 cannot be turned back)."""

    dataset: str
    key: StepKey | None = None
    fingerprint8: str | None = None  # of a second recipe's folder

    @property
    def is_video(self) -> bool:
        return self.key is None


def model_signature(tower: str, select_layer: int) -> str:
    """First 8 hex digits of MD5 of `"<tower>:layer<select_layer>"`, as the LongVA scripts computed it."""
    return _md5(f"{tower}:layer{select_layer}")[:8]


def prompt_hash(instruction: str) -> str:
    """First 8 hex digits of SHA-256 of the instruction in UTF-8."""
    return hashlib.sha256(instruction.encode("utf-8")).hexdigest()[:8]


def relative_path(key: FeatureKey, *, second_recipe: str | None = None) -> str:
    """Where a feature lives under the root, with "/" as separator.

    `second_recipe` is the fingerprint of a recipe that does not own its video family; steps have one path
    only.

    Raises:
        InvalidKey: a part of the key cannot be a safe name.
    """
    if isinstance(key, StepKey):
        return step_path(key)
    if isinstance(key, VideoKey):
        return _video_path(key, second_recipe)
    raise InvalidKey("is neither a StepKey nor a VideoKey", field="key", value=key)


def step_path(key: StepKey) -> str:
    try:
        if key.prompt_hash is None and type(key.vlm_idx) is int and key.vlm_idx >= 0 and key.dataset in _SAFE_DATASETS:
            return f"{key.dataset}_vlm{key.vlm_idx}.pt"
    except TypeError:
        pass  # not hashable, and so no string
    check_dataset(key.dataset)
    if len(_SAFE_DATASETS) < _MAX_SAFE_DATASETS:
        _SAFE_DATASETS.add(key.dataset)
    index = _whole_number(key.vlm_idx, field="vlm_idx", minimum=0)
    name = f"{key.dataset}_vlm{index}{SUFFIX}"
    if key.prompt_hash is None:
        return name
    if not isinstance(key.prompt_hash, str) or not _HASH8.fullmatch(key.prompt_hash):
        raise InvalidKey("is not 8 lower-case hex digits", field="prompt_hash", value=key.prompt_hash)
    return f"{key.prompt_hash}/{name}"


def _video_path(key: VideoKey, second_recipe: str | None) -> str:
    check_dataset(key.dataset)
    nframe = _whole_number(key.nframe, field="nframe", minimum=1)
    for field in ("video_id", "model_signature"):
        value = getattr(key, field)
        if not isinstance(value, str) or not value:
            raise InvalidKey("is not a non-empty string", field=field, value=value)
        _check_encodable(value, field)
    digest = _md5(f"{key.dataset}:{key.video_id}:nframe{nframe}:model{key.model_signature}")
    folder = key.dataset if second_recipe is None else f"{key.dataset}@{second_recipe[:8]}"
    return f"{folder}/{digest}{SUFFIX}"


def family_marker(key: VideoKey) -> str:
    """The marker file that says which recipe owns the plain folder for this data set, nframe and tower."""
    return f"{RECIPES}/{_md5(f'{key.dataset}:nframe{key.nframe}:model{key.model_signature}')}.json"


def parse(relative: str) -> ParsedName | None:
    """Read a relative path back into what it tells; None for anything that is not a feature's name."""
    folder, slash, name = relative.rpartition("/")
    if not name.endswith(SUFFIX) or "/" in folder or (slash and not folder):
        return None
    stem = name[: -len(SUFFIX)]
    if folder and _HEX32.fullmatch(stem):
        return parse_video_folder(folder)
    # Not the other way round: an episode's own name may contain "_vlm".
    dataset, separator, index = stem.rpartition("_vlm")
    if not separator or not _INDEX.fullmatch(index) or not is_dataset(dataset):
        return None
    if folder and not _HASH8.fullmatch(folder):
        return None
    return ParsedName(dataset, StepKey(dataset, int(index), folder or None))


def parse_video_folder(folder: str) -> ParsedName | None:
    """What the name of a folder of video features tells; None for a folder that can hold none."""
    dataset, separator, fingerprint8 = folder.partition("@")
    if not is_dataset(dataset) or (separator and not _HASH8.fullmatch(fingerprint8)):
        return None
    return ParsedName(dataset, None, fingerprint8 or None)


def is_feature(relative: str) -> bool:
    """Whether a relative path is a feature's name; what `parse` accepts, at a fraction of its cost."""
    head, separator, tail = relative.rpartition("_vlm")
    if head in _SAFE_DATASETS and tail[-3:] == SUFFIX and _INDEX.fullmatch(tail, 0, len(tail) - 3):
        return True
    if not relative.endswith(SUFFIX):
        return False
    folder, slash, name = relative.rpartition("/")
    if slash and not folder:
        return False
    if folder and _HEX32.fullmatch(name, 0, len(name) - len(SUFFIX)):
        return parse(relative) is not None
    dataset, separator, index = name[: -len(SUFFIX)].rpartition("_vlm")
    if not separator or not _INDEX.fullmatch(index) or _dataset_problem(dataset) is not None:
        return False
    if len(_SAFE_DATASETS) < _MAX_SAFE_DATASETS:
        _SAFE_DATASETS.add(dataset)
    return not folder or _HASH8.fullmatch(folder) is not None


def group_of(name: str) -> str:
    """What a feature's path has in front of the index or the MD5: equal for all features of one data set's folder."""
    head, separator, index = name.rpartition("_vlm")
    return head if separator and "/" not in index else name.rpartition("/")[0]


def dataset_shown(name: str) -> str:
    """The data set under which a feature is listed, with "@<fingerprint8>" for a second recipe; "" for no feature."""
    parsed = parse(name)
    if parsed is None:
        return ""
    return parsed.dataset if parsed.fingerprint8 is None else f"{parsed.dataset}@{parsed.fingerprint8}"


def is_video(name: str) -> bool:
    """Whether a feature's path is a video's."""
    return "_vlm" not in name.rpartition("/")[2]


def is_small(size: int) -> bool:
    """Whether an entry of `size` bytes belongs to the pool of small ones."""
    return size < SMALL_BELOW_BYTES


def is_dataset(name: str) -> bool:
    """Whether `check_dataset` would accept the name."""
    return _dataset_problem(name) is None


def check_dataset(name: object) -> None:
    """Refuse names that leave the root, hide, or cannot be told apart from the store's own.

    Raises:
        InvalidKey: says what is wrong with the name.
    """
    problem = _dataset_problem(name) if isinstance(name, str) else "is not a string"
    if problem is not None:
        raise InvalidKey(problem, field="dataset", value=name)


@functools.lru_cache(maxsize=1 << 16)
def _dataset_problem(name: str) -> str | None:
    if not name:
        return "is empty"
    if name.startswith("."):
        return "starts with a dot, which marks the store's own and hidden files"
    if "/" in name or "\\" in name:
        return "contains a path separator"
    if ".." in name:
        return "contains '..', which could leave the store"
    if "@" in name:
        return "contains '@', which separates a data set from a second recipe"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "contains a control character or half of a surrogate pair"
    if len(name.encode("utf-8")) > MAX_DATASET_BYTES:
        return f"is longer than {MAX_DATASET_BYTES} bytes in UTF-8"
    return None


def check_run_id(run_id: str) -> None:
    """Refuse run ids that would break the journals' line grammar.

    Raises:
        InvalidKey: says what is allowed.
    """
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
        raise InvalidKey("is not 1 to 80 letters, digits, '.', '_', ':' or '-'", field="run_id", value=run_id)


def is_url(root: str | os.PathLike[str]) -> bool:
    """Whether a store's root lies behind a URL and not in a folder of this machine.

    Raises:
        StoreFormatError: it is a URL that a `Path` took a slash from, which would name a folder `s3:`.
    """
    text = os.fspath(root)
    if _SHORTENED_URL.match(text):
        raise StoreFormatError(text, "a Path keeps one of a URL's two slashes; give the URL as text")
    return "://" in text


def temp_name() -> str:
    """A new name for a file that is being written. Never ends in `.pt`, never repeats.

    A fixed temporary name lets two writers publish a mixture of their bytes.
    """
    return f"{TEMP_PREFIX}{_process_prefix(HERE.pid)}{next(_numbers):x}"


@functools.lru_cache(maxsize=1)
def _process_prefix(pid: int) -> str:
    # By process id, because a forked child must not repeat its parent's names.
    return f"{uuid.uuid4().hex}-"


_numbers = itertools.count()


def shard_name() -> str:
    """Where a new shard will lie."""
    return f"{PACKED}/{uuid.uuid4().hex}{_SHARD_SUFFIX}"


def is_shard(relative: str) -> bool:
    """Whether a relative path is a shard's."""
    if not relative.endswith(_SHARD_SUFFIX):
        return False
    folder, _, name = relative.rpartition("/")
    return folder == PACKED and _HEX32.fullmatch(name, 0, len(name) - len(_SHARD_SUFFIX)) is not None


def taken_folder() -> str:
    """A new folder for loose files that are about to go into a shard."""
    return f"{PACKED}/{uuid.uuid4().hex}{TAKEN_SUFFIX}"


def journal_name() -> str:
    """A new name for one process's journal."""
    return f"{uuid.uuid4().hex}.journal"


def snapshot_path(number: int) -> str:
    """Where the snapshot of this number lies."""
    return f"{STORE_FOLDER}/snapshot.{number}" if number else f"{STORE_FOLDER}/snapshot"


def snapshot_number(file_name: str) -> int | None:
    """The number of the snapshot in a file of the store's own folder; None for other files."""
    found = _SNAPSHOT.fullmatch(file_name)
    return found and int(found[1] or 0)  # without a number as they once were


def pin_path(pin_id: str) -> str:
    """Where a pin lies, by its id of 32 hex digits."""
    return f"{PINS}/{pin_id}.json"


def pin_id(file_name: str) -> str | None:
    """The id of the pin in a file of the pins' folder; None for files that are no pins."""
    stem, dot, suffix = file_name.partition(".")
    return stem if (dot, suffix) == (".", "json") and _HEX32.fullmatch(stem) else None


def quarantine_name(relative: str) -> str:
    """Where a damaged feature is set aside; unique, so that a second damaged copy keeps the first."""
    flat = relative.removesuffix(SUFFIX).replace("/", "%")
    return f"{QUARANTINE}/{flat[:120]}.{uuid.uuid4().hex}.damaged"


def _whole_number(value: object, *, field: str, minimum: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidKey("is not a whole number", field=field, value=value) from None
    if isinstance(value, bool) or number < minimum:
        raise InvalidKey(f"is not a whole number of at least {minimum}", field=field, value=value)
    return number


def _check_encodable(value: str, field: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidKey("cannot be written in UTF-8", field=field, value=value) from None


def _md5(text: str) -> str:
    # A name, not a protection: the scripts' caches on users' disks are named this way.
    return hashlib.md5(text.encode("utf-8"), usedforsecurity=False).hexdigest()
