"""The trading desk: the agent's decision, the guards, and the ledger of what was published, as one pure step.

`Desk` reads no clock and no file: what it needs to know of the world comes with each bar and is in the journal, so
`play` makes the same decisions again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from host.artifact.manifest import Loaded
from host.artifact.model_file import ModelRefused
from host.data.feed import Bar
from host.live.live_agent import Actor
from kernels.jit import entry
from kernels.live.risk import HALTED, Guard, Limits, Seen, Verdict, bound, judge, lift, reason_of
from kernels.market.calendar import weekly_close
from kernels.market.ledger import (
    ACC_EQUITY,
    ACC_SIDE,
    EXIT_BAR,
    PROFIT_PX,
    TRADE,
    close_out,
    new_accounts,
    step,
)
from kernels.market.position import BUY, CLOSE, FULL, HOLD, SELL


class World(NamedTuple):
    """What the host saw when a bar came."""

    now_ns: int
    halt: bool = False  # there is a HALT file
    position_fault: str = ""  # why the bridge's position is not the published one


class Outcome(NamedTuple):
    """What is published after a bar, or after a stop, which has no decision."""

    seq: int
    row: list[str]  # of `act`
    target: float
    state: str
    reason: str
    decided_ns: int
    close_ns: int  # of the last bar


class Desk:
    """Bars in, published targets out."""

    def __init__(self, loaded: Loaded, limits: Limits) -> None:
        self._loaded, self.limits = loaded, limits
        self.actor = Actor(loaded.agent, loaded.setting, loaded.search)
        self.guard = Guard()
        self.outcome: Outcome | None = None  # the last one
        self.last: Bar | None = None
        self._market = loaded.setting.market._replace(sizes=FULL)  # limits are pips of a position of 1
        self._weekly_close = weekly_close(loaded.setting.hours)
        self._held = new_accounts(1)[0]  # the ledger of the published targets
        self._trade = np.zeros(TRADE)
        self._step = entry(step, self._held, self._trade, self.actor.bars, 0, HOLD, self._market)

    def on_bar(self, bar: Bar, world: World) -> Outcome | None:
        """Take a bar in and decide; None during the warm-up."""
        decided = self.actor.on_bar(bar)
        self.last = bar
        self._fill()
        if not decided:
            return None
        pip = self._market.pip_px
        closed = self._trade[EXIT_BAR] >= 0
        seen = self._seen(world)._replace(
            profit=self._trade[PROFIT_PX] / pip if closed else 0.0,
            spread=(bar.ask_close - bar.close) / pip,
            far=self.actor.far,
        )
        return self._outcome(*judge(self.guard, seen, self.limits), self.actor.target, world, bar)

    def check(self, world: World) -> Verdict:
        """What the guards say between two bars."""
        return judge(self.guard, self._seen(world), self.limits)[1]

    def stop(self, reason: str, world: World) -> Outcome:
        """Flat, whatever the agent wants."""
        return self._outcome(self.guard, Verdict(HALTED, reason, 0.0), self.guard.wanted, world, None)

    def lift(self) -> None:
        """Forget the losses that halted it."""
        self.guard = lift(self.guard)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on besides the last bars."""
        return {
            "model": self._loaded.sha256,
            "limits": self.limits._asdict(),
            "actor": self.actor.state(),
            "held": self._held.tolist(),
            "guard": self.guard._asdict(),
            "outcome": self.outcome._asdict() if self.outcome else None,
        }

    def restore(self, state: dict[str, Any], bars: list[Bar]) -> None:
        """Go on from `state`, as it was after the last of `bars`."""
        if state["model"] != self._loaded.sha256:
            raise ModelRefused(
                f"model {self._loaded.sha256[:16]}: the journal is of {state['model'][:16]}; "
                "another model begins in another --out"
            )
        self.limits = Limits(**state["limits"])
        self.actor.restore(state["actor"], bars)
        self._held[:] = state["held"]
        self.guard = Guard(**{**state["guard"], "changes_ns": tuple(state["guard"]["changes_ns"])})
        self.outcome = Outcome(**state["outcome"]) if state["outcome"] else None
        self.last = bars[-1] if bars else None

    def closed_out(self) -> float:
        """Profit in pips if what is held were closed at the last bar."""
        held, bars = self._held.copy(), self.actor.bars
        close_out(held, self._trade.copy(), bars, len(bars.time) - 1, self._market)
        return float(held[ACC_EQUITY] / self._market.pip_px)

    def _fill(self) -> None:
        """Book the published target at the open of the newest bar."""
        bars, side = self.actor.bars, self._held[ACC_SIDE]
        wanted = (self.guard.target > 0) - (self.guard.target < 0)
        action = HOLD if wanted == side else CLOSE if wanted == 0 else BUY if wanted > 0 else SELL
        self._trade[EXIT_BAR] = -1
        if len(bars.time) > 1:
            self._step(self._held, self._trade, bars, len(bars.time) - 2, action, self._market)

    def _seen(self, world: World) -> Seen:
        return Seen(
            now_ns=world.now_ns,
            close_ns=self.last.time if self.last else world.now_ns,
            interval_ns=self._market.interval_ns,
            weekly_close=self._weekly_close,
            trained_ns=self._loaded.trained_ns,
            equity=float(self._held[ACC_EQUITY] / self._market.pip_px),
            profit=0.0,
            spread=0.0,
            far=0.0,
            halt=world.halt,
            position_fault=world.position_fault,
        )

    def _outcome(
        self, guard: Guard, verdict: Verdict, wanted: float, world: World, bar: Bar | None
    ) -> Outcome:
        guard = bound(guard, wanted, verdict, world.now_ns)
        self.guard = guard._replace(target=guard.target + 0.0)  # no -0
        self.outcome = Outcome(
            seq=self.outcome.seq + 1 if self.outcome else 1,
            row=self.actor.decision(bar, 0) if bar else [],
            target=self.guard.target,
            state=verdict.state,
            reason=reason_of(self.guard, verdict),
            decided_ns=world.now_ns,
            close_ns=self.last.time if self.last else world.now_ns,
        )
        return self.outcome
