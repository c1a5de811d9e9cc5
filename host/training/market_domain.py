"""`MarketDomain`: the bars of one instrument or of several, as what a `Trainer` learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.config import SHARED_TREE, Config, ConfigError
from host.training.chance_calibration import ValidationPart
from host.training.chance_diagnostics import news_columns
from host.training.dataset import Dataset
from host.training.domain import MemoryRoom
from host.training.market_replay import MarketReplay, share_sizes
from kernels.learning.replay_buffer import Batch, new_replay_buffer, slice_batch
from kernels.market.position import HOLD, action_names
from kernels.search.config import ALGORITHMS, MARKET, WIDENING, SearchConfig, new_search_config
from kernels.search.progressive_widening import NUM_BETA_PARAMS, max_candidates
from models.extension import LossWeights
from models.params import ModelShape

MAX_VALUE_PER_BAR = 0.2  # mean bar ranges: no market pays more for long; a value is a discounted sum of bars
MAX_DISCOUNT = 0.999  # a larger discount would need bins without end
CODE_KINDS = 2  # of bars, which learned codes tell apart in each bin of the move
PROJECTION_FACTOR = 2  # width of the consistency loss's layers in latents


class MarketDomain:
    """Instruments of which one agent learns."""

    def __init__(self, datasets: Sequence[Dataset], config: Config) -> None:
        self.datasets, self.config = datasets, config
        self.bars = [data.train_stop for data in datasets]
        self.num_decisions = sum(self.bars)
        spec = datasets[0].market_spec
        self.position_sizes, self.mae_penalty = spec.market.sizes, spec.market.mae_penalty
        num_features = len(spec.normaliser.scale)
        self.shape = new_shape(config, num_features, len(action_names(spec.market.sizes)))
        if self.shape.chance_encoder_width:
            codes, news = CODE_KINDS * self.shape.codes, news_columns(spec.features, num_features)
            self.shape = self.shape._replace(codes=codes, kinds=CODE_KINDS, news=news)
        considered, is_widening = config.search.max_considered_actions, self.shape.num_beta_params > 0
        if considered > self.shape.actions and not is_widening:
            raise ConfigError(f"search.max_considered_actions: {considered} of {self.shape.actions} actions of a root")

    def loss_weights(self) -> LossWeights:
        """See `loss_weights`."""
        return loss_weights(self.config)

    def search_config(self, num_simulations: int, c_scale: float, q_scale: float) -> SearchConfig:
        """A search of `num_simulations` simulations with the running scale of Q; widening tries every candidate."""
        s = self.config.search
        candidates = max_candidates(s.num_sampled_sizes) if s.algorithm == ALGORITHMS[WIDENING] else 0
        return new_search_config(
            num_simulations=max(num_simulations, candidates),
            max_considered_actions=max(s.max_considered_actions, candidates),
            discount=s.discount,
            c_visit=s.c_visit,
            c_scale=c_scale,
            q_scale=q_scale,
            reverse=self.config.market.reverse,
            position_adjustment=self.config.market.position_adjustment,
            mae_penalty=self.mae_penalty,
            exact_rewards=not self.config.train.value_prefix,
            algorithm=ALGORITHMS.index(s.algorithm),
            num_sampled_sizes=s.num_sampled_sizes,
            linear_values=self.config.market.risk_aversion == 0 and self.mae_penalty == 0,
        )

    def new_replays(
        self, batches: list[Batch], shape: ModelShape, candidates: int, threads: int, room: MemoryRoom
    ) -> list[MarketReplay]:
        """A replay buffer for each instrument."""
        replays, row, L = list[MarketReplay](), 0, self.config.market.episode_length
        positions = shape.actions - 1 if shares_searches(self.config) else 1
        for data, sizes in zip(self.datasets, share_sizes(self.config.train, self.bars), strict=True):
            replay = new_replay_buffer(sizes.capacity, L, shape.actions, candidates, positions)
            rows = [slice_batch(batch, row, row + sizes.batch_size) for batch in batches]
            parts = data, self.config, sizes, replay, rows, shape, threads, room.cache_mb
            replays.append(MarketReplay(len(replays), *parts))
            row += sizes.batch_size
        return replays

    def validation_parts(self, replays: Sequence[Any], context: int, threads: int) -> list[ValidationPart]:
        """The validation part of each instrument."""
        return [ValidationPart(market.data, context, threads) for market in replays]

    def metrics(self, played: list[tuple[Any, NDArray[np.int64]]]) -> dict[str, float]:
        """Reward, exposure and entries of the episodes of this iteration."""
        rewards = np.concatenate([market.replay.reward[slots].ravel() for market, slots in played])
        actions = np.concatenate([market.replay.action[slots].ravel() for market, slots in played])
        side = np.concatenate([market.replay.position[slots][:, 1:, 0].ravel() for market, slots in played])
        return {
            "reward_per_bar": float(rewards.mean(dtype=np.float64)),
            "exposure": float((np.abs(side) > 0).mean()),
            "entries": int(np.count_nonzero((actions > HOLD) & (actions < self.shape.actions - 1))),
        }


def new_shape(config: Config, features: int, actions: int) -> ModelShape:
    """The sizes of the networks of a configuration, whose codes are kinds of one bin."""
    n = config.network
    blocks = dict[str, Any]()
    if n.dynamics == "transformer":
        blocks = {
            "num_layers": n.num_layers,
            "num_heads": n.num_heads,
            "attention_window": n.attention_window,
            "context": n.context,
        }
    return ModelShape(
        features=features,
        latent=n.latent,
        hidden=n.hidden,
        actions=actions,
        codes=n.num_chance_codes,
        value_limit=MAX_VALUE_PER_BAR / (1.0 - min(config.search.discount, MAX_DISCOUNT)),
        projector_width=PROJECTION_FACTOR * n.latent if config.train.consistency_weight > 0 else 0,
        chance_encoder_width=n.hidden if config.train.chance_codes == "learned" else 0,
        kinds=n.num_chance_codes,
        num_beta_params=NUM_BETA_PARAMS if config.search.algorithm == ALGORITHMS[WIDENING] else 0,
        value_prefix_width=n.latent if config.train.value_prefix else 0,
        **blocks,
    )


def shares_searches(config: Config) -> bool:
    """Whether one search of a bar serves every position: see kernels.learning.bar_search."""
    s = config.search
    return s.algorithm == ALGORITHMS[MARKET] and s.value_reuse == SHARED_TREE and config.market.reward == "pnl"


def loss_weights(config: Config) -> LossWeights:
    """The weights of the losses; 0 of a head that the search does not read: it would cost time and shape the latent."""
    given = {name: getattr(config.train, f"{name}_weight", None) for name in LossWeights._fields}
    if config.search.algorithm == ALGORITHMS[MARKET]:
        given |= {"reward": 0.0, "afterstate_value": 0.0}
    elif config.market.reward == "pnl" and not config.train.value_prefix:
        given |= {"reward": 0.0}
    return LossWeights(**{name: weight for name, weight in given.items() if weight is not None})
