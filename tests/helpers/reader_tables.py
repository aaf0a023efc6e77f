"""What InvokeAI, SD.Next and diffusers make of a file's keys, as tables written from readers.md.

Independent of networks/: keys are texts here, and each answer stands in a table.
"""

YES, NO, REFUSED = "applied", "dropped", "the whole file is refused"
PROGRAMS = ("InvokeAI", "SD.Next", "diffusers")

# (names, factor): what each of PROGRAMS does
BY_FACTOR = {
    ("dotted", "lora_down"): (YES, YES, REFUSED),
    ("dotted", "lora_up"): (YES, YES, REFUSED),
    ("dotted", "lora_A"): (YES, YES, YES),
    ("dotted", "lora_B"): (YES, YES, YES),
    ("dotted", "alpha"): (YES, YES, REFUSED),
    ("dotted", "lokr"): (YES, YES, REFUSED),
    ("dotted", "hada"): (REFUSED, YES, REFUSED),
    ("dotted", "w_norm"): (REFUSED, YES, REFUSED),
    ("flat", "lora_down"): (YES, YES, NO),
    ("flat", "lora_up"): (YES, YES, NO),
    ("flat", "alpha"): (YES, YES, NO),
    ("flat", "lokr"): (YES, YES, NO),
    ("flat", "hada"): (YES, YES, NO),
    ("flat", "w_norm"): (NO, YES, NO),
}
# (names, part): likewise, before the factor is asked about
BY_PART = {
    ("flat", "mlp"): (NO, None, None),
    ("flat", "not in a block"): (NO, None, None),
    ("flat", "llm_adapter"): (None, NO, None),
    ("flat", "mlp of llm_adapter"): (NO, NO, None),
    ("flat", "rest of llm_adapter"): (NO, NO, None),
}


def parts_of(key):
    """(names, part, factor) of a key."""
    names = "dotted" if key.startswith("diffusion_model.") else "flat"
    head, _, _ = key.partition(".") if names == "flat" else key.rpartition(".")
    factors = ("lora_down", "lora_up", "lora_A", "lora_B", "lokr", "hada", "alpha", "w_norm")
    (factor,) = [f for f in factors if f".{f}" in key]
    if head.startswith("lora_unet_llm_adapter_blocks"):
        part = "mlp of llm_adapter" if "_mlp_" in head else "llm_adapter"
    elif head.startswith("lora_unet_llm_adapter_"):
        part = "rest of llm_adapter"
    elif head.startswith("lora_unet_blocks_"):
        part = "mlp" if "_mlp_" in head.replace("adaln_modulation_mlp", "") else "block"
    else:
        part = "block" if names == "dotted" else "not in a block"
    return names, part, factor


def fate(program, keys):
    """(whether the file is refused, the keys that are dropped), of a file's keys."""
    place = PROGRAMS.index(program)
    fates = {}
    for key in keys:
        names, part, factor = parts_of(key)
        by_part = BY_PART.get((names, part), (None,) * len(PROGRAMS))[place]
        fates[key] = by_part or BY_FACTOR[names, factor][place]
    refused = REFUSED in fates.values()
    return refused, {key for key, answer in fates.items() if answer == NO and not refused}
