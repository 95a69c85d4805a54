#!/usr/bin/env python3
"""Copies a header with one memory order weakened.

    weaken.py IN OUT ANCHOR FROM TO

The first FROM behind ANCHOR becomes TO. ANCHOR has to be there exactly once, and FROM within the ten lines behind
it: where the header has changed, the seeded race is looked after instead of silently seeded elsewhere, or nowhere.
"""

import sys
from pathlib import Path


def main() -> int:
    source, target, anchor, old, new = sys.argv[1:]
    text = Path(source).read_text(encoding="utf-8")
    if text.count(anchor) != 1:
        print(f"{source}: `{anchor}` is there {text.count(anchor)} times, not once", file=sys.stderr)
        return 1
    begin = text.index(anchor) + len(anchor)
    place = text.find(old, begin)
    if place < 0 or text.count("\n", begin, place) > 10:
        print(f"{source}: `{old}` does not follow on `{anchor}`", file=sys.stderr)
        return 1
    Path(target).write_text(text[:place] + new + text[place + len(old):], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
