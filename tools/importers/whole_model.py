"""Files that train the model itself: what they say of adapters is taken back, with the reason."""

from __future__ import annotations

from dataclasses import replace

from library.settings.foreign_names import KINDS
from library.settings.whole_model import NOT_FOR_MODELS
from tools.importers.draft import LOST, UNSET, Draft
from tools.importers.rules import asks
from tools.importers.shared import BY_DEST, settle_optimizer

NO_ADAPTERS = "there are no adapters: the model itself is trained"
STRENGTH = "network_multiplier"


def settle_whole(draft: Draft, *, llm_adapter: bool) -> None:
    """Rates of parts in the place of an adapter's targets. llm_adapter: it trains there unasked."""
    draft.whole = True
    for name in ("network_module", "algo", *KINDS):
        if waiting := draft.take(name):
            draft.find(UNSET, waiting.leaf, why=NO_ADAPTERS)
    if rate := draft.take("text_encoder_lr"):
        rates = rate.value if isinstance(rate.value, list) else [rate.value]
        draft.find(LOST if any(rates) else UNSET, rate.leaf, why=reason("text_encoder_lr"))
    if not draft.table("network").get("train_llm_adapter", llm_adapter):
        draft.add("train.llm_adapter_lr", 0, "the LLM adapter does not train there")
    for name in list(draft.table("network")):
        draft.revoke("network", name, NO_ADAPTERS)
    for name in [name for name in NOT_FOR_MODELS if name in draft.train]:
        is_asked = asks(draft.train[name], [BY_DEST[name].default])
        draft.revoke("train", name, reason(name), LOST if is_asked else UNSET)
    for option in [option for option in NOT_FOR_MODELS if option in draft.files]:
        file, _ = draft.files.pop(option)
        draft.unsay(f"{option} = {file}", reason(option), LOST)
    take_back_strengths(draft)
    settle_optimizer(draft)


def reason(name: str) -> str:
    """Why the option is not taken, without what to do in a file of ours."""
    return NOT_FOR_MODELS[name].partition(". ")[0]


def take_back_strengths(draft: Draft) -> None:
    """The strengths that datasets would train adapters with."""
    tables = [draft.table("general"), *draft.datasets.values(), *draft.of_subset.values()]
    if [table.pop(STRENGTH) for table in tables if STRENGTH in table]:
        draft.findings = [
            replace(each, status=LOST, became="", why=NO_ADAPTERS)
            if each.became.startswith(f"{STRENGTH} = ") else each
            for each in draft.findings
        ]  # fmt: skip
