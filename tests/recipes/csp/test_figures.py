"""What the figures of a csp run show: every method in a colour and a shape of its own."""

from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from recipes.csp.cards import _draw as draw_cards
from recipes.csp.figures import draw_frontier


class Kept:
    """A run folder that keeps the figures that it is given."""

    def __init__(self) -> None:
        self.axes: dict[str, Axes] = {}

    def figure(self, name, figure, rows, columns, *, title, told):
        self.axes[name] = figure.axes[0]


def drawn(axes: Axes) -> dict[str, Line2D]:
    """The lines by the name that the legend gives them, after what every frontier must be was asserted."""
    lines = {str(line.get_label()): line for line in axes.lines}
    assert len(lines) == len(axes.lines)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(lines)
    looks = {(to_hex(line.get_markerfacecolor()), line.get_marker()) for line in lines.values()}
    colours, shapes = zip(*looks, strict=True)
    assert len(set(colours)) == len(set(shapes)) == len(lines)
    assert "#000000" not in colours
    return lines


def test_every_method_of_the_frontier_has_its_colour_and_shape():
    names = ["csp", "bc_first", "csp C=10", "csp C=0.1", "rnr p=0.5", "rnr p=0.9", "dbr P=0.9", "imitation", "oracle"]
    rows = [
        {"policy": name, "worst exact": worst, "obtained": None if name == "imitation" else 2.0 + worst}
        | {"against model": 7.0, "worst estimated (optimistic)": None}
        for worst, name in zip([2.0, 0.5, 3.0, 1.0, 4.0, 1.5, 2.5, 3.5, 0.1], names, strict=True)
    ]
    unsearched = {"policy": "self_play", "obtained": 1.0, "against model": 1.0, "worst estimated (optimistic)": None}
    draw_frontier(kept := Kept(), [*rows, unsearched])
    lines = drawn(kept.axes["frontier"])
    assert list(lines) == ["CSP, C", "bc_first", "RNR, p", "DBR, P", "imitation", "oracle"]
    assert lines["CSP, C"].get_xydata().tolist() == [[1.0, 3.0], [2.0, 4.0], [3.0, 5.0]]  # its settings, left to right
    assert lines["imitation"].get_xydata().tolist() == [[3.5, 7.0]]  # nobody knows its true target
    assert {text.get_text() for text in kept.axes["frontier"].texts} == set(names)


def test_every_method_of_card_games_has_its_colour_and_shape():
    settings = [("csp", ""), ("csp", "C 1"), ("csp certified", ""), ("nash", ""), ("rnr", "p 0.5"), ("dbr", "P 0.9")]
    rows = [{"method": m, "setting": s, "worst": -n, "true": 2.0 * n} for n, (m, s) in enumerate(settings)]
    draw_cards(kept := Kept(), rows, [3, 2, 1], 4)
    lines = drawn(kept.axes["frontier"])
    assert list(lines) == ["csp", "csp certified", "nash", "rnr", "dbr"]
    assert lines["csp"].get_xydata().tolist() == [[-1, 2], [0, 0]]
