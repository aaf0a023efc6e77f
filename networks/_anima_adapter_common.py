"""What LoRA and LoKr on Anima share: default targets, component learning rates, network_args.

Default targets: the attention and feed-forward Linears of the DiT (280 at true size) and of the LLM
adapter (60), and every norm that has a weight (113 and 43).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor, nn

from library.errors import ConfigError, Problem
from networks.adapted import is_adaptable_linear, is_adaptable_norm
from networks.adapters import Dropout, LinearAdapter
from networks.arguments import SOURCE, Pairs, parse_arguments, read_number
from networks.codec import decode_tensors, read_tensors
from networks.network import NORM_EXPORTS, AdapterNetwork, NetworkSettings, check_kind
from networks.placements import GroupRates, adapters_as_file, place_on_targets
from networks.targets import Selection, Target, TargetRules, select_targets

logger = logging.getLogger(__name__)

LLM_ADAPTER = "llm_adapter."
DIT_TARGETS = (
    r"re:^blocks\.\d+\.(self|cross)_attn\.(q|k|v|output)_proj$",
    r"re:^blocks\.\d+\.mlp\.layer[12]$",
)
LLM_ADAPTER_TARGETS = (
    r"re:^llm_adapter\.blocks\.\d+\.(self|cross)_attn\.(q|k|v|o)_proj$",
    r"re:^llm_adapter\.blocks\.\d+\.mlp\.[02]$",
)
NO_LINEARS = ("none",)
MODULES = {"LoRA": "networks.lora_anima", "LoKr": "networks.lokr_anima"}
DEFAULT_DIM = 4

# Component -> how its modules are recognised, first match first. Its rate: <name>_lr.
COMPONENTS: dict[str, Callable[[str], bool]] = {
    "llm_adapter": lambda path: path.startswith(LLM_ADAPTER),
    "self_attn": lambda path: ".self_attn." in path,
    "cross_attn": lambda path: ".cross_attn." in path,
    "mlp": lambda path: ".mlp." in path,
    "mod": lambda path: "adaln_modulation" in path,
}

# What a file with its own modules, ranks and alphas answers; and LoKr's own arguments.
ANSWERED_BY_FILE = ("target_modules", "include_patterns", "network_reg_dims", "network_reg_alphas")

# Arguments of other programs, answered better than by the nearest name.
ELSEWHERE = {
    "algo": "the kind is chosen by --network_module: networks.lora_anima or networks.lokr_anima.",
    "preset": "modules are chosen by target_modules, exclude_patterns and include_patterns here.",
    "dropout": "use --network_dropout.",
    "conv_dim": "Anima has no convolutions to adapt; remove it.",
    "conv_alpha": "Anima has no convolutions to adapt; remove it.",
}


@dataclass(frozen=True, kw_only=True)
class AdapterArguments:
    """network_args of both kinds; the component rates come from their own flags as well.

    target_modules: None is the default list, ("none",) adapts no Linear (norms only)
    *_lr:           of a component; 0 freezes it
    """

    target_modules: tuple[str, ...] | None = None
    train_llm_adapter: bool = True
    train_norm: bool = True
    norm_export: str = "diff"
    exclude_patterns: tuple[str, ...] = ()
    include_patterns: tuple[str, ...] = ()
    network_reg_dims: Pairs = ()
    network_reg_alphas: Pairs = ()
    network_reg_lrs: Pairs = ()
    loraplus_lr_ratio: float | None = None
    loraplus_unet_lr_ratio: float | None = None
    loraplus_text_encoder_lr_ratio: float | None = None
    llm_adapter_lr: float | None = None
    self_attn_lr: float | None = None
    cross_attn_lr: float | None = None
    mlp_lr: float | None = None
    mod_lr: float | None = None
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    verbose: bool = False

    @staticmethod
    def problems_of(values: Mapping[str, Any]) -> list[Problem]:
        """What is wrong with values that could be read."""
        problems = []
        for name, value in values.items():
            if name.endswith("_dropout") and not 0 <= value < 1:
                problems.append(Problem("expected 0 <= p < 1.", f"{name}={value:g}"))
            if name.endswith(("_lr", "_ratio")) and value < 0:
                problems.append(Problem("expected 0 or more.", f"{name}={value:g}"))
            if name == "target_modules" and not value:
                problems.append(Problem("is empty. Write none to train norms only.", name))
        for pattern, value in values.get("network_reg_dims", ()):
            if value < 0 or not float(value).is_integer():
                problems.append(
                    Problem("expected whole ranks.", f"network_reg_dims {pattern}={value:g}")
                )
        for pattern, value in (
            *values.get("network_reg_lrs", ()),
            *values.get("network_reg_alphas", ()),
        ):
            if value < 0:
                problems.append(Problem("expected 0 or more.", f"{pattern}={value:g}"))
        if values.get("norm_export", "diff") not in NORM_EXPORTS:
            problems.append(
                Problem(
                    f"expected {', '.join(NORM_EXPORTS)}.", f"norm_export={values['norm_export']}"
                )
            )
        return problems

    @property
    def component_rates(self) -> dict[str, float]:
        """The rates that were given, by component."""
        given = {name: getattr(self, f"{name}_lr") for name in COMPONENTS}
        return {name: lr for name, lr in given.items() if lr is not None}

    @property
    def loraplus_ratio(self) -> float | None:
        return self.loraplus_unet_lr_ratio or self.loraplus_lr_ratio

    def target_rules(self) -> TargetRules:
        targets = DIT_TARGETS + (LLM_ADAPTER_TARGETS if self.train_llm_adapter else ())
        if self.target_modules is not None:
            targets = () if self.target_modules == NO_LINEARS else self.target_modules
        return TargetRules(
            targets,
            exclude=self.exclude_patterns,
            include=self.include_patterns,
            prefixes=() if self.train_llm_adapter else (LLM_ADAPTER,),
            train_norm=self.train_norm,
            dims=self.network_reg_dims,
            alphas=self.network_reg_alphas,
            lrs=self.network_reg_lrs,
        )

    def effective(self) -> dict[str, str]:
        """The arguments as metadata: those that always matter and those not at their default."""
        always = ("train_norm", "train_llm_adapter", "norm_export")
        shown = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in always or field.name.startswith("lokr_") or value != field.default:
                shown[field.name] = argument_text(value)
        return shown


def argument_text(value: Any) -> str:
    """A value as it would be written in network_args."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        pairs = (part if isinstance(part, str) else f"{part[0]}={part[1]:g}" for part in value)
        return ",".join(pairs)
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Plan:
    """What a create_network call asks for, checked."""

    arguments: AdapterArguments
    dim: int
    alpha: float | None
    dropout: Dropout


def read_plan(
    cls: type[AdapterArguments], dims: tuple[Any, Any, Any], values: Mapping[str, Any],
    names: tuple[Mapping[str, str], Mapping[str, str]], max_dim: int | None = None,
) -> Plan:  # fmt: skip
    """Check the flags (network_dim, network_alpha, network_dropout) and the arguments together.

    names: (aliases, names that belong elsewhere).  Raises ConfigError with every problem.
    """
    (dim, alpha, neuron), problems = read_flags(dims, max_dim)
    try:
        arguments = parse_arguments(
            cls, values, aliases=names[0], elsewhere={**ELSEWHERE, **names[1]}
        )
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems, source=SOURCE)
    dropout = Dropout(neuron or 0.0, arguments.rank_dropout, arguments.module_dropout)
    return Plan(arguments, int(dim or DEFAULT_DIM), alpha, dropout)


def read_flags(
    dims: tuple[Any, Any, Any], max_dim: int | None
) -> tuple[list[float | None], list[Problem]]:
    """network_dim, network_alpha and network_dropout as numbers, and what is wrong with them."""
    problems: list[Problem] = []
    numbers: list[float | None] = []
    for flag, value in zip(("--network_dim", "--network_alpha", "--network_dropout"), dims):
        try:
            numbers.append(None if value is None else read_number(value))
        except ValueError as error:
            numbers.append(None)
            problems.append(Problem(f"{error}.", f"{flag} {value}"))
    dim, alpha, neuron = numbers
    if dim is not None and (dim < 1 or not float(dim).is_integer()):
        problems.append(Problem("expected a whole number of 1 or more.", f"--network_dim {dim:g}"))
    if dim is not None and max_dim and dim >= max_dim:
        problems.append(
            Problem(
                "asks for full matrices, which is LoKr: use --network_module networks.lokr_anima, "
                "or a rank such as 16.",
                f"--network_dim {dim:.0f}",
            )
        )
    if alpha is not None and alpha < 0:
        problems.append(Problem("expected 0 (the rank) or more.", f"--network_alpha {alpha:g}"))
    if neuron is not None and not 0 <= neuron < 1:
        problems.append(Problem("expected 0 <= p < 1.", f"--network_dropout {neuron:g}"))
    return numbers, problems


def adaptable_modules(unet: nn.Module) -> tuple[dict[str, nn.Linear], dict[str, nn.Module]]:
    """The model's Linears and its norms with a weight, by path."""
    modules = dict(unet.named_modules())
    linears = {path: module for path, module in modules.items() if is_adaptable_linear(module)}
    return linears, {path: module for path, module in modules.items() if is_adaptable_norm(module)}


def component_of(path: str) -> str:
    return next((name for name, test in COMPONENTS.items() if test(path)), "")


def make_network(
    kind: str, plan: Plan, unet: nn.Module, multiplier: float,
    make_adapter: Callable[[Target], LinearAdapter],
) -> AdapterNetwork:  # fmt: skip
    """A fresh network on the modules that the arguments choose."""
    linears, norms = adaptable_modules(unet)
    selection = select_targets(linears, norms, plan.arguments.target_rules())
    check_component_rates(selection, plan.arguments)
    report(selection, plan.arguments)
    placements = place_on_targets(selection, make_adapter, rates_of(plan.arguments))
    asked = {p.removeprefix("target_modules "): n for p, n in selection.matches.items()}
    default = (*DIT_TARGETS, *LLM_ADAPTER_TARGETS)
    matches = {pattern: n for pattern, n in asked.items() if pattern not in default}
    settings = settings_of(kind, plan, (linears, norms), matches)
    return AdapterNetwork(placements, settings, multiplier)


def make_network_as_file(
    kind: str, plan: Plan, unet: nn.Module, multiplier: float, source: str,
    tensors: Mapping[str, Tensor], *, for_inference: bool,
) -> AdapterNetwork:  # fmt: skip
    """A network with the modules, ranks and values of a file; in training also the other norms.

    With train_norm=false, norms of the file stay as they are: applied and exported, but frozen.
    """
    linears, norms = adaptable_modules(unet)
    modules = {**linears, **norms}
    file = decode_tensors(tensors, modules, source, norms=norms)
    plan = without_choices(plan, source)
    settings = replace(settings_of(kind, plan, (linears, norms), {}), dim=None)
    check_kind(file, settings, source)
    adapters = adapters_as_file(file, modules, plan.dropout, source)
    arguments = plan.arguments
    chosen = {path: module for path, module in norms.items() if path in adapters}
    if arguments.train_norm and not for_inference:
        rules = TargetRules(
            (), arguments.exclude_patterns, prefixes=arguments.target_rules().prefixes
        )
        chosen |= {target.path: target.module for target in select_targets({}, norms, rules).norms}
    own = {path: module for path, module in linears.items() if path in adapters}
    rules = TargetRules(("*",) if own else (), lrs=arguments.network_reg_lrs)
    selection = select_targets(own, chosen, rules)
    check_component_rates(selection, arguments)
    placements = place_on_targets(selection, lambda t: adapters[t.path], rates_of(arguments))
    for placement in placements:
        if placement.is_norm and not arguments.train_norm:
            placement.lr = 0.0
    network = AdapterNetwork(placements, settings, multiplier)
    network.fill_from(tensors, source)
    return network


def without_choices(plan: Plan, source: str) -> Plan:
    """The plan without the arguments that a file answers; those that were given are named once."""
    defaults = {field.name: field.default for field in fields(plan.arguments)}
    answered = [name for name in defaults if name in ANSWERED_BY_FILE or name.startswith("lokr_")]
    given = [name for name in answered if getattr(plan.arguments, name) != defaults[name]]
    if given:
        names = ", ".join(given)
        logger.warning("no effect of %s: dim_from_weights takes %s as it is", names, source)
    plain = replace(plan.arguments, **{name: defaults[name] for name in given})
    return replace(plan, arguments=plain)


def weights_of(
    file: str | None, weights_sd: Mapping[str, Tensor] | None
) -> tuple[dict[str, Tensor], str]:
    """The tensors that create_network_from_weights was given, and what to call them."""
    if weights_sd is not None:
        return dict(weights_sd), str(file or "weights_sd")
    assert file is not None, "create_network_from_weights needs a file or weights_sd"
    return read_tensors(file), str(file)


def rates_of(arguments: AdapterArguments) -> GroupRates:
    return GroupRates(component_of, arguments.component_rates)


def settings_of(
    kind: str, plan: Plan, modules: tuple[Mapping, Mapping], matches: Mapping[str, int]
) -> NetworkSettings:
    """modules: the model's Linears and its norms, by path."""
    linears, norms = modules
    return NetworkSettings(
        kind,
        dim=plan.dim,
        modules=MODULES,
        network_args=plan.arguments.effective(),
        matches=matches,
        paths=frozenset(linears) | frozenset(norms),
        norms=frozenset(norms),
        loraplus_ratio=plan.arguments.loraplus_ratio,
        norm_export=plan.arguments.norm_export,
    )


def check_component_rates(selection: Selection, arguments: AdapterArguments) -> None:
    """Raise ConfigError for rates of components that cannot hold.

    Those, other than 0, of a component with nothing to train; and of 0 where a pattern of
    network_reg_lrs asks for another.
    """
    targets = (*selection.linears, *selection.norms)
    present = {component_of(target.path) for target in targets}
    problems = [
        Problem("no module of this component is adapted; see target_modules.", f"{name}_lr={lr:g}")
        for name, lr in arguments.component_rates.items()
        if lr and name not in present
    ]
    for name in (name for name, lr in arguments.component_rates.items() if lr == 0):
        rated = [t.path for t in targets if t.lr and component_of(t.path) == name]
        if rated:
            message = (
                f"freezes the component, and network_reg_lrs gives {len(rated)} of its modules a rate "
                f"({rated[0]} ...). Keep one; to train some of them, give the others 0 in "
                "network_reg_lrs."
            )
            problems.append(Problem(message, f"{name}_lr=0"))
    if problems:
        raise ConfigError(problems, source=SOURCE)


def idle_arguments(selection: Selection, arguments: AdapterArguments) -> Iterator[tuple[str, str]]:
    """The arguments that were given and do nothing here, with the reason."""
    if arguments.loraplus_text_encoder_lr_ratio:
        yield "loraplus_text_encoder_lr_ratio", "text encoders are not trained"
    if arguments.loraplus_unet_lr_ratio and arguments.loraplus_lr_ratio:
        yield "loraplus_lr_ratio", "loraplus_unet_lr_ratio decides"
    if not selection.linears:
        for name in ("rank_dropout", "module_dropout", "loraplus_lr_ratio"):
            if getattr(arguments, name):
                yield name, "no Linear is adapted"
    targets = (*selection.linears, *selection.norms)
    for name, lr in arguments.component_rates.items():
        own = [target for target in targets if component_of(target.path) == name]
        if lr and own and all(target.lr is not None for target in own):
            yield f"{name}_lr", "network_reg_lrs gives every module of the component a rate"


def report(selection: Selection, arguments: AdapterArguments) -> None:
    for name, reason in idle_arguments(selection, arguments):
        logger.warning("network_args: %s has no effect: %s", name, reason)
    if added := selection.added:
        more = f" and {len(added) - 1} more" if len(added) > 1 else ""
        text = "include_patterns adds what target_modules does not name: %s%s (Linears: %d)"
        logger.info(text, added[0], more, len(added))
    if arguments.verbose:
        for target in (*selection.linears, *selection.norms):
            logger.info("adapted: %s", target.path)
