"""The turns of a benchmark that there is time for."""

import sys
import time


def turns_in_time(count, minutes, began):
    """Numbers from 0 to `count`; ends earlier if another turn as long as the longest one so far
    would end more than `minutes` after `began`, a time of time.monotonic()."""
    longest = 0
    for number in range(count):
        at = time.monotonic()
        if at + longest > began + 60 * minutes:
            print(f"{number} of {count} turns: the time is up", file=sys.stderr)
            return
        yield number
        longest = max(longest, time.monotonic() - at)
