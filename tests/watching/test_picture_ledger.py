"""The ledger of pictures: loss at like sigma over the run, and what a spreadsheet may see of it."""

import csv
import io
import math
import random

import pytest
import torch

from library.watching.picture_ledger import (
    COLUMNS,
    MEMORISED,
    NEVER_LEARNS,
    LedgerRow,
    PictureLedger,
    csv_text,
)
from library.watching.step_logs import StepRow, StepSamples

STEPS = 400


def usual(sigma):
    """A loss that differs thirty times over sigma, as those of a model do."""
    return 3 * math.exp(-3.4 * sigma)


def steps(factors, scatter=0.2):
    """A run in which every picture is met once a step: factors(step) by key, beside what is usual."""
    chance = random.Random(0)
    for step in range(1, STEPS + 1):
        sigmas = {key: chance.random() for key in factors}
        losses = {
            key: usual(sigmas[key]) * factor(step / STEPS) * math.exp(chance.gauss(0, scatter))
            for key, factor in factors.items()
        }
        samples = StepSamples(tuple(factors), tuple(losses.values()), tuple(sigmas.values()))
        yield StepRow(step, {}, samples)


FACTORS = {
    **{f"0.0/{number}.png": lambda t: 1 - 0.1 * t for number in range(6)},
    "0.0/hard.png": lambda t: 1.6,
    "0.0/known.png": lambda t: 1 - 0.7 * t,
    "0.0/easy.png": lambda t: 0.5 * (1 - 0.1 * t),
}


@pytest.fixture(scope="module")
def rows():
    return list(steps(FACTORS))


def filled(rows, keys=FACTORS):
    ledger = PictureLedger(list(keys), STEPS)
    ledger.add(rows)
    return ledger


def test_what_never_learns_and_what_is_memorised_is_told_whatever_the_sigmas(rows):
    table = {row.key: row for row in filled(rows).table()}
    verdicts = {key: row.verdict for key, row in table.items() if row.verdict}
    assert verdicts == {"0.0/hard.png": NEVER_LEARNS, "0.0/known.png": MEMORISED}
    hard, known = table["0.0/hard.png"], table["0.0/known.png"]
    assert hard.change == pytest.approx(1, abs=0.06)
    assert known.change == pytest.approx((1 - 0.7 * 7 / 8) / (1 - 0.7 / 8), abs=0.05)
    plain = table["0.0/0.png"].parts[0]
    assert hard.parts[0] / plain == pytest.approx(1.6 / (1 - 0.1 / 8), rel=0.06)
    assert next(iter(table)) == "0.0/hard.png" and list(table)[-1] == "0.0/known.png"


def test_pictures_that_only_scatter_are_not_judged():
    same = {f"0.0/{number}.png": lambda t: 1.0 for number in range(30)}
    table = filled(list(steps(same, scatter=0.6)), same).table()
    assert {row.verdict for row in table} == {""}


def test_two_processes_and_a_resumed_run_count_as_one(rows):
    whole = csv_text(filled(rows).table())
    first, second = filled(rows[:150]), filled([])
    second.take(first.kept())  # through a state
    second.add(rows[150:])
    assert csv_text(second.table()) == whole
    halves = filled([])
    for part in (rows[::2], rows[1::2]):
        halves.take(filled(part).kept())
    assert csv_text(halves.table()) == whole


def test_losses_that_say_nothing_are_left_out():
    samples = StepSamples(
        ("a/b", "a/b", "a/b", "a/b"), (0.0, math.nan, math.inf, 2.0), (0.5, 1.0, 0.0, 1.0)
    )
    (row,) = filled([StepRow(1, {}, samples)], ["a/b"]).table()
    assert (row.samples, row.loss, row.change, row.verdict) == (1, 1.0, None, "")


@pytest.mark.parametrize(
    "name", ["=1+2", "+a", "-a", "@SUM(A1)", "\tx", 'a,"b"\n=c', "猫.png", "\udce9.png"]
)
def test_no_name_of_a_picture_is_a_formula_or_breaks_the_table(name):
    text = csv_text([LedgerRow(f"0.1/{name}", 3, 1.0, (1.0, None, None, 2.0), 2.0)])
    assert text.startswith("\ufeff") and text.encode()
    head, line = csv.reader(io.StringIO(text[1:]))
    assert tuple(head) == COLUMNS and ",".join(line[1:]) == "0.1,3,1.0,1.0,,,2.0,2.0,"
    assert line[0][0] not in "=+-@\t\r" and line[0].lstrip("'") in (name, "\\xe9.png")


def test_other_pictures_do_not_take_over_a_ledger():
    assert PictureLedger(["a", "b"], 8).fingerprint != PictureLedger(["b", "a"], 8).fingerprint
    assert torch.tensor(PictureLedger(["a"], 8).fingerprint).dtype == torch.int64
