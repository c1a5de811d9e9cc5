"""The flat vector and its views, where a network starts, and what decays."""

import numpy as np

from kernels.market.position import ACTIONS, FEATURES
from models import params as net

SHAPE = net.Shape(
    features=5, position=3, latent=6, hidden=16, actions=4, codes=5, reward_bins=9, value_bins=11, project=3
)


def test_views_cover_the_vector_once() -> None:
    flat = np.zeros(net.count(SHAPE))
    p = net.views(flat, SHAPE)
    for view in p:
        view += 1
    np.testing.assert_array_equal(flat, 1)
    assert tuple(net.sizes(SHAPE)) == net.Params._fields
    assert [view.shape for view in p] == list(net.sizes(SHAPE).values())


def test_the_defaults_are_those_of_the_market() -> None:
    shape = net.Shape(features=1)
    assert (shape.position, shape.actions) == (FEATURES, len(ACTIONS))


def test_the_position_has_columns_in_the_heads_only() -> None:
    narrow, wide = net.sizes(SHAPE), net.sizes(SHAPE._replace(position=7))
    assert {name for name in narrow if narrow[name] != wide[name]} == {"predict_w", "after_w", "gain_w"}


def test_a_transformer_takes_the_place_of_the_dynamics() -> None:
    shape = SHAPE._replace(project=0, layers=2)
    p = net.views(np.zeros(net.count(shape)), shape)._asdict()
    assert {name for name, view in p.items() if name.endswith("_w") and view.size == 0} == {
        "move_w", "next_w", "project_w", "projection_w", "guess_w", "guessed_w", "encode_w", "encoding_w",
        "meaning_w", "size_w", "prefix_w",
    }  # fmt: skip
    assert [SHAPE.state, shape.state] == [6, 1 + 6 + 2 * 2 * 6]


def test_a_seed_is_a_network() -> None:
    np.testing.assert_array_equal(net.new_params(SHAPE, 4), net.new_params(SHAPE, 4))
    assert (net.new_params(SHAPE, 4) != net.new_params(SHAPE, 5)).mean() > 0.8
    single, double = net.new_params(SHAPE, 4), net.new_params(SHAPE, 4, np.float64)
    np.testing.assert_array_equal(single, double.astype(np.float32))


def test_heads_start_near_zero_and_the_rest_at_unit_gain() -> None:
    shapes = (
        net.Shape(features=200, project=150),
        net.Shape(features=200, layers=3),
        net.Shape(features=200, encode=150, codes=600),
    )
    found = [item for s in shapes for item in net.views(net.new_params(s, 0), s)._asdict().items()]
    for name, view in found:
        if name.endswith("_b"):
            assert (view == 0).all(), name
        if name.endswith("_b") or view.size == 0:
            continue
        gain = view.std() * np.sqrt(view.shape[-2] / 2)
        expected = 0.01 if name in net.SMALL else 1.0
        np.testing.assert_allclose(gain, expected, rtol=0.1, err_msg=name)
    assert {"policy_w", "value_w", "after_value_w", "reward_w", "code_w"} <= set(net.SMALL)


def test_weights_decay_and_biases_do_not() -> None:
    for shape in (SHAPE, SHAPE._replace(project=0, layers=2)):
        for name, view in net.views(net.decays(shape, 0.1), shape)._asdict().items():
            expected = np.float32(0.1 if name.endswith("_w") else 0.0)
            np.testing.assert_array_equal(view, expected, err_msg=name)
