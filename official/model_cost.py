"""What a network costs: parameters, and multiply-adds counted in its traced graph.

Counted are the convolutions and matrix products that TensorFlow would run for one image, each with
the shapes in the graph: for every output value one multiply-add per weight. BN, ReLU, pooling,
resizing and sums are not. Tracing runs nothing, so large images cost no memory.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from official.resizing import network_size

FOOTNOTE = """\
Multiply-adds are those of all convolutions and matrix products for one image. For the published
network the paper's Table 2 prints 4.0 to 4.9 % more than its graph has: why is not known."""


@dataclass(frozen=True)
class Part:
    """One part of a network: the stem, a cell, ASPP or the decoder (with the logits).

    Attributes:
        name: such as `cell_3`.
        parameters: trainable ones.
        multiply_adds: for one image.
    """

    name: str
    parameters: int
    multiply_adds: int


def count(network: keras.Model, crop_size: tuple[int, int]) -> list[Part]:
    """Counts what each part of a built network costs for one image of (height, width).

    The parts are the network's own layers, in the order of their variables. What is padded counts.
    """
    parameters: dict[str, int] = {}
    for variable in network.trainable_variables:
        part = variable.path.split("/")[1]
        parameters[part] = parameters.get(part, 0) + variable.shape.num_elements()

    images = tf.TensorSpec([1, *crop_size, 3], tf.float32)
    graph = tf.function(network).get_concrete_function(images, training=False).graph
    multiply_adds = dict.fromkeys(parameters, 0)
    for name, operation in _walk_operations(graph, ""):
        number = _count_multiply_adds(operation)
        if number:
            multiply_adds[_find_part(name, parameters)] += number
    return [Part(name, parameters[name], multiply_adds[name]) for name in parameters]


def count_multiply_adds(function: Callable[..., Any], inputs: Sequence[tf.TensorSpec]) -> int:
    """Counts the multiply-adds of a function of tensors in the graph that it is traced to."""
    graph = tf.function(function).get_concrete_function(*inputs).graph
    return sum(_count_multiply_adds(operation) for _, operation in _walk_operations(graph, ""))


def _walk_operations(graph: Any, scope: str) -> Iterator[tuple[str, tf.Operation]]:
    """Walks the operations of a graph and of the functions that it calls, with full names."""
    for operation in graph.get_operations():
        name = scope + operation.name
        yield name, operation
        if operation.type in ("PartitionedCall", "StatefulPartitionedCall"):
            called = graph._get_function(operation.get_attr("f").name).graph
            yield from _walk_operations(called, name + "/")


def _find_part(name: str, parts: Collection[str]) -> str:
    """Finds the part to which an operation belongs by its name, network_1/cell_3_1/.../Conv2D."""
    for scope in name.split("/"):
        # Keras opens a layer's name scope twice, and TensorFlow numbers the second one.
        for part in (scope, scope.rpartition("_")[0]):
            if part in parts:
                return part
    raise ValueError(f"{name} belongs to none of {', '.join(parts)}")


def _count_multiply_adds(operation: tf.Operation) -> int:
    """Counts the multiply-adds of a convolution or matrix product; 0 for anything else."""
    if operation.type == "Conv2D":  # kernel [height, width, inputs of a group, outputs]
        weights_per_output = operation.inputs[1].shape[:3].num_elements()
    elif operation.type == "DepthwiseConv2dNative":  # kernel [height, width, inputs, multiplier]
        weights_per_output = operation.inputs[1].shape[:2].num_elements()
    elif operation.type == "MatMul":
        weights_per_output = operation.inputs[0].shape[
            0 if operation.get_attr("transpose_a") else 1
        ]
    else:
        return 0
    return weights_per_output * operation.outputs[0].shape.num_elements()


def summarize(parts: Sequence[Part], crop_size: tuple[int, int]) -> dict[str, Any]:
    """Gives the cost as plain data for JSON: totals, and the same for each part by name."""

    def units(parameters: int, multiply_adds: int) -> dict[str, float]:
        return {
            "params_millions": parameters / 1e6,
            "multi_adds_billions": multiply_adds / 1e9,
        }

    return {
        **units(sum(part.parameters for part in parts), sum(part.multiply_adds for part in parts)),
        "crop_size": list(crop_size),
        "counted_size": [network_size(side) for side in crop_size],
        "parts": {part.name: units(part.parameters, part.multiply_adds) for part in parts},
    }


def format_table(parts: Sequence[Part], crop_size: tuple[int, int]) -> str:
    """Formats the cost as a table for people: one line per part, and the total."""
    total = Part(
        "total", sum(part.parameters for part in parts), sum(part.multiply_adds for part in parts)
    )
    lines = [f"{'part':<10}{'parameters':>14}{'multiply-adds (billions)':>28}"]
    lines += [
        f"{part.name:<10}{part.parameters:>14,}{part.multiply_adds / 1e9:>28,.3f}"
        for part in (*parts, total)
    ]
    size, counted = (
        f"{height} x {width}"
        for height, width in (crop_size, [network_size(side) for side in crop_size])
    )
    lines += [f"Image of {size}, counted at the padded size {counted}.", FOOTNOTE]
    return "\n".join(lines)
