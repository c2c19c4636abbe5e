"""The interface of the robot-training scripts (`VLACacheManager`), kept for their users."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_store import naming
from cache_store.keys import StepKey
from cache_store.store import FeatureStore

if TYPE_CHECKING:
    import torch

_GIB = 1 << 30
_DEFAULT_LIMIT_GB = 50.0  # GiB, as the scripts' `_gb` always meant


class VLACacheManager:
    """Features of VLM steps in `cache_dir`, at most `cache_limit_gb` GiB of them; 0 or less means no limit.

    A limit other than the default is remembered by the store; the default only where none is remembered, so
    that a training script that never chose one does not shrink a larger store for the next build. `cache_dir` may be a
    URL, which has no limit; `self.cache_dir` is then the folder of the copies.
    """

    def __init__(self, cache_dir: str | os.PathLike[str], cache_limit_gb: float = _DEFAULT_LIMIT_GB) -> None:
        self.store = FeatureStore(cache_dir)
        self.cache_dir = self.store.root if naming.is_url(cache_dir) else Path(cache_dir)
        self.set_limit_gb(cache_limit_gb)

    def set_limit_gb(self, cache_limit_gb: float) -> None:
        """Change the limit; the next save evicts what is too much.

        Raises:
            LocalOnly: the store is behind a URL, and the limit is neither the default nor none.
        """
        chosen = cache_limit_gb != _DEFAULT_LIMIT_GB or self.store.limit_bytes is None
        if cache_limit_gb != _DEFAULT_LIMIT_GB or not naming.is_url(self.store.location):
            self.store.set_limit(int(cache_limit_gb * _GIB), remember=chosen)
        self.cache_limit_gb = cache_limit_gb

    def get_cache_path(self, dataset_name: str, vlm_idx: int, prompt_hash: str | None = None) -> Path:
        """The file of a step; it need not exist."""
        return self.cache_dir / naming.relative_path(StepKey(dataset_name, vlm_idx, prompt_hash))

    def cache_exists(self, dataset_name: str, vlm_idx: int, prompt_hash: str | None = None) -> bool:
        """Whether the step is cached."""
        return self.store.contains(StepKey(dataset_name, vlm_idx, prompt_hash))

    def load_cache(
        self,
        dataset_name: str,
        vlm_idx: int,
        device: str | torch.device = "cpu",
        prompt_hash: str | None = None,
    ) -> Any:
        """The stored object with its tensors on `device`, or None for a miss."""
        return _moved(self.store.get(StepKey(dataset_name, vlm_idx, prompt_hash)), device)

    def save_cache(self, dataset_name: str, vlm_idx: int, vl_features: object, prompt_hash: str | None = None) -> None:
        """Store a step's features unless it is cached already; never evicts what it just wrote.

        A bare tensor is cast to float16; a dict or tuple of tensors is stored as given. All come back on the
        CPU.

        Raises:
            StoreFull, StoreWriteError: nothing was saved.
        """
        key = StepKey(dataset_name, vlm_idx, prompt_hash)
        if self.store.contains(key):
            return
        import torch

        if isinstance(vl_features, torch.Tensor):
            vl_features = vl_features.detach().to("cpu", torch.float16)
        self.store.put(key, vl_features)

    def get_cache_stats(self) -> dict[str, Any]:
        """`cache_dir, total_files, total_size_gb, limit_gb, usage_percent`; sizes in GiB."""
        stats = self.store.stats()
        limit_bytes = self.store.limit_bytes
        return {
            "cache_dir": str(self.cache_dir),
            "total_files": stats.entries,
            "total_size_gb": stats.bytes / _GIB,
            "limit_gb": self.cache_limit_gb,
            "usage_percent": 100.0 * stats.bytes / limit_bytes if limit_bytes else 0.0,
        }

    def list_cached_datasets(self) -> dict[str, Any]:
        """`{dataset: sorted indices}`; steps under a prompt hash are nested, `{hash: {dataset: indices}}`."""
        listed: dict[str, Any] = {}
        for name in sorted(self.store._names()):
            parsed = naming.parse(name)
            if parsed is None or parsed.key is None:
                continue
            key = parsed.key
            datasets = listed if key.prompt_hash is None else listed.setdefault(key.prompt_hash, {})
            datasets.setdefault(key.dataset, []).append(key.vlm_idx)
        for value in listed.values():
            for indices in value.values() if isinstance(value, dict) else [value]:
                indices.sort()
        return listed

    def clear_cache(self, confirm: bool = False) -> int:
        """Delete every cached feature and return how many; without `confirm` delete nothing and say so."""
        if not confirm:
            print(f"Nothing was deleted from {self.cache_dir}: call clear_cache(confirm=True) to delete all.")
            return 0
        return len(self.store.clear().deleted)


_managers: dict[Path | str, VLACacheManager] = {}
_managers_lock = threading.Lock()


def get_cache_manager(
    cache_dir: str | os.PathLike[str] | None = None, cache_limit_gb: float = _DEFAULT_LIMIT_GB
) -> VLACacheManager:
    """The one manager of a folder in this process; another limit than before changes the limit.

    The default folder is `$VLM_CACHE_DIR`, else `./vlm_cache`.
    """
    chosen = os.fspath(cache_dir if cache_dir is not None else os.environ.get("VLM_CACHE_DIR") or "./vlm_cache")
    folder = chosen if naming.is_url(chosen) else Path(chosen).resolve()
    with _managers_lock:
        manager = _managers.get(folder)
        if manager is None:
            manager = _managers[folder] = VLACacheManager(chosen, cache_limit_gb)
        elif manager.cache_limit_gb != cache_limit_gb:
            manager.set_limit_gb(cache_limit_gb)
        return manager


def _moved(value: object, device: str | torch.device) -> object:
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(inner, device) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(inner, device) for inner in value)
    return value
