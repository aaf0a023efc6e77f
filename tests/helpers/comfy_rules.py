"""How ComfyUI turns an adapter file into weight differences, written from formats.md section 5.

Independent of networks/: it reads keys and tensors only.
"""

import torch

OF_MODEL = ("diffusion_model.{path}", "lora_unet_{flat}")
OF_TEXT_ENCODER = (
    "text_encoders.qwen3_06b.transformer.model.{path}",
    "text_encoders.transformer.model.{path}",
    "lora_te_{flat}",
)
LORA = (  # up, down
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
    (".lora_B", ".lora_A"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
)
OTHERS = (
    ".alpha", ".dora_scale", ".w_norm", ".b_norm", ".diff", ".diff_b", ".bias.diff", ".set_weight",
    *(f".lokr_w{n}{half}" for n in (1, 2) for half in ("", "_a", "_b")),
    *(f".hada_w{n}_{half}" for n in (1, 2) for half in "ab"), ".oft_blocks",
)  # fmt: skip


def weight_differences(file, base=None):
    """{"<path>.weight" or "<path>.bias": difference}; a key that ComfyUI would drop is an error."""
    differences, dropped = read_by_comfyui(file, base)
    assert not dropped, f"ComfyUI drops {sorted(dropped)}"
    return differences


def read_by_comfyui(file, base=None, text_encoder=()):
    """(differences in float64 by parameter, the keys that it drops).

    base: the model's parameters by name; without them only dotted names are understood, and what a
    kind makes of the weight is not known. text_encoder: paths of the text encoder's modules, or their
    weights by path; differences are named by the path alone.
    """
    left, out = dict(file), {}
    encoder = text_encoder if isinstance(text_encoder, dict) else dict.fromkeys(text_encoder)
    for name, path in names_of(file, base, text_encoder):
        take = Taking(left, name)
        if base is None or path in encoder:
            own = encoder.get(path)
            weight, bias = None if own is None else own.double(), None
        else:
            weight, bias = base[f"{path}.weight"].double(), base.get(f"{path}.bias")
        for parameter, difference in differences_of(take, weight).items():
            if parameter == "weight" or weight is None or bias is not None:
                out[f"{path}.{parameter}"] = difference
    return out, set(left)


class Taking:
    """The tensors of one name, each taken out of the file when it is asked for."""

    def __init__(self, left, name):
        self.left, self.name = left, name

    def __call__(self, ending):
        return self.left.pop(self.name + ending, None)

    def has(self, ending):
        return self.name + ending in self.left


def names_of(file, base, text_encoder):
    """(name in the file, path) of each module, by looking up the model's names."""
    if base is None:
        endings = sorted({*OTHERS, *(e for pair in LORA for e in pair)}, key=len, reverse=True)
        heads = {
            next(key.removesuffix(e) for e in endings if key.endswith(e))
            for key in file
            if key.startswith("diffusion_model.") and key.endswith(tuple(endings))
        }
        return [(head, head.removeprefix("diffusion_model.")) for head in sorted(heads)]
    paths = [name.removesuffix(".weight") for name in base if name.endswith(".weight")]
    return [
        (style.format(path=path, flat=path.replace(".", "_")), path)
        for styles, places in ((OF_MODEL, paths), (OF_TEXT_ENCODER, text_encoder))
        for path in places
        for style in styles
    ]


def differences_of(take, weight):
    alpha, magnitude, out = take(".alpha"), take(".dora_scale"), {}
    change = lora_difference(take, alpha)
    if change is None:
        change = loha_difference(take, alpha)
    if change is None:
        change = lokr_difference(take, alpha)
    if change is None:
        change = oft_difference(take, alpha, weight)
    if change is not None:
        out["weight"] = change if magnitude is None else decomposed(change, weight, magnitude)
    if (norm := take(".w_norm")) is not None:
        out["weight"] = norm.double()
        if (bias := take(".b_norm")) is not None:
            out["bias"] = bias.double()
    if (difference := take(".diff")) is not None:
        out["weight"] = difference.double()
    for ending in (".diff_b", ".bias.diff"):
        if (difference := take(ending)) is not None:
            out["bias"] = difference.double()
    if (whole := take(".set_weight")) is not None and weight is not None:
        out["weight"] = whole.double() - weight
    return out


def scale_of(alpha, rank):
    return 1.0 if alpha is None or rank is None else alpha.item() / rank


def lora_difference(take, alpha):
    for up_ending, down_ending in LORA:
        if take.has(up_ending):
            up, down = take(up_ending).double(), take(down_ending)
            if down is None:
                raise KeyError(down_ending)  # the whole load fails
            return scale_of(alpha, down.shape[0]) * (up @ down.double())
    return None


def loha_difference(take, alpha):
    if not take.has(".hada_w1_a"):
        return None
    w1_a, w1_b, w2_a, w2_b = (take(f".hada_w{n}_{h}").double() for n in (1, 2) for h in "ab")
    return scale_of(alpha, w1_b.shape[0]) * (w1_a @ w1_b) * (w2_a @ w2_b)


def oft_difference(take, alpha, weight):
    """Three axes are OFT, four BOFT; alpha limits the norm, and BOFT without it is an error there."""
    if (blocks := take(".oft_blocks")) is None:
        return None
    assert alpha is not None or blocks.dim() == 3, "ComfyUI compares None with 0"
    skew = blocks.double() - blocks.double().transpose(-1, -2)
    if alpha is not None and 0 < alpha.item() < skew.norm():
        skew = skew * alpha.item() / skew.norm()
    one = torch.eye(skew.shape[-1], dtype=torch.float64)
    turn = (one + skew) @ torch.linalg.inv(one - skew)
    if blocks.dim() == 3:
        in_blocks = weight.unflatten(0, blocks.shape[:2])
        return torch.einsum("knm,kn...->km...", turn, in_blocks).flatten(0, 1) - weight
    rows, size = weight, blocks.shape[-1]
    for stage, each in enumerate(turn):
        apart = 2**stage * size // 2
        order = torch.arange(len(weight)).view(-1, 2, apart).transpose(1, 2).flatten()
        mixed = torch.block_diag(*each) @ rows[order]
        rows = torch.empty_like(rows)
        rows[order] = mixed
    return rows - weight


def lokr_difference(take, alpha):
    if not any(take.has(f".lokr_w1{half}") for half in ("", "_a")):
        return None
    w1, w2, dim = take(".lokr_w1"), take(".lokr_w2"), None
    if w1 is None:
        w1_b = take(".lokr_w1_b").double()
        dim, w1 = w1_b.shape[0], take(".lokr_w1_a").double() @ w1_b
    if w2 is None:
        w2_b = take(".lokr_w2_b").double()
        dim, w2 = w2_b.shape[0], take(".lokr_w2_a").double() @ w2_b
    return scale_of(alpha, dim) * torch.kron(w1.double(), w2.double())


def decomposed(change, weight, magnitude):
    """(out, 1): the norm of the base's rows; (1, in): that of the sum's columns."""
    total, magnitude = weight + change, magnitude.double()
    by_rows = magnitude.shape[0] == weight.shape[0]
    norm = weight.norm(dim=1, keepdim=True) if by_rows else total.norm(dim=0, keepdim=True)
    return total * (magnitude / norm) - weight
