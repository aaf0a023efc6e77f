"""The timed benchmarks on tiny sizes: what they compare and what they write, never how fast it is."""

import json
from functools import partial

import pytest
import torch

from library.errors import ConfigError
from tools.bench import adapters, measuring, peers, step

CPU = torch.device("cpu")
STEP_SIZES = ["--blocks", "1", "--width", "64", "--pixels", "64", "--rank", "2", "--rounds", "1"]


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run a command with options; what it printed and its file of figures."""

    def call(module, *options):
        file = tmp_path / "figures.json"
        monkeypatch.setattr("sys.argv", ["bench", "--json", str(file), *options])
        threads = torch.get_num_threads()
        module.main()
        torch.set_num_threads(threads)
        return capsys.readouterr().out, json.loads(file.read_text())

    return call


def test_arms_take_turns_and_warm_ups_do_not_count():
    calls = []
    arms = {name: partial(calls.append, name) for name in "ab"}
    times = measuring.time_arms(arms, rounds=2, device=CPU, warm_ups=1)
    assert calls == ["a", "b"] * 3
    assert [len(seconds) for seconds in times.values()] == [2, 2]


def test_ratios_are_those_of_pairs():
    rows = measuring.compare({"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 2.0]})
    assert [row["ratio"] for row in rows] == [1.0, 1.0]  # of 2, 1 and 0.5; of medians it would be 1
    assert (rows[1]["lower"], rows[1]["upper"]) == (0.75, 1.5)
    assert measuring.quartiles([3.0]) == (3.0, 3.0, 3.0)


def test_what_cannot_run_is_told_and_the_others_run():
    def missing():
        raise measuring.Missing("not here")

    told = []
    arms = measuring.made({"a": missing, "b": lambda: print}, told.append)
    assert list(arms) == ["b"] and told == ["a: skipped, not here"]


def test_a_step_is_timed_with_adapters_modes_and_peers(run):
    out, figures = run(step, *STEP_SIZES, "--arms", "lora", "lokr_full:cheap")
    arms = [row["arm"] for row in figures["rows"]]
    assert arms[:2] == ["lora", "lokr_full:cheap"] and figures["rows"][0]["ratio"] == 1
    assert figures["torch"] == torch.__version__ and figures["machine"] in out
    for name in ("diffusers + peft lora", "diffusers + LyCORIS lora"):
        assert name in arms or f"{name}: skipped, " in out


def test_an_unknown_mode_or_device_is_told(run):
    with pytest.raises(ConfigError, match="there are none, cheap"):
        run(step, *STEP_SIZES, "--arms", "lora:all")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            run(step, "--device", "cuda")


def test_the_step_trains_what_it_says():
    """Every arm's parameters move, those of the base do not."""
    parser = measuring.make_parser("", rounds=1)
    options = parser.parse_args([])
    options.__dict__.update(blocks=1, width=64, pixels=64, rank=2, batch=1, dtype=torch.bfloat16)
    params = step.params_of(options)
    inputs = step.make_inputs(options, params)
    assert len(peers.adapted_linears(peers.diffusers_transformer(params, options.dtype, CPU))) == 10
    trained = [torch.nn.Parameter(torch.ones(2))]
    before = trained[0].detach().clone()
    step.step_of(trained, lambda: inputs.noisy * trained[0].sum(), inputs.velocity)()
    assert not torch.equal(trained[0], before) and trained[0].grad is None


def test_layers_are_timed_against_the_bare_one(run):
    sizes = ("--layers", "32x64", "--tokens", "4", "--rank", "2", "--rounds", "1")
    out, figures = run(adapters, *sizes)
    arms = [row["arm"] for row in figures["rows"]]
    assert arms[:2] == ["Linear", "lora"]
    assert set(adapters.OWN) <= set(arms) and {row["layer"] for row in figures["rows"]} == {"32x64"}
    for name in ("peft lora", *adapters.LYCORIS):
        assert name in arms or f"{name}: skipped, " in out


@pytest.mark.parametrize("text", ["2048", "0x8", "axb", "1x2x3"])
def test_a_layer_is_two_numbers(text):
    with pytest.raises(ConfigError, match="expected input x output"):
        adapters.size_of(text)
