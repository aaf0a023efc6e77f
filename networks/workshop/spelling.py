"""How programs spell the keys of adapter files, and what their files can hold."""

from __future__ import annotations

from dataclasses import dataclass

from networks.codec import PEFT_SPELLINGS, TEXT_ENCODER_PREFIXES, KeyStyle
from networks.kinds.kind import Kinds
from networks.kinds.table import KINDS
from networks.workshop.modules import Modules


@dataclass(frozen=True)
class Spelling:
    """A format of adapter files.

    prefix:  before the paths of the model's modules; None: it has names of its own for them
    others:  how names begin that it has for other modules, see Modules.aliases
    is_flat: dots in paths are underscores
    is_bare: it holds LoRAs of scale 1, as lora_A and lora_B, and nothing beside
    """

    name: str
    prefix: str | None
    others: tuple[str, ...] = ()
    is_flat: bool = False
    is_bare: bool = False

    def names(self, modules: Modules) -> dict[str, str]:
        """The name of every module that it has one for, by path."""
        found = {}
        for path in modules.shapes:
            if path.startswith(TEXT_ENCODER_PREFIXES):
                if path.startswith(self.others):
                    found[path] = path
            elif self.prefix is not None:
                found[path] = self.prefix + (path.replace(".", "_") if self.is_flat else path)
        own = {p: name for name, p in modules.aliases.items() if name.startswith(self.others)}
        return {**own, **found}

    def ending(self, factor: str, kinds: Kinds = KINDS) -> str:
        """What stands for a factor at the end of a key."""
        usual = kinds.written[factor]
        return PEFT_SPELLINGS.get(factor, usual) if self.is_bare else usual


UNIVERSAL = Spelling("universal", KeyStyle.COMFY.value, is_bare=True)
SPELLINGS = {
    spelling.name: spelling
    for spelling in (
        Spelling("comfy", KeyStyle.COMFY.value, others=("text_encoders.",)),
        Spelling("kohya", KeyStyle.KOHYA.value, others=("lora_te_",), is_flat=True),
        UNIVERSAL,
        Spelling("peft", KeyStyle.PEFT.value, is_bare=True),
        Spelling("diffusers", None, others=("transformer.", "text_conditioner."), is_bare=True),
    )
}
