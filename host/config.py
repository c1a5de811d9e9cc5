"""The configuration: one dataclass, read from TOML and `--set a.b=c`; an unknown key is an error."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

C = TypeVar("C")


class ConfigError(ValueError):
    """The configuration names something that does not exist or has the wrong type."""

    exit_code = 3


@dataclass(frozen=True)
class MarketConfig:
    """Costs and rules, in pips; the spread is the data's where the file has one.  None: of the instrument."""

    slippage: float | None = None  # a fill; an eighth of the usual spread
    commission: float = 0.0  # a side
    swap_long: float | None = None  # a night, negative = paid; of pairs -0.5, else 5 % of the price a year
    swap_short: float | None = None  # of pairs -0.1, else 1 % of the price a year
    reward: str = "pnl"  # or "amddp"; the search is exact and fastest for "pnl", see kernels/market_tree.py
    excursion_weight: float = 0.01  # k of amddp
    reverse: bool = False  # an open position may be turned in one action
    sizes: list[float] = field(default_factory=lambda: [1.0])  # of an entry, up to 5 fractions of a position
    session: int = 360  # decisions


@dataclass(frozen=True)
class FeatureConfig:
    """Wavelet scattering of the last 256 returns."""

    J: int = 6
    Q: int = 4


@dataclass(frozen=True)
class NetworkConfig:
    """Kind and sizes of the networks."""

    model: str = "mlp"  # or transformer: what leads from one bar of the tree to the next
    latent: int = 32
    hidden: int = 64
    codes: int = 8  # chance codes: what they are says train.codes
    layers: int = 2  # of a transformer, as is the rest
    heads: int = 4
    window: int = 4  # earlier bars that an imagined one sees
    context: int = 1  # bars that the present one is seen with, itself included


@dataclass(frozen=True)
class SearchSettings:
    """The search; when acting the noise is off."""

    rule: str = "market"  # or gumbel, puct, widening: an entry of any size, nothing is reused
    reuse: str = (
        "chance_child"  # what a sweep takes over from the search one bar later (ReZero); or known_arm, off
    )
    simulations: int = 4  # nodes of a market tree that are expanded
    considered: int = 4  # root actions of Gumbel search
    samples: int = 4  # sizes of each side that a root of widening draws
    discount: float = 0.985  # per bar
    c_visit: float = 50.0
    c_scale: float = 1.0  # in units of the 5 to 95 % range of n-step rewards


@dataclass(frozen=True)
class TrainConfig:
    """The cycle collect -> reanalyse -> learn."""

    seed: int = 0
    train_share: float = 0.75  # of the bars; an embargo of one session, then the test part
    block: int = 16  # sessions played in lockstep
    wanderers: int = 4  # of a block: sessions that a random trader plays, searched all the same
    blocks: int = 2  # collected in a cycle
    simulations: int = 4  # of collecting and reanalysing; acting uses search.simulations
    sweep: bool = True  # before learning, search again every session whose targets are not fresh
    fresh: int = 1  # cycles for which targets count as fresh
    replay: int = 96  # sessions kept: old policy targets hold learning back
    batch: int = 256
    unroll: int = 5  # K
    n_step: int = 5
    mirror: bool = True  # turn half of the windows upside down: a market and its mirror image are one lesson
    age_cut: float = 0.0  # share of the horizon after which n_step of a session is one less; 0 = off
    search_share: float = 1.0  # of the search's value in the value target; the rest is the n-step return
    steps: int = 80  # learning steps in a cycle
    consistency: float = 0.0  # weight of EfficientZero's self-supervised loss; 0 = off
    codes: str = (
        "quantile"  # chance codes: bins of the next standardised move; or learned, by an encoder of its bar
    )
    commitment: float = 0.25  # weight of the loss that ties the encoder of learned codes to what it says
    usage: float = 0.3  # weight of the loss that keeps learned codes in use, or one would say it all
    telling: float = 5.0  # weight of the loss by which learned codes tell the move of their bar
    priority: float = 0.0  # exponent of the Bellman error by which windows are drawn; 0 = uniformly
    correction: float = 1.0  # exponent of the importance weights that make up for it
    value_prefix: bool = (
        False  # EfficientZero's: learn sums of rewards by an LSTM; not with search.rule=market
    )
    joint: float = 0.25  # weight of UniZero's joint training on the bars that came; 0 = off
    rate: float = 1e-3
    decay: float = 0.3  # weight decay, times the rate at every step: 2 hides what is sure, see README
    horizon: int = 6000  # steps of the learning-rate schedule
    target_rate: float = 0.05  # of the soft target network, which also plays


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

    None: from the model, its backtest and its instrument, as `host/limits.py` says.
    """

    max_target: float = 1.0
    changes_per_hour: float | None = None  # of the target: more, and positions may only become smaller
    daily_loss: float | None = None  # pips: flat for the rest of the day, UTC
    drawdown: float | None = None  # pips below the best: flat until --lift-halt
    losing_streak: float | None = None  # trades: flat for the rest of the day, UTC
    max_spread: float | None = None  # pips: positions may only become smaller
    stale_s: float = 600.0  # without the bar that was due, while the market is open: flat, exit 6
    model_age_days: float = 400.0  # since the last bar it was trained on: flat
    far: float = 4.0  # root mean square of the normalised features, 1 in training: positions only smaller
    weekend_flat_min: float = 0.0  # before the weekly close: flat over the weekend
    clock_skew_s: float = 5.0  # that a bar may close after now: flat


@dataclass(frozen=True)
class ActConfig:
    """What determines what is published of a model's decisions; never a part of the model."""

    guard: GuardConfig = field(default_factory=GuardConfig)


def load_config(path: Path | None = None, settings: list[str] | None = None) -> Config:
    """Defaults, then the TOML file, then each `a.b=c`."""
    return load_into(Config(), path, settings)


def load_into(config: C, path: Path | None, settings: list[str] | None) -> C:
    """`config`, then the TOML file, then each `a.b=c`."""
    if path is not None:
        try:
            config = merge(config, tomllib.loads(path.read_text()), str(path))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
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


def merge(old: Any, new: dict[str, Any], where: str, path: str = "") -> Any:
    """`old` with the values of `new`; raises ConfigError on an unknown key or another type."""
    known = {f.name: getattr(old, f.name) for f in fields(old)}
    changes: dict[str, Any] = {}
    for key, value in new.items():
        name = f"{path}{key}"
        if key not in known:
            raise ConfigError(f"{where}: unknown key {name!r}; known here: {', '.join(sorted(known))}")
        if is_dataclass(known[key]):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {name!r} is a section")
            changes[key] = merge(known[key], value, where, f"{name}.")
        else:
            changes[key] = coerce(known[key], value, where, name)
    return replace(old, **changes)


def coerce(default: Any, value: Any, where: str, name: str) -> Any:
    """`value` in the type of `default`; what is left open by default is a number."""
    default = 0.0 if default is None else default
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise ConfigError(
            f"{where}: {name!r} wants {type(default).__name__}, for example {default!r}, not {value!r}"
        )
    return value
