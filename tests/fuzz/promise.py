"""What is promised of any input: an answer, or one short line that says what to do."""

import tensorflow as tf

from official.errors import RunError, UsageError, explain

LONGEST = 400


def answer(call, *arguments, errors=(UsageError, RunError), **named):
    """What a call returns, or its error in words. Any other exception is a broken promise.

    Args:
        call: is given the arguments.
        errors: the exceptions that are errors of a user or of data; ValueError for the readers
            whose callers turn it into one.

    Returns:
        (what the call returned, None), or (None, the message).
    """
    try:
        return call(*arguments, **named), None
    except errors as error:
        message = explain(error) if isinstance(error, tf.errors.OpError) else str(error)
    assert message and len(message) <= LONGEST, message
    assert "\n" not in message and "\0" not in message, repr(message)
    assert message.isprintable(), repr(message)
    return None, message
