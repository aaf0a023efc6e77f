"""A page about adapter files with every part; names and texts may be hostile."""

from library.anima_workshop.findings import Finding, Severity
from library.anima_workshop.page import AdapterPage, Curves, HeatMap, Table
from library.reporting.texts import Text

LAYERS = ("self_attn.q_proj", "cross_attn.k_proj", "mlp.layer1")


def page_of(text: str = "", files: int = 2) -> AdapterPage:
    def both(words):
        return Text(f"{words}{text}", f"{words}（中文）{text}")

    paths = [f"blocks.{n}.{layer}" for n in range(6) for layer in LAYERS]
    paths += [f"llm_adapter.blocks.{n}{text}.mlp.0" for n in range(2)]
    paths += ["llm_adapter.out_proj", "t_embedding_norm"]
    names = [f"file {n}{text}" for n in range(files)]
    strengths = {
        name: [None if (i + n) % 7 == 6 else i / 8 * (1 + n) for i in range(len(paths))]
        for n, name in enumerate(names)
    }
    signed = {names[0]: [(i - 8) / 10 for i in range(len(paths))]}
    findings = [
        Finding("a", Severity.ERROR, both("12 modules hold NaN"), both("Train again"), tuple(paths)),
        Finding("b", Severity.WARNING, both("alpha is missing"), None, (paths[0],)),
        Finding("c", Severity.NOTE, both("trained 300 steps")),
    ]
    return AdapterPage(
        title=f"some.safetensors{text}",
        figures=[(both("norm"), 3.25), (both("kind"), f"LoRA{text}"), (both("none"), float("nan"))],
        findings=findings,
        parts=[
            HeatMap(both("strength"), both("Frobenius norm"), paths, strengths),
            HeatMap(both("cosine"), both("of the deltas"), paths, signed, most=1.0),
            Curves(both("singular values"), both("largest is 1"), both("number"),
                   {f"mlp{text}": [1.0, 0.5, 0.2, 0.1], "attn": [1.0, 0.9, float("inf")]}),
            Table(both("metadata"), [both("entry"), both("says")], [[f"ss_dim{text}", both("4")]]),
            Table(both("modules"), [both("path"), both("norm")], [[p, i / 3] for i, p in enumerate(paths)], is_closed=True),
        ],
        intro=both("What this is."),
    )  # fmt: skip
