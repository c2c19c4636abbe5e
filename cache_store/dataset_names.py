"""The table of names that evaluation harnesses give to one and the same benchmark."""

from __future__ import annotations

# VLMEvalKit appends the frame rule and "_subs" to a benchmark's name; lmms-eval writes it in snake case. The
# first LongVA scripts wrote under one of them and read under another, so their cache never hit.
_FRAME_RULES = ("8frame", "16frame", "32frame", "64frame", "128frame", "0.5fps", "1fps", "2fps")

_SPELLINGS: dict[str, tuple[str, ...]] = {
    "Video-MME": ("videomme", "video_mme", "video-mme", "VideoMME", "videomme_w_subtitle"),
    "LongVideoBench": ("longvideobench", "long_video_bench", "longvideobench_val_v"),
    "VideoMMMU": ("videommmu", "video_mmmu", "VideoMMMU_all"),
    "MVBench": ("mvbench", "MVBench_MP4", *(f"MVBench_MP4_{rule}" for rule in _FRAME_RULES)),
    "TempCompass": ("tempcompass", "temp_compass", "TempCompass_MCQ"),
    "MLVU": ("mlvu", "MLVU_MCQ", "mlvu_dev"),
}

# Names of parts of a benchmark, and of other questions about its videos: VLMEvalKit passes the first kind to the model
# in place of the benchmark's own (`SUB_DATASET`), lmms-eval has a task for each. Nobody ever wrote files under them.
_PARTS: dict[str, tuple[str, ...]] = {
    "Video-MME": tuple(
        f"videomme_{part}"
        for part in (
            *("long", "long_w_subtitle", "convert_mcq_oe", "gt_none_option", "number_option", "random_choice"),
            *("revert_oe_mcq", "video_only_abcd"),
        )
    ),
    "LongVideoBench": ("longvideobench_test_v", "longvideobench_random_choice"),
    "VideoMMMU": tuple(
        f"video_mmmu_{part}{change}"
        for part in ("perception", "comprehension", "adaptation")
        for change in ("", "_gt_none_option", "_number_option", "_random_choice")
    ),
    "MVBench": tuple(
        f"mvbench_{task}"
        for task in (
            *("action_antonym", "action_count", "action_localization", "action_prediction", "action_sequence"),
            *("character_order", "counterfactual_inference", "egocentric_navigation", "episodic_reasoning"),
            *("fine_grained_action", "fine_grained_pose", "moving_attribute", "moving_count", "moving_direction"),
            *("object_existence", "object_interaction", "object_shuffle", "scene_transition", "state_change"),
            "unexpected_action",
        )
    ),
    "TempCompass": (
        *("TempCompass_Captioning", "TempCompass_YorN"),
        *(f"tempcompass_{task}" for task in ("multi_choice", "yes_no", "caption_matching", "captioning")),
    ),
    "MLVU": ("MLVU_OpenEnded",),
}


def _aliases_of(canonical: str) -> tuple[str, ...]:
    harness = [f"{canonical}_{rule}" for rule in _FRAME_RULES]
    return (*harness, *(f"{name}_subs" for name in harness), *_SPELLINGS[canonical])


_ALIASES = {canonical: _aliases_of(canonical) for canonical in _SPELLINGS}
_CANONICAL = {name: canonical for table in (_ALIASES, _PARTS) for canonical, names in table.items() for name in names}


def canonical_dataset_name(name: str) -> str:
    """The one name under which features of this benchmark are kept; unknown names come back unchanged."""
    return _CANONICAL.get(name, name)


def known_aliases(canonical: str) -> tuple[str, ...]:
    """Every other name of a whole benchmark, in a fixed order; empty for names the table does not know."""
    return _ALIASES.get(canonical, ())


def names_to_search(name: str) -> tuple[str, ...]:
    """The names under which a reader looks, best first: as given, the canonical one, the aliases."""
    canonical = canonical_dataset_name(name)
    return tuple(dict.fromkeys((name, canonical, *known_aliases(canonical))))
