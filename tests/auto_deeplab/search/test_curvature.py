"""The Hessian's largest eigenvalue: of known matrices, and of the super-net's loss by alpha."""

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.search import curvature
from official import distribution
from tests.auto_deeplab.search.test_bilevel import everything, make
from tests.auto_deeplab.search.test_second_order import (
    BLOCKS,
    LAYERS,
    OPERATIONS,
    Plain,
    plain_loss,
)
from tests.auto_deeplab.training import per_replica, random_batch


@pytest.mark.parametrize("negative", [False, True])
def test_of_a_quadratic_form(negative):
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(12, 12))
    matrix = matrix @ matrix.T * (-1 if negative else 1)

    def found(iterations):
        return curvature.largest_eigenvalue(
            lambda x: (matrix @ x.ravel()).reshape(x.shape),
            rng.normal(size=(3, 4)),
            iterations=iterations,
        )

    values = [found(iterations) for iterations in (1, 3, 6, 12)]
    exact = np.linalg.eigvalsh(matrix)[-1]
    assert values == sorted(values) and values[0] < exact - 0.1
    assert values[-1] == pytest.approx(exact, rel=1e-6, abs=1e-6)


def test_of_no_curvature_and_of_few_directions():
    assert curvature.largest_eigenvalue(np.zeros_like, np.ones(5)) == 0
    # The products of one direction: the basis is full after it.
    v = np.array([3.0, 0.0, 4.0])
    value = curvature.largest_eigenvalue(lambda x: v * (v @ x), np.ones(3))
    assert value == pytest.approx(25)


@pytest.fixture(scope="module")
def search():
    search = make(distribution.make_strategy("one_device"), LAYERS, BLOCKS, OPERATIONS)
    rng = np.random.default_rng(0)
    for variable in search.architecture.variables:
        variable.assign(rng.normal(size=variable.shape))
    return search


def test_of_the_loss_by_alpha(search):
    """The exact Hessian of the plain super-net in float64 has the same, and nothing moves."""
    plain, batch = Plain(search), random_batch(1)
    alpha = plain.a[0]
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(alpha)
        with tf.GradientTape() as inner:
            inner.watch(alpha)
            loss = plain_loss(plain.weights, plain.a, batch, plain.legal)
        gradient = inner.gradient(loss, alpha)
    hessian = outer.jacobian(gradient, alpha, experimental_use_pfor=False).numpy()
    values = np.linalg.eigvalsh(hessian.reshape([tf.size(alpha)] * 2))
    before = [v.numpy() for v in everything(search)]
    found = search.measure_curvature([per_replica(distribution.make_strategy("one_device"), batch)])
    assert found == pytest.approx(values[-1], rel=0.02), values
    for variable, value in zip(everything(search), before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_two_replicas_equal_one_device(two_replicas, search):
    double = make(two_replicas, LAYERS, BLOCKS, OPERATIONS)
    for variable, value in zip(everything(double), everything(search), strict=True):
        variable.assign(value.numpy())
    one, two = random_batch(1), random_batch(2)
    device = distribution.make_strategy("one_device")
    alone = search.measure_curvature([per_replica(device, batch) for batch in (one, two)])
    both = double.measure_curvature([per_replica(two_replicas, batch) for batch in (one, two)])
    assert both == pytest.approx(alone, rel=0.02)
