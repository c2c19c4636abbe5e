"""The HTML page of an evaluation with and without the cache: what `vlm-cache evaluate` writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from consumers.evaluation.comparison import Answer, Stages
from jobs import plots
from jobs.evaluate_summary import Accuracy, ModelSummary, fault_of, percent
from jobs.html_page import Section, details, figure, html_table, page
from jobs.printing import printable
from jobs.sizes import format_seconds

_MOST_BARS = 24
_MOST_FAULTS = 200
_GROUPS: dict[str, Callable[[ModelSummary], dict[str, Accuracy]]] = {
    "Accuracy by duration": lambda one: one.by_duration,
    "Accuracy by domain": lambda one: one.by_domain,
    "Accuracy by task": lambda one: one.by_task,
}


def evaluation_page(
    title: str, subtitle: str, models: Sequence[ModelSummary], answers: Sequence[Answer], notes: Sequence[str]
) -> str:
    """Return the page; `notes` are warnings beside those that the figures make."""
    return page(
        printable(title),
        subtitle=printable(subtitle),
        warnings=[*_warnings(models, answers), *notes],
        sections=_sections(models, answers),
    )


def _warnings(models: Sequence[ModelSummary], answers: Sequence[Answer]) -> Iterator[str]:
    for one in models:
        wrong = {
            "not answered": one.questions - one.answered,
            "answered otherwise with the cache than without": one.answered - one.agreeing,
            "not found in the store": one.answered - one.hits,
        }
        said = [f"{count:,} {what}" for what, count in wrong.items() if count]
        if one.questions and not one.answered:
            why = next(answer.problem for answer in answers if answer.model == one.model)
            said = [f"none were answered, so that there are no figures; the first: {printable(str(why))}"]
        if said or not one.questions:
            yield f"{printable(one.model)}: of {one.questions:,} questions {', '.join(said) or 'none were asked'}"


def _sections(models: Sequence[ModelSummary], answers: Sequence[Answer]) -> Iterator[Section]:
    answered = [one for one in models if one.answered]  # of the others there is nothing to show
    if answered:
        yield Section(
            "Models", _models(answered), "Agreement counts answers whose logits have the same bits both ways."
        )
        yield Section(
            "Time by stage",
            figure(_time(answered)) + _stages(answered),
            "All questions of a model, once with the cache and once without. The most that a cache can give is the "
            "time without decoding, preprocessing and vision tower.",
        )
    faults = [(answer, fault) for answer in answers if (fault := fault_of(answer)) is not None]
    if faults:
        yield Section("What is wrong", _faults(faults))
    for heading, groups_of in _GROUPS.items():
        groups = {one.model: groups_of(one) for one in models}
        if any(groups.values()):
            yield Section(heading, _accuracies(heading, groups))


def _models(models: Sequence[ModelSummary]) -> str:
    headings = ("model", "questions", "agreement", "hits", "accuracy", "without cache", "times as fast", "possible")
    rows = [
        (
            printable(one.model),
            f"{one.questions:,}",
            f"{one.agreeing:,}/{one.questions:,}",
            f"{one.hits:,}/{one.questions:,}",
            percent(one.overall.share),
            percent(one.overall.right_live / one.overall.questions),
            f"{one.speedup:.2f}x",
            f"{one.possible_speedup:.2f}x",
        )
        for one in models
    ]
    return html_table(headings, rows)


def _time(models: Sequence[ModelSummary]) -> str:
    bars: list[tuple[str, Stages]] = []
    for one in models:
        bars += [(f"{printable(one.model)}, uncached", one.live), (f"{printable(one.model)}, cached", one.cached)]
    series = {
        "decoding and preprocessing": [stages.pixels_s for _, stages in bars],
        "vision tower": [stages.tower_s for _, stages in bars],
        "reading from the store": [stages.read_s for _, stages in bars],
        "projector, language model and all else": [stages.rest_s for _, stages in bars],
    }
    alt = "Seconds by stage: " + "; ".join(f"{label} {stages.total_s:.2f} s" for label, stages in bars)
    return plots.horizontal_bars([label for label, _ in bars], series, title="Where the time goes", unit="s", alt=alt)


def _stages(models: Sequence[ModelSummary]) -> str:
    rows = []
    for one in models:
        for way, stages in (("uncached", one.live), ("cached", one.cached)):
            shares = (stages.pixels_s, stages.tower_s, stages.read_s, stages.rest_s, stages.total_s)
            rows.append((printable(one.model), way, *map(format_seconds, shares)))
    headings = ("model", "", "decoding, preprocessing", "vision tower", "reading", "all else", "total")
    return html_table(headings, rows, names=2)


def _accuracies(heading: str, groups: Mapping[str, Mapping[str, Accuracy]]) -> str:
    bars = [
        (f"{printable(name)} · {printable(model)}" if len(groups) > 1 else printable(name), accuracy)
        for name in _names(groups)
        for model, found in groups.items()
        if (accuracy := found.get(name)) is not None
    ]
    shown = bars[:_MOST_BARS]
    drawn = plots.horizontal_bars(
        [label for label, _ in shown],
        {"accuracy": [100 * accuracy.share for _, accuracy in shown]},
        title=heading if len(shown) == len(bars) else f"{heading}, the first {_MOST_BARS} of {len(bars):,}",
        unit="%",
        alt=f"{heading}: " + "; ".join(f"{label} {percent(accuracy.share)}" for label, accuracy in shown),
    )
    rows = [
        (label, f"{accuracy.questions:,}", f"{accuracy.right:,}", percent(accuracy.share)) for label, accuracy in bars
    ]
    return figure(drawn) + details(f"{len(bars):,} rows", html_table(("", "questions", "right", "accuracy"), rows))


def _names(groups: Mapping[str, Mapping[str, Accuracy]]) -> list[str]:
    return list(dict.fromkeys(name for found in groups.values() for name in found))


def _faults(faults: Sequence[tuple[Answer, str]]) -> str:
    rows = [
        (printable(answer.video_id), printable(answer.question_id), printable(answer.model), printable(fault))
        for answer, fault in faults[:_MOST_FAULTS]
    ]
    drawn = html_table(("video", "question", "model", "what"), rows, names=4)
    more = len(faults) - _MOST_FAULTS
    return drawn + (f'<p class="note">and {more:,} more, which report.json names</p>' if more > 0 else "")
