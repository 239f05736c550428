import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from official.errors import RunError
from official.evaluation import (
    Evaluator,
    average_probabilities,
    compute_scores,
    format_class_table,
    write_metrics,
)

VOID = 255
NAMES = ["sky", "road", "car"]
SIZES = [(7, 9), (12, 5), (8, 8), (1, 6), (7, 9)]


def stand_in(classes: int = 3) -> keras.Model:
    """One 3x3 convolution in the place of a network."""
    image = keras.Input([None, None, 3])
    scaled = keras.layers.Rescaling(1 / 127.5, -1.0)(image)
    conv = keras.layers.Conv2D(classes, 3, padding="same", kernel_initializer="random_normal")
    return keras.Model(image, conv(scaled), name="stand_in_of_one_convolution")


def examples(sizes=SIZES, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "image": rng.integers(0, 256, (1, *size, 3), np.uint8),
            "label": rng.choice(np.array([0, 1, 2, VOID], np.uint8), (1, *size)),
        }
        for size in sizes
    ]


def as_dataset(elements) -> tf.data.Dataset:
    signature = {
        "image": tf.TensorSpec([1, None, None, 3], tf.uint8),
        "label": tf.TensorSpec([1, None, None], tf.uint8),
    }
    dataset = tf.data.Dataset.from_generator(lambda: iter(elements), output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(elements)))


def settings(strategy=None, **more):
    strategy = strategy or tf.distribute.OneDeviceStrategy("CPU:0")
    return {"class_names": NAMES, "ignore_label": VOID, "strategy": strategy, **more}


def evaluate(model, images, **settings):
    metrics, _ = Evaluator(model, **settings)(images)
    return metrics


def count(model, elements) -> np.ndarray:
    """The confusion matrix in plain NumPy."""
    confusion = np.zeros((3, 3), np.int64)
    for element in elements:
        predicted = np.argmax(model(element["image"].astype(np.float32)), -1)
        valid = element["label"] != VOID
        np.add.at(confusion, (element["label"][valid], predicted[valid]), 1)
    return confusion


def test_metrics_are_those_of_the_argmax_of_the_logits():
    model, elements = stand_in(), examples()
    confusion = count(model, elements)
    iou = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
    metrics, counts = Evaluator(model, **settings())(as_dataset(elements))
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, confusion)
    np.testing.assert_array_equal(metrics["per_class_iou"], iou)
    assert metrics["pixel_accuracy"] == np.trace(confusion) / confusion.sum()
    assert metrics["num_images"] == 5
    assert (metrics["scales"], metrics["flip"]) == ([1.0], False)


def test_one_trace_serves_all_sizes_and_later_evaluations():
    evaluator = Evaluator(stand_in(), **settings())
    first, _ = evaluator(as_dataset(examples()))
    assert evaluator(as_dataset(examples()))[0] == first
    assert evaluator(as_dataset(examples([(3, 4)], seed=1)))[0] != first
    assert evaluator.step.experimental_get_tracing_count() == 1


def test_later_evaluations_see_changed_weights():
    model = stand_in()
    evaluator = Evaluator(model, **settings())
    evaluator(as_dataset(examples()))
    model.set_weights([0 * model.weights[0], np.float32([0, 9, 0])])  # always class 1
    assert evaluator(as_dataset(examples()))[0]["per_class_iou"][0::2] == [0.0, 0.0]


def test_a_plain_callable_is_a_model():
    model = stand_in()
    answer = evaluate(lambda images: model(images), as_dataset(examples()), **settings())
    assert answer == evaluate(model, as_dataset(examples()), **settings())


@pytest.mark.parametrize("more", [{}, {"scales": (0.5, 1.0), "flip": True}])
def test_two_replicas_and_their_void_padding_equal_one_device(two_replicas, more):
    elements = examples()
    with two_replicas.scope():
        model = stand_in()
    expected, expected_counts = Evaluator(model, **settings(**more))(as_dataset(elements))
    padding = {**elements[0], "label": np.full_like(elements[0]["label"], VOID)}
    evaluator = Evaluator(model, **settings(two_replicas, **more))
    metrics, counts = evaluator(as_dataset([*elements, padding]))
    assert metrics == expected and expected["num_images"] == 5
    np.testing.assert_array_equal(counts, expected_counts)
    assert evaluator.step.experimental_get_tracing_count() == 1


def test_what_is_shown_is_what_is_counted(two_replicas):
    elements = [
        {**element, "filename": np.array([f"{number}.png".encode()], object)}
        for number, element in enumerate(examples([(7, 9), (12, 5), (8, 8), (1, 6)]))
    ]
    signature = {
        "image": tf.TensorSpec([1, None, None, 3], tf.uint8),
        "label": tf.TensorSpec([1, None, None], tf.uint8),
        "filename": tf.TensorSpec([1], tf.string),
    }
    images = tf.data.Dataset.from_generator(lambda: iter(elements), output_signature=signature)
    images = images.apply(tf.data.experimental.assert_cardinality(len(elements)))
    with two_replicas.scope():
        model = stand_in()
    # Of four images, those at 0/3, 1/3 and 2/3; of two replicas' two turns, the first one's.
    for strategy, names in (
        (None, ["0.png", "1.png", "2.png"]),
        (two_replicas, ["0.png", "2.png"]),
    ):
        shown = []
        evaluator = Evaluator(model, **settings(strategy, show=shown.append))
        for number in range(2):
            assert evaluator(images)[0] == Evaluator(model, **settings())(images)[0]
            assert [sample.name for sample in shown[number]] == names
        for sample in shown[0]:
            element = elements[int(sample.name[0])]
            np.testing.assert_array_equal(sample.image, element["image"][0])
            np.testing.assert_array_equal(sample.truth, element["label"][0])
            answer = np.argmax(model(element["image"].astype(np.float32))[0], -1)
            np.testing.assert_array_equal(sample.prediction, answer)


def test_scores_of_one_scale_are_the_logits_bit_for_bit():
    model, image = stand_in(), examples()[0]["image"]
    for scales in ((1.0,), [1.0], (1,)):
        found = compute_scores(model, image, 3, scales=scales, flip=False)
        np.testing.assert_array_equal(found, model(image.astype(np.float32)))

    # exp(1e-9) and exp(2e-9) are both 1 in float32: a softmax would make a tie, and class 0 win it.
    def close(images):
        return tf.stack([0 * images[..., 0] + 1e-9, 0 * images[..., 0] + 2e-9], -1)

    scores = compute_scores(close, image, 2, scales=[1.0], flip=False)
    assert (np.argmax(scores, -1) == 1).all()
    softened = average_probabilities(close, image, 2, scales=[1.0], flip=False)
    assert (np.argmax(softened, -1) == 0).all()


def slow_resize(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with aligned corners, pixel by pixel, of float64 [H, W, C]."""
    out = np.empty((height, width, x.shape[2]))
    for i in range(height):
        for j in range(width):
            # The position on the old grid, whose corners are those of the new one.
            y = i * (x.shape[0] - 1) / (height - 1) if height > 1 else 0.0
            z = j * (x.shape[1] - 1) / (width - 1) if width > 1 else 0.0
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, x.shape[0] - 1), min(z0 + 1, x.shape[1] - 1)
            above = (1 - (z - z0)) * x[y0, z0] + (z - z0) * x[y0, z1]
            below = (1 - (z - z0)) * x[y1, z0] + (z - z0) * x[y1, z1]
            out[i, j] = (1 - (y - y0)) * above + (y - y0) * below
    return out


@pytest.mark.parametrize("flip", [False, True])
def test_scales_and_flip_equal_a_slow_reference(flip):
    model, image = stand_in(), examples()[0]["image"]
    scales = (0.5, 0.75, 1.0, 1.75)
    sides = {
        0.5: (4, 5),
        0.75: (5, 7),
        1.0: (7, 9),
        1.75: (11, 15),
    }  # round(6 s) + 1, round(8 s) + 1
    answers = []
    for scale in scales:
        scaled = slow_resize(image[0].astype(np.float64), *sides[scale])
        for step in (1, -1) if flip else (1,):
            logits = np.asarray(model(scaled[np.newaxis, :, ::step].astype(np.float32)))[
                0, :, ::step
            ]
            grown = np.exp(slow_resize(logits.astype(np.float64), 7, 9))
            answers.append(grown / grown.sum(-1, keepdims=True))
    found = compute_scores(model, image, 3, scales=scales, flip=flip)
    np.testing.assert_allclose(found[0], np.mean(answers, axis=0), atol=1e-5)


def test_probabilities_at_scale_one_are_the_softmax():
    model, image = stand_in(), examples()[0]["image"]
    found = average_probabilities(model, image, 3, scales=(1.0,), flip=False)
    expected = tf.nn.softmax(model(image.astype(np.float32)))
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_scales_are_made_from_the_original_on_the_aligned_grid():
    seen = []

    def first_channels(images):
        seen.append(images.numpy())
        return images[..., :3] / 50.0

    # On the ramp value = 10 * column, every aligned grid holds exactly what lies between: 9 columns
    # at scale 1.5 are round(8 * 1.5) + 1 = 13 columns of 10 / 1.5 each; at 0.5, 5 of 20 each.
    ramp = np.broadcast_to(10.0 * np.arange(9), (1, 5, 9)).astype(np.float32)
    image = np.stack([ramp, 0 * ramp, 0 * ramp + 40], -1)
    found = average_probabilities(first_channels, image, 3, scales=(0.5, 1.5), flip=False)
    assert [x.shape for x in seen] == [(1, 3, 5, 3), (1, 7, 13, 3)]
    np.testing.assert_allclose(seen[0][0, 0, :, 0], 20 * np.arange(5), atol=1e-4)
    np.testing.assert_allclose(seen[1][0, 0, :, 0], 10 / 1.5 * np.arange(13), atol=1e-4)
    # The logits are linear in the column too, so both scales come back to those of the image.
    np.testing.assert_allclose(found, tf.nn.softmax(image / 50.0), atol=1e-5)


def test_flip_makes_the_answer_symmetric():
    model, image = stand_in(), examples()[1]["image"]
    options = {"scales": (1.0, 1.25), "flip": True}
    straight = average_probabilities(model, image, 3, **options)
    mirrored = average_probabilities(model, image[:, :, ::-1], 3, **options)
    np.testing.assert_allclose(straight, mirrored[:, :, ::-1], atol=1e-5)
    alone = average_probabilities(model, image, 3, scales=(1.0, 1.25), flip=False)
    assert np.abs(straight - alone).max() > 1e-3


def test_images_without_any_label_are_an_error_and_do_not_count():
    elements = examples()
    elements[2]["label"][:] = VOID
    assert evaluate(stand_in(), as_dataset(elements), **settings())["num_images"] == 4
    with pytest.raises(RunError, match="labelled pixel"):
        evaluate(stand_in(), as_dataset(elements[2:3]), **settings())


def test_other_number_of_classes_is_one_clear_line():
    with pytest.raises(RunError, match="has 4 classes, the data 3") as caught:
        evaluate(stand_in(classes=4), as_dataset(examples()), **settings())
    assert "\n" not in str(caught.value)


def test_table_and_file(tmp_path):
    # Labels 0 0 0 1, predictions 0 0 1 1, class 2 nowhere: IoU 2/3, 1/2 and none.
    label = np.array([[[0, 0, 0, 1]]], np.uint8)
    image = np.array([0, 0, 9, 9], np.uint8)[None, None, :, None].repeat(3, -1)
    metrics, counts = Evaluator(
        lambda x: tf.stack([5 - x[..., 0], x[..., 0] - 5, 0 * x[..., 0] - 99], -1), **settings()
    )(as_dataset([{"image": image, "label": label}]))
    assert counts.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    rows = [re.split(r"  +", row) for row in format_class_table(metrics).splitlines()]
    assert ["sky", "66.67"] in rows and ["road", "50.00"] in rows and ["car", "-"] in rows
    assert ["mIoU", "58.33"] in rows  # (2/3 + 1/2) / 2
    assert ["(mIoU + pixel accuracy) / 2", "66.67"] in rows  # (7/12 + 3/4) / 2

    path = tmp_path / "metrics.json"
    path.write_text("older")
    write_metrics(path, metrics)
    assert json.loads(path.read_text()) == metrics
    assert set(metrics) == {
        *("class_names", "per_class_iou", "miou", "miou_present", "pixel_accuracy"),
        *("mean_accuracy", "miou_pixel_accuracy_mean", "num_images", "scales", "flip"),
    }
    assert json.loads(path.read_text())["per_class_iou"][2] is None
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
