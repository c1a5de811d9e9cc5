"""The settings: one dataclass a section, read from TOML and `--set section.key=value`.

A field says its type, the values that it may have, and its help line, once: `--help-config` and `host/README.md` print
them.  ConfigError names an unknown key, another type, a value out of its range, and settings that exclude each other,
before anything is written.  A Range is closed at both ends, so neither infinity nor NaN is in one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_type_hints

from kernels.market.position import MAX_SIZES, action_names
from kernels.market.scattering import wavelets
from kernels.search.config import ALGORITHMS, MARKET, WIDENING
from kernels.search.progressive_widening import max_candidates
from kernels.search.tree import VALUE_REUSES

ConfigT = TypeVar("ConfigT")
MAX_STATE_WIDTH = 1 << 12  # S, the width of a node's state
SHARED_TREE = "shared_tree"  # a value of search.value_reuse, beside those of the search itself


class ConfigError(ValueError):
    """A setting that does not exist, or a value that it may not have."""

    exit_code = 3


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included; for a list, the range of each of its numbers."""

    low: float
    high: float
    step: int = 1  # a whole number must be a multiple of it


class Setting(NamedTuple):
    """One setting: its value, the values that it may have, and its help line."""

    value: Any
    allowed: Range | tuple[str, ...] | None  # None: true or false
    help: str


Pips = Annotated[float, Range(0, 10_000)]
OptionalPips = Annotated[float | None, Range(0, 10_000)]
SwapPips = Annotated[float | None, Range(-10_000, 10_000)]
Fraction = Annotated[float, Range(0, 1)]
LossWeight = Annotated[float, Range(0, 1000)]
Exponent = Annotated[float, Range(0, 4)]
Scale = Annotated[float, Range(0, 100_000)]
Width = Annotated[int, Range(1, 2048)]
Simulations = Annotated[int, Range(1, 4096)]
Count = Annotated[int, Range(1, 100_000)]
Limit = Annotated[float, Range(0, 1e9)]  # 0 turns it off
OptionalLimit = Annotated[float | None, Range(0, 1e9)]
Passes = Annotated[float, Range(1e-3, 1e9)]  # over the training bars


@dataclass(frozen=True)
class MarketConfig:
    """What trading costs, in pips, and what an episode of training is; the spread is the data's where it has one."""

    slippage: Annotated[OptionalPips, "Pips lost at each fill; unset: an eighth of the instrument's usual spread."] = (
        None
    )
    commission: Annotated[Pips, "Pips paid at each fill."] = 0.0
    swap_long: Annotated[
        SwapPips,
        "Pips a night to a long position, negative: it pays; unset: -0.5 for a pair, else 5 % of the price a year.",
    ] = None
    swap_short: Annotated[
        SwapPips, "The same of a short position; unset: -0.1 for a currency pair, else a year costs 1 % of the price."
    ] = None
    reward: Annotated[
        str,
        ("pnl", "drawdown_penalised"),
        "pnl: the change of equity, for which search.algorithm=market is exact; drawdown_penalised: less a penalty "
        "for adverse excursions.",
    ] = "pnl"
    mae_penalty: Annotated[LossWeight, "Weight of the adverse excursion under drawdown_penalised."] = 0.01
    risk_aversion: Annotated[
        LossWeight,
        "Risk term of the reward: a bar loses half of this times (size move)^2, in mean bar ranges; no report "
        "contains it.  What a range is of your capital is full Kelly, twice that half Kelly.",
    ] = 0.0
    reverse: Annotated[bool, "Whether one action may turn an open position into the opposite one."] = False
    position_adjustment: Annotated[
        bool, "Whether an entry may change the size of an open position on its side; costs are paid on the change."
    ] = False
    position_sizes: Annotated[
        list[float], Range(0, 1), "Sizes of an entry, as ascending fractions of the largest position."
    ] = field(default_factory=lambda: [1.0])
    episode_length: Annotated[int, Range(2, 100_000), "Decisions of an episode, one a bar."] = 360


@dataclass(frozen=True)
class FeatureConfig:
    """Wavelet scattering of the last 256 returns (Anden and Mallat 2014)."""

    J: Annotated[int, Range(1, 8), "Octaves: the longest wavelet spans about 2^J bars."] = 6
    Q: Annotated[int, Range(1, 16), "Wavelets of an octave."] = 4


@dataclass(frozen=True)
class NetworkConfig:
    """Kind and sizes of the networks."""

    dynamics: Annotated[str, ("mlp", "transformer"), "Network that leads from a bar of the tree to the next."] = "mlp"
    latent: Annotated[Width, "Width of a latent."] = 32
    hidden: Annotated[Width, "Width of the hidden layers."] = 64
    num_chance_codes: Annotated[
        int, Range(2, 64), "Chance codes: bins of the next move, or of what an environment does."
    ] = 8
    num_layers: Annotated[int, Range(1, 32), "Layers of the transformer."] = 2
    num_heads: Annotated[int, Range(1, 64), "Attention heads of the transformer."] = 4
    attention_window: Annotated[int, Range(1, 64), "Earlier bars of the tree to which the transformer attends."] = 4
    context: Annotated[int, Range(1, 64), "Bars in the transformer's observation, the newest included."] = 1


@dataclass(frozen=True)
class SearchSettings:
    """The search of a decision."""

    algorithm: Annotated[
        str,
        ALGORITHMS,
        "market: over market states, exact for the pnl reward; gumbel, puct: over actions and chance codes; "
        "widening: entries of any size.",
    ] = "market"
    value_reuse: Annotated[
        str,
        (*VALUE_REUSES, SHARED_TREE),
        "shared_tree: one market search of a bar serves all positions and episodes of an iteration (pnl; elsewhere as "
        "off). chance_child, known_arm: reanalysis takes the value of the next bar's search (ReZero; not in widening).",
    ] = SHARED_TREE
    num_simulations: Annotated[Simulations, "Simulations of a decision when acting."] = 4
    max_considered_actions: Annotated[int, Range(1, 256), "Root actions that Gumbel search considers."] = 4
    num_sampled_sizes: Annotated[int, Range(1, 64), "Sizes of a side that widening tries: full, then draws."] = 2
    discount: Annotated[float, Range(0.01, 1), "Discount of a bar."] = 0.985
    c_visit: Annotated[Scale, "Gumbel MuZero's c_visit; mctx calls it maxvisit_init."] = 50.0
    c_scale: Annotated[Scale, "Gumbel MuZero's c_scale when acting, on Q in 5 to 95 % ranges of n-step rewards."] = 10.0


@dataclass(frozen=True)
class TrainConfig:
    """The iteration of training: collect, reanalyze, learn."""

    seed: Annotated[int, Range(0, 2**32 - 1), "Seed of every random draw."] = 0
    train_fraction: Annotated[
        float,
        Range(0.01, 0.99),
        "Fraction of the bars to train on; the rest, less an embargo of an episode, is the test.",
    ] = 0.75
    validation_fraction: Annotated[
        float,
        Range(0, 0.9),
        "Fraction of the training part, its end, that no weight is fitted to; the chance prior is calibrated on it. "
        "0: it is not calibrated.",
    ] = 0.15
    validation_interval: Annotated[
        int,
        Range(0, 1_000_000),
        "Iterations between two trades of the validation part, which find the best agent so far; 0: none.",
    ] = 10
    num_envs: Annotated[int, Range(1, 4096), "Episodes played in lockstep: a batch."] = 16
    random_episodes: Annotated[
        int, Range(0, 4096), "Episodes of a batch that act at random, and are searched all the same. Widening wants 8."
    ] = 4
    batches_per_iteration: Annotated[int, Range(1, 4096), "Batches of episodes collected in an iteration."] = 2
    num_simulations: Annotated[Simulations, "Simulations of a decision when collecting and reanalyzing."] = 4
    c_scale: Annotated[Scale, "Gumbel MuZero's c_scale when collecting and reanalyzing."] = 1.0
    reanalyze: Annotated[bool, "Before learning, search the stored episodes again whose targets are not fresh."] = True
    reanalyze_interval: Annotated[int, Range(0, 1_000_000), "Iterations for which targets count as fresh."] = 1
    replay_capacity: Annotated[Count, "Episodes in the replay buffer; more keep old policy targets longer."] = 96
    batch_size: Annotated[int, Range(4, 65_536, step=4), "Windows of an update."] = 256
    instrument_shares: Annotated[
        list[float],
        Range(1e-3, 1e6),
        "Shares of episodes and windows by instrument, in the order of their symbols; []: as its training bars.",
    ] = field(default_factory=list)
    num_unroll_steps: Annotated[int, Range(1, 64), "Steps that a window is unrolled: K."] = 5
    td_steps: Annotated[Count, "Steps of the n-step return; fewer than market.episode_length."] = 5
    mirror_augmentation: Annotated[
        bool, "Mirror the prices of half of the windows: a market and its mirror image are one lesson."
    ] = True
    bar_half_life: Annotated[Limit, "Bars of age that halve the chance to be trained on; 0: all bars alike."] = 0.0
    off_policy_correction: Annotated[
        Scale, "Iterations of age that take one step off the n-step return (EfficientZero); 0: none does."
    ] = 0.0
    td_lambda: Annotated[
        Fraction, "Lambda at first of the lambda-return, of expected rewards along the bars that came; 1: to the end."
    ] = 0.8
    td_lambda_passes: Annotated[
        Passes,
        "Passes over the training bars, 8,000 updates or more, after which lambda has come half of its way to half of "
        "td_lambda: the bars that came are one draw of those that could have.",
    ] = 100.0
    search_value_weight: Annotated[
        Fraction, "Weight of the lambda-return in the value target; the rest is the n-step return of realised rewards."
    ] = 1.0
    updates_per_iteration: Annotated[Count, "Updates of the weights in an iteration."] = 80
    consistency_weight: Annotated[LossWeight, "Weight of EfficientZero's consistency loss; 0: off."] = 0.0
    chance_codes: Annotated[
        str,
        ("quantile", "learned"),
        "quantile: bins of the next standardised move; learned: two kinds of each, by an encoder (Stochastic MuZero).",
    ] = "quantile"
    commitment_weight: Annotated[LossWeight, "Learned codes: weight of the commitment loss of the encoder."] = 0.25
    code_entropy_weight: Annotated[LossWeight, "Learned codes: weight of the loss that keeps all codes in use."] = 0.3
    per_alpha: Annotated[Exponent, "Exponent of the Bellman error by which windows are drawn; 0: all alike."] = 0.0
    per_beta: Annotated[Exponent, "Exponent of the importance weights of windows so drawn."] = 1.0
    value_prefix: Annotated[
        bool, "Learn sums of rewards with an LSTM (EfficientZero), which Gumbel, PUCT and widening then read."
    ] = False
    unizero_weight: Annotated[
        LossWeight, "Weight of UniZero's joint training on the latents of observed bars; 0: off."
    ] = 0.25
    learning_rate: Annotated[float, Range(1e-9, 1), "AdamW's learning rate at its peak."] = 3e-3
    weight_decay: Annotated[
        float,
        Range(0, 10),
        "AdamW's decay, times the learning rate; fourfold in the chance prior. 2 and more blurs what is certain.",
    ] = 0.3
    lr_decay_passes: Annotated[
        Passes,
        "The learning rate falls as (1 + passes over the training bars / this)^-1.5, to fit less of their noise; in 40 "
        "updates or more, that of values and policies in 540.",
    ] = 8.0
    freeze_passes: Annotated[
        Passes,
        "Passes over the training bars, 8,000 updates or more, after which only values and policies learn: the latents "
        "would go on to slow features, which values overrate.",
    ] = 120.0
    target_ema: Annotated[
        float,
        Range(1e-6, 1),
        "Step of the target network towards the weights; the target network plays and is exported.",
    ] = 0.05


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
    """Limits of `act --out`; pips are those of a position of 1; 0 turns a limit off.

    A limit left open follows the model, its backtest and its instrument: `host/live/limits.py`.
    """

    max_target: Annotated[Fraction, "Largest target that is published."] = 1.0
    changes_per_hour: Annotated[
        OptionalLimit, "Changes of the target in an hour; beyond them a position may only become smaller."
    ] = None
    daily_loss: Annotated[OptionalLimit, "Pips lost in a day (UTC): flat for the rest of it."] = None
    drawdown: Annotated[OptionalLimit, "Pips below the highest equity: flat until --lift-halt."] = None
    losing_streak: Annotated[OptionalLimit, "Losing trades in a row: flat for the rest of the day (UTC)."] = None
    max_spread: Annotated[OptionalLimit, "Spread in pips; beyond it a position may only become smaller."] = None
    stale_s: Annotated[
        Limit, "Seconds without the bar that was due while the market is open: flat, and act ends with 6."
    ] = 600.0
    model_age_days: Annotated[Limit, "Days since the last bar that the model was trained on: flat."] = 400.0
    feature_drift: Annotated[
        Limit, "Root mean square of the standardised features, 1 in training; beyond it positions may only shrink."
    ] = 4.0
    weekend_flat_min: Annotated[Limit, "Minutes before the weekly close: flat over the weekend."] = 0.0
    clock_skew_s: Annotated[Limit, "Seconds that a bar may close after the clock's now; beyond them: flat."] = 5.0


@dataclass(frozen=True)
class LiveConfig:
    """What determines what is published of a model's decisions; never a part of the model."""

    risk: RiskConfig = field(default_factory=RiskConfig)


# Keys of earlier versions by section, as old=new; the section `guard` is `risk` now.
RENAMED_KEYS = {
    "market": "excursion_weight=mae_penalty sizes=position_sizes session=episode_length",
    "network": "model=dynamics codes=num_chance_codes layers=num_layers heads=num_heads window=attention_window",
    "search": "rule=algorithm reuse=value_reuse simulations=num_simulations considered=max_considered_actions "
    "samples=num_sampled_sizes",
    "train": "train_share=train_fraction block=num_envs wanderers=random_episodes blocks=batches_per_iteration "
    "simulations=num_simulations sweep=reanalyze fresh=reanalyze_interval replay=replay_capacity batch=batch_size "
    "unroll=num_unroll_steps n_step=td_steps mirror=mirror_augmentation age_cut=off_policy_correction "
    "search_share=search_value_weight steps=updates_per_iteration consistency=consistency_weight codes=chance_codes "
    "commitment=commitment_weight usage=code_entropy_weight priority=per_alpha "
    "correction=per_beta joint=unizero_weight rate=learning_rate decay=weight_decay horizon=lr_decay_passes "
    "target_rate=target_ema",
}
RENAMED_WORDS = {"amddp": "drawdown_penalised"}


def load_config(path: Path | None = None, settings: list[str] | None = None, base: Config | None = None) -> Config:
    """`base` or the defaults, then the TOML file, then each `section.key=value`; ConfigError unless they agree."""
    config = apply_overrides(base or Config(), path, settings)
    for find_faults in (network_faults, search_faults, training_faults):
        fault = next(find_faults(config), "")
        if fault:
            raise ConfigError(fault)
    return config


def apply_overrides(config: ConfigT, path: Path | None, settings: list[str] | None) -> ConfigT:
    """`config`, then the TOML file at `path`, then each `section.key=value`."""
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
    """`section.key=value` as a nested dictionary; a bare word is a string."""
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
    """Pairs (section.key, value) of nested tables."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def merge(config: ConfigT, table: dict[str, Any], where: str) -> ConfigT:
    """`config` with the values of `table`; ConfigError on an unknown key, another type or a value out of range."""
    settings = list_settings(config)
    for name, value in flatten(table):
        if name not in settings:
            raise ConfigError(f"{where}: {unknown_key_message(name, list(settings))}")
        config = replace_at(config, name.split("."), coerce(settings[name], value, f"{where}: {name}"))
    return config


def list_settings(config: Any, path: str = "") -> dict[str, Setting]:
    """The settings of `config` by their names section.key, in the order of the fields."""
    settings = dict[str, Setting]()
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if is_dataclass(value):
            settings |= list_settings(value, f"{path}{name}.")
        else:
            _, *allowed, text = get_args(hint)
            settings[f"{path}{name}"] = Setting(value, allowed[0] if allowed else None, text)
    return settings


def replace_at(config: Any, path: list[str], value: Any) -> Any:
    """`config` with another value of the field that `path` leads to."""
    name, *rest = path
    return replace(config, **{name: replace_at(getattr(config, name), rest, value) if rest else value})


def renamed_keys() -> dict[str, str]:
    """Today's section.key by the one of earlier versions."""
    pairs = [(section, *pair.split("=")) for section, text in RENAMED_KEYS.items() for pair in text.split()]
    limits = {f"guard.{name}": f"risk.{name}" for name in RiskConfig.__dataclass_fields__}
    return (
        {f"{section}.{old}": f"{section}.{new}" for section, old, new in pairs}
        | limits
        | {"guard.far": "risk.feature_drift"}
    )


def unknown_key_message(name: str, names: list[str]) -> str:
    """The message for a key that is not among the keys `names`: its new name, or the nearest key."""
    if name in renamed_keys():
        return f"{name} is now {renamed_keys()[name]}"
    namesakes = [key for key in names if key.endswith(f".{name.split('.')[-1]}")]
    near = namesakes or get_close_matches(name, names, n=1)
    sections = sorted({key.rpartition(".")[0] for key in names})
    hint = f"did you mean {' or '.join(near)}?" if near else f"write section.key; sections: {', '.join(sections)}"
    return f"unknown key {name!r}: {hint}"


def coerce(setting: Setting, value: Any, where: str) -> Any:
    """`value` in the type of a setting, or ConfigError; a setting that is unset by default is a number."""
    default = 0.0 if setting.value is None else setting.value
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise ConfigError(f"{where} wants {type(default).__name__}, for example {default!r}, not {value!r}")
    for item in value if isinstance(value, list) else [value]:
        fault = invalid_reason(setting.allowed, item)
        if fault:
            raise ConfigError(f"{where}: {item!r} is {fault}")
    return value


def invalid_reason(allowed: Any, value: Any) -> str:
    """Why a value is not allowed, or an empty string."""
    if isinstance(allowed, Range):
        low, high, step = allowed
        if type(value) not in (int, float) or not low <= value <= high:
            return f"not a number from {low:.12g} to {high:.12g}"
        return f"not a multiple of {step}" if value % step and step > 1 else ""
    if allowed is None or value in allowed:
        return ""
    return f"now {RENAMED_WORDS[value]}" if value in RENAMED_WORDS else f"none of {', '.join(allowed)}"


def check_minutes(minutes: float | None) -> None:
    """Raise ConfigError for a time after which no training would end."""
    fault = "" if minutes is None else invalid_reason(Range(0.001, 1_000_000), minutes)
    if fault:
        raise ConfigError(f"--minutes: {minutes} is {fault}")


def network_faults(config: Config) -> Iterator[str]:
    """Features, widths and losses that exclude each other."""
    f, n, t = config.features, config.network, config.train
    try:
        wavelets(f.J, f.Q)
    except ValueError as error:
        yield f"features.Q: {error}"
    if n.dynamics == "transformer":
        if t.consistency_weight > 0:
            yield "train.consistency_weight: a transformer has train.unizero_weight instead, which compares its latents"
        if n.latent % (2 * n.num_heads):
            yield f"network.num_heads: {n.num_heads} heads of even width do not divide network.latent = {n.latent}"
        if t.value_prefix:
            yield "train.value_prefix: a transformer attends to the steps before; it wants network.dynamics=mlp"
    if state_width(config) > MAX_STATE_WIDTH:
        yield f"network.latent: {n.latent} makes nodes of {state_width(config)} numbers, more than {MAX_STATE_WIDTH}"


def state_width(config: Config) -> int:
    """S, the numbers that a search keeps of a node; equals `ModelShape.state` of models/params.py."""
    n = config.network
    memory = 2 * n.latent + 2 if config.train.value_prefix else 0
    return n.latent + memory + (1 + 2 * n.num_layers * n.latent if n.dynamics == "transformer" else 0)


def search_faults(config: Config) -> Iterator[str]:
    """Sizes that are no ascending fractions, and a search that these sizes and networks exclude."""
    s, sizes = config.search, config.market.position_sizes
    if not 1 <= len(sizes) <= MAX_SIZES or sizes != sorted({*sizes} - {0.0}):
        yield f"market.position_sizes: {sizes} are not 1 to {MAX_SIZES} ascending fractions above 0"
    widening = s.algorithm == ALGORITHMS[WIDENING]
    if config.market.position_adjustment and config.market.reward != "pnl":
        yield "market.position_adjustment: drawdown_penalised remembers the entry of a position; it wants reward=pnl"
    if widening and sizes != [1.0]:
        yield "search.algorithm: widening wants market.position_sizes=[1.0], whose fractions it draws"
    if config.train.value_prefix and s.algorithm == ALGORITHMS[MARKET]:
        yield (
            "train.value_prefix: search.algorithm=market computes its rewards exactly, without a network; "
            "it wants gumbel, puct or widening"
        )
    num_actions = max_candidates(s.num_sampled_sizes) if widening else len(action_names((*sizes,)))
    may_be_game = s.algorithm not in (ALGORITHMS[MARKET], ALGORITHMS[WIDENING])
    if s.max_considered_actions > num_actions and not may_be_game:
        yield f"search.max_considered_actions: {s.max_considered_actions} of {num_actions} actions of a root"


def training_faults(config: Config) -> Iterator[str]:
    """Sizes of the training that exclude each other."""
    t, length = config.train, config.market.episode_length
    collected = t.num_envs * t.batches_per_iteration
    if collected > t.replay_capacity:
        yield f"train.replay_capacity: {t.replay_capacity} episodes do not hold the {collected} of one iteration"
    if t.learning_rate * t.weight_decay > 1:
        yield f"train.weight_decay: {t.weight_decay} times train.learning_rate = {t.learning_rate} is more than 1"
    if t.td_steps >= length:
        yield f"train.td_steps: {t.td_steps} is not within an episode of {length}"
