"""Plots as inline SVG that follow the page: its font, its light or dark colours.

Matplotlib draws with a few placeholder colours, which become CSS variables of the page. Nothing in the SVG points anywhere (no
namespaces, no metadata, no ids but those it refers to itself), and the same figures give the same bytes.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, FAINT = "#010101", "#020202"
SERIES = ("#010301", "#010302", "#010303", "#010304", "#010305", "#010306")
"""Placeholders for the page's --c1 ... --c6."""

_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", **{code: f"var(--c{i + 1})" for i, code in enumerate(SERIES)}}

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.6,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


class Series(NamedTuple):
    """One line: x and y of equal length."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


class Point(NamedTuple):
    """A mean with its interval, in percent."""

    low: float
    mean: float
    high: float


def interval_plot(labels: Sequence[str], groups: dict[str, Sequence[Point | None]], *, y_label: str) -> str:
    """One point with an error bar per label and group; None leaves a gap."""
    with _figure(5.4, 2.9) as (figure, axes):
        many = len(groups)
        for number, (name, points) in enumerate(groups.items()):
            shift = 0.16 * (number - (many - 1) / 2)
            known = [(place + shift, point) for place, point in enumerate(points) if point is not None]
            middles = [point.mean for _, point in known]
            reach = [[max(0.0, p.mean - p.low) for _, p in known], [max(0.0, p.high - p.mean) for _, p in known]]
            colour, marker = SERIES[number % len(SERIES)], "os^D"[number % 4]
            axes.errorbar([x for x, _ in known], middles, yerr=reach, fmt=marker, color=colour, capsize=4, markersize=6, label=name)
        axes.set_xticks(range(len(labels)), [_short(label) for label in labels])
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_ylim(-3, 103)
        axes.set_ylabel(y_label)
        axes.grid(visible=False, axis="x")
        if many > 1:
            axes.legend(loc="lower right")
        return _svg(figure)


def line_plot(series: Sequence[Series], *, x_label: str, y_label: str, smooth: bool = False, percent: bool = False) -> str:
    """Lines over steps; with `smooth` the raw values stand faintly behind a running mean."""
    with _figure(3.6, 2.5) as (figure, axes):
        for number, (name, x, y) in enumerate(series):
            colour = SERIES[number % len(SERIES)]
            if smooth and len(y) >= 20:
                axes.plot(x, y, color=colour, alpha=0.3, linewidth=1.0)
                axes.plot(x, _running_mean(y), color=colour, label=name)
            else:
                axes.plot(x, y, color=colour, label=name, marker="o", markersize=3.5 if len(y) < 40 else 0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if percent:
            axes.set_ylim(-3, 103)
        if len(series) > 1:
            axes.legend(loc="best", fontsize=9)
        return _svg(figure)


def path_plot(x: Sequence[float], y: Sequence[float], *, x_label: str, y_label: str) -> str:
    """A way through a plane, first and last point marked: for what is traded against what."""
    with _figure(3.6, 2.5) as (figure, axes):
        axes.plot(x, y, color=FAINT, linewidth=1.0)
        axes.scatter(x, y, s=16, color=SERIES[0], zorder=3)
        for place, name in ((0, "first"), (-1, "last")):
            axes.annotate(name, (x[place], y[place]), textcoords="offset points", xytext=(5, 5), fontsize=9)
        axes.margins(0.12)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return _svg(figure)


def bar_plot(labels: Sequence[str], values: Sequence[float], texts: Sequence[str]) -> str:
    """Horizontal bars with their value written beside them, the first on top."""
    with _figure(5.4, max(2.9, 0.4 + 0.34 * len(labels))) as (figure, axes):
        places = range(len(labels))
        axes.barh(places, values, color=SERIES[0], height=0.6)
        for place, value, text in zip(places, values, texts, strict=True):
            axes.annotate(text, (value, place), textcoords="offset points", xytext=(5, 0), va="center", fontsize=9)
        axes.set_yticks(places, [_short(label) for label in labels])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.25 * max([*values, 1e-9]))
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        return _svg(figure)


def _short(label: str) -> str:
    """Long names would leave the plot no room; tables have them whole."""
    return label if len(label) <= 16 else label[:15] + "…"


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean over the last tenth of the values (5 at least)."""
    width = max(5, len(values) // 10)
    windows = [values[max(0, end - width) : end] for end in range(1, len(values) + 1)]
    return [sum(window) / len(window) for window in windows]


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    # A Figure of its own, never pyplot: no global state, no window, safe in a server's threads.
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        yield figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "agentalign"}), warnings.catch_warnings():
        # Text stays text: the reader's browser has the letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<svg [^>]*(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', text, count=1)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*;", "", text)
    referred = set(re.findall(r"[\"(]#([\w.]+)[\")]", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referred else "", text)
    for code, variable in _VARIABLES.items():
        text = text.replace(code, variable)
    return text.strip()
