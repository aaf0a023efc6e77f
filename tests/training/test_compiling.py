"""What the flags ask of torch's compiler, and what is said where it cannot work."""

import shutil

import pytest
import torch

from library.errors import ConfigError
from library.settings.flags.precision import PrecisionOptions
from library.training.compiling import (
    Compilation,
    explained,
    settle,
    torch_options,
    why_not,
    working_compilation,
)
from tests.helpers.dataset_files import catalogue_of, folder_of

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def compiler(compiler_left_alone):
    pass


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    return catalogue_of(folder_of(tmp_path_factory.mktemp("one") / "size", [(64, 64)] * 2))


def asked(**options):
    return PrecisionOptions(**{"compile": True, "compile_backend": "eager", **options})


def test_nothing_is_compiled_unless_asked(catalogue):
    assert working_compilation(PrecisionOptions(), catalogue, CPU) is None


def test_settings_reach_the_compiler():
    plain = torch_options(PrecisionOptions(compile=True))
    assert plain == {"backend": "inductor", "fullgraph": False, "dynamic": None, "mode": "default"}
    other = asked(compile_fullgraph=True, compile_dynamic="false", compile_mode="max-autotune")
    assert torch_options(other) == {"backend": "eager", "fullgraph": True, "dynamic": False}
    settle(asked(compile_cache_size_limit=5, activation_memory_budget=0.5, compile_optional=True))
    dynamo = torch._dynamo.config
    assert dynamo.recompile_limit == 5 and dynamo.suppress_errors
    assert torch._functorch.config.activation_memory_budget == 0.5
    settle(asked())
    assert dynamo.recompile_limit > 8 and not dynamo.suppress_errors


@pytest.mark.parametrize(
    "options, named",
    [
        ({"compile_backend": "inductor"}, None),
        ({"compile_backend": "inductor", "compile_mode": "max-autotune"}, "compile_mode = max-autotune"),
        ({"compile_mode": "reduce-overhead"}, None),  # eager has no modes
        ({"compile_backend": "cudagraphs"}, "compile_backend = cudagraphs"),
        ({"compile": False, "compile_backend": "cudagraphs"}, None),
    ],
)  # fmt: skip
def test_what_records_cuda_graphs_is_named(options, named):
    assert asked(**options).compile_records == named


def test_one_graph_for_all_sizes_where_there_are_several(catalogue, tmp_path):
    def any_size(pictures, **options):
        return working_compilation(asked(**options), pictures, CPU).any_size

    several = catalogue_of(folder_of(tmp_path / "two", [(64, 64), (128, 32), (96, 64)]))
    assert any_size(several) and not any_size(catalogue)
    assert not any_size(several, compile_dynamic="false")
    assert any_size(catalogue, compile_dynamic="true")


def test_what_is_missing_is_said_or_done_without(catalogue, caplog):
    unknown = {"compile_backend": "nosuch"}
    with pytest.raises(
        ConfigError, match="compile = true.*no such compile_backend.*compile_optional"
    ):
        working_compilation(asked(**unknown), catalogue, CPU)
    optional = asked(**unknown, compile_optional=True)
    assert working_compilation(optional, catalogue, CPU) is None
    assert "Training goes on without it" in caplog.text


def test_a_missing_compiler_is_named_with_its_cure(catalogue):
    options = asked(compile_backend="inductor")
    settle(options)
    lacking = {"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}
    missing = pytest.raises(ConfigError, match="a C\\+\\+ compiler is missing: install")
    with torch._inductor.config.patch(lacking), missing:
        working_compilation(options, catalogue, CPU)


@pytest.mark.parametrize(
    "error, system, cure",
    [
        (ImportError("No module named 'triton'"), "win32", "pip install triton-windows."),
        (ImportError("No module named 'triton'"), "linux", "pip install triton."),
        (RuntimeError("Compiler: cl is not found."), "win32", "Visual Studio Build Tools"),
        (RuntimeError("fatal error: Python.h: No such file"), "linux", "python3-dev"),
        (RuntimeError("\nsomething else\nand more"), "linux", "RuntimeError: something else."),
    ],
)
def test_each_lack_has_its_cure(error, system, cure, monkeypatch):
    monkeypatch.setattr("sys.platform", system)
    try:
        raise ValueError("the compiler failed") from error
    except ValueError as outer:
        assert cure in explained(outer, CPU)


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="inductor needs a C++ compiler: no g++ here"
)
@pytest.mark.slow
def test_inductor_works_where_there_is_a_compiler():
    options = PrecisionOptions(compile=True)
    settle(options)
    assert why_not(Compilation(True, torch_options(options)), CPU) is None
