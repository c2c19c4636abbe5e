"""Checkpoint folders: where a model lives, its JSON files, and its tensors by name, read one at a time."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import EncoderError, first_line

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def find_checkpoint(model: str, revision: str | None) -> Path:
    """Return the local folder of `model`: a folder as it is, else a hub id's snapshot, downloaded if need be.

    Raises:
        EncoderError: there is no such folder, and no such repository in the local hub cache or within reach.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise EncoderError(f"{model} is a file; name the checkpoint's folder")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith((".", "/")):
        raise EncoderError(f"no checkpoint folder {model}")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "*.jinja", "*.model", "*.safetensors"]
    hub: dict[str, Any] = {"repo_id": model, "revision": revision}
    try:
        found = Path(huggingface_hub.snapshot_download(**hub, allow_patterns=patterns, local_files_only=True))
        if _weight_files(found):
            return found
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        pass  # not in the local cache
    try:
        # Asked first because, unlike the download, it does not retry for half a minute without a network.
        listed = huggingface_hub.HfApi().model_info(model, revision=revision, timeout=10).siblings or []
        if not any(file.rfilename.endswith(".safetensors") for file in listed):
            patterns.append("*.bin")
        return Path(huggingface_hub.snapshot_download(**hub, allow_patterns=patterns, etag_timeout=10))
    # The hub's client raises its own, httpx's and the operating system's errors.
    except Exception as exc:
        raise EncoderError(
            f"{model} is no folder here, is not in the local Hugging Face cache, and could not be fetched "
            f"({type(exc).__name__}); pass a folder, or download it where the hub can be reached"
        ) from exc


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Return one JSON file of a checkpoint folder.

    Raises:
        EncoderError: it is missing or holds no JSON object.
    """
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise EncoderError(f"{folder} has no {name}; it is no complete checkpoint folder") from exc
    except (OSError, ValueError) as exc:
        raise EncoderError(f"{folder / name} cannot be read: {exc}") from exc
    if not isinstance(content, dict):
        raise EncoderError(f"{folder / name} holds no JSON object")
    return content


def tensor_files(folder: Path) -> dict[str, Path]:
    """Map each tensor's name to the file that holds it, in name order. Reads indexes and headers alone.

    Raises:
        EncoderError: there are no weights, or a file named by the index is missing or damaged.
    """
    for index_name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index_name).is_file():
            weight_map = read_json(folder, index_name).get("weight_map")
            if not isinstance(weight_map, dict):
                raise EncoderError(f"{folder / index_name} has no weight_map")
            return {name: folder / file for name, file in sorted(weight_map.items())}
    files = _weight_files(folder)
    if not files:
        raise EncoderError(f"{folder} has no weights: no *.safetensors and no pytorch_model*.bin")
    return dict(sorted((name, file) for file in files for name in _names_in(file)))


def read_tensors(files: dict[str, Path], names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors called `names`, one at a time, file by file, as stored. No other tensor is read.

    Raises:
        EncoderError: a file is missing or damaged, or lacks a tensor that the index promises.
    """
    by_file: dict[Path, list[str]] = {}
    for name in names:
        by_file.setdefault(files[name], []).append(name)
    for file, wanted in by_file.items():
        try:
            yield from _read_from(file, wanted)
        except EncoderError:
            raise
        # safetensors, zipfile and pickle have error types of their own.
        except Exception as exc:
            raise EncoderError(f"{file} cannot be read: {first_line(exc)}") from exc


class DigestedWeights:
    """What specs whose weights lie in a folder have in common: their digest, and that what is loaded later has it."""

    folder: Path | None  # None: weights that come from a seed

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors that features depend on, as stored."""
        raise NotImplementedError

    @property
    def _weights_digest(self) -> str:
        return self._digested[0]

    @cached_property
    def _digested(self) -> tuple[str, object]:
        marks = weight_marks(self.folder)  # before, so that a file that changes meanwhile is looked at again
        return weights_digest(self._tensors()), marks

    @contextmanager
    def _as_digested(self) -> Iterator[None]:
        """Check around a loading that the weights are those of the recipe, if that was asked for before.

        Raises:
            EncoderError: they are not, or they changed meanwhile.
        """
        before = weight_marks(self.folder)
        yield
        now = weight_marks(self.folder)
        digest, marks = self.__dict__.get("_digested", (None, now))
        # Elsewhere the same files may have other marks.
        if now != before or (now != marks and weights_digest(self._tensors()) != digest):
            raise EncoderError(f"the weights in {self.folder} have changed since they were read for the recipe")


def weight_marks(folder: Path | None) -> object:
    """Return what is another where a weight file was replaced or written to.

    Raises:
        EncoderError: a file cannot be asked for it.
    """
    try:
        found = [(file.name, file.stat()) for file in ([] if folder is None else _weight_files(folder))]
    except OSError as exc:
        raise EncoderError(f"the weights in {folder} cannot be read: {exc}") from exc
    return [(name, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in found]


def weights_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return the SHA-256 (hex) of named tensors as stored: names, dtypes, shapes and bytes.

    Their order does not matter, so the same tensors digest equally however they are spread over files.
    """
    found = []
    for name, tensor in tensors:
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        found.append([name, str(tensor.dtype), list(tensor.shape), hashlib.sha256(content).hexdigest()])
    return hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest()


def stored_dtype(folder: Path, config: dict[str, Any]) -> str:
    """Return the dtype that the checkpoint is published in: its configuration's, else its first floating tensor's.

    Raises:
        EncoderError: it is none of `DTYPES`.
    """
    parts = (config, config.get("vision_config") or {}, config.get("text_config") or {})
    for name in (part.get(key) for part in parts for key in ("dtype", "torch_dtype")):
        if isinstance(name, str) and name.removeprefix("torch.") in DTYPES:
            return name.removeprefix("torch.")
    files = tensor_files(folder)
    for _, tensor in read_tensors(files, files):
        if tensor.is_floating_point():
            return checked_dtype(str(tensor.dtype).removeprefix("torch."))
    raise EncoderError(f"{folder} has no floating-point weights")


def checked_dtype(name: str) -> str:
    """Return `name` if a tower can run in it.

    Raises:
        EncoderError: it cannot.
    """
    if name not in DTYPES:
        raise EncoderError(f"dtype {name!r} is not supported; choose from {', '.join(DTYPES)}")
    return name


def quiet_transformers() -> None:
    """Keep transformers' progress bars and load reports out of the terminal: what matters is raised as an error."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _names_in(file: Path) -> list[str]:
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt") as opened:
                return list(opened.keys())
        return list(_load_bin(file))
    except Exception as exc:
        raise EncoderError(f"{file} cannot be read: {first_line(exc)}") from exc


def _read_from(file: Path, wanted: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            held = set(opened.keys())
            for name in wanted:
                if name not in held:
                    raise EncoderError(f"{file} lacks the tensor {name}, which its index promises")
                yield name, opened.get_tensor(name)
        return
    content = _load_bin(file)
    for name in wanted:
        if name not in content:
            raise EncoderError(f"{file} lacks the tensor {name}, which its index promises")
        yield name, content[name]


def _load_bin(file: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return content
