"""What a feature is called: the two kinds of key that the store files features under."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True, slots=True)
class StepKey:
    """One VLM step of one robot episode.

    `dataset` is the episode's name (`recv_all_20251027_170308`), `vlm_idx` its step index (>= 0, in the unit
    that the episode's format defines), `prompt_hash` the first 8 hex digits of SHA-256 of the instruction, or
    None for the flat layout.
    """

    dataset: str
    vlm_idx: int
    prompt_hash: str | None = None


@dataclass(frozen=True, order=True, slots=True)
class VideoKey:
    """One video of a benchmark, encoded with `nframe` frames at most by one vision tower.

    `dataset` is the canonical data set name, `video_id` what `pipeline.sources` derived from the path, and
    `model_signature` the first 8 hex digits of MD5 of `"<tower>:layer<select_layer>"`.
    """

    dataset: str
    video_id: str
    nframe: int
    model_signature: str


FeatureKey = StepKey | VideoKey
