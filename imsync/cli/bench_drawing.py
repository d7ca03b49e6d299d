"""What `imsync bench` has measured, as a picture."""

from __future__ import annotations

from imsync import __version__
from imsync.bench.results import SIDES, Latency, Result
from imsync.cli.bench_picture import BY_HAND, LABELS, RATIO, TITLES, data_of, short, where_of
from imsync.cli.charts import Series, bar_shapes, line_shapes, linear
from imsync.cli.drawing import Panel, document

LEGEND = [(TITLES[side], tone) for tone, side in enumerate(SIDES)]


def drawing(result: Result) -> str:
    """The file."""
    about = [where_of(result), *data_of(result)]
    panels = [*_rates(result), *([_histogram(result.latency)] if result.latency else []), *_timeline(result)]
    notes = [*BY_HAND, RATIO, *(f"! {doubt.what}" for doubt in result.doubts)]
    return document(f"imsync bench, imsync {__version__}", about, panels, notes)


def _rates(result: Result) -> list[Panel]:
    names = [name for name in ("publish_per_second", "consume_per_second") if name in result.figures]
    if not names:
        return []
    figures = [result.figures[name] for name in names]
    scale = linear(max(each.of(side).value for each in figures for side in SIDES), short)
    places = [[(figure.of(side).value, tone) for tone, side in enumerate(SIDES)] for figure in figures]
    middles = [(i + 0.5) / len(names) for i in range(len(names))]
    along = [
        (at, f"{LABELS[name].split(',')[0]}: {short(figure.imsync.value)} and {short(figure.by_hand.value)}")
        for at, name, figure in zip(middles, names, figures, strict=True)
    ]
    notes = [
        (at, f"ratio {each.ratio.value:.2f} ({each.ratio.low:.2f}-{each.ratio.high:.2f})")
        for at, each in zip(middles, figures, strict=True)
    ]
    about = "events per second, median of the rounds"
    return [Panel("Rates", about, bar_shapes(places, scale), scale, along, notes, LEGEND)]


def _histogram(latency: Latency) -> Panel:
    bars = latency.histogram
    scale = linear(max(max(each.imsync, each.by_hand) for each in bars), short)
    places = [[(float(each.imsync), 0), (float(each.by_hand), 1)] for each in bars]
    every = -(-len(bars) // 6)
    along = [
        ((i + 1) / len(bars) if i + 1 < len(bars) else 1.0, f"{bars[i].up_to_ms:,.3g} ms")
        for i in range((len(bars) - 1) % every, len(bars), every)
    ]
    about = f"edits by the time from their commit to their copies', at {latency.rate:,.0f}/s; up to"
    return Panel("Latency", about, bar_shapes(places, scale), scale, along, (), LEGEND)


def _timeline(result: Result) -> list[Panel]:
    ticks = result.timeline
    if len(ticks) < 2:
        return []
    series = [
        Series(TITLES["imsync"], [(tick.seconds, tick.imsync) for tick in ticks], 0),
        Series(TITLES["by_hand"], [(tick.seconds, tick.by_hand) for tick in ticks], 1),
    ]
    scale = linear(max(y for each in series for _, y in each.points if y is not None), short)
    last = ticks[-1].seconds
    along = [(share, f"{last * share:.2g} s") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    about = f"events per second, while {result.events:,} are applied to the group store; the last round"
    title = "Rate while draining a backlog"
    return [Panel(title, about, line_shapes(series, scale), scale, along, (), LEGEND, is_wide=True)]
