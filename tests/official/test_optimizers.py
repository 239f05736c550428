import keras
import numpy as np
import pytest
import tensorflow as tf

from official import distribution, optimizers, schedules
from official.training_step import minimize

L2 = 0.25


class Variables:
    """Two layers' worth of variables; w and b are what tests look at."""

    def __init__(self):
        self.w = keras.Variable(np.float32([[2, -4]]), name="kernel")
        self.b = keras.Variable(np.float32([1]), name="bias")
        self.all = [self.w, self.b]


def steps_on_one_device(optimizer, gradients, variables=None):
    variables = variables or Variables()
    optimizer.build(variables.all)
    for gradient in gradients:
        optimizer.apply([tf.constant(g) for g in gradient])
    return variables.w.numpy(), variables.b.numpy()


def steps_on_two_replicas(strategy, make_optimizer, gradients):
    """gradients: per step, per replica, per variable. Returns both replicas' w and b."""
    with strategy.scope():
        variables = Variables()
        optimizer = make_optimizer()
        optimizer.build(variables.all)

    @tf.function
    def step(*gradients):
        strategy.run(lambda *g: optimizer.apply(list(g)), gradients)

    def parts(gradients, index):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(gradients[context.replica_id_in_sync_group][index])
        )

    for of_replicas in gradients:
        step(*(parts(of_replicas, index) for index in range(2)))
    values = [
        [copy.numpy() for copy in strategy.experimental_local_results(v.value)]
        for v in variables.all
    ]
    return values, optimizer


GRADIENTS = [
    [np.float32([[1, 0]]), np.float32([3])],
    [np.float32([[-2, 0.5]]), np.float32([0.5])],
]


def reference_sgd(w, gradients, rates, momentum, l2):
    velocity = np.zeros_like(w)
    for gradient, rate in zip(gradients, rates, strict=True):
        velocity = momentum * velocity - rate * (gradient + l2 * w)
        w = w + velocity
    return w


def reference_adam(w, gradients, rate, l2, betas=(0.9, 0.999)):
    m, v = np.zeros_like(w), np.zeros_like(w)
    one, two = betas
    for t, gradient in enumerate(gradients, start=1):
        gradient = gradient + l2 * w
        m = one * m + (1 - one) * gradient
        v = two * v + (1 - two) * gradient**2
        w = w - rate * (m / (1 - one**t)) / (np.sqrt(v / (1 - two**t)) + 1e-7)
    return w


def reference_clip(gradients, limit):
    """The gradients of one step, all of its variables."""
    norm = np.sqrt(sum(np.sum(gradient.astype(np.float64) ** 2) for gradient in gradients))
    return [gradient * min(1.0, limit / norm) for gradient in gradients]


def test_sgd_by_hand():
    # Step 1: v = -0.5 (1 + 0.25 * 2) = -0.75, w = 1.25.
    # Step 2: v = 0.9 * -0.75 - 0.5 (-2 + 0.25 * 1.25) = 0.16875, w = 1.41875.
    w, _ = steps_on_one_device(optimizers.sgd(0.5, 0.9, l2=L2), GRADIENTS)
    assert w[0, 0] == pytest.approx(1.41875, rel=1e-6)


def test_sgd_with_a_schedule_equals_the_formula():
    rates = [0.4, 0.2]  # a straight line from 0.4 at step 0 to 0 at step 2
    schedule = schedules.polynomial(0.4, 2, power=1.0)
    w, b = steps_on_one_device(optimizers.sgd(schedule, 0.9, l2=L2), GRADIENTS)
    start = Variables()
    for value, first, index in ((w, start.w, 0), (b, start.b, 1)):
        gradients = [gradient[index] for gradient in GRADIENTS]
        expected = reference_sgd(first.numpy(), gradients, rates, 0.9, L2)
        np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("betas", [None, (0.5, 0.999), (0.0, 0.9)])
def test_adam_equals_the_formula(betas):
    options = {} if betas is None else {"betas": betas}
    w, b = steps_on_one_device(optimizers.adam(0.1, l2=L2, **options), GRADIENTS)
    start = Variables()
    for value, first, index in ((w, start.w, 0), (b, start.b, 1)):
        gradients = [gradient[index] for gradient in GRADIENTS]
        expected = reference_adam(first.numpy(), gradients, 0.1, L2, **options)
        np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_adams_coupled_decay_differs_from_decoupled_decay():
    w, _ = steps_on_one_device(optimizers.adam(0.1, l2=L2), GRADIENTS)
    decoupled = keras.optimizers.AdamW(0.1, weight_decay=L2, epsilon=1e-7)
    other, _ = steps_on_one_device(decoupled, GRADIENTS)
    assert np.abs(other - w).max() > 0.01


def test_only_kernels_decay():
    zero = [[np.zeros((1, 2), np.float32), np.zeros(1, np.float32)]]
    optimizer = optimizers.sgd(0.5, l2=L2, decays=optimizers.is_kernel)
    w, b = steps_on_one_device(optimizer, zero)
    # With gradient 0: w - rate * l2 * w = w * (1 - 0.5 * 0.25).
    np.testing.assert_array_equal(w, np.float32([[2, -4]]) * 0.875)
    assert b == 1


def test_the_rate_of_some_variables_times_a_factor(two_replicas):
    # Coupled L2 and momentum included: the rate is all that is multiplied.
    factors = {"kernel": 10.0, "bias": 1.0}

    def make():
        return optimizers.sgd(0.1, 0.9, l2=L2, rate_factor=lambda v: factors[v.path])

    one = steps_on_one_device(make(), GRADIENTS)
    # Each replica gives half of every gradient.
    halves = [[[g / 2 for g in gradient]] * 2 for gradient in GRADIENTS]
    two, _ = steps_on_two_replicas(two_replicas, make, halves)
    start = Variables()
    for index, (value, copies, first) in enumerate(zip(one, two, start.all, strict=True)):
        gradients = [gradient[index].astype(np.float64) for gradient in GRADIENTS]
        rate = 0.1 * factors[first.path]
        expected = reference_sgd(first.numpy().astype(np.float64), gradients, [rate] * 2, 0.9, L2)
        for actual in (value, *copies):
            np.testing.assert_allclose(actual, expected, rtol=1e-6)


# Clipping. The norms of GRADIENTS' steps are sqrt(1 + 9) = 3.2 and sqrt(4 + 0.25 + 0.25) = 2.1: a
# limit of 2.5 clips the first alone.

LIMIT = 2.5
WRAPS = [lambda optimizer: optimizer, optimizers.with_loss_scale]


def clipped_steps(make):
    """w and b after GRADIENTS, of which all but l2 * w is clipped, by the plain formulas."""
    start = Variables()
    clipped = [reference_clip(gradients, LIMIT) for gradients in GRADIENTS]
    return [
        reference_sgd(first.numpy(), [g[index] for g in clipped], [0.1] * 2, 0.9, L2)
        if make is optimizers.sgd
        else reference_adam(first.numpy(), [g[index] for g in clipped], 0.1, L2)
        for index, first in enumerate(start.all)
    ]


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("make", [optimizers.sgd, optimizers.adam])
def test_clipping_on_one_device_equals_the_formula(make, wrap):
    optimizer = wrap(make(0.1, l2=L2, gradient_clip_norm=LIMIT))
    # The loss' gradients are 2^15 times as large under float16's scaling; their norm is not.
    scale = 2.0**15 if wrap is optimizers.with_loss_scale else 1.0
    actual = steps_on_one_device(optimizer, [[g * scale for g in step] for step in GRADIENTS])
    for value, expected in zip(actual, clipped_steps(make), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("make", [optimizers.sgd, optimizers.adam])
def test_two_replicas_clip_the_sum_of_their_gradients(two_replicas, make, wrap):
    # 3 g + 1 and -2 g - 1 are both longer than their sum g, and than the limit in either step: had
    # they been clipped by themselves, or by their own norms, the result would be another.
    scale = 2.0**15 if wrap is optimizers.with_loss_scale else 1.0
    parts = [
        [[(3 * g + 1) * scale for g in step], [(-2 * g - 1) * scale for g in step]]
        for step in GRADIENTS
    ]
    values, _ = steps_on_two_replicas(
        two_replicas, lambda: wrap(make(0.1, l2=L2, gradient_clip_norm=LIMIT)), parts
    )
    for copies, expected in zip(values, clipped_steps(make), strict=True):
        np.testing.assert_array_equal(copies[0], copies[1])
        np.testing.assert_allclose(copies[0], expected, rtol=1e-5)


@pytest.mark.parametrize("make", [optimizers.sgd, optimizers.adam])
def test_a_norm_within_the_limit_changes_no_bit(two_replicas, make):
    # float32(41) * float32(1 / 41) is not 1: what multiplies by both would be seen.
    assert np.float32(41) * (np.float32(1) / np.float32(41)) != 1
    gradients = [
        [part.astype(np.float32) for part in (rng.normal(size=(1, 2)), rng.normal(size=1))]
        for rng in map(np.random.default_rng, range(4))
    ]
    shares = [[[g / 4 for g in step], [g * np.float32(0.7) for g in step]] for step in gradients]
    results = [
        (
            steps_on_one_device(make(0.1, l2=L2, gradient_clip_norm=limit), gradients),
            steps_on_two_replicas(
                two_replicas,
                lambda limit=limit: make(0.1, l2=L2, gradient_clip_norm=limit),
                shares,
            )[0],
        )
        for limit in (None, 41.0)
    ]
    for unclipped, clipped in zip(*results, strict=True):
        for one, other in zip(unclipped, clipped, strict=True):
            np.testing.assert_array_equal(one, other)


def test_clipping_in_a_step_that_xla_compiles_whole():
    variables = Variables()
    optimizer = optimizers.sgd(0.1, l2=L2, gradient_clip_norm=LIMIT)
    optimizer.build(variables.all)
    step = tf.function(lambda *g: optimizer.apply(list(g)), jit_compile=True, autograph=False)
    for gradients in GRADIENTS:
        step(*map(tf.constant, gradients))
    for variable, expected in zip(variables.all, clipped_steps(optimizers.sgd), strict=True):
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5)


def test_clipping_outside_the_passes_that_xla_compiles_on_two_replicas(two_replicas):
    with two_replicas.scope():
        variables = Variables()
        optimizer = optimizers.sgd(0.1, l2=L2, gradient_clip_norm=LIMIT)
        optimizer.build(variables.all)

    def replica_step(*gradients):
        # A linear loss, whose gradients are the ones wanted: 3/4 of them and 1/4.
        index = tf.distribute.get_replica_context().replica_id_in_sync_group
        share = 0.75 - 0.5 * tf.cast(index, tf.float32)

        def forward():
            pairs = zip(variables.all, gradients, strict=True)
            return share * sum(tf.reduce_sum(v.value * g) for v, g in pairs), ()

        minimize(forward, variables.all, optimizer, jit_compile=True)

    step = tf.function(lambda *g: two_replicas.run(replica_step, g), autograph=False)
    for gradients in GRADIENTS:
        step(*map(tf.constant, gradients))
    for variable, expected in zip(variables.all, clipped_steps(optimizers.sgd), strict=True):
        for copy in two_replicas.experimental_local_results(variable.value):
            np.testing.assert_allclose(copy, expected, rtol=1e-5)


def test_is_kernel():
    layers = [
        keras.layers.Conv2D(2, 3, name="kernel_of_truth"),
        keras.layers.SeparableConv2D(2, 3),
        keras.layers.DepthwiseConv2D(3),
        keras.layers.BatchNormalization(),
    ]
    names = []
    for layer in layers:
        layer.build((None, 4, 4, 2))
        names += [v.path.split("/")[-1] for v in layer.variables if optimizers.is_kernel(v)]
    assert names == ["kernel", "depthwise_kernel", "pointwise_kernel", "kernel"]


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("make", [optimizers.sgd, optimizers.adam])
def test_two_replicas_equal_one_device(two_replicas, make, wrap):
    scale = 2.0**15 if wrap is optimizers.with_loss_scale else 1.0
    # Each replica gives its share of the sum; the shares differ.
    shares = [
        [[0.25 * g * scale for g in gradient], [0.75 * g * scale for g in gradient]]
        for gradient in GRADIENTS
    ]
    two, _ = steps_on_two_replicas(two_replicas, lambda: wrap(make(0.1, l2=L2)), shares)
    one = steps_on_one_device(make(0.1, l2=L2), GRADIENTS)
    for copies, expected in zip(two, one, strict=True):
        np.testing.assert_array_equal(copies[0], copies[1])
        np.testing.assert_allclose(copies[0], expected, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("replica", [0, 1])
def test_a_non_finite_gradient_on_one_replica_skips_the_step_on_both(two_replicas, replica, bad):
    scale = 2.0**15
    good = [[g * scale / 2 for g in GRADIENTS[0]]] * 2
    spoilt = [[g.copy() for g in gradient] for gradient in good]
    spoilt[replica][0][0, 1] = bad
    # After the skipped step the scale is 2^14: the same gradients count twice.
    good_after = [[g / 2 for g in gradient] for gradient in good]
    make = lambda: optimizers.with_loss_scale(optimizers.sgd(0.1, l2=L2))  # noqa: E731
    values, optimizer = steps_on_two_replicas(two_replicas, make, [spoilt, good_after])
    expected = steps_on_one_device(optimizers.sgd(0.1, l2=L2), GRADIENTS[:1])
    for copies, value in zip(values, expected, strict=True):
        for copy in copies:
            np.testing.assert_allclose(copy, value, rtol=1e-6)
    for copy in two_replicas.experimental_local_results(optimizer.dynamic_scale.value):
        assert copy.numpy() == 2.0**14
    assert optimizer.iterations.numpy() == 1


def test_loss_scale_on_one_device():
    optimizer = optimizers.with_loss_scale(optimizers.sgd(0.1, l2=0.0))
    variables = Variables()
    optimizer.build(variables.all)
    before = variables.w.numpy()

    @tf.function
    def step(gradient):
        optimizer.apply([gradient, tf.zeros([1])])

    step(tf.constant([[np.inf, 1.0]]))
    np.testing.assert_array_equal(variables.w, before)
    assert float(optimizer.scale_loss(1.0)) == 2.0**14
    step(tf.constant([[2.0**14, 0.0]]))
    np.testing.assert_allclose(variables.w, before - [[0.1, 0.0]], rtol=1e-6)
    assert float(optimizers.sgd(0.1, l2=0.0).scale_loss(1.0)) == 1.0


class Products(keras.layers.Layer):
    """A factor for each value: every processor can compute it in float16, but not convolutions."""

    def build(self, shape):
        self.kernel = self.add_weight(
            shape=shape[1:],
            initializer=keras.initializers.RandomNormal(seed=1),
            name="kernel",
        )

    def call(self, x):
        return x * self.kernel


def step_of_a_small_network(strategy, precision):
    """The change of a kernel by a step on a global batch of 4; per replica."""
    images = np.random.default_rng(1).normal(size=(4, 6, 6, 2)).astype(np.float32)
    before = keras.config.dtype_policy()
    distribution.set_precision(precision)
    try:
        with strategy.scope():
            layer = Products()
            layer.build((None, 6, 6, 2))
            optimizer = optimizers.sgd(1e5, l2=0.0)
            if precision == "float16":
                optimizer = optimizers.with_loss_scale(optimizer)
            optimizer.build(layer.trainable_variables)
        start = layer.kernel.numpy()

        def replica_step(images):
            with tf.GradientTape() as tape:
                # 1e-6: unscaled, the gradients would lie below float16's smallest normal, 6e-5.
                loss = 1e-6 * tf.reduce_sum(tf.cast(layer(images), tf.float32) ** 2) / 4
                loss = optimizer.scale_loss(loss)
            optimizer.apply(tape.gradient(loss, layer.trainable_variables))

        size = 4 // strategy.num_replicas_in_sync
        batch = strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                images[size * context.replica_id_in_sync_group :][:size], layer.compute_dtype
            )
        )
        tf.function(lambda batch: strategy.run(replica_step, (batch,)))(batch)
    finally:
        keras.config.set_dtype_policy(before)
    copies = strategy.experimental_local_results(layer.kernel.value)
    return [copy.numpy() - start for copy in copies]


def test_float16_step_of_a_network_on_one_and_two_replicas(two_replicas):
    one_device = tf.distribute.OneDeviceStrategy("CPU:0")
    expected = step_of_a_small_network(one_device, "float32")[0]
    for strategy in (one_device, two_replicas):
        for change in step_of_a_small_network(strategy, "float16"):
            # float16 is good to 2^-11 = 5e-4 relative; a few roundings, sums of four terms.
            np.testing.assert_allclose(change, expected, atol=0.01 * np.abs(expected).max())


def test_graph_of_a_step_stays_small():
    # The super-net has about 1000 variables, and tracing costs some 0.2 ms an operation. SGD needs
    # 17 operations for a variable: v and w read and assigned, three products, two sums, ...
    variables = [keras.Variable(tf.ones([2, 2]), name=f"v{i}_kernel") for i in range(50)]
    optimizer = optimizers.sgd(0.1, l2=1e-4)
    optimizer.build(variables)
    step = tf.function(lambda *gradients: optimizer.apply(list(gradients)))
    graph = step.get_concrete_function(*[tf.TensorSpec([2, 2])] * 50).graph
    assert len(graph.get_operations()) <= 20 * 50
