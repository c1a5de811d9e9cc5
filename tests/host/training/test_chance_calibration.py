"""The chance prior is believed as far as bars that it has not seen bear it out, in size and in direction."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.artifact.networks import OnnxNetworks
from host.artifact.onnx_check import layout_of
from host.evaluation.exam import prepare_evaluation, selftest_config
from host.evaluation.synthetic import SyntheticOptions
from host.training.chance_calibration import (
    ChanceCalibration,
    calibrate_chance,
    calibrate_learned,
    scale_chance_prior,
    validation_bars,
)
from host.training.chance_diagnostics import calibration, chance_logits, learned_codes
from host.training.trainer import Trainer
from models.export import export
from tests.fixtures.graphs import run
from tests.fixtures.trainings import dataset, tiny, trained
from tests.fixtures.windows import SHAPE, lively

C = 8


def parts(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centred = logits - logits.mean(axis=1, keepdims=True)
    return (centred + centred[:, ::-1]) / 2, (centred - centred[:, ::-1]) / 2


def draw_codes(rng: np.random.Generator, logits: np.ndarray) -> np.ndarray:
    return (rng.gumbel(size=logits.shape) + logits).argmax(axis=1)


def test_the_scale_is_the_most_likely_one_less_its_uncertainty() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2_000, C))
    size, direction = parts(logits)
    code = draw_codes(rng, 0.9 * size + 0.4 * direction)

    def nll(t: np.ndarray) -> float:
        p = np.exp(t[0] * size + t[1] * direction)
        return -float(np.log(p / p.sum(axis=1, keepdims=True))[np.arange(len(code)), code].sum())

    found = calibrate_chance(logits, code)
    z = np.array([found.size_z, found.direction_z])
    best, step = (
        np.array([found.size_scale, found.direction_scale]) / (1 - 3 / z**2),
        1e-3,
    )  # slopes and curvatures by differences
    assert best == pytest.approx([0.9, 0.4], abs=0.1)
    for k in range(2):
        e = step * np.eye(2)[k]
        assert (nll(best + e) - nll(best - e)) / (2 * step) == pytest.approx(0, abs=0.05)
        information = (nll(best + e) + nll(best - e) - 2 * nll(best)) / step**2
        assert z[k] == pytest.approx(best[k] * math.sqrt(information), rel=1e-3)
    assert found.validation_nll == pytest.approx(nll(np.array([found.size_scale, found.direction_scale])) / len(code))


@given(st.integers(0, 2**32 - 1), st.integers(2, 3_000), st.floats(-6, 2))
def test_no_logits_break_it(seed: int, n: int, log_spread: float) -> None:
    rng = np.random.default_rng(seed)
    found = calibrate_chance(10**log_spread * rng.normal(size=(n, C)), rng.integers(0, C, n))
    assert all(0 <= scale <= 2 for scale in (found.size_scale, found.direction_scale))
    assert math.isfinite(found.validation_nll)


def test_what_means_nothing_is_seldom_believed_and_then_little() -> None:
    rng = np.random.default_rng(1)
    scales = [calibrate_chance(rng.normal(size=(700, C)), rng.integers(0, C, 700)).direction_scale for _ in range(200)]
    assert np.mean(np.array(scales) > 0) < 0.08
    assert max(scales) < 0.15


def test_a_prior_that_boasts_of_directions_keeps_its_sizes() -> None:
    rng = np.random.default_rng(2)
    size, direction = parts(rng.normal(size=(4_000, C)))
    found = calibrate_chance(size + direction, draw_codes(rng, size))
    assert found.size_scale == pytest.approx(1, abs=0.1)
    assert found.direction_scale < 0.05
    assert abs(found.direction_z) < 3 < found.size_z


def test_a_prior_that_is_not_finite_is_an_error_that_says_where_to_look() -> None:
    with pytest.raises(FloatingPointError, match="NaN in its features"):
        calibrate_chance(np.full((3, C), np.nan), np.zeros(3, np.int64))


@given(st.integers(0, 10_000), st.integers(0, 40_000))
def test_the_bar_after_each_validation_bar_is_a_validation_bar(train_stop: int, count: int) -> None:
    ts = validation_bars(train_stop, train_stop + count)
    assert len(ts) == min(max(count - 1, 0), 16_384)
    assert (np.diff(ts) > 0).all()
    if len(ts):
        assert train_stop == ts[0]
        assert ts[-1] + 1 < train_stop + count


def test_no_episode_touches_the_validation_part_and_its_graphs_carry_the_scale() -> None:
    trainer = Trainer([dataset(tiny())], tiny(), 1)
    data, length = trainer.markets[0].data, trainer.config.market.episode_length
    assert data.train_stop < data.validation_stop < data.test_first
    assert data.starts.max() + length < data.train_stop
    metrics = trainer.run_iteration()
    assert {"size_scale", "direction_scale", "size_z", "direction_z", "validation_nll"} <= metrics.keys()
    trainer.calibration = None
    plain = trainer.export_graphs()
    trainer.calibration = ChanceCalibration(0.5, 0.25, 0.0, 0.0, 0.0)
    scaled = trainer.export_graphs()
    assert {name for name in plain if scaled[name] != plain[name]} == {"root", "afterstate", "market"} & plain.keys()


def test_nothing_is_calibrated_without_validation_bars() -> None:
    setting = "train.validation_fraction=0"
    trainer = Trainer([dataset(tiny(setting))], tiny(setting), 1)
    assert "direction_scale" not in trainer.run_iteration()
    assert trainer.calibration is None


def test_learned_codes_that_tell_nothing_fall_back_to_their_frequencies() -> None:
    """Their frequencies are no forecast, and are kept; a forecast is believed as far as it is borne out."""
    rng = np.random.default_rng(3)
    frequency, opinion = rng.normal(size=C), rng.normal(size=(4_000, C))
    code = draw_codes(rng, frequency + 0 * opinion)
    false = calibrate_learned(frequency + 0.3 * opinion, code)
    assert false.size_scale == false.direction_scale < 0.05
    assert false.direction_z is None
    assert false.validation_nll < math.log(C) - 0.1
    assert np.exp(false.baseline).sum() == pytest.approx(1, abs=1e-4)
    usual = calibrate_learned(frequency + opinion, draw_codes(rng, frequency + 0.5 * opinion))
    assert usual.size_scale == pytest.approx(0.5, abs=0.1)
    assert usual.size_z > 10


def test_a_training_calibrates_its_learned_codes_on_unseen_bars() -> None:
    """The exported prior is that of the text, by the codes that the encoder gives the validation bars now."""
    trainer = trained(2, 1, "train.chance_codes=learned")
    trainer.export_networks()
    found, part, shape = trainer.calibration, trainer._validation_parts[0], trainer.learner.shape
    assert found
    assert {"size_scale", "size_z", "validation_nll"} <= found.metrics().keys()
    assert not {"direction_z", "baseline"} & found.metrics().keys()
    networks, scaled = (
        OnnxNetworks({"root": export(flat, shape, 0)["root"]}, trainer.network_shape)
        for flat in (trainer.target_params, scale_chance_prior(trainer.target_params, shape, found))
    )
    logits = chance_logits(networks, part.store, part.ts)
    code = learned_codes(trainer._target_views, shape, part.store, part.ts)
    assert found == calibrate_learned(logits, code)
    assert calibration(chance_logits(scaled, part.store, part.ts), code)["chance_nll"] == pytest.approx(
        found.validation_nll, abs=1e-5
    )


def test_few_bars_of_noise_are_not_believed_and_few_of_a_signal_are() -> None:
    """Without the calibration the prior of a network that has learnt 3,000 bars by heart sees directions in noise."""
    config = selftest_config(["train.train_fraction=0.6", "train.lr_decay_passes=1000"])
    seen = {}
    for name in ("noise", "planted"):
        _, data = prepare_evaluation(name, SyntheticOptions(length=5_000, seed=0), config, 1)
        trainer = Trainer([data], config, 1)
        for _ in range(3):
            trainer.run_iteration()
        trainer.export_networks()
        assert trainer.calibration
        seen[name] = trainer.calibration
    assert seen["noise"].direction_scale < 0.1
    assert seen["noise"].validation_nll < math.log(C) + 0.002
    assert seen["planted"].direction_z > 3


def test_a_calibration_scales_the_sizes_and_directions_of_every_chance_prior_and_nothing_else() -> None:
    flat = lively().astype(np.float32)
    plain, scaled = (
        export(flat, SHAPE, 2),
        export(scale_chance_prior(flat, SHAPE, ChanceCalibration(0.5, 2.0, 0.0, 0.0, 0.0)), SHAPE, 2),
    )
    C, D = SHAPE.codes, SHAPE.latent
    codes = {"root": slice(-C, None), "afterstate": slice(-C - 1, -1), "market": slice(D, D + C)}
    assert {name for name in plain if scaled[name] != plain[name]} == codes.keys()
    for name, columns in codes.items():
        x = np.random.default_rng(0).normal(size=(7, layout_of(plain[name]).width_in)).astype(np.float32)
        before, after = run(plain[name], x), run(scaled[name], x)
        others = np.ones(before.shape[1], bool)
        others[columns] = False
        np.testing.assert_array_equal(after[:, others], before[:, others], err_msg=name)
        z, mirrored = before[:, columns], before[:, columns][:, ::-1]
        expected = 0.5 * (z + mirrored) / 2 + 2.0 * (z - mirrored) / 2
        np.testing.assert_allclose(after[:, columns], expected, atol=1e-4, err_msg=name)
