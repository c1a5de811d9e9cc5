"""The exported graphs give what the trainer's own forward gives, whatever the batch."""

import numpy as np

from host.onnx_check import widths
from kernels.ort import Session, check, evaluate
from models import net, unroll
from models.export import export
from models.layers import decode
from tests.test_unroll import SHAPE, K, lively, random_batch


def run(graph: bytes, x: np.ndarray) -> np.ndarray:
    width_in, width_out = widths(graph)
    net = Session(graph).bind(width_in, width_out, [len(x)])
    net.x[:] = x
    check(evaluate(net, len(x)))
    return net.y.copy()


def test_graphs_equal_the_forward_of_the_trainer() -> None:
    batch, flat, n = random_batch(6, SHAPE, K), lively().astype(np.float32), 6
    work = unroll.new_work(SHAPE, n, K)
    unroll.fill_inputs(work, batch, 0)
    unroll.forward(work, net.views(flat, SHAPE), batch.x)
    sides = np.random.default_rng(0).normal(size=(3, SHAPE.position)).astype(np.float32)
    graphs, D = export(flat, SHAPE, 3, sides), SHAPE.latent
    root = run(graphs["root"], np.concatenate([batch.x, batch.position[:, 0]], axis=1))
    value = decode(work.value, SHAPE.value_limit)
    expected = np.concatenate([work.latent[0], work.policy[:n], value[:n, None], work.code[:n]], axis=1)
    np.testing.assert_allclose(root, expected, atol=1e-5)
    after = run(graphs["afterstate"], work.after_in[:n])
    after_value = decode(work.after_value, SHAPE.value_limit)
    expected = np.concatenate([work.latent[0], work.code[:n], after_value[:n, None]], axis=1)
    np.testing.assert_allclose(after, expected, atol=1e-5)
    moved = run(graphs["dynamics"], work.gain_in[:n])
    reward = decode(work.reward, SHAPE.reward_limit)[:n, None]
    after_step = slice(n, 2 * n)
    expected = np.concatenate(
        [work.latent[1], reward, work.policy[after_step], value[after_step, None]], axis=1
    )
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    market = run(graphs["market"], work.gain_in[:n, : D + SHAPE.codes])
    np.testing.assert_allclose(
        market[:, : D + SHAPE.codes],
        np.concatenate([work.latent[1], work.code[after_step]], axis=1),
        atol=1e-5,
    )
    for slot in range(3):  # what the trainer's own heads say of the same latent in each of these positions
        work.predict_in[after_step, D:] = sides[slot]
        hidden = np.maximum(
            work.predict_in[after_step] @ net.views(flat, SHAPE).predict_w + net.views(flat, SHAPE).predict_b,
            0,
        )
        bins = hidden @ net.views(flat, SHAPE).value_w + net.views(flat, SHAPE).value_b
        np.testing.assert_allclose(
            market[:, D + SHAPE.codes + slot], decode(bins, SHAPE.value_limit), atol=1e-4
        )
    told = np.concatenate([work.gain_in[:n, : D + SHAPE.codes], np.tile(sides.ravel(), (n, 1))], axis=1)
    np.testing.assert_allclose(run(export(flat, SHAPE, 3)["market"], told), market, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch() -> None:
    shape = net.Shape(features=300)
    rng = np.random.default_rng(0)
    for name, graph in export(net.new_params(shape, 3), shape, 6).items():
        x = rng.normal(size=(512, widths(graph)[0])).astype(np.float32)
        together = run(graph, x)
        for rows in (1, 7, 8, 64):
            np.testing.assert_array_equal(run(graph, x[:rows]), together[:rows], err_msg=name)
        x[1::2] *= 1e3  # what the other rows hold
        np.testing.assert_array_equal(run(graph, x)[::2], together[::2], err_msg=name)


def test_equal_weights_give_equal_bytes() -> None:
    flat = net.new_params(SHAPE, 0)
    assert export(flat, SHAPE, 4) == export(flat.copy(), SHAPE, 4)
    assert export(flat, SHAPE, 4) != export(net.new_params(SHAPE, 1), SHAPE, 4)
