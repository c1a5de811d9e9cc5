"""The ledger against a naive broker and its own invariants."""

import math
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from host.data.csv_reader import read_bars
from host.data.formats import ReadOptions
from kernels.market import ledger as mk
from kernels.market.bars import SECOND_NS, Bars, slice_bars
from kernels.market.calendar import CLOSED_ON_WEEKENDS
from kernels.market.chance import (
    move_scale_px,
    standardised_move,
)
from kernels.market.episodes import episode_starts
from kernels.market.ledger import Market, new_accounts, new_market
from kernels.market.position import (
    ACTIONS,
    BUY,
    CLOSE,
    FULL_SIZE_ONLY,
    HELD,
    HOLD,
    NUM_POSITION_FEATURES,
    NUM_POSITION_FIELDS,
    PREVIOUS_SIDE,
    SELL,
    SIDE,
    action_names,
    action_target,
    apply_fill,
    apply_move,
    is_legal,
    mirror_position_features,
    mirrored_action,
    position_features,
)
from tests.fixtures.paths import SAMPLE
from tests.oracles.naive import MONDAY, Broker, wandering_bars

MINUTES_FILE = "GBPJPY_M1_histdata_ascii_2021-01_02.csv"
MINUTE, HOUR, DAY = 60 * SECOND_NS, 3600 * SECOND_NS, 86_400 * SECOND_NS
N = 60
COSTS: dict[str, Any] = {"slippage_px": 2e-5, "commission_px": 3e-5, "swap_long_px": -5e-5, "swap_short_px": 1e-5}
few = settings(deadline=None, max_examples=30)


class Case(NamedTuple):
    bars: Bars
    market: Market
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    minutes = draw(st.sampled_from([1, 15, 60, 240, 1440]))
    seed = draw(st.integers(0, 2**20))
    begin = MONDAY + draw(st.integers(-15 * 52, 52)) * 7 * DAY + draw(st.integers(0, 10_000)) * MINUTE
    costs = {name: draw(st.sampled_from([0.0, value])) for name, value in COSTS.items()}
    k = draw(st.sampled_from([0.0, 0.01, 0.05]))
    rules: dict[str, Any] = {"mae_penalty": k, "reverse": draw(st.booleans())}
    rules["sizes"] = draw(st.sampled_from([(1.0,), (0.1, 0.25, 0.5, 0.75, 1.0), (0.3, 0.6)]))
    bars = wandering_bars(seed, N, minutes, draw(st.sampled_from([0.0, 1e-4])), begin)
    return Case(bars, new_market(range_px=5e-4, pip_px=1e-4, interval_ns=minutes * MINUTE, **costs, **rules), seed)


class Played(NamedTuple):
    rewards: NDArray[np.float64]  # [n + 1] the last is the close-out
    equity: NDArray[np.float64]  # [n + 1]
    trades: NDArray[np.float64]
    positions: NDArray[np.float32]  # [n + 1, RAW] before each decision
    actions: list[int]
    targets: list[float]


def play(case: Case, actions: list[int] | None = None) -> Played:
    """Legal actions at random, or those given, through every bar."""
    draw = np.random.default_rng(case.seed)
    n = len(case.bars.time) - 1
    account, trade = new_accounts(1)[0], np.zeros(mk.NUM_TRADE_FIELDS)
    rewards, equity, trades, done, sides = np.zeros(n + 1), np.zeros(n + 1), [], [], list[float]()
    positions = np.zeros((n + 1, NUM_POSITION_FIELDS), np.float32)
    for t in range(n):
        mk.write_position(positions[t], account, case.market)
        A = len(action_names(case.market.sizes))
        legal = [a for a in range(A) if is_legal(account[mk.ACC_SIDE], a, A, case.market.reverse)]
        done.append(int(draw.choice(legal)) if actions is None else actions[t])
        rewards[t] = mk.step(account, trade, case.bars, t, done[t], case.market)
        equity[t] = account[mk.ACC_EQUITY]
        sides.append(float(account[mk.ACC_SIDE]))
        if trade[mk.EXIT_BAR] >= 0:
            trades.append(trade.copy())
    mk.write_position(positions[n], account, case.market)
    rewards[n] = mk.close_out(account, trade, case.bars, n, case.market)
    equity[n] = account[mk.ACC_EQUITY]
    if trade[mk.EXIT_BAR] >= 0:
        trades.append(trade.copy())
    return Played(rewards, equity, np.array(trades).reshape(-1, mk.NUM_TRADE_FIELDS), positions, done, sides)


def compare(case: Case) -> None:
    """The ledger and the naive broker book the same rewards, equity and trades."""
    played, broker = play(case), Broker(case.bars, case.market)
    names = action_names(case.market.sizes)
    assert names == broker.orders()
    for t, action in enumerate(played.actions):
        assert names[action] in broker.allowed()
        assert played.rewards[t] == pytest.approx(broker.trade(names[action], t), rel=1e-9, abs=1e-11)
        assert played.equity[t] == pytest.approx(broker.equity(), rel=1e-9, abs=1e-14)
    last = len(case.bars.time) - 1
    assert played.rewards[-1] == pytest.approx(broker.finish(last), rel=1e-9, abs=1e-11)
    expected = np.array([deal.row() for deal in broker.closed]).reshape(-1, mk.NUM_TRADE_FIELDS)
    np.testing.assert_allclose(played.trades, expected, rtol=1e-9, atol=1e-14)
    assert len(expected) > 0


@few
@given(cases())
def test_ledger_is_the_naive_broker(case: Case) -> None:
    compare(case)


@few
@given(cases())
def test_rewards_equity_and_trades_agree(case: Case) -> None:
    played = play(case)
    k, R = case.market.mae_penalty, case.market.range_px
    profit, excursions = played.trades[:, mk.PROFIT_PX], played.trades[:, mk.ADVERSE_EXCURSION_SUM_PX]
    size = np.abs(profit).sum() + excursions.sum() + 1e-9
    assert abs(played.equity[-1] - profit.sum()) <= 1e-9 * size
    assert abs(played.rewards.sum() * R - (profit - k * excursions).sum()) <= 1e-9 * size


@few
@given(cases(), st.integers(1, N - 2))
def test_later_bars_change_nothing(case: Case, t: int) -> None:
    """What is booked up to the close of bar t + 1 is a function of bars <= t + 1."""
    changed = Bars(*(column.copy() for column in case.bars))
    for name in ("open", "high", "low", "close", "ask_open", "ask_close"):
        getattr(changed, name)[t + 2 :] *= 1.5
    changed.time[t + 2 :] += 5 * DAY
    before = play(case)
    after = play(case._replace(bars=changed))
    np.testing.assert_array_equal(before.rewards[: t + 1], after.rewards[: t + 1])
    np.testing.assert_array_equal(before.positions[: t + 2], after.positions[: t + 2])
    np.testing.assert_array_equal(before.equity[: t + 1], after.equity[: t + 1])
    for f in (move_scale_px, lambda bars, t: standardised_move(bars, t - 1)):
        assert f(case.bars, t + 1) == f(changed, t + 1)
    assert mk.entry_cost(case.bars, t + 1, case.market) == mk.entry_cost(changed, t + 1, case.market)


@few
@given(st.integers(0, 2**20), st.booleans())
def test_mirrored_market_mirrors_the_profit(seed: int, reverse: bool) -> None:
    bars = wandering_bars(seed, N, 60, spread=0.0)
    prices = {name: 2.2 - getattr(bars, name) for name in ("open", "close", "ask_open", "ask_close")}
    turned = bars._replace(high=2.2 - bars.low, low=2.2 - bars.high, **prices)
    options: dict[str, Any] = {"range_px": 5e-4, "pip_px": 1e-4, "interval_ns": HOUR, "reverse": reverse}
    market = new_market(mae_penalty=0.05, **options)
    one = play(Case(bars, market, seed))
    other = play(Case(turned, market, seed), [(HOLD, SELL, BUY, CLOSE)[a] for a in one.actions])
    np.testing.assert_allclose(one.rewards, other.rewards, atol=1e-10)
    np.testing.assert_array_equal(one.trades[:, mk.TRADE_SIDE], -other.trades[:, mk.TRADE_SIDE])
    assert np.abs(one.rewards).sum() > 0


@pytest.mark.parametrize("sizes", [FULL_SIZE_ONLY, (0.1, 0.25, 0.5, 1.0, 0.0)])
@pytest.mark.parametrize("reverse", [True, False])
def test_mirrored_actions_and_positions_are_those_of_the_other_side(sizes: tuple[float, ...], reverse: bool) -> None:
    """Whatever is held: the mirrored action is as legal, and brings about the mirrored position."""
    A, draw = len(action_names(sizes)), np.random.default_rng(0)
    for side in (-1.0, -0.25, 0.0, 0.5, 1.0):
        for action in range(A):
            other = mirrored_action(action, A)
            assert mirrored_action(other, A) == action
            assert is_legal(-side, other, A, reverse) == is_legal(side, action, A, reverse)
            assert action_target(-side, other, sizes) == -action_target(side, action, sizes)
        raw = draw.normal(size=NUM_POSITION_FIELDS).astype(np.float32)
        raw[SIDE] = side
        turned = raw.copy()
        turned[[SIDE, PREVIOUS_SIDE]] *= -1
        for memoryless in (True, False):
            features = np.zeros((2, NUM_POSITION_FEATURES), np.float32)
            position_features(features[0], raw, memoryless)
            position_features(features[1], turned, memoryless)
            mirror_position_features(features[0])
            np.testing.assert_array_equal(features[0], features[1])


@few
@given(
    st.integers(0, 2**20),
    st.booleans(),
    st.sampled_from([0.0, 1e-4, 3e-4]),
    st.sampled_from([(1.0,), (0.1, 0.25, 0.5, 0.75, 1.0)]),
)
def test_position_is_what_the_search_expects(seed: int, reverse: bool, spread: float, sizes: tuple[float, ...]) -> None:
    """Where opens equal closes and the spread is constant, the ledger is apply_fill then apply_move."""
    bars = wandering_bars(seed, N, 1)
    bars.open[1:] = bars.close[:-1]
    bars = bars._replace(ask_open=bars.open + spread, ask_close=bars.close + spread)
    rules: dict[str, Any] = {"reverse": reverse, "sizes": sizes}
    case = Case(bars, new_market(range_px=5e-4, pip_px=1e-4, interval_ns=MINUTE, **rules, **COSTS), seed)
    played = play(case)
    after, expected = (np.zeros(NUM_POSITION_FIELDS, np.float32) for _ in range(2))
    for t, action in enumerate(played.actions):
        move = (bars.close[t + 1] - bars.close[t]) / case.market.range_px
        target = action_target(played.positions[t, SIDE], action, case.market.sizes)
        apply_fill(after, played.positions[t], target, mk.entry_cost(bars, t, case.market))
        apply_move(expected, after, move)
        np.testing.assert_allclose(played.positions[t + 1], expected, rtol=1e-5, atol=1e-5)


def test_every_field_of_a_position_is_tested() -> None:
    market = new_market(range_px=5e-4, pip_px=1e-4, interval_ns=MINUTE, **COSTS)
    assert play(Case(wandering_bars(0, N, 1), market, 0)).positions.any(axis=0).all()


@few
@given(cases(), st.sampled_from([-1, 0, 1]), st.sampled_from([-3, 0, 1, 2, 3, 4, 99]))
def test_illegal_actions_hold_and_show(case: Case, side: int, action: int) -> None:
    case = case._replace(market=case.market._replace(sizes=FULL_SIZE_ONLY))
    accounts, trade = new_accounts(2), np.zeros(mk.NUM_TRADE_FIELDS)
    opening = {-1: SELL, 0: HOLD, 1: BUY}[side]
    for account in accounts:
        mk.step(account, trade, case.bars, 0, opening, case.market)
    reward = mk.step(accounts[0], trade, case.bars, 1, action, case.market)
    legal = 0 <= action <= 3 and is_legal(side, action, 4, case.market.reverse)
    assert np.isnan(reward) == (not legal)
    if not legal:
        mk.step(accounts[1], trade, case.bars, 1, HOLD, case.market)
        np.testing.assert_array_equal(accounts[0], accounts[1])
        assert trade[mk.EXIT_BAR] == -1


def straight_bars(closes: list[datetime]) -> Bars:
    """Price 1 + t / 100 at close t, opens half-way from the last close, spread 0.001."""
    time = np.array([int(c.timestamp()) * SECOND_NS for c in closes])
    close = 1 + np.arange(len(closes)) / 100
    start = close - 0.005
    return Bars(time, start, close, start, close, start + 0.001, close + 0.001, np.ones(len(closes)))


def test_fills_and_costs_by_hand() -> None:
    bars = straight_bars([datetime(2024, 1, 1, h, tzinfo=UTC) for h in (1, 2, 3, 4)])
    market = new_market(
        range_px=0.01, pip_px=1e-4, interval_ns=HOUR, slippage_px=1e-4, commission_px=2e-4, mae_penalty=0.5
    )
    played = play(Case(bars, market, 0), [SELL, HOLD, CLOSE])
    # sold at 1.005 - 0.0001; marked at ask 1.011, 1.021; bought at 1.025 + 0.001 + 0.0001
    np.testing.assert_allclose(played.equity, np.array([-0.0063, -0.0163, -0.0216, -0.0216]), atol=1e-12)
    # the ask stood at 1.006 when it was filled: 0.005 and 0.015 beyond
    np.testing.assert_allclose(played.rewards, [-0.63 - 0.25, -1.0 - 0.75, -0.53, 0], atol=1e-9)
    np.testing.assert_allclose(played.trades, [[1, 3, -1, 1.0049, 1.0261, -0.0216, 0.02, 2, 0]], rtol=0, atol=1e-12)


def test_position_is_held_over_the_weekend() -> None:
    """H1 in winter: the market closes on Friday at 22:00 and reopens 48 hours later."""
    closes = [datetime(2024, 1, 12, h, tzinfo=UTC) for h in (20, 21)] + [
        datetime(2024, 1, 14, 23, tzinfo=UTC),
        datetime(2024, 1, 15, 0, tzinfo=UTC),
    ]
    bars = straight_bars(closes)
    market = new_market(range_px=0.01, pip_px=1e-4, interval_ns=HOUR, swap_long_px=-3e-4)
    late = play(Case(bars, market, 0), [BUY, CLOSE, HOLD])
    assert late.trades[0, mk.EXIT_PX] == bars.open[2], "filled at the reopening price"
    assert late.trades[0, mk.FINANCING_PX] == pytest.approx(-3e-4), "Friday's night is paid by who held it"
    assert play(Case(bars, market, 0), [HOLD, BUY, CLOSE]).trades[0, mk.FINANCING_PX] == 0
    starts, rejects = episode_starts(bars, 0, 4, 3, 1, HOUR, CLOSED_ON_WEEKENDS)
    assert starts.tolist() == [0]
    assert rejects["too near the end"] == 3


def test_no_night_is_paid_twice_when_clocks_cut_a_day_short() -> None:
    closes = [datetime(2024, 1, day, hour, 30, tzinfo=UTC) for day, hour in ((1, 22), (2, 22), (3, 21))]
    market = new_market(range_px=0.01, pip_px=1e-4, interval_ns=DAY, swap_long_px=-3e-4)
    played = play(Case(straight_bars(closes), market, 0), [BUY, HOLD])
    assert played.trades[0, mk.FINANCING_PX] == pytest.approx(-3e-4)


@pytest.mark.parametrize("part", [slice(0, 400), slice(2000, 2600)])
def test_real_hours_are_booked_as_the_broker_books_them(part: slice) -> None:
    bars, _ = read_bars(SAMPLE, ReadOptions(side="ask"))
    market = new_market(range_px=1e-3, pip_px=1e-4, interval_ns=HOUR, mae_penalty=0.05, **COSTS)
    compare(Case(slice_bars(bars, part.start, part.stop), market, 1))


@few
@given(cases(), st.sampled_from([0.1, 0.25, 0.5]))
def test_a_part_of_a_position_costs_and_earns_that_part(case: Case, size: float) -> None:
    """Scaling the one size scales rewards, equity, trades and what the search sees, and changes no decision."""
    actions = play(case._replace(market=case.market._replace(sizes=FULL_SIZE_ONLY))).actions
    whole, part = (
        play(case._replace(market=case.market._replace(sizes=(s, *FULL_SIZE_ONLY[1:]))), actions) for s in (1.0, size)
    )
    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(part.rewards, size * whole.rewards, **close)
    np.testing.assert_allclose(part.equity, size * whole.equity, **close)
    fixed = [mk.ENTRY_BAR, mk.EXIT_BAR, mk.ENTRY_PX, mk.EXIT_PX, mk.BARS_HELD]
    scaled = [mk.TRADE_SIDE, mk.PROFIT_PX, mk.ADVERSE_EXCURSION_SUM_PX, mk.FINANCING_PX]
    np.testing.assert_array_equal(part.trades[:, fixed], whole.trades[:, fixed])
    np.testing.assert_allclose(part.trades[:, scaled], size * whole.trades[:, scaled], **close)
    distances = [column for column in range(NUM_POSITION_FIELDS) if column != HELD]
    np.testing.assert_allclose(part.positions[:, distances], size * whole.positions[:, distances], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(part.positions[:, HELD], whole.positions[:, HELD])


def test_five_sizes_are_twelve_actions() -> None:
    sizes = new_market(range_px=1e-3, pip_px=1e-4, interval_ns=HOUR, sizes=[0.1, 0.25, 0.5, 0.75, 1]).sizes
    assert action_names(sizes) == [
        *("HOLD", "BUY 0.1", "BUY 0.25", "BUY 0.5", "BUY 0.75", "BUY"),
        *("SELL 0.1", "SELL 0.25", "SELL 0.5", "SELL 0.75", "SELL", "CLOSE"),
    ]
    assert [action_target(0.5, a, sizes) for a in range(12)] == [
        *(0.5, 0.1, 0.25, 0.5, 0.75, 1.0),
        *(-0.1, -0.25, -0.5, -0.75, -1.0, 0.0),
    ]
    for reverse in (False, True):
        legal = {side: [a for a in range(-2, 15) if is_legal(side, a, 12, reverse)] for side in (0, 0.25, -1)}
        assert legal[0] == list(range(11))
        assert legal[0.25] == [0, *(range(6, 11) if reverse else ()), 11]
        assert legal[-1] == [0, *(range(1, 6) if reverse else ()), 11]
    assert action_names(FULL_SIZE_ONLY) == list(ACTIONS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"range_px": 0.0},
        {"slippage_px": -1e-5},
        {"interval_ns": 0},
        {"pip_px": np.nan},
        *({"sizes": sizes} for sizes in ([], [0.5, 0.5], [1, 0.5], [0, 1], [0.5, 1.5], [np.nan], np.arange(1, 7) / 6)),
    ],
)
def test_impossible_markets_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|are not ascending|are more than 5"):
        new_market(**{"range_px": 1e-3, "pip_px": 1e-4, "interval_ns": HOUR, **wrong})


@few
@given(cases())
def test_run_targets_is_the_ledger(case: Case) -> None:
    played = play(case)
    equity, trades = np.zeros(N - 1), np.zeros((N - 1, mk.NUM_TRADE_FIELDS))
    count = mk.run_targets(equity, trades, mk.new_accounts(1)[0], case.bars, 0, np.array(played.targets), case.market)
    np.testing.assert_array_equal(trades[:count], played.trades)
    np.testing.assert_array_equal(equity, [*played.equity[:-2], played.equity[-1]])
    anything = np.random.default_rng(case.seed).choice([-2.0, -1.0, -0.3, 0.0, 0.3, 1.0], N - 1)  # some are forbidden
    count = mk.run_targets(equity, trades, mk.new_accounts(1)[0], case.bars, 0, anything, case.market)
    assert np.isfinite(equity).all()
    assert equity[-1] == pytest.approx(trades[:count, mk.PROFIT_PX].sum(), rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("seed", range(3))
def test_interpreted_kernels_book_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler makes of the source is what Python makes of it, to the bit."""
    market = new_market(range_px=5e-4, pip_px=1e-4, interval_ns=HOUR, mae_penalty=0.05, **COSTS)
    bars = wandering_bars(seed, 150, 60)
    case = Case(bars, market, seed)
    compiled = play(case)
    for name, fn in vars(mk).items():
        if hasattr(fn, "py_func"):
            monkeypatch.setattr(mk, name, fn.py_func)
    for one, other in zip(compiled, play(case), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_view_of_the_bars_plays_as_the_bars_do() -> None:
    """Indices are those of the arrays given."""
    bars = wandering_bars(5, N, 60)
    market = new_market(range_px=5e-4, pip_px=1e-4, interval_ns=HOUR, **COSTS)
    targets = np.array([1.0, 1.0, 0.0, -1.0, -1.0, -1.0])
    results = []
    for part, first in ((bars, 20), (slice_bars(bars, 10, N), 10)):
        equity, trades = np.zeros(6), np.zeros((6, mk.NUM_TRADE_FIELDS))
        mk.run_targets(equity, trades, mk.new_accounts(1)[0], part, first, targets, market)
        results.append(equity)
    np.testing.assert_array_equal(results[0], results[1])


@few
@given(cases(), st.integers(0, 2**20))
def test_any_size_is_booked_as_the_naive_broker_does(case: Case, seed: int) -> None:
    """Targets that are legal, and now and then one that is not: it holds, and shows."""
    draw, broker = np.random.default_rng(seed), Broker(case.bars, case.market)
    account, trade = new_accounts(1)[0], np.zeros(mk.NUM_TRADE_FIELDS)
    for t in range(len(case.bars.time) - 1):
        side, size = float(account[mk.ACC_SIDE]), float(draw.uniform(0.01, 1))
        turn = -np.sign(side) if side else draw.choice([-1, 1])
        legal, illegal = [side, 0.0], [1.01, -1.01, math.nan]
        (legal if case.market.reverse or side == 0 else illegal).append(turn * size)
        illegal += [side * size] if side else []
        if draw.random() < 0.2:
            target, order = float(draw.choice(illegal)), "HOLD"
            assert math.isnan(mk.step_to_target(account, trade, case.bars, t, target, case.market))
            broker.trade(order, t)
            assert account[mk.ACC_SIDE] == side
        else:
            target = float(draw.choice(legal))
            order = "HOLD" if target == side else f"{'BUY' if target > 0 else 'SELL'} {abs(target)!r}"
            reward = mk.step_to_target(account, trade, case.bars, t, target, case.market)
            expected = broker.trade(order if target in (side, turn * size) else "CLOSE", t)
            assert reward == pytest.approx(expected, rel=1e-9, abs=1e-11)
            assert account[mk.ACC_SIDE] == target
        assert account[mk.ACC_EQUITY] == pytest.approx(broker.equity(), rel=1e-9, abs=1e-14)
