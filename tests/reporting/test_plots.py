"""Plots: there for every kind of experiment, nothing cut off, each loss looking the same in all of them."""

import pytest
from matplotlib import rc_context

from harness.reporting.curves import training_figure
from harness.reporting.leaderboard import build_leaderboard
from harness.reporting.plots import LABELS, kl_figure, length_figure, win_rate_figure
from harness.reporting.report import write_report
from harness.reporting.results import load_results
from harness.reporting.style import GREY, RC, styles
from tests.reporting.results_folder import plan_cell, write_cell, write_example, write_plan, write_training

NAMES = ["win_rate", "training_curves", "win_rate_vs_kl", "length"]


def write_run(folder, configurations, seeds=(0, 1), tasks=("hh",)):
    """A run of (loss, settings) whose win rates and KL differ."""
    cells = []
    for task in tasks:
        for i, (loss, settings) in enumerate([("sft", {}), *configurations]):
            for seed in seeds:
                cell = plan_cell(loss, settings, seed, task, (task,))
                cells.append(cell)
                verdicts = [float((i + seed + k) % 3 != 0) for k in range(6)]
                write_cell(folder, cell, {task: verdicts}, [0.5 * i + 0.1 * k for k in range(6)])
    return write_plan(folder, cells)


def figures_of(folder):
    results = load_results(folder)
    leaderboard, look = build_leaderboard(results), styles(results.cells)
    with rc_context(RC):
        return {
            "win_rate": win_rate_figure(leaderboard, look),
            "training_curves": training_figure(results.metrics, look),
            "win_rate_vs_kl": kl_figure(leaderboard, look),
            "length": length_figure(leaderboard, look),
        }


def is_whole(file):
    content = file.read_bytes()
    if file.suffix == ".png":
        return content.startswith(b"\x89PNG\r\n") and b"IEND" in content[-12:]
    return content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")


def test_every_plot_is_a_whole_png_and_pdf_and_nothing_else_is_left(example):
    files = sorted((example / "plots").iterdir())
    assert [file.name for file in files] == sorted(f"{name}.{kind}" for name in NAMES for kind in ("pdf", "png"))
    assert all(is_whole(file) for file in files)


GRID = [("rpo_paired", {"beta": b, "temperature": t}) for b in (0.01, 0.1) for t in (0.25, 0.5)]
RUNS = {
    "one loss, one seed": {"configurations": [("dpo", {"beta": 0.1})], "seeds": (0,)},
    "three tasks": {
        "configurations": [("dpo", {"beta": 0.1}), ("ipo", {"tau": 0.1})],
        "tasks": ("hh", "tldr", "alpaca_eval"),
    },
    "a grid": {"configurations": [("dpo", {"beta": 0.1}), *GRID], "tasks": ("hh", "tldr")},
    "twenty losses": {"configurations": [(f"a_loss_with_a_long_name_{i}", {"beta": 0.1}) for i in range(20)]},
    "long names of tasks": {
        "configurations": [("dpo", {"beta": 0.1})],
        "tasks": tuple(f"{word} answers to questions from a forum" for word in ("long", "longer", "unbelievably_long")),
    },
    "a name with markup": {"configurations": [("dpo", {"name": "$x^{2$"}), ("dpo", {"name": "\\frac"})]},
}


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.filterwarnings("error")
def test_nothing_is_cut_off(tmp_path, run):
    """All that a figure draws lies within its edges (a pixel is let pass), and no two panels' labels collide."""
    for name, figure in figures_of(write_run(tmp_path / "run", **RUNS[run])).items():
        figure.draw_without_rendering()
        width, height = figure.get_size_inches()
        drawn = figure.get_tightbbox()
        assert drawn.x0 > -0.01 and drawn.y0 > -0.01 and drawn.x1 < width + 0.01 and drawn.y1 < height + 0.01, name
        panels = [axis.get_tightbbox() for axis in figure.axes]
        overlaps = [a.overlaps(b) for i, a in enumerate(panels) for b in panels[:i]]
        assert not any(overlaps), name


def test_labels_of_points_do_not_cover_each_other(tmp_path):
    losses = ["dpo", "ipo", "rpo_paired", "rpo_unpaired", "rpo_uniform", "rpo_diagonal"]
    figure = figures_of(write_run(tmp_path / "run", [(loss, {"beta": 0.1}) for loss in losses]))["win_rate_vs_kl"]
    labels = figure.axes[0].texts
    assert sorted(label.get_text() for label in labels) == sorted(["sft", *losses])
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_row_without_numbers_keeps_its_place_and_says_why(tmp_path):
    axis = figures_of(write_example(tmp_path / "run"))["win_rate"].axes[0]
    labels = [label.get_text().replace("\n", " ") for label in axis.get_yticklabels()]
    assert labels == ["dpo", "rpo_paired (incomplete)", "sft", "ipo (failed)"]


def test_a_training_of_a_single_step_is_drawn(tmp_path):
    cell = plan_cell("dpo", {"beta": 0.1}, 0)
    folder = write_plan(tmp_path / "run", [cell])
    write_training(folder, cell, steps=1)
    figure = figures_of(folder)["training_curves"]
    assert [len(axis.lines[0].get_xdata()) for axis in figure.axes] == [2, 2, 1, 1, 1]  # dev at 0 and 1, batches at 1
    assert all(axis.lines[0].get_marker() != "None" for axis in figure.axes)


def test_long_curves_are_averaged_over_stretches(tmp_path):
    """1,000 steps at 2 / step: the first stretch is the mean over steps 1 to 25, which is 2 H(25) / 25."""
    cell = plan_cell("dpo", {"beta": 0.1}, 0)
    folder = write_plan(tmp_path / "run", [cell])
    write_training(folder, cell, steps=1000)
    curve = figures_of(folder)["training_curves"].axes[-1].lines[0]
    assert len(curve.get_xdata()) <= 40
    assert curve.get_ydata()[0] == pytest.approx(2 * sum(1 / k for k in range(1, 26)) / 25)


def test_curves_that_no_loss_has_are_left_out(tmp_path):
    """Batches of unpaired data have neither accuracy nor margin."""
    cell = plan_cell("rpo_unpaired", {"beta": 0.1}, 0)
    folder = write_plan(tmp_path / "run", [cell])
    write_training(folder, cell)
    labels = [axis.get_ylabel().split("\n") for axis in figures_of(folder)["training_curves"].axes]
    assert labels == [
        ["accuracy, %", "(dev pairs)"],
        ["margin, nats", "(dev pairs)"],
        ["gradient norm", "(training batch)"],
    ]


@pytest.mark.parametrize("decades", [1, 3, 6, 10])
def test_the_gradient_norm_has_numbers_beside_it_over_however_many_decades(tmp_path, decades):
    cell = plan_cell("dpo", {"beta": 0.1}, 0)
    folder = write_plan(tmp_path / "run", [cell])
    write_training(folder, cell, steps=10)
    results = load_results(folder)
    metrics = results.metrics.assign(grad_norm=10 ** (results.metrics["step"] * decades / 10 - 2))
    with rc_context(RC):
        axis = training_figure(metrics, styles(results.cells)).axes[-1]
    low, high = axis.get_ylim()
    assert sum(low <= tick <= high for tick in axis.get_yticks()) >= 2


def test_a_policy_far_off_does_not_press_the_others_together(tmp_path):
    cells = [plan_cell("dpo", {"beta": beta}, 0) for beta in (0.1, 0.2, 0.3)]
    folder = write_plan(tmp_path / "run", cells)
    for cell, kl in zip(cells, (1.0, 2.0, 900.0), strict=True):
        write_cell(folder, cell, {"hh": [1, 0]}, [kl, kl])
    assert figures_of(folder)["win_rate_vs_kl"].axes[0].get_xscale() == "symlog"


def test_plots_without_numbers_are_removed(tmp_path):
    folder = write_plan(tmp_path / "run", [plan_cell("dpo", {"beta": 0.1}, 0)])
    (folder / "plots").mkdir()
    (folder / "plots/win_rate.png").write_bytes(b"of an earlier run")
    write_report(folder)
    assert list((folder / "plots").iterdir()) == []


def test_more_points_than_there_is_room_for_labels_are_told_by_the_legend(tmp_path):
    losses = [f"loss_{i}" for i in range(LABELS)]  # and the SFT policy
    figure = figures_of(write_run(tmp_path / "run", [(loss, {"beta": 0.1}) for loss in losses], seeds=(0,)))
    assert list(figure["win_rate_vs_kl"].axes[0].texts) == []
    (legend,) = figure["win_rate_vs_kl"].legends
    assert {"sft", *losses} <= {text.get_text() for text in legend.get_texts()}


def test_losses_look_different_and_settings_of_one_are_related(tmp_path):
    configurations = [(f"loss_{i}", {"beta": 0.1}) for i in range(45)] + GRID
    look = styles(load_results(write_run(tmp_path / "run", configurations, seeds=(0,))).cells)
    single = [(style.colour, style.marker) for (loss, _), style in look.items() if loss.startswith("loss_")]
    assert len(set(single)) == 45
    assert look["sft", ""].colour == GREY.lower() and GREY.lower() not in {colour for colour, _ in single}
    grid = [style for (loss, _), style in look.items() if loss == "rpo_paired"]
    assert len({style.marker for style in grid}) == 1
    assert len({(style.colour, style.line) for style in grid}) == len(GRID)
    assert [style.values for style in grid] == ["0.01, 0.25", "0.01, 0.5", "0.1, 0.25", "0.1, 0.5"]


def test_a_loss_that_is_added_at_the_end_changes_no_other_s_look(tmp_path):
    losses = [(loss, {"beta": 0.1}) for loss in ("dpo", "ipo", "simpo")]
    before, after = (styles(load_results(write_run(tmp_path / f"{n}", losses[:n], seeds=(0,))).cells) for n in (2, 3))
    assert {key: after[key] for key in before} == before


def test_a_label_names_only_the_hyperparameters_that_vary(tmp_path):
    configurations = [("dpo", {"beta": 0.1}), *(("rpo_paired", {"beta": 0.1, "temperature": t}) for t in (0.25, 0.5))]
    look = styles(load_results(write_run(tmp_path / "run", configurations, seeds=(0,))).cells)
    assert [style.label for style in look.values()] == [
        "sft",
        "dpo",
        "rpo_paired temperature=0.25",
        "rpo_paired temperature=0.5",
    ]
