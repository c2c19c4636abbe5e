"""The table of names that evaluation harnesses give to one and the same benchmark."""

from __future__ import annotations

# VLMEvalKit appends the frame rule and "_subs" to a benchmark's name; lmms-eval writes it in snake case. The
# first LongVA scripts wrote under one of them and read under another, so their cache never hit.
_FRAME_RULES = ("8frame", "16frame", "32frame", "64frame", "128frame", "0.5fps", "1fps", "2fps")

_SPELLINGS: dict[str, tuple[str, ...]] = {
    "Video-MME": ("videomme", "video_mme", "video-mme", "VideoMME", "videomme_w_subtitle"),
    "LongVideoBench": ("longvideobench", "long_video_bench", "longvideobench_val_v"),
    "VideoMMMU": ("videommmu", "video_mmmu", "VideoMMMU_all"),
    "MVBench": ("mvbench", "MVBench_MP4"),
    "TempCompass": ("tempcompass", "temp_compass", "TempCompass_MCQ"),
    "MLVU": ("mlvu", "MLVU_MCQ", "mlvu_dev"),
}


def _aliases_of(canonical: str) -> tuple[str, ...]:
    harness = [f"{canonical}_{rule}" for rule in _FRAME_RULES]
    return (*harness, *(f"{name}_subs" for name in harness), *_SPELLINGS[canonical])


_ALIASES = {canonical: _aliases_of(canonical) for canonical in _SPELLINGS}
_CANONICAL = {alias: canonical for canonical, aliases in _ALIASES.items() for alias in aliases}


def canonical_dataset_name(name: str) -> str:
    """The one name under which features of this benchmark are kept; unknown names come back unchanged."""
    return _CANONICAL.get(name, name)


def known_aliases(canonical: str) -> tuple[str, ...]:
    """Every other name of a benchmark, in a fixed order; empty for names the table does not know."""
    return _ALIASES.get(canonical, ())


def names_to_search(name: str) -> tuple[str, ...]:
    """The names under which a reader looks, best first: as given, the canonical one, the aliases."""
    canonical = canonical_dataset_name(name)
    return tuple(dict.fromkeys((name, canonical, *known_aliases(canonical))))
