"""From records to batches, deterministic and with random access.

Example `number` of a run is a pure function of (seed, stream, number): which record it is, and how
it is scaled, cropped and flipped. So a run resumes at any step at no cost, and one device sees what
many see.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from official import preprocessing
from official.errors import RunError, UsageError, explain
from official.images import (
    check_pixels,
    decode_image,
    decode_jpeg_window,
    decode_label,
    is_jpeg,
    jpeg_size,
)
from official.progress import Progress
from official.records import Description, index_records, parse_example, read_record

_INT64_MAX = np.iinfo(np.int64).max


def steps_per_epoch(num_records: int, batch_size: int) -> int:
    """Counts the full batches in one pass over the records."""
    return num_records // batch_size


def make_example_seed(seed: int, stream: int, number: tf.Tensor) -> tf.Tensor:
    """Makes the seed, int64 [2], of example `number` (int64 scalar) of one stream of a run."""
    fold_in = tf.random.experimental.stateless_fold_in
    return fold_in(fold_in(tf.constant([0, seed], tf.int64), tf.constant(stream, tf.int64)), number)


def pick_record(
    number: tf.Tensor, num_records: int, epoch_examples: int, seed: int, stream: int
) -> tf.Tensor:
    """Picks the record that example `number` of a stream shows.

    Within an epoch no record comes twice; each epoch has an order of its own.

    Args:
        number: int64 scalar, the example's place in the endless stream.
        num_records: how many records there are.
        epoch_examples: how many examples an epoch has, at most num_records.
        seed: the run's.
        stream: see `make_train_batches`.

    Returns:
        int64 scalar in 0..num_records-1.
    """
    order_seed = make_example_seed(seed, stream, number // epoch_examples)
    return tf.random.experimental.index_shuffle(
        number % epoch_examples, order_seed, num_records - 1
    )


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
    description: Description,
    split: str,
    crop_size: tuple[int, int],
    scales: Sequence[float],
    resize_longer_side: int | None = None,
) -> None:
    """Raises UsageError if no image of the split fills the crop, even at the largest scale.

    Args:
        description: the data directory's description.
        split: name of the split.
        crop_size, scales, resize_longer_side: as those of `preprocessing.draw_crop_positions`.
    """
    largest = max(scales)
    sides = np.array([size[:2] for size in description.split(split).sizes])
    resizing = ""
    if resize_longer_side is not None:
        sides = preprocessing.fit_longer_side(sides, resize_longer_side)
        resizing = f" after --resize_longer_side={resize_longer_side}"
    sides = preprocessing.scale_side(sides, largest).numpy()
    if not np.any(np.all(sides >= crop_size, axis=1)):
        height, width = sides[np.argmax(sides.min(axis=1))]
        raise UsageError(
            f"--crop_size={crop_size[0]},{crop_size[1]} is larger than every image of split "
            f"{split!r} of {description.data_dir}{resizing}, even at the largest scale {largest:g} "
            f"(the largest is {height} x {width} then): choose a smaller crop"
        )


def make_train_batches(
    description: Description,
    split: str,
    *,
    seed: int,
    batch_size: int,
    crop_size: tuple[int, int],
    scales: Sequence[float],
    random_crop: bool,
    flip: bool,
    resize_longer_side: int | None = None,
    records: np.ndarray | None = None,
    stream: int = 0,
    start_step: int = 0,
    cache: bool = False,
    input_context: Any = None,
) -> tf.data.Dataset:
    """Makes endless shuffled, augmented batches.

    An epoch is `steps_per_epoch` full batches in an order of its own; records that would not fill
    another batch are left out of that epoch.

    Args:
        description: the data directory's description.
        split: name of the split.
        seed: the run's seed.
        batch_size: global batch size.
        crop_size: (height, width).
        scales: scale factors to choose from; see `preprocessing.draw_crop_positions`.
        random_crop: whether to crop anywhere, not in the middle.
        flip: whether to mirror at random.
        resize_longer_side: the longer side of every image before it is scaled, or None; see
            `preprocessing.draw_crop_positions`.
        records: int64 [n], numbers of the records to use; None for all.
        stream: tells apart several streams of one run (trainA, trainB) that have the same seed.
        start_step: the global step whose batch comes first.
        cache: whether to decode all images once and keep them in memory; see
            `_read_crops_from_memory`.
        input_context: the tf.distribute.InputContext that `distribute_datasets_from_function`
            gives; then the batches are per replica, and replica r gets examples [r b, (r + 1) b) of
            each global batch.

    Returns:
        Dataset of {"image": float32 [b, h, w, 3], "label": int32 [b, h, w], "number": int64 [b]},
        where b is the batch size per replica and number is the example's place in the endless
        stream.

    Raises:
        UsageError: the batch is larger than the number of records.
    """
    chosen, read = make_record_reader(description, split)
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
    read_crop = (
        _read_crops_from_memory(description, split, chosen)
        if cache
        else _read_crops_from_files(description, read)
    )
    chosen_tensor = tf.constant(chosen)

    def stream_number(i: tf.Tensor) -> tf.Tensor:
        # Example i of this input pipeline -> its place in the stream of global batches.
        return i // local_batch * batch_size + pipeline * local_batch + i % local_batch

    def example(number: tf.Tensor) -> dict[str, tf.Tensor]:
        record = pick_record(number, len(chosen), steps * batch_size, seed, stream)

        def positions(size: tf.Tensor) -> tuple[preprocessing.Positions, preprocessing.Positions]:
            return preprocessing.draw_crop_positions(
                tf.cast(size, tf.int64),
                make_example_seed(seed, stream, number),
                crop_size=crop_size,
                scales=scales,
                random_crop=random_crop,
                flip=flip,
                resize_longer_side=resize_longer_side,
            )

        image, label = read_crop(chosen_tensor[record], positions)
        return {
            "image": tf.ensure_shape(image, [*crop_size, 3]),
            "label": tf.ensure_shape(label, crop_size),
            "number": number,
        }

    dataset = tf.data.Dataset.range(start_step * local_batch, _INT64_MAX)
    dataset = dataset.map(stream_number).map(
        example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return dataset.batch(batch_size // replicas, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def distribute_batches(
    strategy: tf.distribute.Strategy, description: Description, split: str, **options: Any
) -> Iterator[Any]:
    """Gives the batches of `make_train_batches` to all replicas of a strategy, endlessly.

    Args:
        strategy: each of its replicas gets its part of every global batch.
        description, split, options: as those of `make_train_batches`.

    Raises:
        RunError: a record cannot be used.
    """
    iterator = iter(
        strategy.distribute_datasets_from_function(
            lambda context: make_train_batches(description, split, input_context=context, **options)
        )
    )
    while True:
        try:
            batch = next(iterator)
        except tf.errors.OpError as error:
            raise make_data_error(error, description) from None
        yield batch


def name_images(
    description: Description,
    split: str,
    step: int,
    *,
    seed: int,
    batch_size: int,
    records: np.ndarray | None = None,
    stream: int = 0,
) -> list[str]:
    """The names of the images in the batch of a step, counted from 0, of `make_train_batches`."""
    chosen, read = make_record_reader(description, split)
    chosen = chosen if records is None else np.asarray(records, np.int64)
    epoch_examples = steps_per_epoch(len(chosen), batch_size) * batch_size
    return [
        read(
            tf.constant(chosen)[
                pick_record(tf.constant(number), len(chosen), epoch_examples, seed, stream)
            ]
        )["filename"]
        .numpy()
        .decode(errors="replace")
        for number in np.arange(step * batch_size, (step + 1) * batch_size)
    ]


def check_labelled(description: Description, split: str) -> None:
    """Checks that a split has a labelled pixel; it reads on until it has seen one.

    Raises:
        RunError: there is none, or a record cannot be used.
    """
    numbers, read = _make_reader(description, split)
    void = description.ignore_label
    dataset = tf.data.Dataset.from_tensor_slices(numbers).map(
        lambda number: tf.reduce_any(tf.cast(read(number)[1], tf.int32) != void),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    try:
        if any(map(bool, dataset)):
            return
    except tf.errors.OpError as error:
        raise make_data_error(error, description) from None
    raise RunError(
        f"{description.data_dir}: no image of split {split!r} has a labelled pixel (all are void, "
        f"{void}): choose another split, or convert the data with its labels"
    )


def read_eval_images(
    description: Description,
    split: str,
    *,
    max_images: int | None = None,
    multiple_of: int = 1,
) -> tf.data.Dataset:
    """Reads whole images, one at a time, in the records' order.

    Args:
        description: the data directory's description.
        split: name of the split.
        max_images: if given and smaller than the split, this many evenly spaced records are taken.
        multiple_of: the number of replicas that share the images. Copies of the first image fill
            the last turn, so that every replica has one; their label is void everywhere, so no
            result changes.

    Returns:
        Finite dataset of {"image": uint8 [1, H, W, 3], "label": uint8 [1, H, W], "filename": string
        [1]}.
    """
    chosen, read = _make_reader(description, split)
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


def make_data_error(error: tf.errors.OpError, description: Description) -> RunError:
    """Makes the one-line error of what reading a data directory has raised."""
    return RunError(
        f"{description.data_dir}: {explain(error)} "
        "(python -m tfrecords_tools.check names every bad record)"
    )


def decode_label_or_void(
    record: dict[str, tf.Tensor], size: tf.Tensor, ignore_label: int
) -> tf.Tensor:
    """Decodes the label map of a record; one that has none is void everywhere.

    Args:
        record: as of `records.parse_example`.
        size: int32 [2], (height, width) of its image.
        ignore_label: the void label.

    Returns:
        uint8 [H, W].
    """
    encoded = record["label"]
    return tf.cond(
        tf.equal(encoded, ""),
        lambda: tf.fill(size, tf.constant(ignore_label, tf.uint8)),
        lambda: decode_label(encoded, record["filename"] + ": "),
    )


def make_record_reader(description: Description, split: str) -> tuple[np.ndarray, Any]:
    """Finds the records of a split.

    Returns:
        Their numbers, int64 [n], and a function that reads one: number (int64 scalar) -> what
        `records.parse_example` gives.

    Raises:
        RunError: a file is damaged, or there are not as many as the description says.
    """
    described = description.split(split)
    file_numbers, offsets = index_records(described.files)
    if len(offsets) != described.num_examples:
        raise RunError(
            f"{description.data_dir}: split {split!r} has {len(offsets)} records, but its "
            f"description says {described.num_examples}: convert the dataset again"
        )
    files, file_of, offset_of = map(tf.constant, (described.files, file_numbers, offsets))

    def read(record: tf.Tensor) -> dict[str, tf.Tensor]:
        return parse_example(read_record(files[file_of[record]], offset_of[record]))

    return np.arange(len(offsets), dtype=np.int64), read


def _make_reader(description: Description, split: str) -> tuple[np.ndarray, Any]:
    """`make_record_reader` with a function that decodes: number -> (image, label, filename)."""
    numbers, read = make_record_reader(description, split)

    def decode(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        parsed = read(record)
        image = decode_image(parsed["image"])
        label = decode_label_or_void(parsed, tf.shape(image)[:2], description.ignore_label)
        size = tf.shape(image)[:2]
        with tf.control_dependencies(_check(size, label, parsed["filename"], description)):
            return tf.identity(image), tf.identity(label), parsed["filename"]

    return numbers, decode


# A function from an image's (height, width) to the rows and columns that its crop shows.
_PositionsOf = Callable[[tf.Tensor], tuple[preprocessing.Positions, preprocessing.Positions]]
# From a record number and that function to the crop: image float32, label int32.
_ReadCrop = Callable[[tf.Tensor, _PositionsOf], tuple[tf.Tensor, tf.Tensor]]


def _read_crops_from_files(description: Description, read: Any) -> _ReadCrop:
    """Makes a reader of crops that decodes as little as it can: a window of a JPEG, a whole PNG."""

    def read_crop(record: tf.Tensor, positions: _PositionsOf) -> tuple[tf.Tensor, tf.Tensor]:
        parsed = read(record)
        encoded = parsed["image"]

        def jpeg() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            size = jpeg_size(encoded)
            with tf.control_dependencies([check_pixels(size)]):
                rows, columns = positions(tf.identity(size))
            begin = tf.stack([tf.reduce_min(axis.lower) for axis in (rows, columns)])
            end = tf.stack([tf.reduce_max(axis.upper) for axis in (rows, columns)]) + 1
            margin = tf.constant([2, 2])  # see decode_jpeg_window
            begin = tf.maximum(tf.cast(begin, tf.int32) - margin, 0)
            end = tf.minimum(tf.cast(end, tf.int32) + margin, size)
            window = tf.concat([begin, end - begin], 0)
            return decode_jpeg_window(encoded, window), size, begin

        def other() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            image = decode_image(encoded)
            return image, tf.shape(image)[:2], tf.zeros([2], tf.int32)

        window, size, begin = tf.cond(is_jpeg(encoded), jpeg, other)
        label = decode_label_or_void(parsed, size, description.ignore_label)
        with tf.control_dependencies(_check(size, label, parsed["filename"], description)):
            rows, columns = positions(tf.identity(size))
        shifted = (
            axis._replace(lower=axis.lower - start, upper=axis.upper - start)
            for axis, start in zip(
                (rows, columns), tf.unstack(tf.cast(begin, tf.int64)), strict=True
            )
        )
        return (
            preprocessing.sample_image(window, *shifted),
            preprocessing.sample_label(label, rows, columns, description.ignore_label),
        )

    return read_crop


def _read_crops_from_memory(description: Description, split: str, records: np.ndarray) -> _ReadCrop:
    """Makes a reader of crops that decodes all records first, with progress, and keeps them.

    tf.data makes a copy of the tensors that it holds, so a pixel takes 9 bytes, and 13 for a moment
    at the start. (Fetching through Python would take 4, but the process could not end while the
    pipeline still asks it.)
    """
    _, read = _make_reader(description, split)
    dataset = tf.data.Dataset.from_tensor_slices(records)
    dataset = dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    images, labels = [], []
    with Progress("cache", len(records)) as progress:
        try:
            for image, label, _ in dataset:
                images.append(image.numpy())
                labels.append(label.numpy())
                progress.advance()
        except tf.errors.OpError as error:
            raise make_data_error(error, description) from None
    sizes = np.array([label.shape for label in labels], np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes.prod(1))])
    place_of = np.zeros(records.max() + 1, np.int64)
    place_of[records] = np.arange(len(records))
    # One array for all: images differ in size.
    pixels = tf.constant(np.concatenate([image.reshape(-1, 3) for image in images]))
    classes = tf.constant(np.concatenate([label.ravel() for label in labels]))

    def read_crop(record: tf.Tensor, positions: _PositionsOf) -> tuple[tf.Tensor, tf.Tensor]:
        place = tf.constant(place_of)[record]
        size, start = tf.constant(sizes)[place], tf.constant(starts)[place]
        count = tf.reduce_prod(size)
        image = tf.reshape(pixels[start : start + count], tf.concat([size, [3]], 0))
        label = tf.reshape(classes[start : start + count], size)
        rows, columns = positions(size)
        return (
            preprocessing.sample_image(image, rows, columns),
            preprocessing.sample_label(label, rows, columns, description.ignore_label),
        )

    return read_crop


def _check(
    size: tf.Tensor, label: tf.Tensor, filename: tf.Tensor, description: Description
) -> list[tf.Operation]:
    """Makes assertions: the label map has its image's size, each value is a class or void."""
    classes, void = description.num_classes, description.ignore_label
    # The usual void, 255, becomes 0 and all others one more, in one pass over the label map.
    shifted = label + 1 if void == 255 else tf.where(label == void, tf.zeros_like(label), label + 1)
    highest = tf.cast(tf.reduce_max(shifted), tf.int32) - 1
    worst = tf.strings.as_string(highest)
    wrong_size = tf.strings.join([filename, ": the label map has another size than the image"])
    wrong_label = tf.strings.join(
        [filename, ": label ", worst, f" is neither 0..{classes - 1} nor {void} (void)"]
    )
    fits = tf.reduce_all(size == tf.shape(label))
    return [
        tf.debugging.Assert(fits, [wrong_size]),
        tf.debugging.Assert(highest < classes, [wrong_label]),
    ]
