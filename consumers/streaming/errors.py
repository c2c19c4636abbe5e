"""Everything that streaming raises on purpose, beside ValueError for arguments that are wrong by themselves, and
`pipeline.errors.MediaError` for files of images or videos that are damaged.

StreamError
├── NoFrames           a question before the first frame
├── FrameSizeChanged   a frame of another size than the stream's first one
├── TimeRunsBackwards  a timestamp before that of the frame before it
├── ContextTooLong     more tokens than the model's context, or than the eviction's limit, can hold
├── NonFiniteLogits    logits that are NaN or infinite, as where float16 overflows
├── StreamBusy         a change while an answer that will become part of the stream is being made
├── FramesOfParent     frames on disk that the process kept which forked this one
├── ForkedAmidChange   a stream that another thread was at work on when this process was forked
├── WeightsChanged     a model whose weights are others than those that the stream or an answer began with
├── NoSnapshot         a restore without a snapshot
└── UnsupportedCache   a cache that does not keep what was appended before, or a model that does not fill it
"""

from __future__ import annotations


class StreamError(Exception):
    """Root of the streaming errors. The stream that raised one is as it was before the call, and goes on."""


class NoFrames(StreamError):
    """A question came before the first frame."""


class FrameSizeChanged(StreamError):
    """A frame has another size, (height, width) in pixels, than the stream's first one."""

    def __init__(self, found: tuple[int, int], wanted: tuple[int, int]) -> None:
        super().__init__(found, wanted)
        self.found, self.wanted = found, wanted

    def __str__(self) -> str:
        return (
            f"a frame is {self.found[0]}x{self.found[1]} pixels, this stream's are {self.wanted[0]}x{self.wanted[1]}; "
            "resize it, or reset() and begin another stream"
        )


class TimeRunsBackwards(StreamError):
    """A frame's time, in seconds, lies before that of the frame before it."""

    def __init__(self, time_s: float, previous_s: float) -> None:
        super().__init__(time_s, previous_s)
        self.time_s, self.previous_s = time_s, previous_s

    def __str__(self) -> str:
        return f"a frame at {self.time_s} s came after one at {self.previous_s} s; frames come in time order"


class ContextTooLong(StreamError):
    """More tokens would be attended to than allowed."""

    def __init__(self, what: str, tokens: int, limit: int) -> None:
        super().__init__(what, tokens, limit)
        self.what, self.tokens, self.limit = what, tokens, limit

    def __str__(self) -> str:
        return f"{self.what}: {self.tokens} tokens, {self.limit} fit; shorten it, evict (EvictionConfig), or reset()"


class NonFiniteLogits(StreamError):
    """The model's logits are NaN or infinite, so no answer follows from them."""

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.dtype = dtype

    def __str__(self) -> str:
        return (
            f"the model's logits, computed in {self.dtype}, are NaN or infinite: no answer follows; load it in "
            "bfloat16 or float32, and if that is so already, check its weights"
        )


class StreamBusy(StreamError):
    """An answer with update_state=True is being made; until it ends, nothing else may change the stream."""


class FramesOfParent(StreamError):
    """Frames on disk were kept by the process that forked this one, which goes on writing in their file."""


class ForkedAmidChange(StreamError):
    """This process was forked while another thread was at work on the stream; only `reset` makes it whole here."""


class WeightsChanged(StreamError):
    """The stream's keys and values, or parts of an answer, are of weights that the model no longer has as they were."""


class NoSnapshot(StreamError):
    """There is no snapshot to go back to."""


class UnsupportedCache(StreamError):
    """A cache that overwrites or drops tokens (static, sliding, quantised) allows no snapshots without a copy.

    One that a model leaves tokens out of, as in training with activation checkpointing, allows no answer.
    """
