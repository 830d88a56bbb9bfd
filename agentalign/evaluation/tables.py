"""What a report shows, before it is HTML: sections of tables, plots and sentences made from evaluations.

Text stays text here (team and model words included); the template escapes all of it. Only plots are markup, and those are ours.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from agentalign.evaluation.compare import Comparison, GroupComparison
from agentalign.evaluation.evaluate import Evaluation, Group
from agentalign.evaluation.statistics import Difference, Rate


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    detail: str = ""
    """Written small beside or below, such as an interval."""
    tone: str = ""
    """"good" or "bad" colours it; the text says it too."""
    bar: tuple[float, float, float] | None = None
    """Low, mean and high in percent of the cell's width."""


@dataclass(frozen=True)
class Row:
    """The first cell is the row's heading."""

    cells: tuple[Cell, ...]
    kind: str = ""
    """"group" for a row that heads others, "sub" for one that belongs to the row above."""


@dataclass(frozen=True)
class Table:
    """Columns and rows, with a caption."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def compact(self) -> bool:
        """Many columns: intervals go below their figure."""
        return len(self.columns) > 6


@dataclass(frozen=True)
class Plot:
    """An inline SVG made by `plots`."""

    caption: str
    svg: str


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    name: str
    value: str
    detail: str
    change: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order."""

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    items: tuple[str, ...] = ()
    """A list of sentences."""
    wide: bool = False
    """Two plots in a row rather than three."""


Column = tuple[str, Evaluation]
"""Name of a stage or side, and its evaluation."""

NOTHING = Cell("–")


def percent(value: float) -> str:
    """0.833 to "83.3 %"."""
    return f"{100 * value:.1f} %"


def interval(low: float, high: float) -> str:
    """Such as "[75.7, 88.9]", in percent."""
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def points(difference: Difference) -> str:
    """A difference in percentage points with its interval."""
    return f"{signed(difference.delta)} [{signed(difference.low)}, {signed(difference.high)}]"


def signed(value: float) -> str:
    """0.05 to "+5.0", with a real minus sign."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in {"+0.0", "-0.0"} else text.replace("-", "−")


def tone(difference: Difference) -> str:
    """Colour for a difference whose interval lies on one side of 0."""
    return {"better": "good", "worse": "bad"}.get(difference.verdict, "")


def rate_cell(rate: Rate | None, *, bar: bool = True) -> Cell:
    """A rate in percent with its interval."""
    if rate is None:
        return NOTHING
    return Cell(percent(rate.mean), interval(rate.low, rate.high), bar=(100 * rate.low, 100 * rate.mean, 100 * rate.high) if bar else None)


def overview_table(columns: Sequence[Column], seconds: Sequence[float] = (), controls: Sequence[str] = ()) -> Table:
    """A row per stage or side; `controls` names those that are there to compare with only."""
    staged = bool(seconds)
    heads = ("", *(("adapter",) if staged else ()), "success", "unseen families", "overall value", "gate failed", "tool calls a run")
    rows = []
    for place, (name, one) in enumerate(columns):
        cells = [Cell(name)]
        if staged:
            cells.append(Cell(one.adapter, "control" if name in controls else ""))
        cells += [
            rate_cell(one.headline.success),
            rate_cell(one.unseen.success) if one.unseen and one.seen else NOTHING,
            Cell(f"{one.headline.overall.mean:.2f}") if one.headline.overall else NOTHING,
            Cell(percent(one.headline.gate_failed.mean)) if one.headline.gate_failed else NOTHING,
            Cell(f"{one.cost.calls:.1f}"),
        ]
        if staged:
            cells.append(Cell(duration(seconds[place])))
        rows.append(Row(tuple(cells)))
    first = columns[0][1]
    unseen_text = f", and {first.unseen.n} of unseen families" if first.unseen and first.seen else ""
    caption = f"{first.headline.n} tasks of the {first.split} split{unseen_text}; 95 % Wilson intervals over tasks."
    # Where checks broke, sides have results of different tasks.
    if other := [f"{one.headline.n} ({name})" for name, one in columns[1:] if one.headline.n != first.headline.n]:
        caption += f" Of other sides: {', '.join(other)}."
    return Table(caption, (*heads, *(("took",) if staged else ())), tuple(rows))


def criteria_table(columns: Sequence[Column], comparison: Comparison | None = None) -> Table:
    """A row per criterion, a column per stage, over the headline tasks."""
    names = list(dict.fromkeys(name for _, one in columns for name in one.headline.criteria))
    changes = comparison.criteria if comparison else {}
    rows = []
    for name in names:
        cells = [Cell(name), *(rate_cell(one.headline.criteria.get(name)) for _, one in columns)]
        if comparison:
            cells.append(difference_cell(changes[name]) if name in changes else NOTHING)
        rows.append(Row(tuple(cells)))
    gates = [rate_cell(one.headline.gate_failed) for _, one in columns]
    rows.append(Row((Cell("any gate failed (0 % is best)"), *gates, *((NOTHING,) if comparison else ()))))
    heads = ("criterion", *(name for name, _ in columns), *(("difference, points",) if comparison else ()))
    return Table("Mean per criterion, its scale mapped to 0-100 % with 100 % the best.", heads, tuple(rows))


def family_table(columns: Sequence[Column], comparison: Comparison | None) -> Table:
    """A row per family and branch; families unseen in training below the others."""
    unseen = unseen_families(columns)
    names = list(dict.fromkeys(group.name for _, one in columns for group in one.families))
    changes = {group.name: group for group in comparison.families} if comparison else {}
    rows = []
    for hidden in (False, True):
        members = [name for name in names if (name in unseen) == hidden]
        if hidden and members:
            rows.append(Row((Cell("never in training"),), kind="group"))
        for name in members:
            rows.append(_family_row(name, columns, changes))
            branches = list(dict.fromkeys(b.name for _, one in columns for b in one.branches if b.name.startswith(f"{name}/")))
            rows += [_branch_row(branch, columns, bool(comparison)) for branch in branches]
    last = ("difference, points",) if comparison else ()
    return Table(
        "Success per family, and per branch where a family has several.", ("family", "tasks", *(n for n, _ in columns), *last), tuple(rows)
    )


def unseen_families(columns: Sequence[Column]) -> set[str]:
    """Names of the families that training could not see."""
    return {result.family for _, one in columns for result in one.tasks if result.unseen}


def _family_row(name: str, columns: Sequence[Column], changes: dict[str, GroupComparison]) -> Row:
    found = [_named(one.families, name) for _, one in columns]
    count = next((str(group.n) for group in found if group), "")
    cells = [Cell(name), Cell(count), *(rate_cell(group.success if group else None) for group in found)]
    if changes:
        change = changes.get(name)
        cells.append(difference_cell(change.success) if change else NOTHING)
    return Row(tuple(cells))


def _branch_row(name: str, columns: Sequence[Column], padded: bool) -> Row:
    found = [_named(one.branches, name) for _, one in columns]
    count = next((str(group.n) for group in found if group), "")
    cells = [Cell(name.split("/", 1)[1]), Cell(count), *(rate_cell(group.success if group else None, bar=False) for group in found)]
    return Row((*cells, *((Cell(""),) if padded else ())), kind="sub")


def _named(groups: Sequence[Group], name: str) -> Group | None:
    return next((group for group in groups if group.name == name), None)


def family_changes_table(comparisons: Sequence[tuple[str, Comparison]], unseen: Collection[str] = ()) -> Table:
    """A row per family, a column per paired comparison: where a total went up and a family down."""
    names = list(dict.fromkeys(group.name for _, one in comparisons for group in one.families))
    rows = []
    for name in sorted(names, key=lambda name: name in unseen):
        found = [next((group.success for group in one.families if group.name == name), None) for _, one in comparisons]
        label = f"{name} (never in training)" if name in unseen else name
        rows.append(Row((Cell(label), *(difference_cell(one) if one else NOTHING for one in found))))
    return Table(
        "Change per family in points, paired by task, 95 % intervals.", ("family", *(name for name, _ in comparisons)), tuple(rows)
    )


def difference_cell(difference: Difference) -> Cell:
    """A difference in points, coloured when it is shown."""
    return Cell(signed(difference.delta), f"[{signed(difference.low)}, {signed(difference.high)}]", tone(difference))


def comparison_table(comparisons: Sequence[tuple[str, Comparison]]) -> Table:
    """A row per paired comparison and group of tasks."""
    rows = []
    for name, one in comparisons:
        groups = [one.seen, one.unseen] if one.seen and one.unseen else [one.headline]
        for place, group in enumerate(group for group in groups if group):
            won_lost = f"{group.won} / {group.lost}"
            cells = (
                Cell(name if place == 0 else ""),
                Cell(group.name, f"{group.success.n} tasks"),
                difference_cell(group.success),
                Cell(won_lost),
                Cell(f"{group.p:.3f}" if group.p >= 0.001 else "< 0.001"),
                Cell(group.success.verdict, tone=tone(group.success)),
            )
            rows.append(Row(cells, kind="sub" if place else ""))
    heads = ("", "over", "difference, points", "won / lost", "exact p", "")
    caption = "Paired by task; 95 % bootstrap over tasks, 10,000 resamples; p of the exact McNemar test."
    if unpaired := [f"{one.unpaired} ({name})" for name, one in comparisons if one.unpaired]:
        caption += f" Tasks that only one side has a result of, in no figure: {', '.join(unpaired)}."
    caption += "".join(f" {name}: {sentence}" for name, one in comparisons for sentence in one.notes)
    return Table(caption, heads, tuple(rows))


def cost_table(columns: Sequence[Column]) -> Table:
    """Turns, calls, tokens, seconds and how runs ended."""

    def mean(value: Callable[[Evaluation], float | None]) -> list[Cell]:
        values = [value(one) for _, one in columns]
        return [Cell(f"{v:.1f}") if v is not None else NOTHING for v in values]

    means = {
        "turns a run": mean(lambda one: one.cost.turns),
        "tool calls a run": mean(lambda one: one.cost.calls),
        "sampled tokens a run": mean(lambda one: one.cost.sampled_tokens),
        "seconds a run": mean(lambda one: one.cost.seconds),
    }
    rows = [Row((Cell(name), *cells)) for name, cells in means.items() if any(cell is not NOTHING for cell in cells)]
    for k in sorted({k for _, one in columns for k in one.pass_k}):
        chances = (one.pass_k.get(k) for _, one in columns)
        rows.append(Row((Cell(f"pass^{k}"), *(Cell(percent(c)) if c is not None else NOTHING for c in chances))))
    for reason in sorted({reason for _, one in columns for reason in one.stop_reasons}):
        counts = (one.stop_reasons.get(reason, 0) for _, one in columns)
        rows.append(Row((Cell(f"ended: {reason}"), *(Cell(str(count)) for count in counts))))
    rows.append(Row((Cell("not scored"), *(Cell(str(one.unscored)) for _, one in columns))))
    return Table("What the runs took and how they ended.", ("", *(name for name, _ in columns)), tuple(rows))


def duration(seconds: float) -> str:
    """75 to "1 min 15 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s" if seconds >= 10 or seconds == 0 else f"{seconds:.1f} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
