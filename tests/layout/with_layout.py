#!/usr/bin/env python3
"""Copies segment.cpp so that it writes and wants another layout version.

    with_layout.py IN OUT VERSION
"""

import re
import sys
from pathlib import Path


def main() -> int:
    source, target, version = sys.argv[1:]
    # The constant, and not the fields of that name.
    text, count = re.subn(r"(?<![.>])\blayout_version\b", version, Path(source).read_text(encoding="utf-8"))
    Path(target).write_text(text, encoding="utf-8")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
