"""How ComfyUI turns an adapter file into weight differences, written from formats.md section 5.

Independent of networks/: it reads keys and tensors only.
"""

import torch

PREFIX = "diffusion_model."


def weight_differences(file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """{"<path>.weight" or "<path>.bias": difference}; a key that ComfyUI would drop is an error."""
    left = dict(file)
    out = {}
    for path in sorted({path_of(key) for key in file}):
        key = PREFIX + path
        take = lambda ending, key=key: left.pop(f"{key}.{ending}", None)
        alpha = take("alpha")
        if (down := take("lora_down.weight")) is not None:
            scale = 1.0 if alpha is None else alpha.item() / down.shape[0]
            out[f"{path}.weight"] = scale * (take("lora_up.weight").double() @ down.double())
        elif f"{key}.w_norm" in left:
            out[f"{path}.weight"] = take("w_norm").double()
            if (bias := take("b_norm")) is not None:
                out[f"{path}.bias"] = bias.double()
        else:
            out[f"{path}.weight"] = lokr_difference(take, alpha)
    assert not left, f"ComfyUI drops {sorted(left)}"
    return out


def path_of(key):
    assert key.startswith(PREFIX), f"ComfyUI drops {key}"
    for ending in (".lora_down.weight", ".lora_up.weight"):
        key = key.removesuffix(ending)
    return (
        key.removeprefix(PREFIX)
        .removesuffix(".alpha")
        .partition(".lokr_")[0]
        .removesuffix(".w_norm")
        .removesuffix(".b_norm")
    )


def lokr_difference(take, alpha):
    w1, w2, dim = take("lokr_w1"), take("lokr_w2"), None
    if w1 is None:
        w1_b = take("lokr_w1_b").double()
        dim, w1 = w1_b.shape[0], take("lokr_w1_a").double() @ w1_b
    if w2 is None:
        w2_b = take("lokr_w2_b").double()
        dim, w2 = w2_b.shape[0], take("lokr_w2_a").double() @ w2_b
    scale = 1.0 if dim is None or alpha is None else alpha.item() / dim
    return scale * torch.kron(w1.double(), w2.double())
