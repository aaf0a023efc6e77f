"""Which kernel computes attention: what a trial says, what is taken of it, and that a run keeps to it."""

import logging
import math
from dataclasses import dataclass, field

import pytest
import torch

from library.anima_backend.modelling.attention import ORDERS, attention, preferring
from library.anima_backend.modelling.attention_probe import (
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
    choose_kernel,
    decide,
    problem_of,
    sizes_of,
)
from library.anima_runtime.config_adapter import AnimaConfig

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
        return self.answers.get(kernel, Trial(kernel, why_not="is not installed"))


def card():
    answers = [Trial("torch", (2e-2,), 1e-3), Trial("cudnn", (1.5e-2,), 1e-3)]
    return OnACard(SMALL, torch.bfloat16, torch.device("cuda"), {t.kernel: t for t in answers})


def test_auto_takes_the_fastest_and_names_the_times_and_the_reasons():
    choice = decide(AnimaConfig(), None, card())
    assert choice.trial.kernel == "cudnn"
    assert choice.why.startswith("15.0 ms a step here, forward and backward (3 blocks, batch 2")
    assert "torch 20.0 ms" in choice.why and "flash3 is not installed" in choice.why


def test_a_state_is_gone_on_from_with_its_kernel_while_that_works():
    place = card()
    assert decide(AnimaConfig(), "torch", place).trial.kernel == "torch"
    assert not place.tried
    assert decide(AnimaConfig(), "cudnn", place).why == "as in the state"
    assert place.tried == ["cudnn"]
    other = decide(AnimaConfig(), "flash3", place)
    assert other.trial.kernel == "cudnn"
    assert other.why.startswith("since that of the state, flash3 is not installed; 15.0 ms")
    assert decide(AnimaConfig(attn_mode="torch"), "cudnn", place).trial.kernel == "torch"


def test_a_kernel_that_is_asked_for_and_fails_is_an_error_that_says_why():
    asked = AnimaConfig(xformers=True)
    trial = decide(asked, "cudnn", card()).trial
    assert trial.why_not == "is not installed"
    problem = problem_of(asked, trial)
    assert problem.where == "xformers"
    assert problem.message.startswith("xformers is not installed. Leave it out, or write attn_mode")


def test_a_deterministic_run_takes_torchs_own_untimed():
    place = card()
    torch.use_deterministic_algorithms(True)
    try:
        assert decide(AnimaConfig(), None, place).trial.kernel == "torch"
    finally:
        torch.use_deterministic_algorithms(False)
    assert not place.tried


def test_on_a_cpu_nothing_is_tried_and_what_was_asked_for_is_told(caplog):
    place = OnACard(SMALL, torch.float32, CPU)
    with caplog.at_level(logging.INFO):
        assert choose_kernel(AnimaConfig(), "cudnn", place, is_main=True) == "torch"
        assert not caplog.messages
        assert choose_kernel(AnimaConfig(attn_mode="flash"), None, place, is_main=True) == "torch"
    assert caplog.messages == [
        "attention by flash is for CUDA: torch's own is used here, with the same result."
    ]
    assert not place.tried


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
