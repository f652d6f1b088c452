"""The conformance suite: every registered loss passes it, and every check of it can fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from harness.cli.main import main
from harness.conformance.outcomes import DECLARED, FAILED, NOT_TESTED, OK, summary_table
from harness.conformance.suite import CHECKS, check_loss, run_check
from losses import Loss, get_loss, list_losses
from losses.spec import register_loss
from tests.conftest import REPOSITORY

BUILT_IN = list_losses()  # while tests are collected, nothing else is registered


SLOW = pytest.param("modifiers", marks=pytest.mark.slow)  # the whole suite for each combination


@pytest.mark.parametrize("check", [SLOW if check == "modifiers" else check for check in CHECKS])
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_registered_loss_conforms(name, check):
    loss = get_loss(name)
    outcome = run_check(check, loss)
    expected = {OK}
    if check == "sign" and loss.sign_exceptions:
        expected = {DECLARED}
    assert {outcome.status} == expected, outcome.detail


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_loss_names_its_paper(name):
    assert get_loss(name).paper


def dpo_with(**changes) -> Loss:
    """DPO with something else declared."""
    return replace(get_loss("dpo"), **changes)


def written(body, **declaration) -> Loss:
    """A loss with another body."""
    declaration = {"grid": {"beta": [0.1, 1.0]}, **declaration}

    @register_loss("broken", **declaration)
    def broken(batch, *, beta: float = 0.1):
        """Broken in one way."""
        return body(batch, beta)

    return get_loss("broken")


def detached(batch, beta):
    return -logsigmoid(beta * batch.logratio_margin).detach()


def reversed_sides(batch, beta):
    return -logsigmoid(-beta * batch.logratio_margin)


def overflowing(batch, beta):
    return (-beta * batch.logratio_margin).exp()


def undefined_at_certainty(batch, beta):
    return -logsigmoid(beta * batch.logratio_margin) + 0 / batch.chosen.policy


def centred(batch, beta):
    return -logsigmoid(beta * (batch.logratio_margin - batch.logratio_margin.mean()))


def first_counts_twice(batch, beta):
    weights = torch.ones(len(batch.chosen), dtype=batch.chosen.policy.dtype)
    weights[:1] = 2
    return -weights * logsigmoid(beta * batch.logratio_margin)


def first_of_the_list(batch, beta):
    return -logsigmoid(beta * (batch.lists.logratio[:, 0] - batch.lists.logratio[:, 2]))


def blind_to_the_mask(batch, beta):
    return -logsigmoid(beta * (batch.lists.logratio[:, 0] - batch.lists.logratio[:, 1:].mean(dim=1)))


def mean_over_padding(batch, beta):
    return -logsigmoid(beta * batch.logratio_margin) + batch.chosen.require("token_values").mean(dim=1)


def in_need_of_four(batch, beta):
    return -logsigmoid(beta * batch.lists.logratio[:, 1:].sum(dim=1) / (batch.lists.mask.shape[1] - 2))


def ranked_by_noise(batch, beta):
    """LiPO's ranks without ties."""
    lists = batch.lists
    z = beta * lists.logratio
    rank = 1 + (z[:, None, :] > z[:, :, None]).sum(dim=2)
    return -(logsigmoid(z - z.flip(1)) / rank.to(z.dtype)).masked_fill(~lists.mask, 0.0).sum(dim=1)


def kinked_at_the_start(batch, beta):
    return -beta * batch.logratio_margin - beta * batch.logratio_margin.abs() / 2


def undefined_if_flipped(batch, beta):
    return -logsigmoid(beta * batch.logratio_margin) + batch.labelled(torch.ones(())).sqrt()


class Alternating:
    """Each call weighs the batch otherwise, as a running estimate inside a loss would."""

    calls = 0

    def __call__(self, batch, beta):
        self.calls += 1
        return -logsigmoid(beta * batch.logratio_margin) * (1 + self.calls)


def straight_through(batch, beta):
    margin = batch.logratio_margin
    return -logsigmoid(beta * margin) * (2 - margin.detach().tanh())


BROKEN = {
    "no grid": (lambda: written(reversed_sides, grid={}), "hyper-parameters", "beta has no grid"),
    "default not tried": (
        lambda: written(reversed_sides, grid={"beta": [1.0]}),
        "hyper-parameters",
        "lacks its default",
    ),
    "undocumented": (lambda: dpo_with(function=lambda batch, beta: 0), "hyper-parameters", "no docstring"),
    "unread": (lambda: written(lambda b, beta: -b.logratio_margin), "hyper-parameters", "beta changes nothing"),
    "a mean": (lambda: written(lambda b, beta: b.logratio_margin.mean()), "rows", "leave their mean to the backbone"),
    "too few rows": (
        lambda: written(lambda b, beta: b.logratio_margin[1:]),
        "rows",
        "must return one value per row (6)",
    ),
    "no pairs": (lambda: written(in_need_of_four, data="listwise"), "rows", "is not finite for plain pairs"),
    "no number": (lambda: written(lambda b, beta: b.logratio_margin.log()), "rows", "for ordinary log-probs"),
    "wrong start": (lambda: dpo_with(start_value=lambda beta: 1.0), "start value", "declared as 1, and rows are [0.69"),
    "no gradient": (lambda: written(detached), "gradient", "no gradient in the policy's log-probs"),
    "other gradient": (lambda: written(straight_through), "gradient", "differs from finite differences"),
    "overflow": (lambda: written(overflowing), "extremes", "is not finite for log-ratios -10000 and"),
    "certain token": (lambda: written(undefined_at_certainty), "extremes", "one token at log-prob 0"),
    "wrong sign": (lambda: written(reversed_sides), "sign", "lowers a chosen response at {'beta': 0.1}"),
    "needless exception": (lambda: dpo_with(sign_exceptions="never"), "sign", "exception that was not met: never"),
    "position counts": (lambda: written(first_counts_twice), "order", "when the examples change places"),
    "place in the list counts": (
        lambda: written(first_of_the_list, data="listwise"),
        "order",
        "when the examples change places",
    ),
    "padding counts": (lambda: written(blind_to_the_mask, data="listwise"), "micro-batches", "how the batch is cut"),
    "hidden coupling": (lambda: written(centred), "coupling", "declare couples_examples=True"),
    "no coupling": (lambda: dpo_with(couples_examples=True), "coupling", "declare couples_examples=False"),
    "hidden coupling, cut": (lambda: written(centred), "micro-batches", "depends on how the batch is cut"),
    "ranks, cut": (
        lambda: written(ranked_by_noise, data="listwise"),
        "micro-batches",
        "cut (at policy = reference)",
    ),
    "ranks": (lambda: written(ranked_by_noise, data="listwise"), "rounding", "rounding changes the value or the"),
    "kink": (lambda: written(kinked_at_the_start), "rounding", "rounding changes the value or the gradient at"),
    "badly modified": (lambda: written(undefined_if_flipped), "modifiers", "broken+label_smoothing fails 'rows'"),
    "state": (lambda: written(Alternating(), couples_examples=True), "micro-batches", "depends on how the batch"),
    "undeclared need": (lambda: dpo_with(needs=frozenset()), "needs", "needs reference for the chosen side"),
    "unused need": (
        lambda: dpo_with(needs=frozenset({"reference", "scores"})),
        "needs",
        "declares 'scores' and does not use it",
    ),
    "sum for mean": (lambda: dpo_with(reduction="mean"), "reduction", "takes the sum over tokens"),
    "sum for tokens": (
        lambda: replace(get_loss("ppo_offline"), reduction="sum"),
        "reduction",
        "takes the tokens one by one",
    ),
    "tokens for sum": (lambda: replace(get_loss("hpo"), reduction="token"), "reduction", "takes the sum over tokens"),
    "padding of tokens counts": (
        lambda: written(mean_over_padding, needs=["reference", "token_values"]),
        "order",
        "have more padding",
    ),
    "undeclared values": (
        lambda: replace(get_loss("hpo"), needs=get_loss("hpo").needs - {"token_values"}),
        "needs",
        "needs token values for the chosen side",
    ),
    "mean for sum": (lambda: replace(get_loss("ipo"), reduction="sum"), "reduction", "takes the mean over tokens"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_caught_and_explained(case):
    make, check, message = BROKEN[case]
    outcome = run_check(check, make())
    assert outcome.status == FAILED and message in outcome.detail, outcome


def test_every_check_can_fail():
    assert {check for _, check, _ in BROKEN.values()} == set(CHECKS)


def test_whatever_a_loss_raises_is_a_failure_of_that_loss():
    def raises(batch, beta):
        raise KeyError("nowhere")

    outcome = run_check("rows", written(raises))
    assert outcome.status == FAILED
    assert re.fullmatch(r"KeyError: 'nowhere' \(test_suite\.py:\d+\)", outcome.detail)


def test_without_valid_rows_nothing_else_is_tested():
    first, *others = check_loss(written(lambda batch, beta: batch.logratio_margin.log()))
    assert (first.check, first.status) == ("rows", FAILED) and "nan" in first.detail
    assert {(other.status, other.detail) for other in others} == {(NOT_TESTED, "since rows failed")}
    assert [first.check, *(other.check for other in others)] == list(CHECKS)
    (row,) = summary_table({"broken": [first, *others]}).columns[1]._cells
    assert row == f"0 of {len(CHECKS)}"


def test_what_a_loss_raises_is_said_once_with_its_line_and_the_name_that_was_meant(tmp_path, capsys):
    assert main(["check", plugin(tmp_path, GOOD.replace("logratio_margin", "logratio_margn"))]) == 1
    out = " ".join(re.sub("[│┃]", " ", capsys.readouterr().out).split())
    assert out.count("AttributeError") == 1 and out.count("not tested since rows failed") == 12
    assert "did you mean 'logratio_margin'? (mine.py:7)" in out


def plugin(folder, body: str) -> str:
    path = folder / "mine.py"
    path.write_text("from losses import register_loss\n\n" + textwrap.dedent(body))
    return str(path)


GOOD = """
    @register_loss("mine", grid={"beta": [1.0]})
    def mine(batch, *, beta: float = 1.0):
        '''Mine.'''
        return (1 - beta * batch.logratio_margin) ** 2
"""


def test_a_file_s_losses_are_checked_and_only_those(tmp_path, capsys):
    file = plugin(tmp_path, GOOD)
    assert main(["check", file]) == 1
    out = capsys.readouterr().out
    assert "sign" in out and "sign_exceptions" in out and "1 checked, failed: mine" in out and "dpo" not in out
    plugin(tmp_path, GOOD.replace("[1.0]}", '[1.0]}, sign_exceptions="beyond 1 / beta"'))
    assert main(["check", file]) == 0
    out = capsys.readouterr().out
    assert "declared exception" in out and "1 checked, all checks passed" in out


def test_names_and_files_can_stand_together(tmp_path, capsys):
    assert main(["check", "dpo", plugin(tmp_path, GOOD)]) == 1
    assert "2 checked, failed: mine" in capsys.readouterr().out


THREE = ["dpo", "rpo_paired", "plackett_luce"]  # each of them, and all others, is checked above
ALL_OF_THREE = """
from harness.cli.main import main
from losses import list_losses
from losses.spec import LOSSES
for name in set(list_losses()) - set({three}):
    del LOSSES._entries[name]
raise SystemExit(main(["check", "--all"]))
"""


@pytest.mark.slow
def test_all_is_every_registered_loss():
    """In a process of its own, as a user runs it, where three losses are registered."""
    program = ALL_OF_THREE.format(three=THREE)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "140"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
    assert "3 checked, all checks passed" in result.stdout
    assert [name for name in BUILT_IN if re.search(rf"\b{name}\b", result.stdout)] == THREE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the losses or .py files to check, or give --all"),
        (["--all", "dpo"], "name the losses or .py files to check, or give --all"),
        (["dppo"], "unknown loss 'dppo'; did you mean 'dpo'?"),
        (["nowhere.py"], "plugin file nowhere.py does not exist"),
    ],
)
def test_what_the_user_must_change_is_said_in_one_line(arguments, message, capsys):
    assert main(["check", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_a_file_without_a_loss_is_refused(tmp_path, capsys):
    assert main(["check", plugin(tmp_path, "")]) == 2
    assert "mine.py registers no loss" in capsys.readouterr().err
