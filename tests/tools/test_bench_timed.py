"""The timed benchmarks on tiny sizes: what they compare and what they write, never how fast it is."""

import json
from functools import partial

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch.utils.flop_counter import FlopCounterMode

from library.errors import ConfigError
from tools.bench import (
    adapters,
    cache,
    gpu_parts,
    load,
    loop,
    measuring,
    peers,
    saving,
    step,
    storage,
    update,
    vae,
)

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


def test_arms_take_turns_and_the_first_turn_does_not_count():
    calls = []
    arms = {name: partial(calls.append, name) for name in "ab"}
    times = measuring.time_arms(arms, rounds=2, device=CPU)
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
    wanted = ["lora", "lokr_full:cheap", "lora:rows"]
    out, figures = run(step, *STEP_SIZES, "--arms", *wanted)
    arms = [row["arm"] for row in figures["rows"]]
    assert arms[:3] == wanted and figures["rows"][0]["ratio"] == 1
    assert figures["torch"] == torch.__version__ and figures["machine"] in out
    for name in ("diffusers + peft lora", "diffusers + LyCORIS lora"):
        assert name in arms or f"{name}: skipped, " in out


def test_an_update_over_one_buffer_asks_for_a_few_operators(run):
    """Whatever the number of factors, in every elementwise optimizer that is timed."""
    options = ["--rank", "2", "--width", "8", "--rounds", "1", "--factors"]
    few, many = (run(update, *options, count)[1]["rows"] for count in ("4", "40"))
    for small, large in zip(few, many, strict=True):
        if small["arm"] == "as one":
            counts = [row[name] for row in (small, large) for name in ("operators", "tensors")]
            assert len(set(counts)) == 1 and counts[0] < 20
        else:
            assert large["tensors"] >= 4 * 40


@pytest.mark.parametrize(
    "option, value, expected",
    [
        ("--pixels", "100", "expected a multiple of 16"),
        ("--pixels", "0", "expected a whole number of 1 or more"),
        ("--batch", "-1", "expected a whole number of 1 or more"),
        ("--rounds", "x", "expected a whole number of 1 or more"),
        ("--device", "tpu", "expected cpu or cuda"),
    ],
)
def test_a_size_that_cannot_be_is_told(run, capsys, option, value, expected):
    with pytest.raises(SystemExit, match="2"):
        run(step, f"{option}={value}")
    assert f"argument {option}: {value}: {expected}." in capsys.readouterr().err


def test_an_unknown_mode_or_device_is_told(run):
    with pytest.raises(ConfigError, match="there are none, cheap"):
        run(step, *STEP_SIZES, "--arms", "lora:all")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            run(step, "--device", "cuda")


def step_options(**changes):
    options = measuring.make_parser("", rounds=1).parse_args([])
    sizes = {"blocks": 1, "width": 64, "pixels": 64, "rank": 2, "batch": 1}
    options.__dict__.update(sizes | {"dtype": torch.bfloat16} | changes)
    return options


def test_the_floor_is_the_work_that_a_step_has_beside_its_adapters():
    """Which is what is left of it at rank 0; modulation and the model's ends are not in the floor."""

    def work_of(arm, rank):
        options = step_options(rank=rank, blocks=2, pixels=256)
        params = step.params_of(options)
        step_of_arm = step.own(options, params, step.make_inputs(options, params), arm)
        with FlopCounterMode(display=False) as counter:
            step_of_arm()
        return counter.get_total_flops()

    of_two, of_four = work_of("lora", 2), work_of("lora", 4)
    assert of_four > of_two
    assert 0.9 < work_of(step.FLOOR, 2) / (2 * of_two - of_four) < 1


def test_the_step_trains_what_it_says():
    """Every arm's parameters move, those of the base do not."""
    options = step_options()
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


def test_the_vae_is_timed_and_compared(run):
    _, figures = run(vae, "--width", "4", "--pixels", "32", "--rounds", "1")
    rows = {(row["pass"], row["arm"]): float(row["apart"]) for row in figures["rows"]}
    assert len(rows) == 8
    for what in ("encode", "decode"):
        assert rows[what, "diffusers float32"] == 0 and rows[what, "this project float32"] < 1e-4
        assert 0 < rows[what, "this project bfloat16"] < 0.2


def test_cache_items_are_written_and_read(run):
    _, figures = run(cache, "--pixels", "64", "--rounds", "1")
    assert [row["what"] for row in figures["rows"]] == ["write"] * 2 + ["read"] * 4


def test_captions_are_encoded_one_at_a_time_and_together(run):
    _, figures = run(cache, "--captions", "2", "--together", "3", "--layers", "1", "--rounds", "1")
    assert [row["arm"] for row in figures["rows"]] == ["one at a time", "3 at once"]
    assert figures["note"] == "1 layers, bf16" and float(figures["rows"][1]["apart"]) < 0.02


def test_model_files_are_loaded_and_hashed(run):
    _, figures = run(load, "--tiny", "--rounds", "1")
    assert [row["file"] for row in figures["rows"]] == ["dit"] * 4 + ["qwen"] * 4 + ["vae"] * 4


def test_a_share_of_the_blocks_is_of_the_true_files():
    whole, half = (load.shapes_of(share, tiny=False) for share in (1.0, 0.5))
    blocks = [
        {k.split(".")[2] for k in s["dit"] if k.startswith("net.blocks.")} for s in (whole, half)
    ]
    assert [len(each) for each in blocks] == [28, 14]
    with pytest.raises(ConfigError, match="expected more than 0"):
        load.shapes_of(0, tiny=False)


def test_the_trainers_loop_is_timed_apart_from_the_model(run, demo):
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    _, figures = run(loop, "--steps", "2", "--demo", str(demo))
    assert [row["part"] for row in figures["rows"]] == ["loop without the model", *loop.PARTS]
    assert figures["note"].startswith("2 steps")


def test_a_save_is_timed_in_its_parts(run):
    _, figures = run(saving, "--blocks", "1", "--rank", "2", "--rounds", "1", "--adapters", "lora+norms")
    rows = {row["form"]: row for row in figures["rows"]}
    assert set(rows) == {"comfy", "universal"} and rows["comfy"]["MiB"] > 0.1
    for row in rows.values():
        assert row["2 % of s"] == pytest.approx(50 * row["check s"], abs=0.1)


def test_storage_is_compared_with_the_base_as_it_is(run, monkeypatch):
    monkeypatch.setattr(storage, "PUBLISHED", gpu_parts.TINY)
    options = ["--blocks", "2", "--pixels", "64", "--rank", "2"]
    _, exact = run(storage, *options, "--precision", "no")
    rows = {row.pop("storage"): {name: float(v) for name, v in row.items()} for row in exact["rows"]}
    assert set(rows) == set(storage.STORED) and set(rows["as it is"].values()) == {0}
    for name in ("stored", "velocity", "gradients"):
        assert 0 < 2 * rows["int8_base"][name] < rows["fp8_base"][name] < 0.3
        assert 1.3 * rows["fp8_base"][name] < rows["nf4_base"][name] < 0.6
    assert rows["fp8_base_unet"]["velocity"] != rows["fp8_base"]["velocity"]
