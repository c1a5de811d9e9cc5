"""The flat vector and its views, where a network starts, and what decays."""

from typing import get_type_hints

import numpy as np

from kernels.market.position import ACTIONS, NUM_POSITION_FEATURES
from models import params as net
from models.shape import News

SHAPE = net.ModelShape(
    features=5, position=3, latent=6, hidden=16, actions=4, codes=5, reward_bins=9, value_bins=11, projector_width=3
)


def test_views_cover_the_vector_once() -> None:
    flat = np.zeros(net.num_params(SHAPE))
    p = net.as_views(flat, SHAPE)
    for view in vars(p).values():
        view += 1
    np.testing.assert_array_equal(flat, 1)
    assert list(net.param_shapes(SHAPE)) == list(vars(p))
    assert set(vars(p)) == set(get_type_hints(net.Params)), "each is declared, by the core or by an extension"
    assert [view.shape for view in vars(p).values()] == list(net.param_shapes(SHAPE).values())


def test_the_defaults_are_those_of_the_market() -> None:
    shape = net.ModelShape(features=1)
    assert (shape.position, shape.actions) == (NUM_POSITION_FEATURES, len(ACTIONS))


def test_the_position_has_columns_in_the_heads_only() -> None:
    narrow, wide = net.param_shapes(SHAPE), net.param_shapes(SHAPE._replace(position=7))
    assert {name for name in narrow if narrow[name] != wide[name]} == {
        "prediction_hidden_w",
        "afterstate_hidden_w",
        "reward_hidden_w",
    }


def test_a_transformer_takes_the_place_of_the_dynamics() -> None:
    shape = SHAPE._replace(projector_width=0, num_layers=2)
    p = vars(net.as_views(np.zeros(net.num_params(shape)), shape))
    assert {name for name, view in p.items() if name.endswith("_w") and view.size == 0} == {
        "dynamics_hidden_w", "dynamics_out_w", "projector_1_w", "projector_2_w", "predictor_1_w", "predictor_2_w",
        "chance_encoder_hidden_w", "chance_encoder_out_w", "beta_head_w", "lstm_w", "action_hidden_w",
        "action_out_w", "code_hidden_w", "code_out_w",
    }  # fmt: skip
    assert [SHAPE.state, shape.state] == [6, 1 + 6 + 2 * 2 * 6]


def test_a_seed_is_a_network() -> None:
    np.testing.assert_array_equal(net.new_params(SHAPE, 4), net.new_params(SHAPE, 4))
    assert (net.new_params(SHAPE, 4) != net.new_params(SHAPE, 5)).mean() > 0.8
    single, double = net.new_params(SHAPE, 4), net.new_params(SHAPE, 4, np.float64)
    np.testing.assert_array_equal(single, double.astype(np.float32))


def test_heads_start_near_zero_and_the_rest_at_unit_gain() -> None:
    shapes = (
        net.ModelShape(features=200, projector_width=150),
        net.ModelShape(features=200, num_layers=3),
        net.ModelShape(features=200, chance_encoder_width=150, codes=600, news=tuple(map(News, range(200)))),
    )
    found = [item for s in shapes for item in vars(net.as_views(net.new_params(s, 0), s)).items()]
    for name, view in found:
        if name.endswith("_b"):
            assert (view == 0).all(), name
        if name.endswith("_b") or view.size == 0:
            continue
        gain = view.std() * np.sqrt(view.shape[-2] / 2)
        expected = 0.01 if name in net.small_init() else 1.0
        np.testing.assert_allclose(gain, expected, rtol=0.1, err_msg=name)
    assert {"policy_w", "value_w", "afterstate_value_w", "reward_w", "chance_logits_w"} <= net.small_init()


def test_weights_decay_and_biases_do_not_and_those_of_the_chance_prior_decay_fourfold() -> None:
    for shape in (SHAPE, SHAPE._replace(projector_width=0, num_layers=2)):
        for name, view in vars(net.as_views(net.weight_decays(shape, 0.1), shape)).items():
            expected = np.float32(0.1 if name.endswith("_w") else 0.0)
            if name in ("chance_hidden_w", "chance_logits_w"):
                expected = np.float32(0.4)
            np.testing.assert_array_equal(view, expected, err_msg=name)


def test_param_slices_are_the_flat_vector_in_order_and_tell_the_heads_apart() -> None:
    for shape in (SHAPE, SHAPE._replace(projector_width=0, num_layers=2)):
        slices = net.param_slices(shape)
        assert [0, *(part.stop for part, _ in slices)] == [*(part.start for part, _ in slices), net.num_params(shape)]
        flat = np.zeros(net.num_params(shape))
        for part, is_head in slices:
            flat[part] = is_head
        for name, view in vars(net.as_views(flat, shape)).items():
            assert (view == (name[:-2] in net.HEADS)).all(), name
