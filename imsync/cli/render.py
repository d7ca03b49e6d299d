"""What people and programs see: results on stdout, everything else on stderr. The only module that knows rich."""

from __future__ import annotations

import json
import logging
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_WIDE, _CLOSE = 3, 2
"""Characters between two columns, where there is room, and where there is less."""
_NARROWEST = 8
"""What is left of a column that is cut, at least."""
PLANNED_SHOWN = 50
"""How many rows of a plan are printed."""

_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = {"\u200d", "\ufe0f"}
"""Zero-width joiner and variation selector: parts of emoji, harmless."""


def safe(text: object) -> str:
    """Text from the outside as it may go to a terminal or a log line: control, bidi and other invisible characters
    are shown as escapes. (rich lets ESC, OSC 52, C1 and bidi through.)
    """
    return "".join(
        c if c.isprintable() or c in _JOINERS or unicodedata.category(c) not in _INVISIBLE else ascii(c)[1:-1]
        for c in str(text)
    )


def seconds(value: float | None) -> str:
    """A duration for people."""
    if value is None:
        return "-"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def milliseconds(value: float | None) -> str:
    """A duration that is given in milliseconds, for people."""
    return seconds(None if value is None else value / 1000)


def number(value: int | None) -> str:
    """A count for people; `unknown` when there is none."""
    return "unknown" if value is None else f"{value:,}"


@dataclass(frozen=True, slots=True)
class Grid:
    """A table for people.

    Args:
        columns: their titles; those that start with `#` hold numbers.
        rows: the cells.
        spare: titles of columns that may be left out where the terminal is too narrow, as long as they hold only
            zeros and dashes; the first one goes first.
        flexible: the title of a column whose cells are cut, rather than that any cell wraps.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    spare: Sequence[str] = ()
    flexible: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line for people. `tone`: empty, `bad`, `good` or `quiet`."""

    text: str
    tone: str = ""


Block = Grid | Line

_TONES = {"": "", "bad": "bold red", "good": "green", "quiet": "dim"}

SPARKS = "▁▂▃▄▅▆▇█"
_EIGHTHS: list[str] = ["", *"▏▎▍▌▋▊▉"]


def sparkline(values: Sequence[float | None], width: int, highest: float | None = None) -> str:
    """Values as a line of bars, the newest at the right; a gap where there is none. 0 is the lowest bar.

    Args:
        width: how many characters at most; of more values, several share one, by their mean.
        highest: the value of the full bar; the highest of the values when None.
    """
    per_column = max(1, -(-len(values) // width))
    start = len(values) % per_column
    groups = [values[:start]] if start else []
    groups += [values[i : i + per_column] for i in range(start, len(values), per_column)]
    means = [sum(known) / len(known) if (known := [v for v in group if v is not None]) else None for group in groups]
    top = highest or max((mean for mean in means if mean is not None), default=0.0)
    last = len(SPARKS) - 1
    return "".join(
        " " if mean is None else SPARKS[min(last, round(last * mean / top)) if top > 0 else 0] for mean in means
    )


def bar(share: float, width: int) -> str:
    """A share of so many characters as a bar, to an eighth of a character; what is there is seen."""
    eighths: int = max(1, round(share * width * 8)) if share > 0 else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8]


class Output:
    """Where a command's results and messages go.

    Args:
        as_json: one JSON object per result on stdout, and nothing else there.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def result(self, data: Mapping[str, object], *lines: str) -> None:
        """The result: the object for programs, or the lines for people."""
        if self.as_json:
            self.row(data)
        else:
            for line in lines:
                print(safe(line))

    def row(self, data: Mapping[str, object]) -> None:
        """One JSON object on a line of its own, in ASCII."""
        print(json.dumps(data, ensure_ascii=True, default=str))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, flexible: str = "") -> None:
        """A table for people. See `Grid`."""
        self.show([Grid(columns, rows, flexible=flexible)])

    def plan(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, flexible: str = "") -> None:
        """What a command is about to work on, which may be thousands: a table of the first, and how many more."""
        self.table(columns, rows[:PLANNED_SHOWN], flexible=flexible)
        if len(rows) > PLANNED_SHOWN:
            print(f"… and {len(rows) - PLANNED_SHOWN:,} more")

    def text(self, line: str) -> None:
        """A line for people."""
        print(safe(line))

    def note(self, message: str, level: int = logging.INFO, **fields: object) -> None:
        """A message that is not a result. See `imsync.cli.logs.tell`."""
        from imsync.cli.logs import tell

        tell(message, level, **fields)

    @property
    def on_a_terminal(self) -> bool:
        """Whether people see the results as they come."""
        return not self.as_json and sys.stdout.isatty()

    @property
    def width(self) -> int:
        """How many columns results have."""
        return console(sys.stdout).width

    def show(self, blocks: Sequence[Block]) -> None:
        """Tables and lines for people, as narrow as the terminal."""
        out = console(sys.stdout)
        for each in _spaced(blocks):
            out.print(_drawn(each, out.width), soft_wrap=isinstance(each, Line) and not out.is_terminal)

    @contextmanager
    def dashboard(self) -> Iterator[Callable[[Sequence[Block]], None]]:
        """The whole terminal, drawn anew with each call of what is yielded. The last drawing stays when it ends."""
        from rich.console import Group
        from rich.live import Live

        out = console(sys.stdout)
        last: list[Block] = []
        with Live(console=out, screen=True, auto_refresh=False, vertical_overflow="crop") as live:

            def draw(blocks: Sequence[Block]) -> None:
                last[:] = blocks
                live.update(Group(*(_drawn(block, out.width) for block in _spaced(blocks))), refresh=True)

            yield draw
        self.show(last)

    @contextmanager
    def live(self) -> Iterator[Screen]:
        """A screen for what goes on; on stderr when stdout is for programs."""
        from imsync.cli.logs import writes_json

        screen = Screen(sys.stderr if self.as_json else sys.stdout, self.note if writes_json() else None)
        screen.start()
        try:
            yield screen
        finally:
            screen.stop()

    @contextmanager
    def progress(self, what: str, total: int | Callable[[], int] | None) -> Iterator[Callable[[int], None]]:
        """A progress bar on stderr, when that is a terminal. Yields a function that takes the further steps done.

        Args:
            total: how many steps there are, or what tells it, which is only asked when there is a bar.
        """
        from imsync.cli.logs import writes_json

        if self.as_json or writes_json() or not sys.stderr.isatty():
            yield lambda steps: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console(sys.stderr), transient=True) as bar:
            task = bar.add_task(what, total=total() if callable(total) else total)
            yield lambda steps: bar.update(task, advance=steps)

    @contextmanager
    def stages(self) -> Iterator[Callable[[str, float], None]]:
        """A progress bar on stderr, when that is a terminal, for what goes on in stages. Yields a function that takes
        what goes on now, and how much of everything is done, as a share.
        """
        from imsync.cli.logs import writes_json

        if self.as_json or writes_json() or not sys.stderr.isatty():
            yield lambda stage, done: None
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description:<22}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console(sys.stderr), transient=True) as shown:
            task = shown.add_task("", total=1.0)
            yield lambda stage, done: shown.update(task, description=stage, completed=done)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.lstrip("#"), justify="right" if column.startswith("#") else "left")
    for row in rows:
        table.add_row(*(Text(safe(cell)) for cell in row))
    return table


def _spaced(blocks: Sequence[Block]) -> Iterator[Block]:
    """With an empty line between a table and its neighbours."""
    before: Block | None = None
    for block in blocks:
        if before and (isinstance(before, Grid) or isinstance(block, Grid)):
            yield Line("")
        yield block
        before = block


def _drawn(block: Block, width: int) -> RenderableType:
    from rich.text import Text

    if isinstance(block, Line):
        return Text(safe(block.text), style=_TONES[block.tone])
    return fitted(block, width)


def fitted(grid: Grid, width: int) -> Table:
    """A table in so many columns of the terminal, if that can be: without what may be left out, then closer set, then
    with a column cut. One that wraps all the same is not set closer for nothing.
    """
    from rich.cells import cell_len

    from imsync.cli.lines import shorten

    titles = list(grid.columns)
    rows = [[safe(cell) for cell in row] for row in grid.rows]

    def needed(gap: int) -> int:
        cells = zip(*([title.lstrip("#") for title in titles], *rows), strict=True)
        return sum(max(map(cell_len, column)) for column in cells) + gap * (len(titles) - 1)

    for spare in grid.spare:
        at = titles.index(spare)
        if needed(_WIDE) > width and all(row[at] in ("0", "-") for row in rows):
            titles.pop(at)
            for row in rows:
                row.pop(at)
    gap = next((each for each in (_WIDE, _CLOSE, 1) if needed(each) <= width), _CLOSE)
    if grid.flexible and needed(_CLOSE) > width:
        gap, at = _CLOSE, titles.index(grid.flexible)
        room = max(map(cell_len, (row[at] for row in rows))) - (needed(_CLOSE) - width)
        for row in rows:
            row[at] = shorten(row[at], max(_NARROWEST, room))
    table = _table(titles, rows)
    table.show_edge = False
    table.padding = {_WIDE: (0, 1), _CLOSE: (0, 1, 0, 0), 1: (0, 0)}[gap]  # type: ignore[assignment]
    return table


def console(stream: TextIO) -> Console:
    """A rich console on a stream: colour only on a terminal and without NO_COLOR, wide when it is no terminal."""
    from rich.console import Console

    options: dict[str, Any] = {} if stream.isatty() else {"width": 200}
    return Console(file=stream, highlight=False, markup=False, **options)


class Screen:
    """What goes on while something takes its time: lines of what happened, and the numbers below them.

    On a terminal the numbers are redrawn in place; elsewhere only lines are written. Goes to stderr under --json.

    Args:
        note: takes the lines when stderr is for programs, and nothing is drawn then.
    """

    def __init__(self, stream: TextIO, note: Callable[[str], None] | None = None) -> None:
        self._stream = stream
        self._note = note if stream is sys.stderr else None
        self._live: Any = None

    def line(self, text: str) -> None:
        """Something happened."""
        if self._note is not None:
            self._note(text)
        elif self._live is None:
            print(safe(text), file=self._stream, flush=True)
        else:
            self._live.console.print(f"● {safe(text)}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """The numbers now."""
        if self._live is not None:
            self._live.update(_table(columns, rows))

    def clear(self) -> None:
        """The numbers are no longer needed."""
        if self._live is not None:
            self._live.update("")

    def start(self) -> None:
        """Begins to draw, when the stream is a terminal."""
        if self._stream.isatty() and self._note is None:
            from rich.live import Live

            self._live = Live(console=console(self._stream), refresh_per_second=10, transient=True)
            self._live.start()

    def stop(self) -> None:
        """Ends drawing."""
        if self._live is not None:
            self._live.stop()
