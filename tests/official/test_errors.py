"""What an error says in one line; tests/official/test_command_line.py sees more of them."""

import pytest
import tensorflow as tf

from official.errors import explain, shorten
from official.images import decode_label


def raise_in_a_pipeline(words):
    def fail(number):
        with tf.control_dependencies([tf.debugging.Assert(number < 0, [words])]):
            return tf.identity(number)

    next(iter(tf.data.Dataset.range(1).map(fail)))


def raise_in_a_function(words):
    @tf.function
    def fail(x):
        with tf.control_dependencies([tf.debugging.Assert(x < 0, [words])]):
            return tf.identity(x)

    fail(tf.constant(1.0))


@pytest.mark.parametrize("fail", [raise_in_a_pipeline, raise_in_a_function])
def test_an_assertion_says_its_words_and_nothing_of_the_graph(fail):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        fail("town/a 7: label 19 is neither 0..18 nor 255 (void)")
    assert "Assert" in caught.value.message  # a name in the graph
    assert explain(caught.value) == "town/a 7: label 19 is neither 0..18 nor 255 (void)"


def test_the_decoder_says_what_is_wrong_with_the_file():
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        decode_label(b"no picture", "a: ")
    assert explain(caught.value) == (
        "a: the label map is no PNG: it must be an 8-bit grey PNG of class numbers"
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("one\ntwo"), "one"),
        (KeyError("a key"), "'a key'"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (
            tf.errors.DataLossError(
                None, None, "{{function_node __wrapped__X}} corrupted record at 12 [Op:X] name: "
            ),
            "corrupted record at 12",
        ),
        (
            tf.errors.InvalidArgumentError(
                None,
                None,
                "Graph execution error:\n\nDetected at node a defined at (most recent call last):\n"
                "<stack traces unavailable>\n2 root error(s) found.\n"
                "  (0) INVALID_ARGUMENT:  assertion failed: [a  b]\n\t [[{{node a}}]]\n"
                "  (1) INVALID_ARGUMENT:  other\n0 successful operations.",
            ),
            "a b",
        ),
        (AssertionError(), ""),
    ],
)
def test_one_line_of_whatever_was_raised(error, words):
    assert explain(error) == words


def test_places_in_a_pipeline_are_left_out():
    text = "Error in user-defined function passed to ParallelMapDataset:338 transformation with "
    text += "iterator: Iterator::Root::Prefetch::ParallelMapV2: Invalid PNG data, size 200"
    assert explain(ValueError(text)) == "Invalid PNG data, size 200"


def test_a_value_in_a_message_is_one_short_line():
    assert shorten("a\nb\0c") == "a\\nb\\x00c"
    assert shorten({"genotype": [1, None]}) == '{"genotype": [1, null]}'
    assert shorten("x" * 200) == "x" * 117 + "..."
    assert shorten("x" * 200, 10) == "xxxxxxx..."
