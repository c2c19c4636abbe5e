"""Delayed inference step by step: frames, a question that encodes them, one that need not, more frames, and again."""

from __future__ import annotations

from consumers.streaming.delayed import DelayedBatchInferenceEngine
from consumers.streaming.reports.failures import failure_of
from consumers.streaming.reports.report import Bars, Cell, Report, Table
from consumers.streaming.reports.setting import QUESTIONS, Setting

Row = dict[str, Cell]


def report_delayed(setting: Setting, *, frames: int = 50, more: int = 10, question: str = QUESTIONS[0]) -> Report:
    """Report on `frames` frames, two questions, `more` frames and two more questions; answers are greedy.

    A step that runs out of memory or context, or meets a damaged frame, is named in `failures`, and is the last one.

    Raises:
        ValueError: the video has too few frames.
        Exception: what ended the steps before the first answer.
    """
    video = setting.video
    if frames < 1 or more < 1 or frames + more > video.num_frames:
        raise ValueError(
            f"{video.path.name} gives {video.num_frames} frames, taking one of every {video.stride}, and the report "
            f"needs {frames} + {more}; take fewer, or a smaller stride"
        )
    steps = _Steps(setting, question)
    try:
        for name, count in ((f"add {frames} frames", frames), (f"add {more} frames", more)):
            steps.add(name, count)
            steps.ask("ask")
            steps.ask("ask again")
    except Exception as exc:
        if not steps.answers:
            raise
        steps.failures.append(failure_of(steps.at_hand, exc))
    facts = setting.facts() | {"question": question}
    seconds = {f"{row['number']}. {row['step']}": float(row["total_s"] or 0) for row in steps.rows if row["total_s"]}
    return Report(
        "delayed",
        "Delayed inference, step by step",
        facts,
        [
            Table("Steps", steps.rows, "frames are encoded when a question comes, and only if the memories changed"),
            Table("Held after each step", steps.held, "peak: beside the model, since the beginning"),
            Table("Answers", steps.answers),
            Table("Frames that became star frames", steps.stars),
        ],
        [Bars("Seconds of each question", "seconds", seconds)],
        failures=steps.failures,
    )


class _Steps:
    """The engine, what was done to it so far, and what came of that."""

    def __init__(self, setting: Setting, question: str) -> None:
        self._setting, self._question = setting, question
        self._meter = setting.meter
        self._meter.begin()
        self._engine = DelayedBatchInferenceEngine(setting.model, setting.processor, **setting.pixel_bounds)
        self._is_encoded, self._last_answer = False, ""
        self._pairs: set[tuple[int, ...]] = set()  # by their frames, of the last question
        self.at_hand = ""  # the step that was begun last
        self.rows: list[Row] = []
        self.held: list[Row] = []
        self.answers: list[Row] = []
        self.stars: list[Row] = []
        self.failures: list[str] = []

    def add(self, name: str, count: int) -> None:
        """Add the video's next frames."""
        self._begin(name)
        memory, start = self._engine.memory, self._engine.memory.total_added
        seconds = 0.0
        for index in range(start, start + count):
            (frame,), time_s = self._setting.video.frames(index, 1), self._setting.video.time_s(index)
            said, taken = self._meter.timed(lambda f=frame, t=time_s: self._engine.add_frame(f, t))  # type: ignore[misc]
            seconds += taken
            if "Star Memory (" in said:
                reason = said.partition("Star Memory (")[2].partition(")")[0]
                self.stars.append({"frame": index, "time_s": time_s, "reason": reason})
            self._setting.told(memory.total_added, start + count, name)
        self._is_encoded = False
        self._note(name, {}, add_s=seconds)

    def ask(self, name: str) -> None:
        """Ask, and hold the engine to what it promises of encoding."""
        self._begin(name)
        text, metrics = self._engine.ask(self._question, self._setting.max_new_tokens, False, repetition_penalty=1.0)
        number = len(self.rows) + 1
        if ("frames_encoded" in metrics) == self._is_encoded:
            what = "encoded again although no frame came" if self._is_encoded else "did not encode the new frames"
            self.failures.append(f"{self.at_hand}: {what}")
        pairs, encoded = self._paired(), metrics.get("pairs_encoded", 0)
        new = len(pairs - self._pairs)
        if not self._is_encoded and encoded > new:
            self.failures.append(f"{self.at_hand}: encoded {encoded} pairs of frames, of which {new} are new")
        if self._is_encoded and text != self._last_answer:
            self.failures.append(f"{self.at_hand}: another answer than before, on the same cache")
        self._is_encoded, self._last_answer, self._pairs = True, text, pairs
        self._note(name, metrics)
        self.answers.append({"step": number, "answer": text})

    def _paired(self) -> set[tuple[int, ...]]:
        """Return the pairs of the present union, each by the numbers of its frames."""
        size, pairs = self._engine.runner.frames_per_grid, dict[int, tuple[int, ...]]()
        for frame in self._engine.memory.union():
            pairs[frame.index // size] = (*pairs.get(frame.index // size, ()), frame.index)
        return set(pairs.values())

    def _begin(self, name: str) -> None:
        self.at_hand = f"step {len(self.rows) + 1}, {name}"

    def _note(self, name: str, metrics: dict[str, float], *, add_s: float | None = None) -> None:
        number, now = len(self.rows) + 1, self._engine.get_statistics()
        self.rows.append(
            {
                "step": name,
                "number": number,
                "add_s": add_s,
                "ttft_s": metrics.get("ttft"),
                "total_s": metrics.get("total_latency"),
                "encode_s": metrics.get("encoding_latency"),
                "frames_encoded": metrics.get("frames_encoded", 0),
                "visual_tokens": metrics.get("visual_tokens", 0),
                "pairs_encoded": metrics.get("pairs_encoded", 0),
                "pairs_reused": metrics.get("pairs_reused", 0),
            }
        )
        self.held.append(
            {
                "step": name,
                "number": number,
                "star_frames": now["star_memory_size"],
                "recent_frames": now["stream_memory_size"],
                "unique_frames": now["unique_frames"],
                "cache_tokens": now["cache_seq_length"],
                "cache_bytes": now["cache_memory_bytes"],
                "peak_bytes": self._meter.peak_bytes(),
            }
        )
