"""`RiskEngine`: the agent's decision, the risk limits and the ledger of the published targets, as one pure step.

The engine reads no clock and no file.  `HostInputs` carries both, and the journal records it with each bar, so
`event_log.replay_events` makes the same decisions again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from host.artifact.manifest import LoadedModel
from host.artifact.model_file import ModelError
from host.data.feed import Bar
from host.live.live_agent import LiveAgent
from kernels.jit import specialize
from kernels.live.risk import (
    HALTED,
    MarketSnapshot,
    RiskDecision,
    RiskLimits,
    RiskState,
    apply_limits,
    check_limits,
    resume,
    target_reason,
)
from kernels.market.calendar import weekly_close
from kernels.market.ledger import (
    ACC_EQUITY,
    ACC_SIDE,
    EXIT_BAR,
    NUM_TRADE_FIELDS,
    PROFIT_PX,
    close_out,
    new_accounts,
    step,
)
from kernels.market.position import BUY, CLOSE, FULL_SIZE_ONLY, HOLD, SELL


class HostInputs(NamedTuple):
    """What the host observed when a bar arrived."""

    now_ns: int  # clock of a live run, close of the bar in a dry run
    halt: bool = False  # the folder has a HALT file
    position_fault: str = ""  # reason why `position.csv` is not the published target, or ""


class Decision(NamedTuple):
    """What is published after a bar or a stop; its fields are a journal record."""

    seq: int  # from 1, one more for each decision
    row: list[str]  # of DECISION_COLUMNS, as printed; empty after a stop
    target: float  # after the risk limits, -1 to 1
    state: str  # ACTIVE, REDUCING or HALTED
    reason: str
    decided_ns: int
    close_ns: int  # of the last bar


class RiskEngine:
    """Turns bars into published targets; raises what `LiveAgent.on_bar` raises."""

    def __init__(self, loaded: LoadedModel, limits: RiskLimits) -> None:
        self._loaded, self.limits = loaded, limits
        self.agent = LiveAgent(loaded.networks, loaded.market_spec, loaded.search)
        self.risk_state = RiskState()
        self.last_decision: Decision | None = None
        self.last_bar: Bar | None = None
        # The limits are pips of a position of 1, whatever size the agent asks for.
        self._market = loaded.market_spec.market._replace(sizes=FULL_SIZE_ONLY)
        self._weekly_close = weekly_close(loaded.market_spec.hours)
        self._account = new_accounts(1)[0]  # the ledger of the published targets
        self._trade = np.zeros(NUM_TRADE_FIELDS)
        self._step = specialize(step, self._account, self._trade, self.agent.bars, 0, HOLD, self._market)

    def on_bar(self, bar: Bar, inputs: HostInputs) -> Decision | None:
        """Fill the published target at the open of `bar` and decide at its close; None during the warm-up."""
        decided = self.agent.on_bar(bar)
        self.last_bar = bar
        self._fill_target()
        if not decided:
            return None
        pip = self._market.pip_px
        is_closed = self._trade[EXIT_BAR] >= 0
        snapshot = self._snapshot(inputs)._replace(
            trade_profit=self._trade[PROFIT_PX] / pip if is_closed else 0.0,
            spread=(bar.ask_close - bar.close) / pip,
            feature_drift=self.agent.feature_drift,
        )
        return self._decide(*check_limits(self.risk_state, snapshot, self.limits), self.agent.target, inputs, bar)

    def check(self, inputs: HostInputs) -> RiskDecision:
        """The decision of the risk limits between two bars; changes no state."""
        return check_limits(self.risk_state, self._snapshot(inputs), self.limits)[1]

    def stop(self, reason: str, inputs: HostInputs) -> Decision:
        """Halt with a target of 0, whatever the agent asks for."""
        halt = RiskDecision(HALTED, reason, 0.0)
        return self._decide(self.risk_state, halt, self.risk_state.agent_target, inputs, None)

    def resume(self) -> None:
        """Lift a halt by losses: they are counted from here on."""
        self.risk_state = resume(self.risk_state)

    def state(self) -> dict[str, Any]:
        """What the next step depends on besides the last bars, for the journal."""
        return {
            **self._origin(),
            "limits": self.limits._asdict(),
            "agent": self.agent.state(),
            "account": self._account.tolist(),
            "risk_state": self.risk_state._asdict(),
            "last_decision": self.last_decision._asdict() if self.last_decision else None,
        }

    def restore(self, state: dict[str, Any], bars: list[Bar]) -> None:
        """Set the state that was saved after the last of `bars`; ModelError if another model or instrument saved it."""
        for what, value in self._origin().items():
            if state[what] != value:
                raise ModelError(
                    f"{what} {value:.16}: the journal is of {state[what]:.16}; another {what} begins in another --out"
                )
        self.limits = RiskLimits(**state["limits"])
        self.agent.restore(state["agent"], bars)
        self._account[:] = state["account"]
        risk_state, decision = RiskState(**state["risk_state"]), state["last_decision"]
        self.risk_state = risk_state._replace(target_changes_ns=tuple(risk_state.target_changes_ns))
        self.last_decision = Decision(**decision) if decision else None
        self.last_bar = bars[-1] if bars else None

    def _origin(self) -> dict[str, str]:
        return {"model": self._loaded.sha256, "instrument": self._loaded.market_spec.profile.symbol}

    def net_pips(self) -> float:
        """Profit in pips if the open position were closed at the last bar."""
        account, bars = self._account.copy(), self.agent.bars
        close_out(account, self._trade.copy(), bars, len(bars.time) - 1, self._market)
        return float(account[ACC_EQUITY] / self._market.pip_px)

    def _fill_target(self) -> None:
        """Fill the published target at the open of the newest bar."""
        bars, side = self.agent.bars, self._account[ACC_SIDE]
        target_side = (self.risk_state.target > 0) - (self.risk_state.target < 0)
        action = HOLD if target_side == side else CLOSE if target_side == 0 else BUY if target_side > 0 else SELL
        self._trade[EXIT_BAR] = -1
        if len(bars.time) > 1:
            self._step(self._account, self._trade, bars, len(bars.time) - 2, action, self._market)

    def _snapshot(self, inputs: HostInputs) -> MarketSnapshot:
        return MarketSnapshot(
            now_ns=inputs.now_ns,
            close_ns=self.last_bar.time if self.last_bar else inputs.now_ns,
            interval_ns=self._market.interval_ns,
            weekly_close=self._weekly_close,
            trained_ns=self._loaded.trained_ns,
            equity=float(self._account[ACC_EQUITY] / self._market.pip_px),
            trade_profit=0.0,
            spread=0.0,
            feature_drift=0.0,
            halt_requested=inputs.halt,
            position_fault=inputs.position_fault,
        )

    def _decide(
        self,
        risk_state: RiskState,
        risk_decision: RiskDecision,
        agent_target: float,
        inputs: HostInputs,
        bar: Bar | None,
    ) -> Decision:
        risk_state = apply_limits(risk_state, agent_target, risk_decision, inputs.now_ns)
        self.risk_state = risk_state._replace(target=risk_state.target + 0.0)  # no -0
        self.last_decision = Decision(
            seq=self.last_decision.seq + 1 if self.last_decision else 1,
            row=self.agent.decision_row(bar, 0) if bar else [],
            target=self.risk_state.target,
            state=risk_decision.state,
            reason=target_reason(self.risk_state, risk_decision),
            decided_ns=inputs.now_ns,
            close_ns=self.last_bar.time if self.last_bar else inputs.now_ns,
        )
        return self.last_decision
