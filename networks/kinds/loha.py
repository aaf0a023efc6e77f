"""LoHa, read to be merged: delta = scale * (w1_a @ w1_b) * (w2_a @ w2_b), entry by entry."""

from __future__ import annotations

from torch import Tensor

from networks.kinds.kind import Kind
from networks.kinds.stored import Factors, check_shape, float32_beside, sizes_of, stored_scale

PAIRS = (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"))


def loha_change(factors: Factors, weight: Tensor) -> Tensor:
    """The rank that alpha is divided by is w1_b's."""
    for pair in PAIRS:
        rows, _, columns = sizes_of(factors, *pair)
        check_shape((rows, columns), weight.shape)
    products = []
    for pair in PAIRS:
        left, right = float32_beside(weight, factors, pair)
        products.append(left @ right)
    return stored_scale(factors, len(factors["hada_w1_b"])) * products[0] * products[1]


KIND = Kind(
    "LoHa",
    factors={name: (name,) for pair in PAIRS for name in pair},
    change=loha_change,
    merged_as="LoHa",
    refused=dict.fromkeys(("hada_t1", "hada_t2"), "a convolution's LoHa"),
)
