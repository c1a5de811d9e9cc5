"""The configuration: one dataclass, read from TOML and `--set a.b=c`; what each setting may be stands beside it.

A setting is refused by name before anything is written: an unknown key, another type, a value out of its range, and
settings that do not go together.  Ranges are closed at both ends, so infinity and NaN are in none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

from kernels.market.position import MAX_SIZES, action_names
from kernels.market.scattering import wavelets
from kernels.search.config import ALGORITHMS, MARKET, WIDENING
from kernels.search.progressive_widening import max_candidates
from kernels.search.tree import VALUE_REUSES

ConfigT = TypeVar("ConfigT")
MAX_STATE_WIDTH = 1 << 12  # columns of what a search keeps of a node


class ConfigError(ValueError):
    """The configuration names something that does not exist, or has a value that it may not have."""

    exit_code = 3


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included; of a list, each of its numbers."""

    low: float
    high: float
    step: int = 1  # of whole numbers


CostPips = Annotated[float, Range(0, 10_000)]  # pips
SwapPips = Annotated[float | None, Range(-10_000, 10_000)]  # pips; None: of the instrument
Fraction = Annotated[float, Range(0, 1)]
LossWeight = Annotated[float, Range(0, 1000)]  # of a loss
Exponent = Annotated[float, Range(0, 4)]
Scale = Annotated[float, Range(0, 100_000)]
Width = Annotated[int, Range(1, 2048)]
Simulations = Annotated[int, Range(1, 4096)]
Count = Annotated[int, Range(1, 100_000)]
RiskLimit = Annotated[float, Range(0, 1e9)]  # of a guard; 0 = off
OptionalRiskLimit = Annotated[float | None, Range(0, 1e9)]  # None: it follows the model


@dataclass(frozen=True)
class MarketConfig:
    """Costs and rules, in pips; the spread is the data's where the file has one.  None: of the instrument."""

    slippage: Annotated[float | None, Range(0, 10_000)] = None  # a fill; an eighth of the usual spread
    commission: CostPips = 0.0  # a side
    # a night, negative = paid; of pairs -0.5 and -0.1, else 5 % and 1 % of the price a year
    swap_long: SwapPips = None
    swap_short: SwapPips = None
    # the search is exact and fastest for "pnl", see kernels/search/market_search.py
    reward: Annotated[str, ("pnl", "drawdown_penalised")] = "pnl"
    mae_penalty: LossWeight = 0.01  # k of amddp
    reverse: bool = False  # an open position may be turned in one action
    position_sizes: Annotated[list[float], Range(0, 1)] = field(default_factory=lambda: [1.0])  # of an entry: fractions
    episode_length: Annotated[int, Range(2, 100_000)] = 360  # decisions


@dataclass(frozen=True)
class FeatureConfig:
    """Wavelet scattering of the last 256 returns."""

    J: Annotated[int, Range(1, 8)] = 6
    Q: Annotated[int, Range(1, 16)] = 4


@dataclass(frozen=True)
class NetworkConfig:
    """Kind and sizes of the networks."""

    dynamics: Annotated[str, ("mlp", "transformer")] = "mlp"  # what leads from one bar of the tree to the next
    latent: Width = 32
    hidden: Width = 64
    num_chance_codes: Annotated[int, Range(2, 64)] = 8  # chance codes: what they are says train.chance_codes
    num_layers: Annotated[int, Range(1, 32)] = 2  # of a transformer, as is the rest
    num_heads: Annotated[int, Range(1, 64)] = 4
    attention_window: Annotated[int, Range(1, 64)] = 4  # earlier bars that an imagined one sees
    context: Annotated[int, Range(1, 64)] = 1  # bars that the present one is seen with, itself included


@dataclass(frozen=True)
class SearchSettings:
    """The search; when acting the noise is off."""

    algorithm: Annotated[str, ALGORITHMS] = "market"  # widening: an entry of any size, nothing is reused
    value_reuse: Annotated[str, VALUE_REUSES] = "chance_child"  # by a sweep, of the search one bar later (ReZero)
    num_simulations: Simulations = 4  # nodes of a market tree that are expanded
    max_considered_actions: Annotated[int, Range(1, 256)] = 4  # root actions of Gumbel search
    num_sampled_sizes: Annotated[int, Range(1, 64)] = 4  # sizes of each side that a root of widening draws
    discount: Annotated[float, Range(0.01, 1)] = 0.985  # per bar
    c_visit: Scale = 50.0
    c_scale: Scale = 1.0  # in units of the 5 to 95 % range of n-step rewards


@dataclass(frozen=True)
class TrainConfig:
    """The cycle collect -> reanalyse -> learn."""

    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    # Of the bars; then an embargo of a session, then the test.
    train_fraction: Annotated[float, Range(0.01, 0.99)] = 0.75
    num_envs: Annotated[int, Range(1, 4096)] = 16  # sessions played in lockstep
    # Sessions of a block that a random trader plays, searched as well.
    random_episodes: Annotated[int, Range(0, 4096)] = 4
    batches_per_iteration: Annotated[int, Range(1, 4096)] = 2  # collected in a cycle
    num_simulations: Simulations = 4  # of collecting and reanalysing; acting uses search.num_simulations
    reanalyze: bool = True  # before learning, search again every session whose targets are not fresh
    reanalyze_interval: Annotated[int, Range(0, 1_000_000)] = 1  # cycles for which targets count as fresh
    replay_capacity: Count = 96  # sessions kept: old policy targets hold learning back
    batch_size: Annotated[int, Range(4, 65_536, step=4)] = 256
    num_unroll_steps: Annotated[int, Range(1, 64)] = 5  # K
    td_steps: Count = 5  # below market.episode_length
    mirror_augmentation: bool = (
        True  # turn half of the windows upside down: a market and its mirror image are one lesson
    )
    off_policy_correction: Fraction = 0.0  # share of the horizon after which n_step of a session is one less; 0 = off
    search_value_weight: Fraction = 1.0  # of the search's value in the value target; the rest is the n-step return
    updates_per_iteration: Count = 80  # learning steps in a cycle
    consistency_weight: LossWeight = 0.0  # weight of EfficientZero's self-supervised loss; 0 = off
    # chance codes: bins of the next standardised move, or learned by an encoder of its bar
    chance_codes: Annotated[str, ("quantile", "learned")] = "quantile"
    commitment_weight: LossWeight = 0.25  # weight of the loss that ties the encoder of learned codes to what it says
    code_entropy_weight: LossWeight = 0.3  # weight of the loss that keeps learned codes in use, or one would say it all
    code_move_weight: LossWeight = 5.0  # weight of the loss by which learned codes tell the move of their bar
    per_alpha: Exponent = 0.0  # exponent of the Bellman error by which windows are drawn; 0 = uniformly
    per_beta: Exponent = 1.0  # exponent of the importance weights that make up for it
    # EfficientZero's: learn sums of rewards by an LSTM; not with search.algorithm=market
    value_prefix: bool = False
    unizero_weight: LossWeight = 0.25  # weight of UniZero's joint training on the bars that came; 0 = off
    learning_rate: Annotated[float, Range(1e-9, 1)] = 1e-3
    # Weight decay, times the rate: 2 hides what is sure, see README.
    weight_decay: Annotated[float, Range(0, 10)] = 0.3
    lr_decay_steps: Annotated[int, Range(1, 10**9)] = 6000  # steps of the learning-rate schedule
    target_ema: Annotated[float, Range(1e-6, 1)] = 0.05  # of the soft target network, which also plays


@dataclass(frozen=True)
class Config:
    """Everything that determines the weights, and nothing else."""

    market: MarketConfig = field(default_factory=MarketConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    search: SearchSettings = field(default_factory=SearchSettings)
    train: TrainConfig = field(default_factory=TrainConfig)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Nested dictionary of plain values."""
        return asdict(self)


@dataclass(frozen=True)
class RiskConfig:
    """Limits of acting; pips are those of a position of 1, 0 turns a limit off, and none is negative.

    None: from the model, its backtest and its instrument, as `host/live/limits.py` says.
    """

    max_target: Fraction = 1.0
    changes_per_hour: OptionalRiskLimit = None  # of the target: more, and positions may only become smaller
    daily_loss: OptionalRiskLimit = None  # pips: flat for the rest of the day, UTC
    drawdown: OptionalRiskLimit = None  # pips below the best: flat until --lift-halt
    losing_streak: OptionalRiskLimit = None  # trades: flat for the rest of the day, UTC
    max_spread: OptionalRiskLimit = None  # pips: positions may only become smaller
    stale_s: RiskLimit = 600.0  # without the bar that was due, while the market is open: flat, exit 6
    model_age_days: RiskLimit = 400.0  # since the last bar it was trained on: flat
    feature_drift: RiskLimit = 4.0  # root mean square of the normalised features, 1 in training: positions only smaller
    weekend_flat_min: RiskLimit = 0.0  # before the weekly close: flat over the weekend
    clock_skew_s: RiskLimit = 5.0  # that a bar may close after now: flat


@dataclass(frozen=True)
class LiveConfig:
    """What determines what is published of a model's decisions; never a part of the model."""

    risk: RiskConfig = field(default_factory=RiskConfig)


def load_config(path: Path | None = None, settings: list[str] | None = None, base: Config | None = None) -> Config:
    """`base` or the defaults, then the TOML file, then each `a.b=c`; ConfigError unless all goes together."""
    config = apply_overrides(base or Config(), path, settings)
    check_market(config)
    check_network(config)
    check_search(config)
    check_training(config)
    return config


def apply_overrides(config: ConfigT, path: Path | None, settings: list[str] | None) -> ConfigT:
    """`config`, then the TOML file, then each `a.b=c`."""
    if path is not None:
        try:
            config = merge(config, tomllib.loads(path.read_text(encoding="utf-8-sig")), str(path))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from None
    for setting in settings or []:
        config = merge(config, parse_setting(setting), f"--set {setting}")
    return config


def parse_setting(setting: str) -> dict[str, Any]:
    """`a.b=c` as a nested dictionary; a bare word is a string."""
    key, equals, value = setting.partition("=")
    if not equals:
        raise ConfigError(f"--set {setting}: write it as section.key=value, for example search.num_simulations=32")
    for text in (setting, f'{key}="{value}"'):
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            continue
    raise ConfigError(f"--set {setting}: neither a value of TOML nor a word")


def flatten(table: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(section.key, value) of nested tables."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def merge(config: ConfigT, table: dict[str, Any], where: str) -> ConfigT:
    """`config` with the values of `table`; ConfigError on an unknown key, another type or a value out of range."""
    known = list_settings(config)
    for name, value in flatten(table):
        if name not in known:
            raise ConfigError(f"{where}: {unknown_key_message(name, list(known))}")
        config = replace_at(config, name.split("."), coerce(*known[name], value, f"{where}: {name}"))
    return config


def list_settings(config: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Value and, in the order of the fields, what is allowed of each setting by its name section.key."""
    found = dict[str, tuple[Any, Any]]()
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if is_dataclass(value):
            found |= list_settings(value, f"{path}{name}.")
        else:
            found[f"{path}{name}"] = value, next(iter(getattr(hint, "__metadata__", ())), None)
    return found


def replace_at(config: Any, path: list[str], value: Any) -> Any:
    """`config` with another value of one field of it or of what it holds."""
    name, *rest = path
    return replace(config, **{name: replace_at(getattr(config, name), rest, value) if rest else value})


def unknown_key_message(name: str, known: list[str]) -> str:
    """That there is no such key, and which is meant."""
    namesakes = [key for key in known if key.endswith(f".{name.split('.')[-1]}")]
    near = namesakes or get_close_matches(name, known, n=1)
    sections = sorted({key.rpartition(".")[0] for key in known})
    hint = f"did you mean {' or '.join(near)}?" if near else f"write section.key; sections: {', '.join(sections)}"
    return f"unknown key {name!r}: {hint}"


def coerce(default: Any, allowed: Any, value: Any, where: str) -> Any:
    """`value` in the type of `default`, if it is allowed; what is left open by default is a number."""
    default = 0.0 if default is None else default
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise ConfigError(f"{where} wants {type(default).__name__}, for example {default!r}, not {value!r}")
    for one in value if isinstance(value, list) else [value]:
        fault = invalid_reason(allowed, one)
        if fault:
            raise ConfigError(f"{where}: {one!r} is {fault}")
    return value


def invalid_reason(allowed: Any, value: Any) -> str:
    """What is wrong with a value, or nothing."""
    if isinstance(allowed, Range):
        low, high, step = allowed
        if type(value) not in (int, float) or not low <= value <= high:
            return f"not a number from {low:.12g} to {high:.12g}"
        return f"not a multiple of {step}" if value % step and step > 1 else ""
    return "" if allowed is None or value in allowed else f"none of {', '.join(allowed)}"


def check_minutes(minutes: float | None) -> None:
    """Raise ConfigError for a time after which no training would end."""
    fault = "" if minutes is None else invalid_reason(Range(0.001, 1_000_000), minutes)
    if fault:
        raise ConfigError(f"--minutes: {minutes} is {fault}")


def check_market(config: Config) -> None:
    """Raise ConfigError for sizes of an entry that are no ascending fractions."""
    sizes = config.market.position_sizes
    if not 1 <= len(sizes) <= MAX_SIZES or sizes != sorted({*sizes} - {0.0}):
        raise ConfigError(f"market.position_sizes: {sizes} are not 1 to {MAX_SIZES} ascending fractions above 0")


def check_network(config: Config) -> None:
    """Raise ConfigError for features, widths or losses that there are not together."""
    f, n, t = config.features, config.network, config.train
    try:
        wavelets(f.J, f.Q)
    except ValueError as error:
        raise ConfigError(f"features.Q: {error}") from None
    transformer = n.dynamics == "transformer"
    if transformer and t.consistency_weight > 0:
        raise ConfigError(
            "train.consistency_weight: a transformer has train.unizero_weight instead, which compares its latents"
        )
    if transformer and n.latent % (2 * n.num_heads):
        raise ConfigError(
            f"network.num_heads: a transformer wants network.latent = {n.latent} in {n.num_heads} heads of even width"
        )
    if transformer and t.value_prefix:
        raise ConfigError(
            "train.value_prefix: a transformer sees the steps before itself; it wants network.dynamics=mlp"
        )
    if state_width(config) > MAX_STATE_WIDTH:
        raise ConfigError(
            f"network.latent: {n.latent} makes nodes of {state_width(config)} numbers, not {MAX_STATE_WIDTH}"
        )


def state_width(config: Config) -> int:
    """Numbers that a search keeps of a node: `Shape.state` of models/params.py."""
    n = config.network
    memory = 2 * n.latent + 2 if config.train.value_prefix else 0
    return n.latent + memory + (1 + 2 * n.num_layers * n.latent if n.dynamics == "transformer" else 0)


def check_search(config: Config) -> None:
    """Raise ConfigError for a search that there is not with these sizes and networks."""
    s, sizes = config.search, config.market.position_sizes
    widening = s.algorithm == ALGORITHMS[WIDENING]
    if widening and sizes != [1.0]:
        raise ConfigError("search.algorithm: widening wants market.position_sizes=[1.0], whose fractions it draws")
    if config.train.value_prefix and s.algorithm == ALGORITHMS[MARKET]:
        raise ConfigError(
            "train.value_prefix: search.algorithm=market knows its rewards exactly and asks no network for them; "
            "it wants gumbel, puct or widening"
        )
    most = max_candidates(s.num_sampled_sizes) if widening else len(action_names((*sizes,)))
    if s.max_considered_actions > most:
        raise ConfigError(f"search.max_considered_actions: {s.max_considered_actions} of {most} actions of a root")


def check_training(config: Config) -> None:
    """Raise ConfigError for sizes of the training that do not go together."""
    t, session = config.train, config.market.episode_length
    if t.num_envs * t.batches_per_iteration > t.replay_capacity:
        raise ConfigError(
            f"train.replay_capacity: {t.replay_capacity} sessions do not hold the {t.num_envs * t.batches_per_iteration} of one cycle"
        )
    if t.learning_rate * t.weight_decay > 1:
        raise ConfigError(
            f"train.weight_decay: {t.weight_decay} times train.learning_rate = {t.learning_rate} is more than all of a weight"
        )
    if t.td_steps >= session:
        raise ConfigError(f"train.td_steps: {t.td_steps} is not within a session of {session}")
