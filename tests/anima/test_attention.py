"""Which kernel computes attention: what a trial says, what is taken of it, and that a run keeps to it."""

import logging
import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from library.anima_backend.modelling.attention import ORDERS, attention, preferring
from library.anima_backend.modelling.attention_probe import (
    COUNTING,
    Call,
    Sizes,
    Trial,
    fastest,
    try_all,
    try_kernel,
)
from library.anima_backend.modelling.kernels import KERNELS
from library.anima_backend.modelling.params import PUBLISHED
from library.anima_runtime.attention_choice import (
    Place,
    choose,
    decide,
    problem_of,
    sizes_of,
)
from library.anima_runtime.config_adapter import AnimaConfig
from library.anima_runtime.padding_choice import Padding, settled, usual_rows, why_rows
from library.settings.flags.precision import PrecisionOptions
from tests.helpers.dataset_files import catalogue_of, folder_of

CPU = torch.device("cpu")
SMALL = Sizes(batch=2, tokens=24, texts=10, heads=2, width=16, blocks=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchs_own_is_right_on_a_cpu_and_the_others_say_why_not(dtype):
    found = {trial.kernel: trial for trial in try_all(SMALL, dtype, CPU)}
    assert tuple(found) == KERNELS
    plain = found.pop("torch")
    assert not plain.why_not and plain.seconds > 0 and plain.apart > 0
    reasons = ("has no kernel for cpu", "is not installed")
    assert all(trial.why_not.startswith(reasons) for trial in found.values())


def test_a_wrong_kernel_and_one_that_changes_its_bits_are_found_out(monkeypatch):
    call = Call.random(SMALL, 10, torch.float32, CPU)

    def scaled(q, k, v, mask):
        return attention(1.1 * q, k, v, mask, "torch")

    assert call.distance(scaled) > 1e-2
    assert call.distance(lambda *sides: math.nan * attention(*sides, "torch")) == math.inf
    numbers = iter((0.0, 1e-6, 2e-6))

    def drifting(q, k, v, mask):
        return attention(q, k, v, mask, "torch") + next(numbers)

    assert call.distance(drifting) < 1e-4
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="two calls gave different bits"):
            call.distance(drifting)
    finally:
        torch.use_deterministic_algorithms(False)


def test_another_is_taken_only_where_it_is_faster_by_more_than_times_vary():
    plain = Trial("torch", (1.00,))
    assert fastest([plain, Trial("cudnn", (0.98,))]) == "torch"
    assert fastest([plain, Trial("cudnn", (0.9,)), Trial("flash3", (0.8,))]) == "flash3"
    assert fastest([plain, Trial("cudnn", (0.5,), why_not="is wrong here")]) == "torch"
    assert fastest([Trial("torch", why_not="does not work"), Trial("cudnn", (2.0,))]) == "cudnn"


@dataclass(frozen=True)
class OnACard(Place):
    """Trials as a card might answer them, noted."""

    answers: dict = field(default_factory=dict)
    tried: list = field(default_factory=list)

    def trial(self, kernel):
        self.tried.append(kernel)
        found = self.answers.get(kernel, Trial(kernel, why_not="is not installed"))
        return found if self.sizes.texts else replace(found, parts=found.parts[:1])

    def try_counting(self, *, timed):
        self.tried.append("counting, timed" if timed else "counting")
        found = self.answers[COUNTING]
        return found if timed else replace(found, parts=())


TORCH, CUDNN = Trial("torch", (1.2e-2, 0.8e-2), 1e-3), Trial("cudnn", (1.1e-2, 0.4e-2), 1e-3)
SLOW, FAST = Trial(COUNTING, (0.5e-2,), 1e-3), Trial(COUNTING, (0.3e-2,), 1e-3)
WRONG = Trial(COUNTING, (0.1e-2,), 0.3, "is wrong here")
BEFORE = {"text_padding": "rows"}


def card(counting=SLOW, sizes=SMALL, **more):
    answers = {trial.kernel: trial for trial in (TORCH, CUDNN, counting)}
    return OnACard(sizes, torch.bfloat16, torch.device("cuda"), **more, answers=answers)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_auto_takes_the_fastest_and_names_the_times_and_the_reasons():
    choice = decide(AnimaConfig(), None, card())
    assert choice.trial.kernel == "cudnn"
    assert choice.why.startswith("15.0 ms a step here, forward and backward (3 blocks, batch 2")
    assert "torch 20.0 ms" in choice.why and "flash3 is not installed" in choice.why


def test_zeros_of_texts_are_counted_where_that_is_faster():
    sizes = replace(SMALL, texts=512)
    rows, fold = decide(AnimaConfig(), None, card()), decide(AnimaConfig(), None, card(FAST, sizes))
    assert rows.padding.form == "rows" and rows.trial.seconds == CUDNN.seconds
    assert fold.padding.form == "fold" and fold.trial.seconds == CUDNN.parts[0]
    assert fold.padding.why == (
        "14.0 ms a step for all attentions, rows 15.0 ms (texts of 192 rows, with zeros 512)"
    )
    assert fold.why.startswith("11.0 ms a step") and "torch 12.0 ms" in fold.why
    wrong = decide(AnimaConfig(), None, card(WRONG))
    assert wrong.padding == Padding("rows", "since text_padding = fold is wrong here")


def test_a_kernel_that_is_asked_for_is_timed_with_both_paddings():
    place = card(FAST)
    choice = decide(AnimaConfig(attn_mode="torch"), None, place)
    assert (choice.trial.kernel, choice.why, choice.padding.form) == ("torch", "as asked for", "fold")
    assert place.tried == ["counting, timed", "torch"]
    asked = decide(AnimaConfig(xformers=True), None, card(FAST))
    assert asked.trial.why_not == "is not installed"


@pytest.mark.parametrize(
    "asked, saved, more, form, why, tried",
    [
        ("rows", {"text_padding": "fold"}, {}, "rows", "as asked for", []),
        ("fold", BEFORE, {}, "fold", "as asked for", ["counting"]),
        ("auto", BEFORE, {}, "rows", "as in the state", []),
        ("auto", {}, {}, "rows", "as in the state", []),
        ("auto", {"text_padding": "fold"}, {}, "fold", "as in the state", ["counting"]),
        ("auto", {"text_padding": "fold"}, {"needs_rows": "for graphs"}, "fold", "as in the state", ["counting"]),
        ("auto", None, {"needs_rows": "for graphs"}, "rows", "for graphs", []),
    ],
)  # fmt: skip
def test_what_is_known_needs_no_time(asked, saved, more, form, why, tried):
    """A state from before zeros could be counted says nothing of it."""
    place = card(FAST, **more)
    anima = AnimaConfig(text_padding=asked, attn_mode="torch")
    assert decide(anima, saved, place).padding == Padding(form, why)
    assert place.tried == tried


def test_zeros_that_are_to_be_counted_and_cannot_be():
    asked, saved = AnimaConfig(text_padding="fold"), {"text_padding": "fold"}
    problem = problem_of(asked, decide(asked, None, card(WRONG)).trial)
    assert (problem.where, problem.message) == (COUNTING, "is wrong here. Leave it out, or write rows.")
    assert decide(AnimaConfig(), saved, card(WRONG)).padding.form == "rows"


def test_a_state_is_gone_on_from_with_its_kernel_while_that_works():
    place = card()
    assert decide(AnimaConfig(), {"attention": "torch"}, place).trial.kernel == "torch"
    assert not place.tried
    assert decide(AnimaConfig(), {"attention": "cudnn"}, place).why == "as in the state"
    assert place.tried == ["cudnn"]
    other = decide(AnimaConfig(), {"attention": "flash3"}, place)
    assert other.trial.kernel == "cudnn"
    assert other.why.startswith("since that of the state, flash3 is not installed; 15.0 ms")
    asked = AnimaConfig(attn_mode="torch")
    assert decide(asked, {"attention": "cudnn"}, place).trial.kernel == "torch"


def test_a_kernel_that_is_asked_for_and_fails_is_an_error_that_says_why():
    asked = AnimaConfig(xformers=True)
    trial = decide(asked, {"attention": "cudnn"}, card()).trial
    assert trial.why_not == "is not installed"
    problem = problem_of(asked, trial)
    assert problem.where == "xformers"
    assert problem.message.startswith("xformers is not installed. Leave it out, or write attn_mode")


def test_a_deterministic_run_takes_torchs_own_untimed_and_counts_zeros(deterministic):
    place = card()
    choice = decide(AnimaConfig(), None, place)
    assert (choice.trial.kernel, choice.padding.form) == ("torch", "fold")
    assert place.tried == ["counting"]
    drifts = Trial(COUNTING, why_not="does not work (it is not deterministic)")
    assert decide(AnimaConfig(), None, card(drifts)).padding.form == "rows"


def test_on_a_cpu_nothing_is_tried_and_what_was_asked_for_is_told(caplog):
    place = OnACard(SMALL, torch.float32, CPU)
    with caplog.at_level(logging.INFO):
        saved = {"attention": "cudnn", "text_padding": "fold"}
        assert choose(AnimaConfig(), saved, place, is_main=True) == ("torch", "fold")
        assert caplog.messages == ["text_padding: fold, as in the state"]
        caplog.clear()
        asked = AnimaConfig(attn_mode="flash")
        assert choose(asked, None, place, is_main=True) == ("torch", "fold")
    assert caplog.messages == [
        "attention by flash is for CUDA: torch's own is used here, with the same result.",
        "text_padding: fold, which is less to compute on a CPU",
    ]
    assert not place.tried
    elsewhere = settled(AnimaConfig(), None, torch.device("mps"), "")
    assert elsewhere == Padding("rows", "since zeros are not counted on mps")


def test_a_batchs_usual_text_is_the_median_of_its_longest():
    letters = [*range(100, 200), 1500]
    assert usual_rows(letters, 1, 512) == 64  # 150 letters
    assert usual_rows(letters, 4, 512) == 64  # 184
    assert usual_rows([300] * 3, 1, 512) == 128
    assert usual_rows(letters, 200, 512) == 448  # of the 500 that it has some zeros are left
    assert usual_rows([0], 1, 512) == 64


@pytest.mark.parametrize(
    "options, reason",
    [
        ({}, ""),
        ({"cuda_graphs": True}, "since cuda_graphs would record each length of text"),
        ({"compile": True}, "since compile would make graphs for each length of text"),
        ({"compile": True, "compile_dynamic": "true"}, ""),
    ],
)
def test_texts_keep_one_length_where_each_would_be_recorded_or_compiled(options, reason, tmp_path):
    catalogue = catalogue_of(folder_of(tmp_path, [(64, 64)]))  # one size, alone in its batches
    assert why_rows(PrecisionOptions(**options), catalogue, torch.device("cuda")) == reason


def test_the_sizes_are_those_of_the_blocks():
    sizes = sizes_of(PUBLISHED, (2, 1024, 512), 512)
    assert (sizes.tokens, sizes.keys, sizes.heads, sizes.width) == (2048, (2048, 512), 16, 128)
    assert str(sizes) == "28 blocks, batch 2, 2048 x 2048 and 2048 x 512 tokens"


def test_orders_end_with_a_kernel_that_takes_everything_and_are_left_behind():
    before = torch._C._get_sdp_priority_order()
    for kernel, order in ORDERS.items():
        assert kernel in KERNELS
        with preferring(kernel):
            assert torch._C._get_sdp_priority_order()[: len(order)] == [int(each) for each in order]
    assert torch._C._get_sdp_priority_order() == before


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_of_a_card_is_right_or_says_why_not(kernel):
    sizes = Sizes(batch=1, tokens=1024, texts=512, heads=16, width=128, blocks=1)
    trial = try_kernel(kernel, sizes, torch.bfloat16, torch.device("cuda"))
    assert not trial.why_not or trial.why_not.startswith(("is not installed", "does not work"))


def test_what_is_tried_lies_as_in_a_step_where_k_and_v_are_one_product():
    sizes = Sizes(batch=2, tokens=24, texts=8, heads=2, width=16, blocks=1)
    call = Call.random(sizes, 8, torch.float32, torch.device("cpu"))
    assert call.q.is_contiguous() and call.v.stride() == (2 * 8 * 32, 2 * 32, 16, 1)
