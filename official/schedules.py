"""Learning rates as pure functions of the number of steps already made."""

from keras.optimizers import schedules


def cosine(initial: float, minimum: float, total_steps: int) -> schedules.LearningRateSchedule:
    """Half a cosine from `initial` at step 0 to `minimum` at total_steps; constant after that.

    rate(t) = minimum + (initial - minimum) * (1 + cos(pi * t / total_steps)) / 2
    """
    return schedules.CosineDecay(initial, total_steps, alpha=minimum / initial)


def polynomial(
    initial: float, total_steps: int, power: float = 0.9, end: float = 0.0
) -> schedules.LearningRateSchedule:
    """From `initial` at step 0 to `end` at total_steps; constant after that.

    rate(t) = end + (initial - end) * (1 - t / total_steps) ** power
    """
    return schedules.PolynomialDecay(initial, total_steps, end_learning_rate=end, power=power)
