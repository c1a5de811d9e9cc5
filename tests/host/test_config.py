"""Every setting has a range: what is out of it is refused by name before anything is written, its ends are taken."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.artifact.manifest import MAX_CONTEXT
from host.config import (
    Config,
    ConfigError,
    LiveConfig,
    Range,
    apply_overrides,
    list_settings,
    load_config,
    merge,
    renamed_keys,
    state_width,
)
from host.evaluation.synthetic import INTERVAL_NS, SYNTHETIC_INSTRUMENT, SyntheticOptions, make_market
from host.settings import settings_text
from host.training.dataset import new_dataset
from host.training.market_domain import new_shape
from host.training.trainer import Trainer
from models.loss import NUM_CHUNKS
from tests.fixtures.paths import ROOT

SETTINGS = list_settings(Config()) | list_settings(LiveConfig())
NUMBERS = sorted(name for name, setting in SETTINGS.items() if isinstance(setting.allowed, Range))
WORDS = sorted(name for name, setting in SETTINGS.items() if isinstance(setting.value, str))
ODD = [float("nan"), float("inf"), float("-inf")]
TRIES = int(os.environ.get("SWT_TRIES", "8"))
BARS = make_market("planted", SyntheticOptions(length=900)).bars


def merged(name: str, value: Any) -> Any:
    """The setting alone, so that only its own range can refuse it."""
    section, key = name.split(".")
    base: Any = LiveConfig() if section == "risk" else Config()
    return getattr(getattr(merge(base, {section: {key: value}}, "here"), section), key)


def test_every_number_and_every_word_has_its_range() -> None:
    for name, (value, allowed, text) in SETTINGS.items():
        assert text[0].isupper() or text.startswith(tuple(allowed)), name
        assert text.endswith("."), name
        assert isinstance(value, bool) or allowed, name
        if isinstance(allowed, Range):
            numbers = value if isinstance(value, list) else [value]
            assert all(n is None or allowed.low <= n <= allowed.high for n in numbers), name


@settings(deadline=None, max_examples=300)
@given(name=st.sampled_from(NUMBERS), beyond=st.floats(1e-9, 1e12), odd=st.sampled_from([None, *ODD]), up=st.booleans())
def test_what_is_out_of_a_range_is_refused_with_its_name(name: str, beyond: float, odd: Any, up: bool) -> None:
    default, allowed, _ = SETTINGS[name]
    value: Any = allowed.high + beyond if up else allowed.low - beyond
    if odd is not None:
        value = odd
    elif isinstance(default, int):
        value = int(np.ceil(beyond)) + int(allowed.high) if up else int(allowed.low) - int(np.ceil(beyond))
    elif allowed.low <= value <= allowed.high:
        return  # too near to the end to be another number
    with pytest.raises(ConfigError, match=rf"here: {name}\b"):
        merged(name, [value] if isinstance(default, list) else value)


@pytest.mark.parametrize("name", NUMBERS)
def test_the_ends_of_a_range_are_in_it(name: str) -> None:
    default, (low, high, step), _ = SETTINGS[name]
    default = 0.0 if default is None else default
    for end in (low, high):
        value = [end] if isinstance(default, list) else type(default)(end)
        assert merged(name, float(end) if isinstance(end, int) and isinstance(default, float) else value) == value
    if step > 1:
        with pytest.raises(ConfigError, match=f"{name}: {low + 1} is not a multiple of {step}"):
            merged(name, low + 1)


@pytest.mark.parametrize("name", WORDS)
def test_words_that_mean_nothing_are_refused_with_those_that_do(name: str) -> None:
    for word in SETTINGS[name][1]:
        assert merged(name, word) == word
    with pytest.raises(ConfigError, match=f"{name}: 'sharpe' is none of {SETTINGS[name][1][0]}"):
        merged(name, "sharpe")


@pytest.mark.parametrize(
    ("key", "meant"),
    [("search.simulation", "search.num_simulations"), ("serach.discount", "search.discount"), ("seed", "train.seed"),
     ("num_simulations", "search.num_simulations or train.num_simulations"), ("train.latent", "network.latent"),
     ("xyzzy", "sections: features, market"), ("train", "train.seed")],
)  # fmt: skip
def test_the_nearest_key_is_suggested(key: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{key}'.*{meant}"):
        load_config(None, [f"{key}=1"])


@pytest.mark.parametrize(
    "change",
    ["train.replay_capacity=31", "train.batch_size=30", "train.td_steps=360",
     "train.weight_decay=2 train.learning_rate=0.6", "network.dynamics=rnn",
     "network.num_heads=3 network.dynamics=transformer", "train.consistency_weight=1 network.dynamics=transformer",
     "train.value_prefix=true network.dynamics=transformer search.algorithm=puct", "train.value_prefix=true",
     "network.latent=1400 train.value_prefix=true search.algorithm=gumbel", "features.Q=16 features.J=2",
     "network.latent=1024 network.dynamics=transformer", "market.position_sizes=[0.5,0.2]", "market.position_sizes=[]",
     "market.position_sizes=[0.0,1.0]", "market.position_sizes=['half']", "market.position_sizes=[2.0]",
     "market.position_sizes=[0.1,0.2,0.3,0.4,0.5,0.6]",
     "market.position_adjustment=true market.reward=drawdown_penalised",
     "search.max_considered_actions=5", "search.algorithm=widening market.position_sizes=[0.5,1.0]",
     "search.max_considered_actions=10 search.algorithm=widening"],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused_by_name(change: str) -> None:
    first, *rest = change.split()
    name = first.split("=")[0]
    with pytest.raises(ConfigError, match=name if "widening market" not in change else "search.algorithm"):
        load_config(None, [first, *rest])


@pytest.mark.parametrize(
    "setting", ["risk.daily_loss=-1", "risk.max_target=1.5", "risk.feature_drift=nan", "guard.stale=1"]
)
def test_a_guard_that_makes_no_sense_is_refused_not_off(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.split("=")[0]):
        apply_overrides(LiveConfig(), None, [setting])


@pytest.mark.parametrize("base", [Config(), LiveConfig()], ids=["train", "act"])
def test_an_old_key_is_refused_with_the_new_one(base: Any, tmp_path: Path) -> None:
    assert not renamed_keys().keys() & SETTINGS.keys()
    assert set(renamed_keys().values()) <= SETTINGS.keys()
    for old, new in renamed_keys().items():
        with pytest.raises(ConfigError, match=f"^--set {old}=1: {old} is now {new}$"):
            apply_overrides(base, None, [f"{old}=1"])
    path = tmp_path / "old.toml"
    path.write_text("[train]\nseed = 1\nblock = 8\n[guard]\nfar = 3.0\n")
    with pytest.raises(ConfigError, match=r"is now train\.num_envs"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"market\.reward: 'amddp' is now drawdown_penalised"):
        load_config(None, ["market.reward=amddp"])


def test_the_reference_in_the_readme_is_what_help_config_prints() -> None:
    text = (ROOT / "host" / "README.md").read_text(encoding="utf-8")
    for command, config in (("train", Config()), ("act", LiveConfig())):
        block = text.split(f"<!-- swt.py {command} --help-config -->\n```\n")[1].split("```\n")[0]
        assert block == settings_text(config), f"paste what `swt.py {command} --help-config` prints into host/README.md"
    lines = settings_text(Config()).splitlines()
    assert "train.weight_decay=0.3            number from 0 to 10" in lines
    assert "market.slippage (unset)           number from 0 to 10,000" in lines
    assert all(load_config(None, [line.split()[0]]) == Config() for line in lines if "=" in line.split()[0])


def test_a_file_is_read_as_utf8_whatever_the_system(tmp_path: Path) -> None:
    path = tmp_path / "größe.toml"
    path.write_bytes(b"\xef\xbb\xbf# \xc3\xb6\r\n[train]\r\nseed = 7\r\n")
    assert load_config(path).train.seed == 7
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load_config(tmp_path / "none.toml")


def test_what_is_written_twice_agrees() -> None:
    """The configuration is read without the trainer and without models, so it repeats three of their numbers."""
    assert SETTINGS["train.batch_size"][1].step == NUM_CHUNKS
    assert SETTINGS["network.context"][1].high == MAX_CONTEXT
    for change in ([], ["network.dynamics=transformer"], ["train.value_prefix=true", "search.algorithm=puct"]):
        config = load_config(None, change)
        assert state_width(config) == new_shape(config, 10, 4).state


SMALL = {
    "market.episode_length": st.integers(2, 40),
    "market.position_sizes": st.sampled_from(["[1.0]", "[0.5,1.0]", "[0.1,0.2,0.3,0.4,0.5]"]),
    "network.latent": st.integers(1, 12),
    "network.hidden": st.integers(1, 12),
    "network.num_chance_codes": st.integers(2, 9),
    "network.num_heads": st.integers(1, 2),
    "network.context": st.integers(1, 3),
    "search.num_simulations": st.integers(1, 6),
    "search.max_considered_actions": st.integers(1, 4),
    "search.discount": st.sampled_from([0.01, 0.5, 1.0]),
    "search.c_scale": st.sampled_from([0.0, 1.0, 100_000.0]),
    "train.c_scale": st.sampled_from([0.0, 1.0, 100_000.0]),
    "train.num_envs": st.integers(1, 3),
    "train.batches_per_iteration": st.integers(1, 2),
    "train.random_episodes": st.integers(0, 3),
    "train.num_simulations": st.integers(1, 4),
    "train.replay_capacity": st.integers(1, 8),
    "train.batch_size": st.integers(1, 5).map(lambda n: 4 * n),
    "train.num_unroll_steps": st.integers(1, 45),
    "train.td_steps": st.integers(1, 39),
    "train.off_policy_correction": st.sampled_from([0.0, 1.0]),
    "train.search_value_weight": st.sampled_from([0.0, 1.0]),
    "train.per_alpha": st.sampled_from([0.0, 4.0]),
    "train.per_beta": st.sampled_from([0.0, 4.0]),
    "train.unizero_weight": st.sampled_from([0.0, 1000.0]),
    "train.consistency_weight": st.sampled_from([0.0, 1000.0]),
    "train.code_entropy_weight": st.sampled_from([0.0, 1000.0]),
    "train.learning_rate": st.sampled_from([1e-9, 0.1, 1.0]),
    "train.weight_decay": st.sampled_from([0.0, 10.0]),
    "train.lr_decay_passes": st.sampled_from([1e-3, 1e9]),
    "train.target_ema": st.sampled_from([1e-6, 1.0]),
    "train.seed": st.sampled_from([0, 2**32 - 1]),
    "train.train_fraction": st.sampled_from([0.5, 0.75]),
} | {
    name: st.sampled_from([str(word).lower() for word in allowed or (True, False)])
    for name, (_, allowed, _) in list_settings(Config()).items()
    if not isinstance(allowed, Range)
}  # fmt: skip
FIXED = ["network.num_layers=1", "train.updates_per_iteration=2"]


@settings(deadline=None, max_examples=TRIES)
@given(chosen=st.fixed_dictionaries({}, optional=SMALL))
def test_what_is_not_refused_trains(chosen: dict[str, Any]) -> None:
    base = {
        "market.episode_length": 24,
        "train.num_envs": 2,
        "train.batches_per_iteration": 1,
        "train.random_episodes": 1,
        "train.replay_capacity": 4,
        "train.batch_size": 8,
        "network.latent": 8,
        "network.hidden": 8,
    }
    try:
        config = load_config(None, [*FIXED, *(f"{name}={value}" for name, value in (base | chosen).items())])
    except ConfigError:
        return
    trainer = Trainer(
        [new_dataset(BARS, np.zeros((900, 0), np.float32), config, SYNTHETIC_INSTRUMENT, INTERVAL_NS, 1)], config, 1
    )
    assert all(np.isfinite(value) for value in trainer.run_iteration().values())
    assert np.isfinite(trainer.target_params).all()
