"""Results -> a chart: what everyone serves as a share of the limit, a panel each network."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.contestants import CONTESTANTS, CONVSERVE, STARLETTE
from benchmarks.results import Key, Results

_BLUE, _SKY, _GREY, _INK = "#0072B2", "#56B4E9", "#bbbbbb", "#222222"
_CONNECTIONS = (64, 16)  # the first of which there are figures
_COLUMNS, _WIDTH, _ROW, _HEAD = 2, 10.0, 0.3, 1.0  # inches
_STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.color": _INK}


def draw(results: Results, path: Path) -> None:
    shares = results.spreads("share_of_limit")
    served = [key for key in shares if key.scenario == "throughput"]
    networks = list(dict.fromkeys(key.network for key in served)) or ["nothing measured"]
    count = next((count for count in _CONNECTIONS if any(key.connections == count for key in served)), 1)
    columns = min(_COLUMNS, len(networks))
    rows = -(-len(networks) // columns)
    height = rows * (_HEAD + _ROW * max(1, len({key.contestant for key in served}))) + 0.4
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained", dpi=150)
        figure.suptitle(f"served ÷ limit, {count} connections, {results.machine['cores']} CPU cores")
        for place, network in enumerate(networks):
            _panel(figure.add_subplot(rows, columns, place + 1), results, network, count)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _panel(axes: Axes, results: Results, network: str, count: int) -> None:
    shares = results.spreads("share_of_limit")
    found = {name: shares[key] for name in CONTESTANTS if (key := Key("throughput", name, network, count)) in shares}
    names = sorted(found, key=lambda name: found[name].median)
    colours = {CONVSERVE.name: _BLUE, STARLETTE.name: _SKY}
    axes.barh(
        [CONTESTANTS[name].label for name in names],
        [found[name].median for name in names],
        color=[colours.get(name, _GREY) for name in names],
        xerr=(
            [found[name].median - found[name].low for name in names],
            [found[name].high - found[name].median for name in names],
        ),
        error_kw={"ecolor": _INK, "elinewidth": 0.8},
    )
    axes.set_title(network, loc="left")
    axes.axvline(1.0, color=_INK, linestyle="--", linewidth=1)
