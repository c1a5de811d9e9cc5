"""What codes stand for, how they are logged, and learned codes from training to a model file that trades."""

from pathlib import Path

import numpy as np
import pytest

from host.artifact.manifest import ModelMarket, load_model, save_model
from host.artifact.networks import OnnxNetworks
from host.evaluation.backtest import run_backtest
from host.live.live_agent import new_policy_state
from host.training.chance_diagnostics import calibration, chance_logits, diagnose, perplexity
from host.training.feature_store import FeatureStore
from host.training.trainer import Trainer
from kernels.learning.reanalyze import set_reused_value
from kernels.market.bars import Bars
from kernels.market.chance import ChanceCodes, code_of_move, fill_realised_codes, realised_code, standardised_move
from kernels.market.features import HISTORY, UNDIRECTED_WEIGHT, feature_names
from kernels.market.position import NUM_POSITION_FIELDS
from kernels.ort import check_status, evaluate
from kernels.search.planner import Planner, plan, set_root
from kernels.search.tree import REUSE_CHANCE_CHILD
from models.extensions.chance_encoder import encode_bars
from models.params import as_views
from tests.fixtures.trainings import BARS, WORLD, T, dataset, model_bytes, same_state, tiny, trained

LEARNED = "train.chance_codes=learned"


def lively(setting: str = LEARNED) -> Trainer:
    """A trainer whose networks have an opinion of every bar, and whose encoder, if any, never picks code 2."""
    trainer = Trainer([dataset(tiny(setting))], tiny(setting), 1)
    for _ in range(2):
        trainer.run_iteration()
    draw = np.random.default_rng(0)
    trainer.target_params += draw.normal(0, 0.3, trainer.target_params.shape).astype(np.float32)
    as_views(trainer.target_params, trainer.learner.shape).chance_encoder_out_b[2:3] = -1e3
    return trainer


def test_a_code_stands_for_the_mean_move_of_its_bars_about_that_of_all() -> None:
    trainer = lively()
    trainer.markets[0].assign_chance_codes(trainer._target_views)
    codes, starts = (
        trainer.markets[0].data.market_spec.codes,
        trainer.markets[0].replay.start_bar[: trainer.markets[0].num_stored_episodes],
    )
    bars = {int(t) for start in starts for t in range(start, start + 24)}
    move = {t: standardised_move(BARS, t) for t in bars}
    store, names = trainer.markets[0].feature_store, feature_names(trainer.markets[0].data.market_spec.features)
    x = np.stack([store.X[store.row_of_bar[t + 1]] for t in sorted(bars)])
    x = x[:, [names.index("+-return_1"), names.index("range")]] * (1.0, 1.0 / UNDIRECTED_WEIGHT)
    p = as_views(trainer.target_params, trainer.learner.shape)
    z = (
        np.maximum(x @ p.chance_encoder_hidden_w + p.chance_encoder_hidden_b, 0) @ p.chance_encoder_out_w
        + p.chance_encoder_out_b
    )
    bins = [code_of_move(codes, move[t]) for t in sorted(bars)]  # 8 of them, and two kinds of each
    kind = [row[2 * b : 2 * b + 2].argmax() for row, b in zip(z, bins, strict=True)]
    code = {t: 2 * b + int(k) for t, b, k in zip(sorted(bars), bins, kind, strict=True)}
    assert len(set(code.values())) > 8
    assert 2 not in code.values()
    mean = np.mean(list(move.values()))
    for c in range(16):
        mine = [move[t] - mean for t in bars if code[t] == c]
        assert codes.centres[c] == pytest.approx(np.mean(mine) if mine else 0.0, abs=1e-12)
    for t in bars:
        assert realised_code(codes, BARS, t) == codes.learned_code[t + 1] == code[t]


def test_an_iteration_names_every_bar_it_holds_with_the_networks_that_play_it() -> None:
    trainer = Trainer([dataset(tiny(LEARNED))], tiny(LEARNED), 1)
    trainer.run_iteration()
    for _ in range(4):  # the ring goes round
        draw = np.random.default_rng(trainer.iteration).normal(0, 0.3, trainer.target_params.shape)
        trainer.target_params += draw.astype(np.float32)
        playing = as_views(trainer.target_params.copy(), trainer.learner.shape)
        trainer.run_iteration()
        ts = trainer.markets[0].decision_bars(np.arange(trainer.markets[0].num_stored_episodes))
        store, codes = trainer.markets[0].feature_store, trainer.markets[0].data.market_spec.codes
        bins = np.array([code_of_move(codes, standardised_move(BARS, t)) for t in ts])
        rows = store.row_of_bar[ts + 1], store.row_of_bar[ts]
        code = encode_bars(playing, store.X, *rows, bins, trainer.learner.shape)
        np.testing.assert_array_equal(trainer.markets[0].data.market_spec.codes.learned_code[ts + 1], code)
        assert len(set(code.tolist())) > 1


def test_codes_of_quantiles_are_still_the_bins_of_their_moves() -> None:
    codes, ts, found = trained().markets[0].data.market_spec.codes, np.arange(300, 400), np.zeros(100, np.int64)
    fill_realised_codes(found, codes, BARS, ts)
    assert codes.learned_code.size == 0
    assert found.tolist() == [code_of_move(codes, standardised_move(BARS, t)) for t in ts]


def test_perplexity_and_calibration_are_their_definitions() -> None:
    assert perplexity(np.full(9, 4)) == 1
    assert perplexity(np.arange(40) % 5) == pytest.approx(5)
    draw = np.random.default_rng(1)
    logits = draw.normal(size=(20_000, 6)) * 2
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    code = (p.cumsum(axis=1) < draw.random((len(p), 1))).sum(axis=1)  # the prior is right
    found = calibration(logits + 3, code)
    assert found["chance_nll"] == pytest.approx(-np.log(p[np.arange(len(p)), code]).mean())
    assert found["chance_calibration_error"] < 0.015
    sure, right = p.max(axis=1), p.argmax(axis=1) == code
    expected = 0.0
    for level in range(10):
        here = (sure >= level / 10) & (sure < (level + 1) / 10)
        expected += abs(sure[here].sum() - right[here].sum()) / len(p)
    assert found["chance_calibration_error"] == pytest.approx(expected)
    assert calibration(5 * logits, code)["chance_calibration_error"] > 0.1  # too sure
    np.testing.assert_allclose(list(calibration(np.zeros((4, 8)), np.array([0, 0, 0, 1])).values()), [np.log(8), 0.625])


@pytest.mark.parametrize("kind", ["quantile", "learned", "transformer"])
def test_what_is_logged_of_the_codes(kind: str) -> None:
    config = tiny(*WORLD) if kind == "transformer" else tiny(f"train.chance_codes={kind}")
    trainer = Trainer([dataset(config)], config, 1)
    trainer.run_iteration()
    row = trainer.run_iteration()
    names = ("code_perplexity", "code_r2", "chance_nll", "chance_calibration_error")
    assert all(np.isfinite(row[name]) for name in names)
    assert 1 <= row["code_perplexity"] <= (16 if kind == "learned" else 8)
    assert ("commitment" in row) == ("code_entropy" in row) == (kind == "learned")
    assert row["code_r2"] > 0.8
    agent, ts = trainer.export_networks(), trainer.markets[0].decision_bars(np.arange(2))
    logits = chance_logits(agent, trainer.markets[0].feature_store, ts)
    logged = diagnose(agent, trainer.markets[0].data.market_spec.codes, trainer.markets[0].feature_store, BARS, ts)
    code = np.array([realised_code(trainer.markets[0].data.market_spec.codes, BARS, t) for t in ts])
    assert logged["chance_nll"] == calibration(logits, code)["chance_nll"]
    net, sizes = agent.root(1), agent.shape
    assert sizes.context == (3 if kind == "transformer" else 1)
    seen = ts[5] - np.arange(sizes.context)[::-1]
    net.x[0, : sizes.context * sizes.features] = (
        trainer.markets[0].feature_store.X[trainer.markets[0].feature_store.row_of_bar[seen]].ravel()
    )
    check_status(evaluate(net, 1))
    expected = net.y[0, sizes.state + sizes.actions + 1 :]
    np.testing.assert_allclose(logits[5], expected, rtol=1e-5, atol=1e-6)


def decision(trainer: Trainer, agent: OnnxNetworks, codes: ChanceCodes, t: int) -> Planner:
    """A search from flat at the close of bar t."""
    planner, market = agent.planner(1, trainer.acting_search_config()), trainer.markets[0].data.market_spec.market
    x = trainer.markets[0].feature_store.X[trainer.markets[0].feature_store.row_of_bar[t]]
    set_root(planner, 0, x, np.zeros(NUM_POSITION_FIELDS, np.float32), trainer.markets[0].data.bars, t, codes, market)
    check_status(plan(planner))
    return planner


@pytest.mark.parametrize("kind", ["quantile", "learned"])
def test_the_code_of_the_next_move_reaches_neither_policy_nor_value(kind: str) -> None:
    """Release gate: whatever bar comes and whatever it is called, the decision before it was the same."""
    trainer = lively(f"train.chance_codes={kind}")
    agent, codes, store = (
        trainer.export_networks(),
        trainer.markets[0].data.market_spec.codes,
        trainer.markets[0].feature_store,
    )
    found = set[bytes]()
    for t in (trainer.markets[0].replay.start_bar[:4] + 5).tolist():
        plain = decision(trainer, agent, codes, t)
        kept, bars = store.X.copy(), trainer.markets[0].data.bars
        rows = store.row_of_bar[t + 1 :]
        store.X[rows[rows >= 0]] += 5
        changed = Bars(*(np.concatenate([column[: t + 1], column[t + 1 :] * 1.01]) for column in bars))
        trainer.markets[0].data = trainer.markets[0].data._replace(bars=changed._replace(time=bars.time))
        of_bar = codes.learned_code.copy()
        of_bar[t + 1 :] = 15 - of_bar[t + 1 :]
        other = decision(trainer, agent, codes._replace(learned_code=of_bar), t)
        for name in ("policy", "value", "q", "action"):
            assert getattr(other, name).tobytes() == getattr(plain, name).tobytes()
        store.X[:], trainer.markets[0].data = kept, trainer.markets[0].data._replace(bars=bars)
        found.add(plain.q.tobytes())
        store.X[store.row_of_bar[t]] += 5  # what does count
        assert decision(trainer, agent, codes, t).q.tobytes() not in found
        store.X[:] = kept
    assert len(found) == 4


def test_a_sweep_takes_over_the_value_behind_the_learned_code() -> None:
    trainer = lively()
    trainer.markets[0].assign_chance_codes(trainer._target_views)
    codes = trainer.markets[0].data.market_spec.codes
    search = trainer.search_config(4)._replace(value_reuse=REUSE_CHANCE_CHILD)
    planner, found = trainer.export_networks().planner(1, search), []
    for k in range(23):
        set_reused_value(planner, 0, trainer.markets[0].replay, 2, k, trainer.markets[0].feature_store.market_data)
        found.append(int(planner.reused_value.code[0]))
    start = int(trainer.markets[0].replay.start_bar[2])
    assert found == codes.learned_code[start + 1 : start + 24].tolist()
    assert len(set(found)) > 1


def test_learned_codes_change_with_neither_threads_nor_room_and_go_on_to_the_bit(tmp_path: Path) -> None:
    straight = trained(6, 1, LEARNED)
    assert same_state(straight, trained(6, 2, LEARNED))
    assert model_bytes(straight, tmp_path) == model_bytes(trained(6, 2, LEARNED), tmp_path)
    half = trained(5, 1, LEARNED)
    arrays, state = half.snapshot()
    resumed = Trainer([dataset(tiny(LEARNED))], tiny(LEARNED), 1)
    resumed.restore({name: array.copy() for name, array in arrays.items()}, dict(state))
    resumed.markets[0].feature_store = FeatureStore(resumed.markets[0].data, 16 * 25, 1, cache_mb=0)
    resumed.markets[0].feature_store.acquire(
        resumed.markets[0].replay.start_bar[: resumed.markets[0].num_stored_episodes], 25
    )
    resumed.run_iteration()
    assert same_state(resumed, straight)
    assert model_bytes(resumed, tmp_path) == model_bytes(straight, tmp_path)


def test_a_model_of_learned_codes_trades_without_its_encoder(tmp_path: Path) -> None:
    trainer = lively()
    agent, setting, path = trainer.export_networks(), trainer.markets[0].data.market_spec, tmp_path / "model.swt"
    assert np.count_nonzero(setting.codes.centres) > 2
    stamp = "2017-01-01T00:00:00Z"
    data = {"span": [stamp] * 2, "test_first": stamp, "sha256": "0" * 64, "reading": {}, "spread_pips": None}
    save_model(path, agent, [ModelMarket(setting, data)], trainer.acting_search_config(), trainer.config.as_dict())
    loaded, extra = load_model(path), np.zeros((T, 0), np.float32)
    with pytest.raises(ValueError, match="networks of 16 chance codes, and a market of 8"):
        new_policy_state(agent, dataset(tiny(LEARNED)).market_spec, trainer.acting_search_config())
    assert not [name for name, graph in loaded.networks.graphs.items() if b"encod" in graph]
    np.testing.assert_array_equal(loaded.market_spec.codes.centres, setting.codes.centres)
    assert loaded.market_spec.codes.learned_code.size == 0
    args = BARS, extra, HISTORY + 10, HISTORY + 60
    before = run_backtest(new_policy_state(agent, setting, trainer.acting_search_config()), *args)
    after = run_backtest(new_policy_state(loaded.networks, loaded.market_spec, loaded.search), *args)
    assert before.log.policy.tobytes() == after.log.policy.tobytes()
    assert len(np.unique(after.log.policy)) > 40


def test_before_any_episode_no_bar_has_a_code_and_codes_have_the_moves_of_bins() -> None:
    trainer = Trainer([dataset(tiny(LEARNED))], tiny(LEARNED), 1)
    trainer.export_networks()
    codes = trainer.markets[0].data.market_spec.codes
    np.testing.assert_array_equal(codes.centres, np.repeat(trained(1).markets[0].data.market_spec.codes.centres, 2))
    assert codes.learned_code.shape == (T,)
    again = Trainer([trainer.markets[0].data], tiny(LEARNED), 1).markets[0].data.market_spec.codes
    assert again.centres.shape == again.mean_square.shape == codes.centres.shape
    assert trainer.learner.shape.chance_encoder_width == 8
    assert trained(1).learner.shape.chance_encoder_width == 0
