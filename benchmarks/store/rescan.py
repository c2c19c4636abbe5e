"""How hand-made caches keep their limit: list and stat every file, then delete the oldest."""

from __future__ import annotations

from pathlib import Path


def enforce_limit(folder: Path, limit_bytes: int) -> int:
    """Rescan a folder, delete its oldest files until the rest fits, and return the bytes that were there."""
    files = [(path, path.stat()) for path in folder.glob("*.pt")]
    found_bytes = total_bytes = sum(status.st_size for _, status in files)
    if total_bytes > limit_bytes:
        for path, status in sorted(files, key=lambda file: file[1].st_mtime):
            if total_bytes <= limit_bytes:
                break
            path.unlink()
            total_bytes -= status.st_size
    return found_bytes
