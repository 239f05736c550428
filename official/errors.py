"""What goes wrong on purpose: errors that a user can make, and errors' words in one line."""

import json
import re

# What TensorFlow, Keras and AutoGraph put before the words that say what is wrong.
_PREAMBLE = (
    *("Graph execution error", "Detected at node", 'File "', "<stack traces"),
    *("Exception encountered when calling", "in user code"),
)


class UsageError(Exception):
    """The command line or flagfile is wrong; nothing was started (exit code 2)."""


class RunError(Exception):
    """Data, a file or the run failed (exit code 1)."""


def shorten(value: object, longest: int = 120) -> str:
    """A value for a message: text as it is, others as JSON; one line, at most `longest` long.

    What does not print, such as a line's end or a NUL, is shown as Python's escapes.
    """
    text = value if isinstance(value, str) else json.dumps(value, default=repr, ensure_ascii=False)
    cut = text if len(text) <= longest else text[: longest - 3] + "..."
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in cut)


def explain(error: BaseException) -> str:
    """The line of an error that says what is wrong; empty if none does.

    Of what TensorFlow and Keras raise, that is not the first line, and it names operations and
    places in a graph, which are left out.
    """
    # An OpError's text is its message and the names of operations.
    text = str(getattr(error, "message", None) or error)
    # Colours, and where in its graph TensorFlow is.
    text = re.sub(r"\x1b\[[0-9;]*m|\{\{function_node.*?\}\}|\[\[.*?\]\]|\[Op:.*", "", text)
    text = re.sub(r"\{\{node (.*?)\}\}", r"\1", text)
    lines = [line.strip() for line in text.splitlines()]
    if lines and lines[0].startswith("in user code"):  # a traceback, then the error
        lines = [line for line in lines if re.match(r"\w+(Error|Exception): ", line)] or lines
    # "2 root error(s) found.", then "(0) INVALID_ARGUMENT: ...".
    lines = [re.sub(r"^\(\d+\) [A-Z_]+:\s*|^\d+ root error\(s\) found\.", "", x) for x in lines]
    said = next((x for x in lines if x and not x.startswith(_PREAMBLE)), "")
    said = said.removeprefix(f"{type(error).__name__}: ")
    # Where in a tf.data pipeline it was.
    said = re.sub(r"^Error in user-defined function passed to .*? iterator: \S+: ", "", said)
    if "assertion failed:" in said:  # then the words of the assertion, in brackets
        said = said.partition("assertion failed:")[2].strip("[] ")
    return " ".join(said.split())
