from qexp.reporting.figures import variants as figure_module
from qexp.reporting.figures.variants import prec1_by_variant
from qexp.reporting.frames.load import load_records
from qexp.reporting.report import write_report
from qexp.stats.interval import wilson

METHODS = ("minmax", "percentile", "mse")


def records_of(write, record, training, *names, **changes):
    """An experiment of one checkpoint: a row per name at epoch 0, from 90 percent down."""
    rows = training([], epochs=0)
    rows += [record("fp32", 0, prec1=90.0)]
    rows += [record(name, 0, prec1=89.0 - 2 * number, **changes) for number, name in enumerate(names)]
    return load_records("exp", write(rows))


def test_every_variant_has_a_line(write, record, training):
    names = [f"W{bits} int {method}" for bits in (8, 4) for method in METHODS]
    figure = prec1_by_variant(records_of(write, record, training, *names))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    dots, intervals = axes.collections[1], axes.collections[0]
    assert [list(point) for point in dots.get_offsets()] == [[89.0 - 2 * number, number] for number in range(6)]
    expected = wilson(890, 1000)
    assert [tuple(end) for end in intervals.get_segments()[0]] == [(expected.low, 0.0), (expected.high, 0.0)]
    assert len({tuple(color) for color in dots.get_facecolors()}) == 2  # a colour for each width
    low, high = axes.get_xlim()
    assert low < wilson(790, 1000).low and high > 90.0


def test_near_the_float_network_is_magnified(write, record, training):
    names = [f"W{bits} int {method}" for bits in (8, 4) for method in METHODS] + ["W2 int mse"]
    rows = training([], epochs=0) + [record("fp32", 0, prec1=90.0)]
    rows += [record(name, 0, prec1=10.0 if name.startswith("W2") else 89.0) for name in names]
    whole, near = prec1_by_variant(load_records("exp", write(rows))).axes
    assert whole.get_xlim()[0] < 10 and near.get_xlim()[0] > 80
    assert len(near.collections[1].get_offsets()) == 6 and len(whole.collections[1].get_offsets()) == 7


def test_not_drawn_where_another_figure_shows_it_all(write, record, training):
    assert prec1_by_variant(records_of(write, record, training, "W8 int", "W4 int", "W2 int")) is None
    rows = training(["W8 int", "W4 int"]) + training(["W8 int", "W4 int"], training="bb" * 8, params={"train.lr": 0.01})
    assert prec1_by_variant(load_records("exp", write(rows))) is None


def test_more_variants_than_a_page_holds_go_on_in_further_figures(write, record, training):
    names = [f"W{bits} int {number:02}" for bits in (8, 4, 3) for number in range(40)]
    rows = [*training([], epochs=0), record("fp32", 0, prec1=90.0), *(record(name, 0, prec1=88.0) for name in names)]
    records = load_records("exp", write(rows))
    pages = [prec1_by_variant(records, page) for page in (1, 2, 3)]
    assert [len(page.axes[0].get_yticklabels()) for page in pages] == [40, 40, 40]
    assert [label.get_text() for page in pages for label in page.axes[0].get_yticklabels()] == names
    assert all(page.get_figheight() <= 11 for page in pages) and "(2 of 3)" in pages[1].get_suptitle()
    assert len({page.axes[0].get_xlim() for page in pages}) == 1
    assert prec1_by_variant(records, 4) is None


def test_pages_that_are_no_more_are_removed(write, record, training, tmp_path, monkeypatch):
    monkeypatch.setattr(figure_module, "MAX_ROWS", 4)
    names = [f"W{bits} int {number:02}" for bits in (8, 4) for number in range(4)]
    rows = [*training([], epochs=0), record("fp32", 0, prec1=90.0), *(record(name, 0, prec1=88.0) for name in names)]
    two = write_report("exp", runs_dir=write(rows), results_dir=tmp_path / "out")
    assert "Every variant, page 2" in (two.folder / "report.html").read_text()
    (two.folder / "figures" / "of_mine_2.png").touch()
    one = write_report("exp", runs_dir=write(rows[:-4]), results_dir=tmp_path / "out")
    left = {path.name for path in (one.folder / "figures").iterdir()}
    assert "prec1_by_variant.svg" in left and "prec1_by_variant_2.svg" not in left and "of_mine_2.png" in left
