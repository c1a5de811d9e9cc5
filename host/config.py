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

from kernels.market.position import MOST_SIZES, action_names
from kernels.market.scattering import wavelets
from kernels.search.config import MARKET, RULES, WIDENING
from kernels.search.progressive_widening import most_candidates
from kernels.search.tree import REUSES

C = TypeVar("C")
MOST_STATE = 1 << 12  # columns of what a search keeps of a node


class ConfigError(ValueError):
    """The configuration names something that does not exist, or has a value that it may not have."""

    exit_code = 3


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included; of a list, each of its numbers."""

    low: float
    high: float
    step: int = 1  # of whole numbers


Cost = Annotated[float, Range(0, 10_000)]  # pips
Swap = Annotated[float | None, Range(-10_000, 10_000)]  # pips; None: of the instrument
Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0, 1000)]  # of a loss
Exponent = Annotated[float, Range(0, 4)]
Scale = Annotated[float, Range(0, 100_000)]
Width = Annotated[int, Range(1, 2048)]
Simulations = Annotated[int, Range(1, 4096)]
Count = Annotated[int, Range(1, 100_000)]
Limit = Annotated[float, Range(0, 1e9)]  # of a guard; 0 = off
OpenLimit = Annotated[float | None, Range(0, 1e9)]  # None: it follows the model


@dataclass(frozen=True)
class MarketConfig:
    """Costs and rules, in pips; the spread is the data's where the file has one.  None: of the instrument."""

    slippage: Annotated[float | None, Range(0, 10_000)] = None  # a fill; an eighth of the usual spread
    commission: Cost = 0.0  # a side
    # a night, negative = paid; of pairs -0.5 and -0.1, else 5 % and 1 % of the price a year
    swap_long: Swap = None
    swap_short: Swap = None
    # the search is exact and fastest for "pnl", see kernels/search/market_search.py
    reward: Annotated[str, ("pnl", "amddp")] = "pnl"
    excursion_weight: Weight = 0.01  # k of amddp
    reverse: bool = False  # an open position may be turned in one action
    sizes: Annotated[list[float], Range(0, 1)] = field(
        default_factory=lambda: [1.0]
    )  # of an entry: fractions
    session: Annotated[int, Range(2, 100_000)] = 360  # decisions


@dataclass(frozen=True)
class FeatureConfig:
    """Wavelet scattering of the last 256 returns."""

    J: Annotated[int, Range(1, 8)] = 6
    Q: Annotated[int, Range(1, 16)] = 4


@dataclass(frozen=True)
class NetworkConfig:
    """Kind and sizes of the networks."""

    model: Annotated[str, ("mlp", "transformer")] = "mlp"  # what leads from one bar of the tree to the next
    latent: Width = 32
    hidden: Width = 64
    codes: Annotated[int, Range(2, 64)] = 8  # chance codes: what they are says train.codes
    layers: Annotated[int, Range(1, 32)] = 2  # of a transformer, as is the rest
    heads: Annotated[int, Range(1, 64)] = 4
    window: Annotated[int, Range(1, 64)] = 4  # earlier bars that an imagined one sees
    context: Annotated[int, Range(1, 64)] = 1  # bars that the present one is seen with, itself included


@dataclass(frozen=True)
class SearchSettings:
    """The search; when acting the noise is off."""

    rule: Annotated[str, RULES] = "market"  # widening: an entry of any size, nothing is reused
    reuse: Annotated[str, REUSES] = "chance_child"  # by a sweep, of the search one bar later (ReZero)
    simulations: Simulations = 4  # nodes of a market tree that are expanded
    considered: Annotated[int, Range(1, 256)] = 4  # root actions of Gumbel search
    samples: Annotated[int, Range(1, 64)] = 4  # sizes of each side that a root of widening draws
    discount: Annotated[float, Range(0.01, 1)] = 0.985  # per bar
    c_visit: Scale = 50.0
    c_scale: Scale = 1.0  # in units of the 5 to 95 % range of n-step rewards


@dataclass(frozen=True)
class TrainConfig:
    """The cycle collect -> reanalyse -> learn."""

    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    # Of the bars; then an embargo of a session, then the test.
    train_share: Annotated[float, Range(0.01, 0.99)] = 0.75
    block: Annotated[int, Range(1, 4096)] = 16  # sessions played in lockstep
    # Sessions of a block that a random trader plays, searched as well.
    wanderers: Annotated[int, Range(0, 4096)] = 4
    blocks: Annotated[int, Range(1, 4096)] = 2  # collected in a cycle
    simulations: Simulations = 4  # of collecting and reanalysing; acting uses search.simulations
    sweep: bool = True  # before learning, search again every session whose targets are not fresh
    fresh: Annotated[int, Range(0, 1_000_000)] = 1  # cycles for which targets count as fresh
    replay: Count = 96  # sessions kept: old policy targets hold learning back
    batch: Annotated[int, Range(4, 65_536, step=4)] = 256
    unroll: Annotated[int, Range(1, 64)] = 5  # K
    n_step: Count = 5  # below market.session
    mirror: bool = True  # turn half of the windows upside down: a market and its mirror image are one lesson
    age_cut: Share = 0.0  # share of the horizon after which n_step of a session is one less; 0 = off
    search_share: Share = 1.0  # of the search's value in the value target; the rest is the n-step return
    steps: Count = 80  # learning steps in a cycle
    consistency: Weight = 0.0  # weight of EfficientZero's self-supervised loss; 0 = off
    # chance codes: bins of the next standardised move, or learned by an encoder of its bar
    codes: Annotated[str, ("quantile", "learned")] = "quantile"
    commitment: Weight = 0.25  # weight of the loss that ties the encoder of learned codes to what it says
    usage: Weight = 0.3  # weight of the loss that keeps learned codes in use, or one would say it all
    telling: Weight = 5.0  # weight of the loss by which learned codes tell the move of their bar
    priority: Exponent = 0.0  # exponent of the Bellman error by which windows are drawn; 0 = uniformly
    correction: Exponent = 1.0  # exponent of the importance weights that make up for it
    # EfficientZero's: learn sums of rewards by an LSTM; not with search.rule=market
    value_prefix: bool = False
    joint: Weight = 0.25  # weight of UniZero's joint training on the bars that came; 0 = off
    rate: Annotated[float, Range(1e-9, 1)] = 1e-3
    # Weight decay, times the rate: 2 hides what is sure, see README.
    decay: Annotated[float, Range(0, 10)] = 0.3
    horizon: Annotated[int, Range(1, 10**9)] = 6000  # steps of the learning-rate schedule
    target_rate: Annotated[float, Range(1e-6, 1)] = 0.05  # of the soft target network, which also plays


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
class GuardConfig:
    """Limits of acting; pips are those of a position of 1, 0 turns a limit off, and none is negative.

    None: from the model, its backtest and its instrument, as `host/live/limits.py` says.
    """

    max_target: Share = 1.0
    changes_per_hour: OpenLimit = None  # of the target: more, and positions may only become smaller
    daily_loss: OpenLimit = None  # pips: flat for the rest of the day, UTC
    drawdown: OpenLimit = None  # pips below the best: flat until --lift-halt
    losing_streak: OpenLimit = None  # trades: flat for the rest of the day, UTC
    max_spread: OpenLimit = None  # pips: positions may only become smaller
    stale_s: Limit = 600.0  # without the bar that was due, while the market is open: flat, exit 6
    model_age_days: Limit = 400.0  # since the last bar it was trained on: flat
    far: Limit = 4.0  # root mean square of the normalised features, 1 in training: positions only smaller
    weekend_flat_min: Limit = 0.0  # before the weekly close: flat over the weekend
    clock_skew_s: Limit = 5.0  # that a bar may close after now: flat


@dataclass(frozen=True)
class ActConfig:
    """What determines what is published of a model's decisions; never a part of the model."""

    guard: GuardConfig = field(default_factory=GuardConfig)


def load_config(
    path: Path | None = None, settings: list[str] | None = None, base: Config | None = None
) -> Config:
    """`base` or the defaults, then the TOML file, then each `a.b=c`; ConfigError unless all goes together."""
    config = load_into(base or Config(), path, settings)
    check_market(config)
    check_network(config)
    check_search(config)
    check_training(config)
    return config


def load_into(config: C, path: Path | None, settings: list[str] | None) -> C:
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
        raise ConfigError(
            f"--set {setting}: write it as section.key=value, for example search.simulations=32"
        )
    for text in (setting, f'{key}="{value}"'):
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            continue
    raise ConfigError(f"--set {setting}: neither a value of TOML nor a word")


def flat(table: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(section.key, value) of nested tables."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def merge(config: C, table: dict[str, Any], where: str) -> C:
    """`config` with the values of `table`; ConfigError on an unknown key, another type or a value out of range."""
    known = settings_of(config)
    for name, value in flat(table):
        if name not in known:
            raise ConfigError(f"{where}: {unknown(name, list(known))}")
        config = changed(config, name.split("."), coerce(*known[name], value, f"{where}: {name}"))
    return config


def settings_of(config: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Value and, in the order of the fields, what is allowed of each setting by its name section.key."""
    found = dict[str, tuple[Any, Any]]()
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if is_dataclass(value):
            found |= settings_of(value, f"{path}{name}.")
        else:
            found[f"{path}{name}"] = value, next(iter(getattr(hint, "__metadata__", ())), None)
    return found


def changed(config: Any, path: list[str], value: Any) -> Any:
    """`config` with another value of one field of it or of what it holds."""
    name, *rest = path
    return replace(config, **{name: changed(getattr(config, name), rest, value) if rest else value})


def unknown(name: str, known: list[str]) -> str:
    """That there is no such key, and which is meant."""
    namesakes = [key for key in known if key.endswith(f".{name.split('.')[-1]}")]
    near = namesakes or get_close_matches(name, known, n=1)
    sections = sorted({key.rpartition(".")[0] for key in known})
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"write section.key; sections: {', '.join(sections)}"
    )
    return f"unknown key {name!r}: {hint}"


def coerce(default: Any, allowed: Any, value: Any, where: str) -> Any:
    """`value` in the type of `default`, if it is allowed; what is left open by default is a number."""
    default = 0.0 if default is None else default
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise ConfigError(f"{where} wants {type(default).__name__}, for example {default!r}, not {value!r}")
    for one in value if isinstance(value, list) else [value]:
        fault = refusal(allowed, one)
        if fault:
            raise ConfigError(f"{where}: {one!r} is {fault}")
    return value


def refusal(allowed: Any, value: Any) -> str:
    """What is wrong with a value, or nothing."""
    if isinstance(allowed, Range):
        low, high, step = allowed
        if type(value) not in (int, float) or not low <= value <= high:
            return f"not a number from {low:.12g} to {high:.12g}"
        return f"not a multiple of {step}" if value % step and step > 1 else ""
    return "" if allowed is None or value in allowed else f"none of {', '.join(allowed)}"


def check_minutes(minutes: float | None) -> None:
    """Raise ConfigError for a time after which no training would end."""
    fault = "" if minutes is None else refusal(Range(0.001, 1_000_000), minutes)
    if fault:
        raise ConfigError(f"--minutes: {minutes} is {fault}")


def check_market(config: Config) -> None:
    """Raise ConfigError for sizes of an entry that are no ascending fractions."""
    sizes = config.market.sizes
    if not 1 <= len(sizes) <= MOST_SIZES or sizes != sorted({*sizes} - {0.0}):
        raise ConfigError(f"market.sizes: {sizes} are not 1 to {MOST_SIZES} ascending fractions above 0")


def check_network(config: Config) -> None:
    """Raise ConfigError for features, widths or losses that there are not together."""
    f, n, t = config.features, config.network, config.train
    try:
        wavelets(f.J, f.Q)
    except ValueError as error:
        raise ConfigError(f"features.Q: {error}") from None
    transformer = n.model == "transformer"
    if transformer and t.consistency > 0:
        raise ConfigError(
            "train.consistency: a transformer has train.joint instead, which compares its latents"
        )
    if transformer and n.latent % (2 * n.heads):
        raise ConfigError(
            f"network.heads: a transformer wants network.latent = {n.latent} in {n.heads} heads of even width"
        )
    if transformer and t.value_prefix:
        raise ConfigError(
            "train.value_prefix: a transformer sees the steps before itself; it wants network.model=mlp"
        )
    if state_width(config) > MOST_STATE:
        raise ConfigError(
            f"network.latent: {n.latent} makes nodes of {state_width(config)} numbers, not {MOST_STATE}"
        )


def state_width(config: Config) -> int:
    """Numbers that a search keeps of a node: `Shape.state` of models/params.py."""
    n = config.network
    memory = 2 * n.latent + 2 if config.train.value_prefix else 0
    return n.latent + memory + (1 + 2 * n.layers * n.latent if n.model == "transformer" else 0)


def check_search(config: Config) -> None:
    """Raise ConfigError for a search that there is not with these sizes and networks."""
    s, sizes = config.search, config.market.sizes
    widening = s.rule == RULES[WIDENING]
    if widening and sizes != [1.0]:
        raise ConfigError("search.rule: widening wants market.sizes=[1.0], whose fractions it draws")
    if config.train.value_prefix and s.rule == RULES[MARKET]:
        raise ConfigError(
            "train.value_prefix: search.rule=market knows its rewards exactly and asks no network for them; "
            "it wants gumbel, puct or widening"
        )
    most = most_candidates(s.samples) if widening else len(action_names((*sizes,)))
    if s.considered > most:
        raise ConfigError(f"search.considered: {s.considered} of {most} actions of a root")


def check_training(config: Config) -> None:
    """Raise ConfigError for sizes of the training that do not go together."""
    t, session = config.train, config.market.session
    if t.block * t.blocks > t.replay:
        raise ConfigError(
            f"train.replay: {t.replay} sessions do not hold the {t.block * t.blocks} of one cycle"
        )
    if t.rate * t.decay > 1:
        raise ConfigError(f"train.decay: {t.decay} times train.rate = {t.rate} is more than all of a weight")
    if t.n_step >= session:
        raise ConfigError(f"train.n_step: {t.n_step} is not within a session of {session}")
