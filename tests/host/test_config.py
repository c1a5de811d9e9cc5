"""Every setting has a range: what is out of it is refused by name before anything is written, its ends are taken."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.artifact.networks import MOST_CONTEXT
from host.config import (
    ActConfig,
    Config,
    ConfigError,
    Range,
    load_config,
    load_into,
    merge,
    settings_of,
    state_width,
)
from host.evaluation.synthetic import INTERVAL_NS, MADE, Options, make_market
from host.training.dataset import new_dataset
from host.training.trainer import Trainer, new_shape
from models.loss import CHUNKS

SETTINGS = settings_of(Config()) | settings_of(ActConfig())
NUMBERS = sorted(name for name, (_, allowed) in SETTINGS.items() if isinstance(allowed, Range))
WORDS = sorted(name for name, (value, _) in SETTINGS.items() if isinstance(value, str))
ODD = [float("nan"), float("inf"), float("-inf")]
TRIES = int(os.environ.get("SWT_TRIES", "15"))
BARS = make_market("planted", Options(length=900)).bars


def merged(name: str, value: Any) -> Any:
    """The setting alone, so that only its own range can refuse it."""
    section, key = name.split(".")
    base: Any = ActConfig() if section == "guard" else Config()
    return getattr(getattr(merge(base, {section: {key: value}}, "here"), section), key)


def test_every_number_and_every_word_has_its_range() -> None:
    for name, (value, allowed) in SETTINGS.items():
        assert isinstance(value, bool) or allowed, name
        if isinstance(allowed, Range):
            numbers = value if isinstance(value, list) else [value]
            assert all(n is None or allowed.low <= n <= allowed.high for n in numbers), name


@settings(deadline=None, max_examples=300)
@given(
    name=st.sampled_from(NUMBERS),
    beyond=st.floats(1e-9, 1e12),
    odd=st.sampled_from([None, *ODD]),
    up=st.booleans(),
)
def test_what_is_out_of_a_range_is_refused_with_its_name(
    name: str, beyond: float, odd: Any, up: bool
) -> None:
    default, allowed = SETTINGS[name]
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
    default, (low, high, step) = SETTINGS[name]
    default = 0.0 if default is None else default
    for end in (low, high):
        value = [end] if isinstance(default, list) else type(default)(end)
        assert (
            merged(name, float(end) if isinstance(end, int) and isinstance(default, float) else value)
            == value
        )
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
    [("search.simulation", "search.simulations"), ("serach.discount", "search.discount"), ("seed", "train.seed"),
     ("simulations", "search.simulations or train.simulations"), ("train.latent", "network.latent"),
     ("xyzzy", "sections: features, market"), ("train", "train.seed")],
)  # fmt: skip
def test_the_nearest_key_is_suggested(key: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{key}'.*{meant}"):
        load_config(None, [f"{key}=1"])


@pytest.mark.parametrize(
    "change",
    ["train.replay=31", "train.batch=30", "train.n_step=360", "train.decay=2 train.rate=0.6", "network.model=rnn",
     "network.heads=3 network.model=transformer", "train.consistency=1 network.model=transformer",
     "train.value_prefix=true network.model=transformer search.rule=puct", "train.value_prefix=true",
     "network.latent=1400 train.value_prefix=true search.rule=gumbel", "features.Q=16 features.J=2",
     "network.latent=1024 network.model=transformer", "market.sizes=[0.5,0.2]", "market.sizes=[]",
     "market.sizes=[0.0,1.0]", "market.sizes=['half']", "market.sizes=[2.0]", "market.sizes=[0.1,0.2,0.3,0.4,0.5,0.6]",
     "search.considered=5", "search.rule=widening market.sizes=[0.5,1.0]", "search.considered=10 search.rule=widening"],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused_by_name(change: str) -> None:
    first, *rest = change.split()
    name = first.split("=")[0]
    with pytest.raises(ConfigError, match=name if "widening market" not in change else "search.rule"):
        load_config(None, [first, *rest])


@pytest.mark.parametrize(
    "setting", ["guard.daily_loss=-1", "guard.max_target=1.5", "guard.far=nan", "guard.stale=1"]
)
def test_a_guard_that_makes_no_sense_is_refused_not_off(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.split("=")[0]):
        load_into(ActConfig(), None, [setting])


def test_a_file_is_read_as_utf8_whatever_the_system(tmp_path: Path) -> None:
    path = tmp_path / "größe.toml"
    path.write_bytes(b"\xef\xbb\xbf# \xc3\xb6\r\n[train]\r\nseed = 7\r\n")
    assert load_config(path).train.seed == 7
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load_config(tmp_path / "none.toml")


def test_what_is_written_twice_agrees() -> None:
    """The configuration is read without the trainer and without models, so it repeats three of their numbers."""
    assert SETTINGS["train.batch"][1].step == CHUNKS
    assert SETTINGS["network.context"][1].high == MOST_CONTEXT
    for change in ([], ["network.model=transformer"], ["train.value_prefix=true", "search.rule=puct"]):
        config = load_config(None, change)
        assert state_width(config) == new_shape(config, 10, 4).state


SMALL = {
    "market.session": st.integers(2, 40),
    "market.sizes": st.sampled_from(["[1.0]", "[0.5,1.0]", "[0.1,0.2,0.3,0.4,0.5]"]),
    "network.latent": st.integers(1, 12),
    "network.hidden": st.integers(1, 12),
    "network.codes": st.integers(2, 9),
    "network.heads": st.integers(1, 2),
    "network.context": st.integers(1, 3),
    "search.simulations": st.integers(1, 6),
    "search.considered": st.integers(1, 4),
    "search.discount": st.sampled_from([0.01, 0.5, 1.0]),
    "search.c_scale": st.sampled_from([0.0, 1.0, 100_000.0]),
    "train.block": st.integers(1, 3),
    "train.blocks": st.integers(1, 2),
    "train.wanderers": st.integers(0, 3),
    "train.simulations": st.integers(1, 4),
    "train.replay": st.integers(1, 8),
    "train.batch": st.integers(1, 5).map(lambda n: 4 * n),
    "train.unroll": st.integers(1, 45),
    "train.n_step": st.integers(1, 39),
    "train.age_cut": st.sampled_from([0.0, 1.0]),
    "train.search_share": st.sampled_from([0.0, 1.0]),
    "train.priority": st.sampled_from([0.0, 4.0]),
    "train.correction": st.sampled_from([0.0, 4.0]),
    "train.joint": st.sampled_from([0.0, 1000.0]),
    "train.consistency": st.sampled_from([0.0, 1000.0]),
    "train.usage": st.sampled_from([0.0, 1000.0]),
    "train.rate": st.sampled_from([1e-9, 0.1, 1.0]),
    "train.decay": st.sampled_from([0.0, 10.0]),
    "train.horizon": st.sampled_from([1, 10**9]),
    "train.target_rate": st.sampled_from([1e-6, 1.0]),
    "train.seed": st.sampled_from([0, 2**32 - 1]),
    "train.train_share": st.sampled_from([0.5, 0.75]),
} | {
    name: st.sampled_from([str(word).lower() for word in allowed or (True, False)])
    for name, (_, allowed) in settings_of(Config()).items()
    if not isinstance(allowed, Range)
}  # fmt: skip
FIXED = ["network.layers=1", "train.steps=2"]


@settings(deadline=None, max_examples=TRIES)
@given(chosen=st.fixed_dictionaries({}, optional=SMALL))
def test_what_is_not_refused_trains(chosen: dict[str, Any]) -> None:
    base = {
        "market.session": 24,
        "train.block": 2,
        "train.blocks": 1,
        "train.wanderers": 1,
        "train.replay": 4,
        "train.batch": 8,
        "network.latent": 8,
        "network.hidden": 8,
    }
    try:
        config = load_config(None, [*FIXED, *(f"{name}={value}" for name, value in (base | chosen).items())])
    except ConfigError:
        return
    trainer = Trainer(
        new_dataset(BARS, np.zeros((900, 0), np.float32), config, MADE, INTERVAL_NS, 1), config, 1
    )
    assert all(np.isfinite(value) for value in trainer.run_cycle().values())
    assert np.isfinite(trainer.target).all()
