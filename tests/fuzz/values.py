"""Strategies: JSON that nobody would write on purpose, and files that were once good."""

from hypothesis import strategies as st

ODD_NUMBERS = st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, 1e308, 5e-324, -0.0, 0.5])
TEXT = st.text(max_size=20) | st.sampled_from(["", "\0", "\n", "../x", "NaN", "é" * 300, "none"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ODD_NUMBERS | TEXT
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def mutated(draw, good):
    """A copy of plain JSON in which one place, at any depth, is lost, doubled or something else."""
    if isinstance(good, dict) and good and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(good)))
        return good | {key: draw(mutated(good[key]))}
    if isinstance(good, list) and good and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(good) - 1))
        kept = [] if draw(st.booleans()) and draw(st.booleans()) else [draw(mutated(good[place]))]
        return [*good[:place], *kept, *good[place + 1 :]]
    if isinstance(good, dict) and good and draw(st.booleans()):
        lost = draw(st.sampled_from(sorted(good)))
        return {key: value for key, value in good.items() if key != lost}
    if isinstance(good, list) and draw(st.booleans()):
        return good + good
    return draw(JSON)


@st.composite
def damaged(draw, good):
    """Bytes as a disk or a transfer leaves them: cut off, or with a few of them changed."""
    content = bytearray(good)
    for _ in range(draw(st.integers(0, 4))):
        if content:
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)
