"""Work on many items at once, in threads, with results in the items' order.

For functions that let go of Python's lock while they work: reading files, decoding, hashing.
"""

import collections
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int = 32
) -> Generator[Result, None, None]:
    """Gives function(item) for each item, in order, computed in threads.

    The items themselves are taken in the caller's thread, at most `ahead` before the result that
    is given next. When the generator ends early (an exception, Ctrl-C while it waits), what has not
    begun is dropped and what has is waited for. A caller that may stop in the middle closes it:

        with contextlib.closing(map_in_order(function, items)) as results:
            for result in results: ...

    Args:
        function: it may be called by several threads at the same time.
        items: any number of them; they need not be there at once.
        ahead: how many more results than the next one may be held in memory, >= 0.

    Raises:
        Exception: what the function, or `items` itself, raised for the first item for which one
            did; results of the items before it have been given by then.
    """
    waiting: collections.deque[Future[Result]] = collections.deque()
    pool = ThreadPoolExecutor()
    try:
        failure, source = None, iter(items)
        while True:
            try:
                item = next(source)
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if failure:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)
