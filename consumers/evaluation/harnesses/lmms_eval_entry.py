"""What lmms-eval finds in the entry point group `lmms_eval.models`: the model `longva_cached`."""

from __future__ import annotations

from typing import Any


def manifests() -> list[Any]:
    """Return the `ModelManifest`s of lmms-eval; called by it when it is imported."""
    from lmms_eval.models.registry_v2 import ModelManifest

    path = "consumers.evaluation.harnesses.lmms_eval_longva.LongVACached"
    return [ModelManifest(model_id="longva_cached", simple_class_path=path)]
