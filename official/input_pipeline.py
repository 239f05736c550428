"""From records to batches, deterministic and with random access.

Example `number` of a run is a pure function of (seed, stream, number): which record it is, and how
it is scaled, cropped and flipped. So a run resumes at any step at no cost, and one device sees what
many see.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from official import preprocessing
from official.errors import RunError, UsageError
from official.records import Description, explain, index_records, parse_example, read_record

_INT64_MAX = np.iinfo(np.int64).max


def steps_per_epoch(num_records: int, batch_size: int) -> int:
    """Full batches in one pass over the records."""
    return num_records // batch_size


def example_seed(seed: int, stream: int, number: tf.Tensor) -> tf.Tensor:
    """The int64 [2] seed of example `number` (int64 scalar) of one stream of a run."""
    fold_in = tf.random.experimental.stateless_fold_in
    return fold_in(fold_in(tf.constant([0, seed], tf.int64), tf.constant(stream, tf.int64)), number)


def split_halves(num_records: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits record numbers 0..num_records-1 by seed into two disjoint halves of equal size.

    With an odd number one record is left out. Each half is int64 [num_records // 2], ascending.

    Raises:
      RunError: fewer than two records.
    """
    if num_records < 2:
        raise RunError(f"a split of {num_records} records cannot be halved")
    half = num_records // 2
    # TensorFlow promises that a stateless generator gives the same numbers in every version.
    order = tf.random.experimental.stateless_shuffle(
        tf.range(num_records, dtype=tf.int64), seed=tf.constant([seed, 1], tf.int64)
    ).numpy()
    return np.sort(order[:half]), np.sort(order[half : 2 * half])


def check_crop_size(
    description: Description, split: str, crop_size: tuple[int, int], scales: Sequence[float]
) -> None:
    """Raises UsageError if no image of the split fills the crop, even at the largest scale."""
    largest = max(scales)
    sides = np.array([size[:2] for size in description.split(split).sizes])
    sides = preprocessing.scaled_side(sides, largest).numpy()
    if not np.any(np.all(sides >= crop_size, axis=1)):
        height, width = sides[np.argmax(sides.min(axis=1))]
        raise UsageError(
            f"--crop_size={crop_size[0]},{crop_size[1]} is larger than every image of split "
            f"{split!r} of {description.data_dir}, even at the largest scale {largest:g} (the "
            f"largest is {height} x {width} then): choose a smaller crop"
        )


def train_batches(
    description: Description,
    split: str,
    *,
    seed: int,
    batch_size: int,
    crop_size: tuple[int, int],
    scales: Sequence[float],
    random_crop: bool,
    flip: bool,
    records: np.ndarray | None = None,
    stream: int = 0,
    start_step: int = 0,
    input_context: Any = None,
) -> tf.data.Dataset:
    """Endless shuffled, augmented batches.

    An epoch is `steps_per_epoch` full batches in an order of its own; what does not fill a batch is
    left out of that epoch.

    Args:
      description: the data directory's description.
      split: name of the split.
      seed: the run's seed.
      batch_size: global batch size.
      crop_size: (height, width).
      scales: scale factors to choose from; see `preprocessing.augment`.
      random_crop: whether to crop anywhere, not in the middle.
      flip: whether to mirror at random.
      records: int64 [n], numbers of the records to use; None for all.
      stream: tells apart several streams of one run (trainA, trainB) that have the same seed.
      start_step: the global step whose batch comes first.
      input_context: the tf.distribute.InputContext that `distribute_datasets_from_function` gives;
        then the batches are per replica, and replica r gets examples [r b, (r + 1) b) of each
        global batch.

    Returns:
      Dataset of {"image": float32 [b, h, w, 3], "label": int32 [b, h, w], "number": int64 [b]},
      where b is the batch size per replica and number is the example's place in the endless stream.

    Raises:
      UsageError: the batch is larger than the number of records.
    """
    chosen, read = _reader(description, split)
    if records is not None:
        chosen = np.asarray(records, np.int64)
    steps = steps_per_epoch(len(chosen), batch_size)
    if steps == 0:
        raise UsageError(
            f"--batch_size={batch_size} is larger than the {len(chosen)} images to train on (split "
            f"{split!r} of {description.data_dir}): choose a smaller batch"
        )
    pipelines = input_context.num_input_pipelines if input_context else 1
    pipeline = input_context.input_pipeline_id if input_context else 0
    replicas = input_context.num_replicas_in_sync if input_context else 1
    local_batch = batch_size // pipelines
    chosen_tensor = tf.constant(chosen)

    def stream_number(i: tf.Tensor) -> tf.Tensor:
        # Example i of this input pipeline -> its place in the stream of global batches.
        return i // local_batch * batch_size + pipeline * local_batch + i % local_batch

    def example(number: tf.Tensor) -> dict[str, tf.Tensor]:
        epoch, place = number // (steps * batch_size), number % (steps * batch_size)
        order_seed = example_seed(seed, stream, epoch)
        record = tf.random.experimental.index_shuffle(place, order_seed, len(chosen) - 1)
        image, label, _ = read(chosen_tensor[record])
        image, label = preprocessing.augment(
            image,
            label,
            example_seed(seed, stream, number),
            crop_size=crop_size,
            scales=scales,
            random_crop=random_crop,
            flip=flip,
            ignore_label=description.ignore_label,
        )
        return {"image": image, "label": label, "number": number}

    dataset = tf.data.Dataset.range(start_step * local_batch, _INT64_MAX)
    dataset = dataset.map(stream_number).map(
        example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return dataset.batch(batch_size // replicas, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def distributed_batches(
    strategy: tf.distribute.Strategy, description: Description, split: str, **options: Any
) -> Iterator[Any]:
    """What `train_batches` gives for the other `options`, to all replicas of a strategy, endlessly.

    Raises:
      RunError: a record cannot be used.
    """
    iterator = iter(
        strategy.distribute_datasets_from_function(
            lambda context: train_batches(description, split, input_context=context, **options)
        )
    )
    while True:
        try:
            batch = next(iterator)
        except tf.errors.OpError as error:
            raise data_error(error, description) from None
        yield batch


def eval_images(
    description: Description,
    split: str,
    *,
    max_images: int | None = None,
    multiple_of: int = 1,
) -> tf.data.Dataset:
    """Whole images, one at a time, in the records' order.

    Args:
      description: the data directory's description.
      split: name of the split.
      max_images: if given and smaller than the split, this many evenly spaced records are taken.
      multiple_of: the number of elements is rounded up to a multiple of it with copies of the first
        image whose label is void everywhere: every replica always has work, and no result changes.

    Returns:
      Finite dataset of {"image": uint8 [1, H, W, 3], "label": uint8 [1, H, W],
      "filename": string [1]}.
    """
    chosen, read = _reader(description, split)
    total = len(chosen)
    if max_images is not None and max_images < total:
        chosen = chosen[np.arange(max_images) * total // max_images]
    padding = -len(chosen) % multiple_of
    is_copy = np.repeat([False, True], [len(chosen), padding])
    chosen = np.concatenate([chosen, np.repeat(chosen[:1], padding)])

    def example(record: tf.Tensor, copy: tf.Tensor) -> dict[str, tf.Tensor]:
        image, label, filename = read(record)
        void = tf.fill(tf.shape(label), tf.constant(description.ignore_label, tf.uint8))
        return {"image": image, "label": tf.where(copy, void, label), "filename": filename}

    dataset = tf.data.Dataset.from_tensor_slices((chosen, is_copy))
    dataset = dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(1).prefetch(tf.data.AUTOTUNE)


def data_error(error: tf.errors.OpError, description: Description) -> RunError:
    """The one-line error for what an iterator over `train_batches` or `eval_images` raised."""
    return RunError(
        f"{description.data_dir}: {explain(error)} "
        "(python -m tfrecords_tools.check names every bad record)"
    )


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a PNG or JPEG file (scalar string) to uint8 [H, W, 3]."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def decode_label(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a PNG file of one 8-bit channel (scalar string) to uint8 [H, W]."""
    return tf.io.decode_png(encoded, channels=1)[..., 0]


def _reader(description: Description, split: str) -> tuple[np.ndarray, Any]:
    """All record numbers of a split, and a function record number -> (image, label, filename)."""
    described = description.split(split)
    file_numbers, offsets = index_records(described.files)
    if len(offsets) != described.num_examples:
        raise RunError(
            f"{description.data_dir}: split {split!r} has {len(offsets)} records, but its "
            f"description says {described.num_examples}: convert the dataset again"
        )
    files, file_of, offset_of = map(tf.constant, (described.files, file_numbers, offsets))

    def read(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        parsed = parse_example(read_record(files[file_of[record]], offset_of[record]))
        image, label = decode_image(parsed["image"]), decode_label(parsed["label"])
        with tf.control_dependencies(_check(image, label, parsed["filename"], description)):
            return tf.identity(image), tf.identity(label), parsed["filename"]

    return np.arange(len(offsets), dtype=np.int64), read


def _check(
    image: tf.Tensor, label: tf.Tensor, filename: tf.Tensor, description: Description
) -> list[tf.Operation]:
    """Asserts that the label map fits its image and that each value is a class or void."""
    classes, void = description.num_classes, description.ignore_label
    bad = (label >= classes) & (label != void)
    worst = tf.strings.as_string(tf.reduce_max(tf.where(bad, label, tf.zeros_like(label))))
    wrong_size = tf.strings.join([filename, ": the label map has another size than the image"])
    wrong_label = tf.strings.join(
        [filename, ": label ", worst, f" is neither 0..{classes - 1} nor {void} (void)"]
    )
    fits = tf.reduce_all(tf.shape(image)[:2] == tf.shape(label))
    return [
        tf.debugging.Assert(fits, [wrong_size]),
        tf.debugging.Assert(tf.logical_not(tf.reduce_any(bad)), [wrong_label]),
    ]
