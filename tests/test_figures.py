"""Every figure can be read: no legend over data, every mark explained, ticks with room, letters that a phone shows."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from msgspec.structs import replace

from experiments import _files, reporting
from experiments.benchmarking import result
from experiments.records.benchmarks.norm import (
    NO_SHIFT,
    AccuracyRow,
    Memory,
    NetworkMemory,
    Networks,
    NormRows,
    Speed,
    SpeedRow,
)
from experiments.records.benchmarks.result import PositiveSpread
from experiments.records.norm_study import TASKS
from experiments.records.questions.time import Analysis, TimeIntervals
from experiments.reporting import curves
from experiments.reporting.document import document, figure, table, write_svg
from experiments.reporting.norm_study.cells import read
from experiments.reporting.norm_study.figure import LOOKS, task_figures
from experiments.reporting.questions.time import missed, time_sections
from experiments.reporting.study_files import StudyFiles
from tests import made
from tests.test_reporting import write_run

DOCS = Path(__file__).parent.parent / "docs" / "results"
STUDY = DOCS / "batch_size_mnist"
# On a phone of 400 pixels, with the margins of a page, and the least height of a letter's line there.
PAGE, LEAST = 368, 9.5


def of_a_run(draw):
    def make(folder):
        write_run(folder)
        ramp = {"kind": "ramp", "step": 4, "batch_size": 128}
        with (folder / "metrics.jsonl").open("a") as file:
            file.write("\n" + json.dumps(ramp) + "\n")
        return draw(folder)

    return make


def of_a_norm_study(draw):
    def row(task, norm, size, seed):
        options = {"dataset": "digits", "seed": seed, "num_devices": 2, "steps": 9}
        result = made.result(0.9 - size / 100 + seed / 50, mean_iou=0.5 + seed / 50)
        summary = made.summary(updates=9, seconds={"compute": 1.0}, results={"test": result})
        return made.row(f"grid-{task}-{norm}-p{size}-seed{seed}", options, summary=summary)

    def make(folder):
        grid = itertools.product(TASKS, LOOKS, (2, 8, 32), (0, 1))
        (folder / "results.jsonl").write_bytes(b"".join(_files.line(row(*place)) for place in grid))
        return draw(folder)

    return make


def of_the_norm(folder):
    def spread(value):
        return PositiveSpread(median=value, low=value, high=value)

    speed = SpeedRow(case="a shape", ratio={"torch": spread(1.2), "flax": spread(0.7)})
    memory = [NetworkMemory(name=name, temporary=2**power) for name, power in (("batchnorm_jax", 31), ("flax", 32))]
    ways = [(name, NO_SHIFT) for name in ("psum", "all_gather", "flax", "flax_stable")]
    ways = [*ways, ("default", "shift 1 std off")]
    places = [(f"mean/std {at}, {shift}", name) for at in ("1", "100", "10000") for name, shift in ways]
    rows = NormRows(
        speed=Speed(rows=[speed, speed]),
        memory=Memory(resnet50=Networks(batch_size=32, image_size=224, rows=memory)),
        accuracy=[AccuracyRow(what=what, name=name, y=1e-7 * (i + 1)) for i, (what, name) in enumerate(places)],
    )
    return reporting.norm_figure(result.write(rows, folder / "norm.json", []))


# For a page, which a phone shows in its whole width; then pictures that are wide and for a document.
ON_PAGES = {
    "time": lambda _: reporting.time_figure(STUDY),
    "smoothness": lambda _: reporting.smoothness_figure(STUDY),
    "epochs": lambda _: reporting.epochs_figure(STUDY),
    "rate": lambda _: reporting.rate_figure(STUDY),
    "critical": lambda _: reporting.convergence_figure(STUDY),
    "backwards": lambda _: reporting.rungs_figure(STUDY, "backwards"),
    "ladder": lambda _: reporting.rungs_figure(STUDY),
    "generalisation": lambda _: reporting.generalisation_figure(STUDY),
    "ramp": lambda _: reporting.ramp_figure(STUDY),
    **{
        f"recommendation, {name}": lambda _, name=name: reporting.recommendation_figure(
            DOCS / "recommend" / name / "recommendation"
        )
        for name in ("digits", "mnist", "mnist_no_norm")
    },
    **{f"run, {i}": of_a_run(lambda folder, i=i: curves.curve_panels(folder)[i]) for i in range(3)},
    **{f"norm study, {i}": of_a_norm_study(lambda folder, i=i: task_figures(read(folder))[i]) for i in range(2)},
}
WIDE = {
    "run": of_a_run(reporting.training_curves),
    "norm study": of_a_norm_study(reporting.norm_study_figure),
    "norm": of_the_norm,
    **{
        str(path.relative_to(DOCS)): lambda _, path=path: reporting.topology_figure(path)
        for path in sorted((DOCS / "topology").rglob("*.json"))
    },
}


@pytest.fixture(scope="module", params=[*ON_PAGES, *WIDE])
def drawing(request, tmp_path_factory):
    made = {**ON_PAGES, **WIDE}[request.param](tmp_path_factory.mktemp("figure"))
    canvas = FigureCanvasAgg(made)
    canvas.draw()
    # Twice: the legends' own places come with the first time.
    canvas.draw()
    return made


def boxes(artists):
    return [artist.get_window_extent() for artist in artists]


def apart(one, other, room=0.0):
    beside = one.x1 <= other.x0 + room or other.x1 <= one.x0 + room
    return beside or one.y1 <= other.y0 + room or other.y1 <= one.y0 + room


def shown(labels, axes):
    """Tick labels with text, within their axis."""
    low, high = axes.get_window_extent().min - 3, axes.get_window_extent().max + 3
    found = [(label, label.get_window_extent()) for label in labels if label.get_text() and label.get_visible()]
    return [
        (label, box)
        for label, box in found
        if low[0] <= (box.x0 + box.x1) / 2 <= high[0] or low[1] <= (box.y0 + box.y1) / 2 <= high[1]
    ]


def test_nothing_lies_over_anything_else(drawing):
    frame, page = drawing.bbox, drawing.axes
    legends = [axes.get_legend() for axes in page if axes.get_legend()]
    for legend in legends:
        box = legend.get_window_extent()
        assert frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1 and box.y1 <= frame.y1 + 1, "the legend is cut"
        assert all(apart(box, axes.get_window_extent(), 1) for axes in page), "the legend lies over data"
    for axes in page:
        texts = [*boxes(axes.texts), *boxes(text for text in [axes.title, axes._left_title] if text.get_text())]
        for one, other in itertools.combinations(texts, 2):
            assert apart(one, other, 1), [text.get_text() for text in axes.texts]
        assert all(frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1 for box in texts), "a text is cut"
        for axis in (axes.xaxis, axes.yaxis):
            ticks = [box for _, box in shown(axis.get_ticklabels(), axes)]
            assert all(apart(a, b, 1) for a, b in itertools.combinations(ticks, 2)), "tick labels lie over each other"


def test_every_mark_is_explained(drawing):
    """Every line style in a figure is named in a legend."""

    def look(line):
        marker = line.get_marker() not in ("None", "", None) and line.get_marker()
        return to_hex(line.get_color()), marker or line.get_linestyle(), line.get_markerfacecolor() == "none"

    for axes in drawing.axes:
        lines = [line for line in axes.lines if len(line.get_xdata())]
        named = {look(line) for line in lines if not line.get_label().startswith("_")}
        # A single line in a panel is what its title or its axis says; zero is where its axis says so.
        unnamed = {look(line) for line in lines if line.get_label().startswith("_")} - named
        zero = {look(line) for line in lines if set(line.get_ydata()) == {0}}
        ratio_of_one = {look(line) for line in lines if list(line.get_xdata()) == [1, 1]}
        assert len(lines) == 1 or not unnamed - zero - ratio_of_one, (unnamed, named)
        assert not named or axes.get_legend() or len(lines) == 1


def test_logarithmic_axes_have_round_numbers(drawing):
    for axes in drawing.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() != "log":
                continue
            labels = [label.get_text() for label, _ in shown(axis.get_ticklabels(), axes)]
            assert len(labels) >= 2 and len(set(labels)) == len(labels), labels
            assert not [label.get_text() for label, _ in shown(axis.get_ticklabels(minor=True), axes)]
            if axis is axes.yaxis and not any("$" in label for label in labels):
                values = [float(label.replace(",", "")) for label in labels]
                assert all(value == float(f"{value:.2g}") for value in values), labels


@pytest.mark.parametrize("name", ON_PAGES)
def test_a_phone_shows_letters_that_can_be_read(name, tmp_path):
    made = ON_PAGES[name](tmp_path)
    FigureCanvasAgg(made).draw()
    pixels = PAGE / (72 * made.get_figwidth())
    for text in made.findobj(lambda artist: hasattr(artist, "get_fontsize") and artist.get_text()):
        assert text.get_fontsize() * pixels >= LEAST, text.get_text()


def test_pictures_follow_the_readers_light_or_dark(tmp_path):
    made = reporting.rate_figure(STUDY)
    picture = write_svg(made, tmp_path / "rate.svg").read_text()
    assert picture.index("prefers-color-scheme: dark") < picture.index('<g id="figure_1">')
    assert picture == write_svg(made, tmp_path / "rate.svg").read_text()
    page = document("A page", [figure([made, made], "Two.")])
    assert "prefers-color-scheme: dark" in page and page.count("<svg") == 2 and 'class="panels"' in page


def test_columns_of_numbers_are_aligned_on_the_right_and_those_of_text_are_not():
    head = ("batch size", "optimizer", "updates", "rates: accuracy", "interval", "seconds")
    rows = [
        ("64", "Muon", "1,024", "0.1: 97.66,  0.2: 98.78", "512 (256 to 1,024)", "1.5"),
        ("128", "none", "-12", "0.1: 97.70,  0.2: 98.80", "no bounds", ""),
        ("256", "2 of them", "≥ 7", "0.1: 97.71,  0.2: 98.90", "~3", "–"),
    ]
    found = re.findall(r"<th([^>]*)>(.*?)</th>", table(head, rows))
    assert [name for kind, name in found if kind] == ["updates", "interval", "seconds"]
    assert table(head, rows).count("<td class") == 9
    assert "class" not in table(head, rows, numbers=False).partition("<table>")[2]


def words(picture):
    """The texts of a picture, which stand beside the shapes of their letters."""
    return re.findall(r"<!-- (.*?) -->", picture)


@pytest.mark.parametrize(
    ("folder", "write", "studied"),
    [
        ("batch_size_mnist", reporting.write_study_page, "simple_cnn on mnist"),
        ("large_batch/mnist", reporting.write_study_page, "simple_cnn on mnist"),
        ("large_batch/cifar10", reporting.write_study_page, "resnet18_narrow on cifar10"),
        ("recommend/mnist/recommendation", reporting.write_recommendation_page, "simple_cnn on mnist"),
    ],
)
def test_a_page_names_data_model_and_day_and_the_committed_one_is_as_it_is_made_now(folder, write, studied, tmp_path):
    shutil.copytree(DOCS / folder, tmp_path / "study")
    page = write(tmp_path / "study").read_text()
    head = page[page.index("<h1>") : page.index("</p>")]
    assert studied in head and re.search(r"\d (November|December) 2026", head)
    for committed in [*(DOCS / folder).glob("*.svg"), *(DOCS / folder).glob("*.html")]:
        made = (tmp_path / "study" / committed.name).read_text()
        assert words(made) == words(committed.read_text()) != [], f"{committed.name}: run experiments.report again"
        assert re.sub("<svg.*?</svg>", "", made, flags=re.DOTALL) == re.sub(
            "<svg.*?</svg>", "", committed.read_text(), flags=re.DOTALL
        )


@pytest.mark.parametrize("name", [name for name in WIDE if name.startswith("topology")])
def test_a_committed_picture_of_a_topology_is_as_it_is_made_now(name, tmp_path):
    made = write_svg(WIDE[name](tmp_path), tmp_path / "made.svg").read_text()
    assert words(made) == words((DOCS / name).with_suffix(".svg").read_text())


def test_a_fit_that_misses_its_points_says_so():
    """At one image an update takes a quarter of what the line through all sizes gives it."""
    study = StudyFiles(STUDY)
    found = study.needed("time", Analysis)
    assert 1 in {entry.batch_size for entry in missed(found)}
    # As far as its interval reaches it does not miss.
    wide = TimeIntervals(overhead=(0.0, 1.0), throughput=(1e-3, 1e9), knee=(0.0, 1e9))
    assert not missed(replace(found, fit=replace(found.fit, intervals=wide)))
    assert "most at 1, where an update is 3.9 times shorter than fitted" in "".join(time_sections(study)[0].parts)
    labels = [text.get_text() for text in reporting.time_figure(STUDY).axes[0].get_legend().get_texts()]
    assert "missed by the fit" in labels


def test_the_picture_has_the_ratio_the_way_round_that_the_table_has(tmp_path):
    (speed, *_, accuracy) = of_the_norm(tmp_path).axes
    assert [bar.get_width() for bar in speed.patches] == pytest.approx([0.7, 1.2])
    assert any("the default" in text.get_text() for text in accuracy.get_legend().get_texts())
