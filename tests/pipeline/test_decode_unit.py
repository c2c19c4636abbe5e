"""Units decoded together: clips of one file open it once, with the bits that each has alone, and no shared blame."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import decode_unit as decode_unit_module
from pipeline.decode_unit import DecodedUnit, decode_unit, decode_units
from pipeline.encoders import load_spec
from pipeline.failures import ErrorClass, UnitFailure
from pipeline.sources import VideoSample
from pipeline.work_plan import BuildTask, Unit
from tests.media import write_video


@pytest.fixture
def task(tmp_path):
    return BuildTask(load_spec("longva", "small"), str(tmp_path / "store"), None, nframe=4)


@pytest.fixture
def units(tmp_path, task):
    """Three clips of one file, of which the second lies behind its end, then a clip of another file."""
    first, other = (write_video(tmp_path / name, frames=50) for name in ("a.mp4", "b.mp4"))
    bounds = [(first, 0.0, 1.0), (first, 90.0, 99.0), (first, 0.5, 1.5), (other, 0.0, 1.0)]
    samples = [VideoSample("clips", f"{p.stem}@{s}-{e}", p, p.name, start_s=s, end_s=e) for p, s, e in bounds]
    return [Unit(sample.video_id, task.key(sample), sample) for sample in samples]


def test_clips_of_one_file_open_it_once_and_are_what_each_is_alone(units, task, monkeypatch):
    alone = [decode_unit(unit, task) for unit in units]
    decode, opened = decode_unit_module.decode_cuts, []

    def noted(path, cuts, **options):
        opened.append(path.name)
        return decode(path, cuts, **options)

    monkeypatch.setattr(decode_unit_module, "decode_cuts", noted)
    together = decode_units(units, task)
    assert opened == ["a.mp4", "b.mp4"]
    for unit, mine, theirs in zip(units, alone, together, strict=True):
        assert type(mine) is type(theirs)
        if isinstance(mine, UnitFailure):
            assert mine == theirs
            continue
        assert (theirs.unit, theirs.provenance) == (unit, mine.provenance)
        assert np.array_equal(theirs.pixels, mine.pixels)
    assert [isinstance(one, DecodedUnit) for one in together] == [True, False, True, True]
    assert (together[1].key, together[1].error) == (units[1].name, ErrorClass.BAD_MEDIA)


def test_a_clip_that_surprises_its_decoder_costs_no_other_clip(units, task, monkeypatch):
    decode = decode_unit_module.decode_cuts

    def decode_unless(path, cuts, **options):
        if any(cut.start_s == 0.5 for cut in cuts):
            raise RuntimeError("of no kind that was foreseen")
        return decode(path, cuts, **options)

    monkeypatch.setattr(decode_unit_module, "decode_cuts", decode_unless)
    failures = [one for one in decode_units(units, task) if isinstance(one, UnitFailure)]
    assert [(one.key, one.error) for one in failures] == [
        (units[1].name, ErrorClass.BAD_MEDIA),
        (units[2].name, ErrorClass.EXCEPTION),
    ]
