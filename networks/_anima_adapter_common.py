"""AnimaNetworks: what a --network_module for Anima offers, for any kind in the table of kinds.

Its names are networks.<kind>_anima; each of those modules is an AnimaNetworks' three functions.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor, nn

from library.errors import ConfigError, Problem
from networks._anima_arguments import (
    ADALN_TARGETS,
    ALIASES,
    DIT_TARGETS,
    LLM_ADAPTER,
    LLM_ADAPTER_TARGETS,
    TEXT_ENCODER,
    TEXT_ENCODER_TARGETS,
    AdapterArguments,
    component_of,
)
from networks.arguments import SOURCE, read_arguments, read_number
from networks.codec import DecodedFile, KeyDecoder, decode_tensors, read_adapter
from networks.kinds.adapter import Dropout
from networks.kinds.decomposed import with_magnitudes, without_magnitudes
from networks.kinds.kind import KindArguments, Kinds, Request
from networks.kinds.linear import LinearAdapter, is_adaptable_linear
from networks.kinds.norm import Norm, is_adaptable_norm
from networks.kinds.stored import training_alpha
from networks.kinds.table import KINDS
from networks.network import AdapterNetwork, check_kind
from networks.network_settings import NetworkSettings, NormExport
from networks.own_arguments import OwnArguments, kinds_by_word, kinds_of, too_full, undecomposed
from networks.placements import (
    GroupRates,
    adapters_as_file,
    fill_from_file,
    linear_adapters,
    place_on_targets,
)
from networks.targets import Selection, Target, TargetRules, select_targets

logger = logging.getLogger(__name__)

FAMILY = "anima"
DEFAULT_DIM = 4
FULL_MATRICES = "networks.lokr_anima"

# Arguments of other programs, answered better than by the nearest name.
ELSEWHERE = {
    "algo": "the kind is chosen by --network_module: networks.lora_anima, lokr_anima, "
    "loha_anima or oft_anima (with boft=true for BOFT).",
    "preset": "modules are chosen by target_modules, exclude_patterns and include_patterns here.",
    "dropout": "use --network_dropout.",
    "rescaled": "ComfyUI applies the scales of a rescaled OFT to BOFT alone; remove it.",
    "conv_dim": "Anima has no convolutions to adapt; remove it.",
    "conv_alpha": "Anima has no convolutions to adapt; remove it.",
}


@dataclass(frozen=True)
class Plan:
    """What a create_network call asks for, checked. own: the arguments of single kinds"""

    arguments: AdapterArguments
    own: OwnArguments
    request: Request


@dataclass(frozen=True)
class Adaptable:
    """The model's Linears and its norms with a weight, by path."""

    linears: Mapping[str, nn.Linear]
    norms: Mapping[str, Norm]

    @classmethod
    def of(cls, unet: nn.Module) -> Adaptable:
        modules = dict(unet.named_modules())
        return cls(
            {path: module for path, module in modules.items() if is_adaptable_linear(module)},
            {path: module for path, module in modules.items() if is_adaptable_norm(module)},
        )


class AnimaNetworks:
    """sd-scripts' functions of a --network_module, for one kind of adapter on Anima."""

    def __init__(self, kind: str, kinds: Kinds = KINDS) -> None:
        self.kind, self.kinds = kind, kinds
        self.own = kinds.trained[kind].arguments

    def create_network(
        self, multiplier: float, network_dim: int | None, network_alpha: float | None, vae: Any,
        text_encoder: Any, unet: nn.Module, neuron_dropout: float | None = None, **kwargs: Any,
    ) -> AdapterNetwork:  # fmt: skip
        """A fresh network for `unet`; network_dim None is 4, alpha 0 or None is the rank."""
        plan = self.plan((network_dim, network_alpha, neuron_dropout), kwargs)
        plan = replace(plan, own=plan.own.for_request(plan.request))
        network = self.fresh(plan, unet, multiplier)
        log_remarks(network, plan)
        return network

    def create_network_from_weights(
        self, multiplier: float, file: str | None, vae: Any, text_encoders: Any, unet: nn.Module,
        weights_sd: Mapping[str, Tensor] | None = None, for_inference: bool = False, **kwargs: Any,
    ) -> tuple[AdapterNetwork, dict[str, Tensor]]:  # fmt: skip
        """A network with a file's modules, ranks and values. for_inference: nothing beyond the file."""
        tensors, source = weights_of(file, weights_sd, self.kinds)
        plan = self.plan((None, None, kwargs.pop("neuron_dropout", None)), kwargs)
        model = Adaptable.of(unet)
        paths = (*model.linears, *model.norms)
        decoder = KeyDecoder(paths, norms=model.norms, kinds=self.kinds)
        stored = decode_tensors(tensors, decoder, source)
        plan = without_choices(plan, source)
        network = self.as_file(plan, model, stored, for_inference)
        network.set_multiplier(multiplier)
        log_remarks(network, plan)
        return network, tensors

    def check_network_args(
        self, network_dim: int | None, network_alpha: float | None,
        neuron_dropout: float | None = None, **kwargs: Any,
    ) -> list[Problem]:  # fmt: skip
        """What create_network would refuse without looking at a model."""
        try:
            self.plan((network_dim, network_alpha, neuron_dropout), kwargs)
        except ConfigError as error:
            return list(error.problems)
        return []

    def plan(self, dims: tuple[Any, Any, Any], values: Mapping[str, Any]) -> Plan:
        """The flags (network_dim, network_alpha, network_dropout) and the arguments, checked together.

        Raises ConfigError with every problem.
        """
        (dim, alpha, neuron), problems = read_flags(dims)
        used, wrong = kinds_of(self.kind, values, self.kinds)
        classes = {name: self.kinds.trained[name].arguments for name in used}
        aliases = dict(ALIASES)
        for cls in classes.values():
            aliases |= cls.ALIASES
        asked = {f"--network_dim {dim:.0f}": dim} if dim else {}
        problems += [*wrong, *too_full(classes, asked, FULL_MATRICES)]
        try:
            shared, *own = read_arguments(
                (AdapterArguments, *classes.values()), values, aliases,
                ELSEWHERE | self.of_other_kinds(used),
            )  # fmt: skip
        except ConfigError as error:
            problems += error.problems
            raise ConfigError(problems, source=SOURCE) from error
        arguments = AdapterArguments(**shared)
        ranks = {f"network_reg_dims {p!r}": rank for p, rank in arguments.network_reg_dims}
        problems += too_full(classes, ranks, FULL_MATRICES)
        problems += undecomposed(classes) if arguments.dora_wd else []
        if problems:
            raise ConfigError(problems, source=SOURCE)
        dropout = Dropout(neuron or 0.0, arguments.rank_dropout, arguments.module_dropout)
        request = Request(int(dim or DEFAULT_DIM), alpha, dropout, dim_given=dim is not None)
        by_kind = {name: cls(**values) for (name, cls), values in zip(classes.items(), own)}
        return Plan(arguments, OwnArguments(self.kind, by_kind), request)

    def of_other_kinds(self, used: Collection[str]) -> dict[str, str]:
        """The arguments that only kinds have which are not used -> where they belong."""
        return {
            name: f"belongs to --network_module {other.module_of(FAMILY)}."
            for kind, other in self.kinds.trained.items()
            if kind not in used
            for name in (*(f.name for f in fields(other.arguments)), *other.arguments.ALIASES)
        }

    def fresh(self, plan: Plan, unet: nn.Module, multiplier: float) -> AdapterNetwork:
        """A network on the modules that the arguments choose."""
        model, request = Adaptable.of(unet), plan.request
        selection = select_targets(model.linears, model.norms, plan.arguments.target_rules())
        check_component_rates(selection, plan.arguments)
        report_selection(selection, plan.arguments)
        words = kinds_by_word(self.kinds)

        def make(target: Target[nn.Linear]) -> LinearAdapter:
            rank = target.rank or request.dim
            alpha = training_alpha(
                request.alpha if target.alpha is None else target.alpha, rank,
                rank_stabilized=plan.arguments.rslora,
            )  # fmt: skip
            own = plan.own.of(target.kind and words[target.kind.lower()])
            if target.path.startswith((LLM_ADAPTER, TEXT_ENCODER)):  # they see no noise
                own = own.without_noise()
            adapter = own.make(target.module, rank, alpha, request.dropout)
            if not plan.arguments.dora_wd:
                return adapter
            return with_magnitudes(adapter, target.module, of_outputs=plan.arguments.wd_on_out)

        placements = place_on_targets(selection, make, rates_of(plan.arguments))
        asked = {p.removeprefix("target_modules "): n for p, n in selection.matches.items()}
        default = (*DIT_TARGETS, *LLM_ADAPTER_TARGETS, *ADALN_TARGETS, *TEXT_ENCODER_TARGETS)
        matches = {pattern: n for pattern, n in asked.items() if pattern not in default}
        dim = plan.own.main.rank_of_file(request.dim)
        settings = replace(self.settings(plan, model), dim=dim, matches=matches)
        return AdapterNetwork(placements, settings, multiplier)

    def as_file(
        self, plan: Plan, model: Adaptable, file: DecodedFile, for_inference: bool
    ) -> AdapterNetwork:
        """A network with the modules, ranks and values of a file; in training also the other norms.

        With train_norm=false, norms of the file stay as they are: applied and exported, but frozen.
        """
        settings, arguments = self.settings(plan, model), plan.arguments
        if self.kind in file.kinds:  # with others beside it
            settings = replace(settings, used=file.kinds)
        check_kind(file, settings)
        adapters = adapters_as_file(file, model.linears, plan.request.dropout, self.kinds)
        norms = {path: module for path, module in model.norms.items() if path in file.modules}
        if arguments.train_norm and not for_inference:
            rules = TargetRules(
                (), arguments.exclude_patterns, prefixes=arguments.target_rules().prefixes
            )
            norms |= {t.path: t.module for t in select_targets({}, model.norms, rules).norms}
        linears = {path: module for path, module in model.linears.items() if path in adapters}
        rules = TargetRules(("*",) if linears else (), lrs=arguments.network_reg_lrs)
        selection = select_targets(linears, norms, rules)
        check_component_rates(selection, arguments)
        placements = place_on_targets(selection, lambda t: adapters[t.path], rates_of(arguments))
        for placement in placements:
            if placement.is_norm and not arguments.train_norm:
                placement.lr = 0.0
        network = AdapterNetwork(placements, settings)
        fill_from_file(network.placements, file)
        return network

    def settings(self, plan: Plan, model: Adaptable) -> NetworkSettings:
        return NetworkSettings(
            self.kind,
            kinds=self.kinds,
            modules={name: t.module_of(FAMILY) for name, t in self.kinds.trained.items()},
            network_args=plan.arguments.effective() | plan.own.told(),
            used=tuple(plan.own.by_kind),
            paths=frozenset(model.linears) | frozenset(model.norms),
            norms=frozenset(model.norms),
            loraplus_ratio=plan.arguments.loraplus_ratio,
            loraplus_text_encoder_ratio=plan.arguments.loraplus_text_encoder_ratio,
            norm_export=NormExport(plan.arguments.norm_export),
        )


def log_remarks(network: AdapterNetwork, plan: Plan) -> None:
    """Say once what was asked for and has no effect."""
    plain = map(without_magnitudes, linear_adapters(network.placements))
    adapters = [adapter for adapter in plain if isinstance(adapter, LinearAdapter)]
    for remark in plan.own.remarks(adapters, plan.request, network.settings.kinds):
        logger.warning(remark)
    if plan.arguments.rslora and all(adapter.rank is None for adapter in adapters):
        logger.warning("rslora has no effect: no adapter has a rank")
    if plan.arguments.loraplus_ratio and adapters and not any(a.zero_factor for a in adapters):
        logger.warning("loraplus_lr_ratio has no effect: %s has one factor", network.settings.name)


def read_flags(dims: tuple[Any, Any, Any]) -> tuple[list[float | None], list[Problem]]:
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
    if alpha is not None and alpha < 0:
        problems.append(Problem("expected 0 (the rank) or more.", f"--network_alpha {alpha:g}"))
    if neuron is not None and not 0 <= neuron < 1:
        problems.append(Problem("expected 0 <= p < 1.", f"--network_dropout {neuron:g}"))
    return numbers, problems


def without_choices(plan: Plan, source: str) -> Plan:
    """The plan without the arguments that a file answers; those that were given are named once."""
    default = AdapterArguments()
    plain = replace(
        plan.arguments,
        target_modules=default.target_modules,
        train_adaln=default.train_adaln,
        include_patterns=default.include_patterns,
        network_reg_kinds=default.network_reg_kinds,
        network_reg_dims=default.network_reg_dims,
        network_reg_alphas=default.network_reg_alphas,
        dora_wd=default.dora_wd,
        wd_on_out=default.wd_on_out,
        rslora=default.rslora,
    )
    given = differing(plan.arguments, plain)
    for own in plan.own.by_kind.values():
        given += differing(own, type(own)())
    if given:
        names = ", ".join(given)
        logger.warning("no effect of %s: dim_from_weights takes %s as it is", names, source)
    return replace(plan, arguments=plain, own=plan.own.plain())


def differing(one: KindArguments | AdapterArguments, other: object) -> list[str]:
    """The fields in which two objects of one class differ."""
    names = [field.name for field in fields(one)]
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def weights_of(
    file: str | None, weights_sd: Mapping[str, Tensor] | None, kinds: Kinds
) -> tuple[dict[str, Tensor], str]:
    """The tensors that create_network_from_weights was given, and what to call them."""
    if weights_sd is not None:
        return dict(weights_sd), str(file or "weights_sd")
    assert file is not None, "create_network_from_weights needs a file or weights_sd"
    return read_adapter(file, kinds), str(file)


def rates_of(arguments: AdapterArguments) -> GroupRates:
    return GroupRates(component_of, arguments.component_rates)


def check_component_rates(selection: Selection, arguments: AdapterArguments) -> None:
    """Raise ConfigError for rates of components that cannot hold.

    Those, other than 0, of a component with nothing to train; and of 0 where a pattern of
    network_reg_lrs asks for another.
    """
    targets = selection.targets
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
    if arguments.loraplus_text_encoder_lr_ratio and not arguments.text_encoder_lr:
        yield "loraplus_text_encoder_lr_ratio", "the text encoder does not train (text_encoder_lr)"
    if not arguments.wd_on_out and not arguments.dora_wd:
        yield "wd_on_out", "dora_wd is not on"
    of_text = arguments.loraplus_text_encoder_lr_ratio or not arguments.text_encoder_lr
    if arguments.loraplus_unet_lr_ratio and arguments.loraplus_lr_ratio and of_text:
        yield "loraplus_lr_ratio", "loraplus_unet_lr_ratio decides"
    if not selection.linears:
        for name in ("rank_dropout", "module_dropout", "loraplus_lr_ratio"):
            if getattr(arguments, name):
                yield name, "no Linear is adapted"
    targets = selection.targets
    for name, lr in arguments.component_rates.items():
        own = [target for target in targets if component_of(target.path) == name]
        if lr and own and all(target.lr is not None for target in own):
            yield f"{name}_lr", "network_reg_lrs gives every module of the component a rate"


def report_selection(selection: Selection, arguments: AdapterArguments) -> None:
    for name, reason in idle_arguments(selection, arguments):
        logger.warning("network_args: %s has no effect: %s", name, reason)
    if added := selection.added:
        more = f" and {len(added) - 1} more" if len(added) > 1 else ""
        text = "include_patterns adds what target_modules does not name: %s%s (Linears: %d)"
        logger.info(text, added[0], more, len(added))
    if arguments.verbose:
        for target in selection.targets:
            logger.info("adapted: %s", target.path)
