import itertools
import math

import numpy as np
import pytest
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from matplotlib.text import Text

from auto_deeplab.report import figures
from auto_deeplab.space import decoding, genotype, search_space
from auto_deeplab.space.genotype import Genotype


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, in place of files."""
    kept = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: kept.append(figure))
    return kept


def random_genotype(rng, num_layers=6, num_blocks=5):
    beta = np.zeros([num_layers, 4, 3])
    for layer, source, level in search_space.edges(num_layers):
        beta[layer - 1, source, search_space.direction(source, level)] = rng.random() + 0.1
    alpha = rng.dirichlet(np.ones(8), search_space.num_cell_edges(num_blocks))
    return decoding.decode(alpha, beta, search_space.OPERATIONS, num_blocks), beta


def text_boxes(figure):
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    return [(text.get_text(), text.get_window_extent()) for text in texts]


def check_that_texts_can_be_read(figure):
    width, height = figure.get_size_inches() * figure.dpi
    boxes = text_boxes(figure)
    for name, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, name
    for (one, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other_box), (one, other)


@pytest.mark.parametrize(("num_layers", "num_nodes"), [(1, 2), (4, 2 + 3 + 4 + 4), (12, 45)])
def test_network_shows_every_node_and_the_path(drawn, num_layers, num_nodes):
    made, beta = random_genotype(np.random.default_rng(num_layers), num_layers)
    figures.draw_network(made, "unused.png", beta)
    axes = drawn[0].axes[0]
    nodes = [patch for patch in axes.patches if isinstance(patch, Circle)]
    assert len(nodes) == num_nodes + 2  # and the two of the stem
    blue = {
        tuple(node.center)
        for node in nodes
        if node.get_facecolor()[:3] == (31 / 255, 95 / 255, 191 / 255)
    }
    assert blue == set(enumerate(made.path, start=1))
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    dashed = [arrow for arrow in arrows if arrow.get_linestyle() not in ("-", "solid")]
    steps = {
        (layer, source, level)
        for layer, (source, level) in enumerate(itertools.pairwise((0, *made.path)), start=1)
    }
    assert len(dashed) == len(set(decoding.find_strongest_edges(beta)) - steps)
    # The path, the stem's own edge, the image before it and the ASPP behind it.
    assert len(arrows) - len(dashed) == num_layers + 3
    check_that_texts_can_be_read(drawn[0])


def test_network_arrows_end_at_the_rims_of_nodes(drawn, monkeypatch):
    arrows = []
    monkeypatch.setattr(
        figures, "_draw_arrow", lambda axes, start, end, *_: arrows.append((start, end))
    )
    made, beta = random_genotype(np.random.default_rng(0), 12)
    figures.draw_network(made, "unused.png", beta)
    between_nodes = [(a, b) for a, b in arrows if a[0] >= -1 and b[0] <= 12]
    assert len(between_nodes) > 40
    for point in itertools.chain.from_iterable(between_nodes):
        center = [round(value) for value in point]
        assert math.dist(point, center) == pytest.approx(figures.NODE_RADIUS)


def test_network_refuses_the_beta_of_another_network():
    made, _ = random_genotype(np.random.default_rng(0), 4)
    with pytest.raises(ValueError, match="beta has 5 layers, the genotype 4"):
        figures.draw_network(made, "unused.png", np.ones([5, 4, 3]))


def on_one_line(one, other, axis):
    """Whether two segments along an axis lie on one line and share more than a point."""
    (a, b), (c, d) = one, other
    across = 1 - axis
    if not abs(a[across] - b[across]) < 1e-9 > abs(c[across] - d[across]):
        return False
    overlap = min(max(a[axis], b[axis]), max(c[axis], d[axis])) - max(
        min(a[axis], b[axis]), min(c[axis], d[axis])
    )
    return abs(a[across] - c[across]) < 0.05 and overlap > 0.01


def enters(segment, box):
    """Whether a segment along an axis has a point inside a box (left, top, width, height)."""
    (x, y), (x_end, y_end) = segment
    left, top, width, height = box
    return (
        min(x, x_end) < left + width - 0.01
        and max(x, x_end) > left + 0.01
        and min(y, y_end) < top + height - 0.01
        and max(y, y_end) > top + 0.01
    )


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 5, 7])
def test_cell_wires_stay_apart_and_outside_the_boxes(drawn, monkeypatch, num_blocks):
    wires, boxes = [], []
    draw_line, draw_arrow, draw_box = figures._draw_line, figures._draw_arrow, figures._draw_box

    def record(draw):
        def wire(axes, start, end, colour, width):
            if colour in figures.WIRES and (start[0] == end[0] or start[1] == end[1]):
                wires.append((colour, (start, end)))
            draw(axes, start, end, colour, width)

        return wire

    def box(axes, *measures, **keywords):
        is_panel = measures[5] == figures.PALE_GREY  # the backgrounds of blocks: wires enter them
        if not is_panel:
            boxes.append(measures[:4])
        return draw_box(axes, *measures, **keywords)

    monkeypatch.setattr(figures, "_draw_line", record(draw_line))
    monkeypatch.setattr(figures, "_draw_arrow", record(draw_arrow))
    monkeypatch.setattr(figures, "_draw_box", box)
    rng = np.random.default_rng(num_blocks)
    for _ in range(4):
        wires.clear()
        boxes.clear()
        made, _ = random_genotype(rng, 2, num_blocks)
        figures.draw_cell(made, "unused.png")
        assert len(boxes) == 2 + 2 * num_blocks + 1  # inputs, operations, concat
        for (_, segment), measures in itertools.product(wires, boxes):
            assert not enters(segment, measures)
        for (colour, one), (other_colour, other) in itertools.combinations(wires, 2):
            if colour != other_colour:
                assert not on_one_line(one, other, 0) and not on_one_line(one, other, 1)
    check_that_texts_can_be_read(drawn[-1])


def test_cell_labels(drawn):
    figures.draw_cell(genotype.load("published"), "unused.png")
    texts = [name for name, _ in text_boxes(drawn[0])]
    operations = sorted(name for name in texts if name[:3] in ("sep", "atr"))
    # Fig. 3's cell.
    assert operations == ["atr 3x3"] + 2 * ["atr 5x5"] + 4 * ["sep 3x3"] + 3 * ["sep 5x5"]
    assert texts.count("+") == 5
    check_that_texts_can_be_read(drawn[0])


def test_alpha_is_drawn_with_what_was_kept(drawn):
    made, _ = random_genotype(np.random.default_rng(0), num_blocks=3)
    figures.draw_alpha(made, "unused.png")
    check_that_texts_can_be_read(drawn[0])
    (axes,) = drawn[0].axes
    # Three blocks have 2 + 3 + 4 edges.
    assert axes.images[0].get_array().shape == (9, 8)
    texts = [text for text, _ in text_boxes(drawn[0])]
    assert {"sep 3x3", "none", "$H^{l-2}$ → block 0", "block 1 → block 2"} <= {*texts}
    shares = [f"{100 * share:.0f}" for row in made.meta["alpha"] for share in row]
    assert [text for text in texts if text.isdecimal()] == shares
    # A frame lies around the middle of its field; two for each of three blocks.
    edges = search_space.cell_edges(3)
    frames = [frame for frame in axes.patches if isinstance(frame, Rectangle)]
    middles = [(round(f.get_x() + 0.47), round(f.get_y() + 0.45)) for f in frames]
    assert [(edges[row], search_space.OPERATIONS[column]) for column, row in middles] == [
        ((number, source), name)
        for number, block in enumerate(made.cells[0])
        for source, name in block
    ]


def test_each_cell_has_an_alpha(drawn):
    rng = np.random.default_rng(1)
    made, beta = random_genotype(rng, num_layers=4, num_blocks=2)
    alpha = rng.dirichlet(np.ones(8), [4, 5])  # one for each layer: 2 + 3 edges
    several = decoding.decode(alpha, beta, search_space.OPERATIONS, 2, alpha_sharing="layer")
    figures.draw_alpha(several, "unused.png")
    check_that_texts_can_be_read(drawn[0])
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert titles == [f"cell {n}: used by layers {n + 1}" for n in range(4)]
    own = Genotype(made.path, made.cells)
    with pytest.raises(ValueError, match="does not say by which alpha"):
        figures.draw_alpha(own, "unused.png")


def test_operation_labels():
    labels = [figures.operation_label(name) for name in search_space.KNOWN_OPERATIONS[:7]]
    assert labels == ["sep 3x3", "sep 5x5", "atr 3x3", "atr 5x5", "avg 3x3", "max 3x3", "skip"]
    assert figures.operation_label("dil_conv_5x5") == "dil 5x5"


def test_every_distinct_cell_is_drawn_and_numbered(drawn):
    first = (((0, "skip_connect"), (0, "dil_conv_3x3")),)
    second = (((0, "max_pool_3x3"), (1, "dil_conv_5x5")),)
    made = Genotype((0, 1, 1), (first, second), (1, 0, 1))
    figures.draw_cell(made, "unused.png")
    figures.draw_network(made, "unused.png")
    texts = [name for name, _ in text_boxes(drawn[0])]
    assert {"cell 0: used by layers 2", "cell 1: used by layers 1, 3", "not used"} <= set(texts)
    numbers = [text.get_text() for text in drawn[1].findobj(Text) if text.get_color() == "white"]
    assert numbers == ["1", "0", "1"]
    for figure in drawn:
        check_that_texts_can_be_read(figure)


ROWS = [
    {"step": 10, "epoch": 1, "phase": "weights", "loss_w": 2.0, "loss_arch": None, "val_miou": 0.1},
    {"step": 20, "epoch": 2, "phase": "weights", "loss_w": math.nan, "val_miou": None},
    {"step": 30, "epoch": 3, "phase": "architecture", "loss_w": 1.0, "loss_arch": 1.5},
    {"step": 40, "epoch": 4, "phase": "architecture", "loss_w": 0.5, "loss_arch": 1.2},
]


def test_history_draws_what_was_reported(drawn):
    figures.draw_history(ROWS, "unused.png")
    losses, miou = drawn[0].axes  # nothing says an entropy or a learning rate
    curves = {line.get_label(): line.get_xydata().tolist() for line in losses.get_lines()}
    assert curves["weights"] == [[1, 2.0], [3, 1.0], [4, 0.5]]
    assert curves["architecture (trainB)"] == [[3, 1.5], [4, 1.2]]
    # Epochs 1 and 2 learned the weights alone; the architecture phase starts after epoch 2.
    assert curves["architecture phase starts"] == [[2, 0], [2, 1]]
    assert miou.get_lines()[0].get_xydata().tolist() == [[1, 0.1]]


def test_axes_start_at_zero_and_entropies_have_a_line_at_uniform(drawn):
    rows = [
        {**row, "alpha_entropy": 2.0, "beta_entropy": 0.8, "learning_rate": 0.1} for row in ROWS
    ]
    uniform = decoding.uniform_entropies(num_operations=8, num_layers=2, num_blocks=3)
    # A block has 2, 3 or 4 inputs.
    assert uniform["edge_entropy"] == pytest.approx(math.log(2 * 3 * 4) / 3)
    # Of two layers, node 1 of the first and nodes 1, 2 of the second: 2; 2 and 3 outgoing edges.
    assert uniform["beta_entropy"] == pytest.approx((2 * math.log(2) + math.log(3)) / 3)
    figures.draw_history(rows, "unused.png", uniform)
    assert [axes.get_ylim()[0] for axes in drawn[0].axes] == [0] * 4
    (entropies,) = [axes for axes in drawn[0].axes if "entropy" in axes.get_title()]
    levels = [
        set(line.get_ydata()) for line in entropies.get_lines() if line.get_linestyle() == ":"
    ]
    assert levels == [{math.log(8)}, {uniform["beta_entropy"]}]


def test_history_has_no_empty_place(drawn):
    rows = [{**row, "learning_rate": 0.1} for row in ROWS]
    figures.draw_history(rows, "unused.png")
    axes = drawn[0].axes
    assert len(axes) == 3 and len({round(one.get_position().y0, 3) for one in axes}) == 1


def test_history_falls_back_to_steps(drawn):
    figures.draw_history([{**row, "epoch": None} for row in ROWS], "unused.png")
    axes = drawn[0].axes[0]
    assert axes.get_xlabel() == "step"
    assert axes.get_lines()[0].get_xdata().tolist() == [10, 30, 40]


@pytest.mark.parametrize(("rows", "panels"), [([], 0), (ROWS[:1], 2), ([{"step": 1}], 0)])
def test_history_of_little(drawn, rows, panels):
    figures.draw_history(rows, "unused.png")
    assert len(drawn[0].axes) == panels
    names = [name for name, _ in text_boxes(drawn[0])]
    assert names.count("nothing reported yet") == (panels == 0)


def test_files_are_png(tmp_path):
    made, beta = random_genotype(np.random.default_rng(0), 2, 1)
    figures.draw_network(made, tmp_path / "figures" / "network.png", beta)
    figures.draw_cell(made, str(tmp_path / "figures" / "cell.png"))
    figures.draw_history(ROWS, tmp_path / "figures" / "history.png")
    files = sorted((tmp_path / "figures").iterdir())
    assert [file.name for file in files] == ["cell.png", "history.png", "network.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG\r\n") for file in files)


def test_an_architecture_with_where_it_comes_from(drawn):
    rng = np.random.default_rng(0)
    made, _ = random_genotype(rng)
    meta = {**made.meta, "dataset": "cityscapes", "seed": 3, "step": 70}
    figures.draw_architecture(Genotype(made.path, made.cells, None, meta), "unused.svg")
    check_that_texts_can_be_read(drawn[0])
    texts = [text for text, _ in text_boxes(drawn[0])]
    assert "cityscapes, seed 3, step 70" in texts
    # Each operation with its probability, by hand: the row of its edge and its column.
    rows = search_space.cell_edges(made.num_blocks)
    alpha = np.array(made.meta["alpha"])
    for number, block in enumerate(made.cells[0]):
        for source, name in block:
            share = alpha[rows.index((number, source)), search_space.OPERATIONS.index(name)]
            assert f"{figures.operation_label(name)}  {share:.0%}" in texts
        # Its edges have no weights: each operation's share is all that the cell says in percent.
    assert sum("%" in text for text in texts) == 2 * made.num_blocks
    widths = sorted(line.get_linewidth() for line in drawn[0].axes[0].get_lines())
    assert widths[-2] > 2 * widths[1]  # edges of the trellis, by beta


@pytest.mark.parametrize("sharing", ["global", "level"])
def test_the_weights_of_edges_stand_at_their_wires(drawn, sharing):
    rng = np.random.default_rng(0)
    beta = random_genotype(rng)[1]
    count = 1 if sharing == "global" else 4
    shape = (count, search_space.num_cell_edges(3))
    alpha = rng.dirichlet(np.ones(8), shape)
    # Whole percents, each once: 1, 2, 3, ...
    weights = np.arange(1, np.prod(shape) + 1).reshape(shape) / 100
    if sharing == "global":
        alpha, weights = alpha[0], weights[0]
    names = search_space.OPERATIONS
    made = decoding.decode(alpha, beta, names, 3, alpha_sharing=sharing, edge_weights=weights)
    figures.draw_architecture(made, "unused.png")
    check_that_texts_can_be_read(drawn[0])
    texts = [text for text, _ in text_boxes(drawn[0]) if text.endswith("%") and "  " not in text]
    rows = search_space.cell_edges(3)
    levels = sorted(set(made.path)) if sharing == "level" else [0]
    wanted = [
        weights.reshape(shape)[level, rows.index((number, source))]
        for cell, level in zip(made.cells, levels, strict=True)
        for number, block in enumerate(cell)
        for source, _ in block
    ]
    assert sorted(texts) == sorted(f"{weight:.0%}" for weight in wanted)


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"edge_weights": [[1.0]], "alpha_sharing": "global"},
        {"edge_weights": "x", "alpha_sharing": "level"},
        {"alpha": 7, "beta": "x", "operations": [1], "alpha_sharing": "global"},
        {"alpha": [[0.5]], "beta": [[[0.5] * 3] * 4], "operations": ["none"], "alpha_sharing": 3},
        {"alpha": [[np.nan] * 8] * 20, "operations": list(search_space.OPERATIONS)},
    ],
)
def test_an_architecture_that_does_not_say(drawn, meta):
    made, _ = random_genotype(np.random.default_rng(1))
    figures.draw_architecture(Genotype(made.path, made.cells), "unused.png")
    odd = Genotype(made.path, made.cells)
    odd.meta.update(meta)  # as a file may have it
    figures.draw_architecture(odd, "unused.png")
    plain, other = ([text for text, _ in text_boxes(figure)] for figure in drawn)
    assert plain == other and "an architecture" in plain
    assert not any("%" in text for text in plain)


def test_a_title_is_text_and_no_formula(drawn):
    made = Genotype(
        (0,), random_genotype(np.random.default_rng(0))[0].cells, meta={"dataset": "$a_"}
    )
    figures.draw_architecture(made, "unused.png")
    text_boxes(drawn[0])  # lays them out: an unfinished formula would raise
    assert drawn[0].texts[0].get_text() == r"\$a_"


def test_svg_by_its_name_and_the_same_each_time(tmp_path):
    made, _ = random_genotype(np.random.default_rng(0))
    for name in ("a.svg", "b.SVG", "c.png"):
        figures.draw_architecture(made, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.SVG").read_bytes()
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
