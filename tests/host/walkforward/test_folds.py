"""Folds are purged and embargoed, whatever their number; a training knows nothing of its test."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.config import Config
from host.evaluation.synthetic import INTERVAL_NS, SYNTHETIC_INSTRUMENT, SyntheticOptions, make_market
from host.training.dataset import Dataset, DatasetError, new_dataset, split_bars
from host.walkforward.folds import HOLDOUT, Fold, check_folds, fold_config, new_folds
from kernels.market.bars import Bars, slice_bars
from tests.fixtures.trainings import tiny

T = 3000
BARS = make_market("planted", SyntheticOptions(length=T)).bars
EMBARGO = 24  # an episode of `tiny`


def fold_dataset(fold: Fold, bars: Bars, config: Config) -> Dataset:
    stretch = slice_bars(bars, fold.first, fold.test_stop + 1)
    extra = np.zeros((len(stretch.time), 0), np.float32)
    return new_dataset(stretch, extra, fold_config(fold, config), SYNTHETIC_INSTRUMENT, INTERVAL_NS, 1)


@given(st.integers(1000, 2_000_000), st.integers(1, 40), st.integers(1, 300), st.booleans())
def test_tests_follow_each_other_and_no_training_touches_its_test(
    num_bars: int, count: int, embargo: int, rolling: bool
) -> None:
    folds = new_folds(num_bars, count, embargo, rolling)
    assert [fold.name for fold in folds] == [*map(str, range(1, count + 1)), HOLDOUT]
    assert all(a.test_stop == b.test_first for a, b in pairwise(folds))
    assert folds[-1].test_stop == num_bars - 1
    assert 0.14 < (folds[-1].test_stop - folds[-1].test_first) / num_bars < 0.16
    assert np.ptp([fold.test_stop - fold.test_first for fold in folds[:-1]]) <= 1
    for fold in folds:
        assert 0 <= fold.first < fold.test_first <= fold.test_stop
        assert fold.validation_stop + embargo == fold.test_first
    lengths = {fold.test_first - fold.first for fold in folds}
    assert len(lengths) == 1 if rolling else all(fold.first == 0 for fold in folds)


@given(st.data())
def test_the_split_is_where_the_fold_says(data: st.DataObject) -> None:
    """A fraction that int() rounds to the bar before would shorten the training."""
    length = data.draw(st.integers(10, 3_000_000))
    stop, first = data.draw(st.integers(1, length - 2)), data.draw(st.integers(0, 1000))
    fold = Fold("1", first, first + stop, first + stop, first + length - 1)
    assert int(length * fold_config(fold, Config()).train.train_fraction) == stop


@pytest.mark.parametrize("rolling", [False, True])
def test_a_dataset_of_a_fold_is_purged_and_embargoed(rolling: bool) -> None:
    config = tiny()
    for fold in new_folds(T, 4, EMBARGO, rolling):
        data = fold_dataset(fold, BARS, config)
        assert fold.first + data.validation_stop == fold.validation_stop
        assert fold.first + data.test_first == fold.test_first
        assert len(data.starts) > 100
        assert data.starts.max() + EMBARGO < data.train_stop < data.validation_stop <= data.test_first - EMBARGO
        assert len(data.bars.time) == fold.test_stop + 1 - fold.first


@pytest.mark.parametrize("rolling", [False, True])
def test_what_a_training_fits_does_not_know_what_follows(rolling: bool) -> None:
    """Other prices after the training part: the same normaliser, codes, costs and episodes."""
    config, noise = tiny(), np.random.default_rng(0).normal(0, 1e-3, T)
    for fold in new_folds(T, 2, EMBARGO, rolling):
        known = (
            fold.first
            + split_bars(
                BARS.time[fold.first : fold.test_stop + 1], fold_config(fold, config), SYNTHETIC_INSTRUMENT, INTERVAL_NS
            ).train_stop
        )
        later = np.where(np.arange(T) >= known, noise, 0.0)
        other = Bars(BARS.time, *(column + later for column in BARS[1:-1]), BARS.volume + 7 * np.abs(later))
        a, b = (fold_dataset(fold, bars, config) for bars in (BARS, other))
        for x, y in zip(a.market_spec.normaliser, b.market_spec.normaliser, strict=True):
            np.testing.assert_array_equal(x, y)
        for x, y in zip(a.market_spec.codes, b.market_spec.codes, strict=True):
            np.testing.assert_array_equal(x, y)
        assert a.market_spec.market == b.market_spec.market
        assert a.market_spec.profile == b.market_spec.profile
        np.testing.assert_array_equal(a.starts, b.starts)


@pytest.mark.parametrize(
    ("bars", "folds", "way_out"), [(700, 4, " or fewer --folds"), (T, 2000, " or fewer --folds"), (30, 1, "")]
)
def test_too_few_bars_are_refused_with_a_way_out(bars: int, folds: int, way_out: str) -> None:
    config = tiny()
    with pytest.raises(DatasetError, match=rf"fold \w+: .* bring more bars{way_out}$"):
        check_folds(new_folds(bars, folds, EMBARGO, False), BARS.time[:bars], config, SYNTHETIC_INSTRUMENT, INTERVAL_NS)
    check_folds(new_folds(T, 4, EMBARGO, True), BARS.time, config, SYNTHETIC_INSTRUMENT, INTERVAL_NS)


def test_an_episode_too_long_for_a_fold_is_refused_with_a_length_that_works() -> None:
    market = SYNTHETIC_INSTRUMENT, INTERVAL_NS
    with pytest.raises(DatasetError, match=r"bring more bars or --set market\.episode_length=") as refused:
        check_folds(new_folds(T, 2, 450, False), BARS.time, tiny("market.episode_length=450"), *market)
    setting = str(refused.value).partition("--set ")[2]
    length = int(setting.partition("=")[2])
    check_folds(new_folds(T, 2, length, False), BARS.time, tiny(setting), *market)
