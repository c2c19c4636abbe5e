"""Every error of the pipeline.

PipelineError
├── SourceError      the input cannot be enumerated: missing folder, wrong annotations, two files under one name
│   └── SourceChanged    it gives other samples than when it was planned
├── MediaError       one media file gives no frames; the unit fails, the build goes on
├── EncoderError     the model cannot be loaded, or is not what the encoder needs
└── BuildRefused     the build may not start as asked
"""

from __future__ import annotations


class PipelineError(Exception):
    """Root of every error that `pipeline` raises on purpose."""


class SourceError(PipelineError):
    """The input cannot be enumerated."""


class SourceChanged(SourceError):
    """The input gives other samples than when it was planned."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the source has changed: {what}")


class MediaError(PipelineError):
    """One media file cannot be read or decoded."""


class EncoderError(PipelineError):
    """A model cannot be loaded, or is not what the encoder needs."""


class BuildRefused(PipelineError):
    """The build may not start as asked; the message says what to change."""


def first_line(exc: BaseException) -> str:
    """Return the first line of a foreign error's message, at most 200 characters; its type where it says nothing."""
    return next(iter(str(exc).strip().splitlines()), type(exc).__name__)[:200]
