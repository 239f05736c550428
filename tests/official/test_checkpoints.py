import os
import re
import signal
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from official import checkpoints, distribution, optimizers
from official.checkpoints import Checkpoints, DamagedError
from official.errors import RunError
from tests import replicas


class Net(keras.Model):
    """Layers in nested lists: what tf.train.Checkpoint(model=...) loses."""

    def __init__(self, filters=3, layers=2):
        super().__init__(name="net")
        self.grid = [
            [
                keras.layers.Conv2D(filters, 3, padding="same", name=f"conv_{i}_{j}")
                for j in range(2)
            ]
            for i in range(layers)
        ]
        self.norm = keras.layers.BatchNormalization(name="norm.of_net")
        self.build((None, 5, 5, 2))

    def build(self, shape):
        for row in self.grid:
            for layer in row:
                layer.build(shape)
                shape = layer.compute_output_shape(shape)
        self.norm.build(shape)
        self.built = True

    def call(self, x):
        for row in self.grid:
            for layer in row:
                x = layer(x)
        return self.norm(x, training=True)


def everything(seed, filters=3, layers=2):
    """A network with its optimizer, every variable with random values."""
    keras.utils.set_random_seed(seed)
    net = Net(filters, layers)
    optimizer = optimizers.sgd(0.1, l2=1e-4)
    optimizer.build(net.trainable_variables)
    groups = {"weights": net.variables, "optimizer": optimizer.variables}
    rng = np.random.default_rng(seed)
    for variable in all_of(groups):
        variable.assign(
            rng.integers(1, 100, variable.shape)
            if variable.dtype == "int64"
            else rng.normal(size=variable.shape).astype(np.float32)
        )
    return net, optimizer, groups


def all_of(groups):
    return [variable for variables in groups.values() for variable in variables]


def values_of(groups):
    return [variable.numpy() for variable in all_of(groups)]


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_all_differ(left, right):
    for a, b in zip(left, right, strict=True):
        assert not np.array_equal(a, b)


def test_restores_every_variable_of_a_differently_initialised_model(tmp_path):
    _, _, saved = everything(1)
    # 4 convolutions' kernels and biases, BN's 4; momenta of the 8 + 2 trainable ones, 2 scalars.
    assert len(saved["weights"]) == 12 and len(saved["optimizer"]) == 12
    assert Checkpoints(str(tmp_path), saved).save(7) == str(tmp_path / "ckpt-7")
    _, _, other = everything(2)
    assert_all_differ(values_of(saved), values_of(other))
    assert Checkpoints(str(tmp_path), other).restore() == 7
    assert_equal(values_of(saved), values_of(other))


def test_without_a_checkpoint_the_step_is_0(tmp_path):
    _, _, groups = everything(1)
    before = values_of(groups)
    run = Checkpoints(str(tmp_path / "not" / "there"), groups)
    assert run.latest() is None
    assert run.restore() == 0
    assert_equal(values_of(groups), before)
    with pytest.raises(RunError, match="no checkpoint in"):
        run.restore(str(tmp_path))
    with pytest.raises(RunError, match=r"no checkpoint .*ckpt-9: "):
        run.restore(str(tmp_path / "ckpt-9"))


def test_keeps_the_newest_and_restores_any_of_them(tmp_path):
    _, _, groups = everything(1)
    run = Checkpoints(str(tmp_path), groups, keep=2)
    variable = groups["weights"][0]
    for step in (10, 20, 30):
        variable.assign(tf.fill(variable.shape, float(step)))
        run.save(step)
    assert sorted(path.name for path in tmp_path.glob("*.index")) == [
        "ckpt-20.index",
        "ckpt-30.index",
    ]
    # By prefix, by the index file's name, by directory, and the newest of the run.
    for path, step in (
        (tmp_path / "ckpt-20", 20),
        (tmp_path / "ckpt-20.index", 20),
        (tmp_path, 30),
        (None, 30),
    ):
        assert run.restore(path and str(path)) == step
        assert variable.numpy().flat[0] == step
    # A new object goes on where the old one stopped, and still deletes the old ones.
    Checkpoints(str(tmp_path), groups, keep=2).save(40)
    assert sorted(path.name for path in tmp_path.glob("*.index")) == [
        "ckpt-30.index",
        "ckpt-40.index",
    ]


def test_a_step_is_not_saved_twice(tmp_path):
    _, _, groups = everything(1)
    run = Checkpoints(str(tmp_path), groups)
    path = Path(run.save(5) + ".index")
    before = path.stat().st_mtime_ns
    assert run.save(5) == str(tmp_path / "ckpt-5")
    assert path.stat().st_mtime_ns == before


def test_going_on_from_an_earlier_step_replaces_what_came_after(tmp_path):
    _, _, groups = everything(1)
    run = Checkpoints(str(tmp_path), groups)
    for step in (5, 10):
        run.save(step)
    index = tmp_path / "ckpt-10.index"
    index.write_bytes(b"damaged")
    again = Checkpoints(str(tmp_path), everything(2)[2])
    assert again.restore(str(tmp_path / "ckpt-5")) == 5
    again.save(10)
    assert index.read_bytes() != b"damaged"
    assert Checkpoints(str(tmp_path), everything(3)[2]).restore() == 10


def test_what_is_not_finite_is_not_saved(tmp_path):
    _, _, groups = everything(1)
    run = Checkpoints(str(tmp_path), groups)
    run.save(5)
    group, variables = next(iter(groups.items()))
    variables[0].assign(tf.fill(variables[0].shape, np.nan))
    with pytest.raises(RunError, match=f"{group}: .* is not finite after step 6"):
        run.save(6)
    assert run.latest() == str(tmp_path / "ckpt-5")


@pytest.mark.parametrize("content", [None, "", "not what TensorFlow writes"])
def test_the_file_that_names_the_newest_is_lost(tmp_path, content):
    _, _, groups = everything(1)
    run = Checkpoints(str(tmp_path), groups)
    for step in (5, 10):  # in the order of the alphabet, ckpt-5 would be the last
        run.save(step)
    (tmp_path / "checkpoint").unlink()
    if content is not None:
        (tmp_path / "checkpoint").write_text(content)
    assert Checkpoints(str(tmp_path), groups).restore() == 10
    assert checkpoints.find(str(tmp_path)) == str(tmp_path / "ckpt-10")


def test_a_moved_directory(tmp_path):
    _, _, groups = everything(1)
    Checkpoints(str(tmp_path / "a"), groups).save(3)
    (tmp_path / "a").rename(tmp_path / "b")
    assert checkpoints.restore(str(tmp_path / "b"), groups) == 3


def test_weights_alone(tmp_path):
    _, _, saved = everything(1)
    Checkpoints(str(tmp_path), saved).save(3)
    _, _, other = everything(2)
    optimizer = [variable.numpy() for variable in other["optimizer"]]
    assert checkpoints.restore(str(tmp_path), {"weights": other["weights"]}) == 3
    assert_equal(values_of({"": saved["weights"]}), values_of({"": other["weights"]}))
    assert_equal(values_of({"": other["optimizer"]}), optimizer)


def test_an_optional_group_may_be_missing_as_a_whole_only(tmp_path):
    zero, one, two = (tf.Variable(0.0, name=name) for name in ("zero", "one", "two"))
    Checkpoints(str(tmp_path / "a"), {"g": [zero]}).save(1)
    Checkpoints(str(tmp_path / "b"), {"g": [zero], "scale": [one]}).save(1)
    groups = {"g": [zero], "scale": [one, two]}
    assert checkpoints.restore(str(tmp_path / "a"), groups, optional=["scale"]) == 1
    assert checkpoints.restore(str(tmp_path / "b"), {"g": [zero], "scale": []}, optional=["scale"])
    for path, optional, lacking in (("a", [], 2), ("b", ["scale"], 1)):
        with pytest.raises(RunError, match=rf"{lacking} variable\(s\) that it lacks \(.*two"):
            checkpoints.restore(str(tmp_path / path), groups, optional=optional)


@pytest.mark.parametrize(
    ("filters", "layers", "message"),
    [
        # 3 more rows would be 3 * 2 * 2 variables, and as many momenta.
        (3, 5, r"24 variable\(s\) that it lacks \(weights: net/conv_2_0/kernel, .*, \.\.\.\)"),
        (3, 1, r"8 variable\(s\) that only it has \(weights: net/conv_1_0/bias, "),
        (
            4,
            2,
            r"of another shape .*weights: net/conv_0_0/kernel \(3, 3, 2, 3\), not \(3, 3, 2, 4\)",
        ),
    ],
)
def test_another_network(tmp_path, filters, layers, message):
    _, _, saved = everything(1)
    run = Checkpoints(str(tmp_path), saved)
    run.save(3)
    _, _, other = everything(2, filters, layers)
    before = values_of(other)
    with pytest.raises(RunError, match=message) as caught:
        checkpoints.restore(str(tmp_path), other)
    assert "\n" not in str(caught.value) and str(tmp_path / "ckpt-3") in str(caught.value)
    assert_equal(values_of(other), before)


def test_shapes(tmp_path):
    Checkpoints(str(tmp_path), everything(1)[2]).save(3)
    shapes = checkpoints.read_shapes(str(tmp_path), "weights")
    assert len(shapes) == 12
    assert shapes["net/conv_0_0/kernel"] == (3, 3, 2, 3) and shapes["net/norm.of_net/gamma"] == (3,)
    assert checkpoints.read_shapes(str(tmp_path / "ckpt-3"), "average") == {}
    with pytest.raises(RunError, match="there is no checkpoint"):
        checkpoints.read_shapes(str(tmp_path / "ckpt-4"), "weights")


def test_untouched_variables_may_have_any_shape(tmp_path):
    _, _, saved = everything(1)
    Checkpoints(str(tmp_path), saved).save(3)
    _, _, other = everything(2)
    weights = [*other["weights"][:-1], tf.Variable([7.0, 8.0], name=other["weights"][-1].path)]
    checkpoints.restore(str(tmp_path), {"weights": weights}, untouched=weights[-1:])
    assert_equal(values_of({"": weights[:-1]}), values_of({"": saved["weights"][:-1]}))
    np.testing.assert_array_equal(weights[-1], [7, 8])
    # Any other that does not fit is an error, and no variable changes then.
    before = values_of({"": weights})
    with pytest.raises(RunError, match=r"1 variable\(s\) of another shape"):
        checkpoints.restore(str(tmp_path), {"weights": weights}, untouched=weights[:-1])
    more = [*weights, tf.Variable(1.0, name="new")]
    with pytest.raises(RunError, match=r"1 variable\(s\) that it lacks \(weights: new\)"):
        checkpoints.restore(str(tmp_path), {"weights": more}, untouched=weights[-1:])
    assert_equal(values_of({"": weights}), before)


def test_another_type(tmp_path):
    Checkpoints(str(tmp_path), {"g": [tf.Variable(1, name="v")]}).save(1)
    with pytest.raises(RunError, match="g: v int32, not float32"):
        checkpoints.restore(str(tmp_path), {"g": [tf.Variable(1.0, name="v")]})


def test_paths_must_be_unique_within_a_group(tmp_path):
    twins = [tf.Variable(1.0, name="a/v"), tf.Variable(2.0, name="a/v")]
    with pytest.raises(ValueError, match=r"'g'.*a/v"):
        Checkpoints(str(tmp_path), {"g": twins})
    with pytest.raises(ValueError, match="several groups"):
        Checkpoints(str(tmp_path), {"g": twins[:1], "h": twins[:1]})
    Checkpoints(str(tmp_path), {"g": twins[:1], "h": twins[1:]}).save(1)
    twins[0].assign(5.0)
    checkpoints.restore(str(tmp_path), {"g": twins[:1], "h": twins[1:]})
    assert [float(v) for v in twins] == [1.0, 2.0]


def damage(path, how):
    # Early in the file: its end is a description of the objects, which restoring does not need.
    content = bytearray(path.read_bytes())
    place = len(content) // 8
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(content[:place])
    else:
        content[place] ^= 0xFF
        path.write_bytes(content)


@pytest.mark.parametrize("file", ["ckpt-4.index", "ckpt-4.data-00000-of-00001"])
@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "a flipped bit"])
def test_a_damaged_checkpoint_changes_nothing(tmp_path, file, how):
    _, _, saved = everything(1)
    Checkpoints(str(tmp_path), saved).save(4)
    damage(tmp_path / file, how)
    _, _, other = everything(2)
    before = values_of(other)
    with pytest.raises(RunError, match=re.escape(str(tmp_path))) as caught:
        checkpoints.restore(str(tmp_path / "ckpt-4"), other)
    assert "\n" not in str(caught.value)
    assert_equal(values_of(other), before)


def test_not_a_checkpoint_of_this_project(tmp_path):
    path = tf.train.Checkpoint(v=tf.Variable(1.0)).write(str(tmp_path / "other"))
    with pytest.raises(RunError, match=r"other .*not written by this project"):
        checkpoints.restore(path, {"g": []})


def test_saving_fails_in_one_line(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    _, _, groups = everything(1)
    with pytest.raises(RunError, match=r"cannot save the checkpoint of step 1 in .*file"):
        Checkpoints(str(tmp_path / "file" / "run"), groups).save(1)


def test_loss_scaled_and_plain_optimizers_share_their_state(tmp_path):
    def optimizer(wrap):
        variable = keras.Variable(np.float32([1, 2]), name="kernel")
        result = wrap(optimizers.sgd(0.1, l2=0.0))
        result.build([variable])
        result.apply([tf.constant([1.0, 1.0])])
        return result

    def groups(result):
        return {
            "optimizer": optimizers.rule_variables(result),
            "loss_scale": optimizers.loss_scale_variables(result),
        }

    plain, scaled = optimizer(lambda result: result), optimizer(optimizers.with_loss_scale)
    assert len(groups(plain)["optimizer"]) == 3  # iteration, learning rate, one momentum
    assert len(groups(scaled)["loss_scale"]) == 2
    scaled.dynamic_scale.assign(8.0)
    for name, saved, other in (("a", scaled, plain), ("b", plain, scaled), ("c", scaled, scaled)):
        wanted = values_of({"": groups(saved)["optimizer"]})
        Checkpoints(str(tmp_path / name), groups(saved)).save(1)
        for variable in groups(other)["optimizer"]:
            variable.assign(tf.zeros_like(variable))
        checkpoints.restore(str(tmp_path / name), groups(other), optional=["loss_scale"])
        assert_equal(values_of({"": groups(other)["optimizer"]}), wanted)
    assert scaled.dynamic_scale.numpy() == 8.0


@pytest.mark.parametrize("inside", [True, False])
def test_between_one_device_and_two_replicas(tmp_path, two_replicas, inside):
    with two_replicas.scope():
        _, _, mirrored = everything(1)
    _, _, single = everything(2)
    wanted = values_of(single)

    def restore(path, groups):
        if not inside:
            return checkpoints.restore(path, groups)
        with two_replicas.scope():
            return checkpoints.restore(path, groups)

    Checkpoints(str(tmp_path / "one"), single).save(3)
    assert restore(str(tmp_path / "one"), mirrored) == 3
    for replica in range(2):
        copies = [
            two_replicas.experimental_local_results(v.value)[replica].numpy()
            for v in all_of(mirrored)
        ]
        assert_equal(copies, wanted)
    if inside:
        with two_replicas.scope():
            Checkpoints(str(tmp_path / "two"), mirrored).save(4)
    else:
        Checkpoints(str(tmp_path / "two"), mirrored).save(4)
    _, _, single = everything(5)
    assert checkpoints.restore(str(tmp_path / "two"), single) == 4
    assert_equal(values_of(single), wanted)


def train(directory, path, seed):
    """Goes on from the checkpoint `path` to step 4, saving every second one; returns all values."""
    distribution.make_deterministic(seed)
    net, optimizer, groups = everything(seed)
    run = Checkpoints(directory, groups)
    for step in range(run.restore(path), 4):
        x = tf.random.stateless_normal([2, 5, 5, 2], [0, step])
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.tanh(net(x)) ** 2)
        optimizer.apply(tape.gradient(loss, net.trainable_variables))
        if step % 2 == 1:
            run.save(step + 1)
    return values_of(groups)


def test_resuming_in_a_new_process_gives_the_same_bits(tmp_path):
    whole = replicas.run_in_new_process(train, str(tmp_path), None, 1)
    # With another seed: all of the state must come from the checkpoint.
    resumed = replicas.run_in_new_process(train, str(tmp_path), str(tmp_path / "ckpt-2"), 9)
    assert_equal(whole, resumed)
    assert len(whole) == 24 and all(np.all(np.isfinite(value)) for value in whole)


def save_forever(directory):
    """Saves steps 1, 2, ... with all values equal to the step, until killed."""
    variables = [tf.Variable(tf.zeros([1_000_000]), name=f"v{i}") for i in range(4)]
    run = Checkpoints(directory, {"g": variables}, keep=2)
    step = run.restore()
    while True:
        step += 1
        for variable in variables:
            variable.assign(tf.fill(variable.shape, float(step)))
        run.save(step)


def test_killed_while_saving(tmp_path):
    variables = [tf.Variable(tf.zeros([1_000_000]), name=f"v{i}") for i in range(4)]
    process = replicas.start_in_new_process(save_forever, str(tmp_path))
    try:
        deadline = time.monotonic() + 120
        # Kill it in the middle: the temporary folder is there.
        while not (list(tmp_path.glob("*.index")) and list(tmp_path.glob(".unfinished/*"))):
            assert process.poll() is None and time.monotonic() < deadline
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    # For certain, whatever the kill left; the last two are of earlier versions.
    (tmp_path / ".unfinished").mkdir(exist_ok=True)
    (tmp_path / ".unfinished" / "ckpt-7.index").write_text("half")
    (tmp_path / "ckpt-99999_temp").mkdir()
    (tmp_path / "checkpoint.tmp123").touch()
    run = Checkpoints(str(tmp_path), {"g": variables}, keep=2)
    left = {path.name for path in tmp_path.iterdir()}
    assert not left & {".unfinished", "ckpt-99999_temp", "checkpoint.tmp123"}
    step = run.restore()
    assert step >= 1
    for variable in variables:
        np.testing.assert_array_equal(variable, np.full(1_000_000, step, np.float32))
    run.save(step + 1)
    assert run.restore() == step + 1


def three(directory):
    """Checkpoints of steps 1, 2 and 3, and the values of each."""
    _, _, groups = everything(1)
    run, values = Checkpoints(str(directory), groups), {}
    for step in (1, 2, 3):
        groups["weights"][0].assign(tf.fill(groups["weights"][0].shape, float(step)))
        run.save(step, note=f"of {step}")
        values[step] = values_of(groups)
    return values


@pytest.mark.parametrize("file", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "a flipped bit"])
def test_the_newest_that_is_whole_is_taken(tmp_path, capsys, file, how):
    values = three(tmp_path)
    damage(tmp_path / f"ckpt-3.{file}", how)
    _, _, groups = everything(2)
    run = Checkpoints(str(tmp_path), groups)
    assert (run.restore(), run.step, run.note) == (2, 2, "of 2")
    assert_equal(values_of(groups), values[2])
    warned = "ckpt-3 is damaged" in capsys.readouterr().err
    assert warned == ((file, how) != ("index", "missing"))  # then there is none
    # Going on, it takes the damaged one's place, which is whole then.
    assert [Path(p).name for p in run.set_aside(2)] == (["ckpt-3"] if warned else [])
    run.save(3)
    assert Checkpoints(str(tmp_path), everything(3)[2]).restore() == 3
    assert checkpoints.find(str(tmp_path)) == str(tmp_path / "ckpt-3")


def test_where_none_is_whole_a_run_starts_and_others_fail(tmp_path, capsys):
    three(tmp_path)
    for path in tmp_path.glob("*.index"):
        damage(path, "truncated")
    _, _, groups = everything(2)
    before = values_of(groups)
    run = Checkpoints(str(tmp_path), groups)
    assert run.restore() == 0
    assert "no checkpoint in" in capsys.readouterr().err.splitlines()[-1]
    assert_equal(values_of(groups), before)
    with pytest.raises(checkpoints.DamagedError, match=r"no checkpoint in .* is whole"):
        checkpoints.restore_newest(str(tmp_path), groups)
    with pytest.raises(RunError, match="ckpt-2 is damaged"):
        run.restore(str(tmp_path / "ckpt-2"))
    assert len(run.set_aside(0)) == 3 and run.latest() is None


def test_no_flipped_byte_of_the_index_is_believed(tmp_path):
    wanted = np.float32([1, 2, 3])
    variable = tf.Variable(wanted, name="v")
    run = Checkpoints(str(tmp_path), {"g": [variable]})
    run.save(1)
    path = tmp_path / "ckpt-1.index"
    whole = path.read_bytes()
    harmless = []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        variable.assign(tf.zeros(3))
        try:
            step = checkpoints.restore(str(tmp_path / "ckpt-1"), {"g": [variable]})
        except RunError:
            np.testing.assert_array_equal(variable, np.zeros(3))
            continue
        harmless.append(place)  # unused bytes of the footer, or of what is not read
        assert step == 1
        np.testing.assert_array_equal(variable, wanted)
    assert len(harmless) < len(whole) / 4


@pytest.mark.parametrize("name", ["ckpt-abc", "ckpt-12-backup", "ckpt-", "other-99", "ckpt-9.9"])
def test_files_of_others_are_not_looked_at(tmp_path, name):
    three(tmp_path)
    (tmp_path / f"{name}.index").write_text("foreign")
    run = Checkpoints(str(tmp_path), everything(2)[2], keep=2)
    assert run.restore() == 3
    run.save(4)
    assert (tmp_path / f"{name}.index").read_text() == "foreign"


def test_what_cannot_be_read_back_is_not_saved(tmp_path, monkeypatch):
    three(tmp_path)
    run = Checkpoints(str(tmp_path), everything(2)[2])

    def fails(prefix):
        assert Path(f"{prefix}.index").exists() and ".unfinished" in prefix
        raise checkpoints.DamagedError("torn")

    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(checkpoints, "verify", fails)
    with pytest.raises(RunError, match=r"cannot save the checkpoint of step 4 .*torn"):
        run.save(4)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert run.latest() == str(tmp_path / "ckpt-3")


def test_the_index_comes_last_and_goes_first(tmp_path, monkeypatch):
    steps = []
    for name in ("replace", "remove"):
        function = getattr(os, name)

        def noted(*paths, name=name, function=function):
            if os.path.basename(paths[-1]).startswith("ckpt-"):
                steps.append((name, os.path.basename(paths[-1]).partition(".")[2][:5]))
            return function(*paths)

        monkeypatch.setattr(os, name, noted)
    run = Checkpoints(str(tmp_path), everything(1)[2], keep=1)
    run.save(1)
    run.save(2)
    saved = [("replace", "data-"), ("replace", "index")]
    assert steps == [*saved, *saved, ("remove", "index"), ("remove", "data-")]


def test_the_best_is_kept_beside_the_newest(tmp_path):
    _, _, groups = everything(1)
    run, variable = Checkpoints(str(tmp_path), groups, keep=2), groups["weights"][0]
    assert run.best_step() is None
    for step in range(1, 7):
        variable.assign(tf.fill(variable.shape, float(step)))
        run.save(step)
        if step in (1, 3):
            run.save_best(step)
    assert sorted(path.stem for path in tmp_path.glob("*.index")) == ["best-3", "ckpt-5", "ckpt-6"]
    assert run.best_step() == 3
    assert checkpoints.restore_newest(str(tmp_path / "best"), groups) == (
        str(tmp_path / "best-3"),
        3,
    )
    assert variable.numpy().flat[0] == 3.0
    assert run.restore() == 6  # the best is not the newest, whatever its step
    run.set_aside(4)
    assert (run.latest(), run.best_step()) == (None, 3)
    run.set_aside(2, ("ckpt", "best"))
    assert run.best_step() is None
    aside = sorted(path.stem for path in (tmp_path / checkpoints.SET_ASIDE).glob("*.index"))
    assert aside == ["best-3", "ckpt-5", "ckpt-6"]
    # They can be gone back to.
    assert run.restore(str(tmp_path / checkpoints.SET_ASIDE / "ckpt-5")) == 5
    with pytest.raises(RunError, match=r"there is no checkpoint .*best"):
        checkpoints.find(str(tmp_path / "best"))


def test_files_that_may_not_be_read_are_not_called_damaged(tmp_path, monkeypatch):
    three(tmp_path)
    damage(tmp_path / "ckpt-3.data-00000-of-00001", "empty")
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("3.index"))
    with pytest.raises(RunError, match=r"ckpt-3\.index may not be read") as caught:
        Checkpoints(str(tmp_path), everything(2)[2]).restore()
    assert not isinstance(caught.value, checkpoints.DamagedError)


def test_who_reads_beside_a_run_always_finds_a_whole_one(tmp_path):
    variables = [tf.Variable(tf.zeros([1_000_000]), name=f"v{i}") for i in range(4)]
    process = replicas.start_in_new_process(save_forever, str(tmp_path))
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*.index")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        steps = []
        while len(set(steps)) < 8:
            steps.append(checkpoints.restore_newest(str(tmp_path), {"g": variables})[1])
            for variable in variables:
                np.testing.assert_array_equal(variable, np.full(1_000_000, steps[-1], np.float32))
            assert process.poll() is None and time.monotonic() < deadline
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert steps == sorted(steps)


def test_an_index_that_tells_of_more_than_the_data_hold(tmp_path):
    # 400 MB that are claimed, 100 bytes that are there.
    huge = tf.Variable(tf.zeros([10**8]), name="huge")
    prefix = tf.train.Checkpoint(huge=huge).write(str(tmp_path / "ckpt-1"))
    with open(f"{prefix}.data-00000-of-00001", "r+b") as file:
        file.truncate(100)
    with pytest.raises(DamagedError, match=r"damaged .* tells of 4000000\d\d bytes and has 100"):
        checkpoints.verify(prefix)
