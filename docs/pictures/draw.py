#!/usr/bin/env python3
"""Draws the pictures of the documentation from their texts.

    docs/pictures/draw.py

Each <name>.dot in this folder becomes <name>.svg, by Graphviz. The picture says which text it was drawn from, and the
hash of that: tests/tidy.py tells from it when a picture is older than its text.
"""

import hashlib
import pathlib
import re
import subprocess
import sys


def draw(text: pathlib.Path) -> None:
    drawn = subprocess.run(["dot", "-Tsvg", str(text)], stdout=subprocess.PIPE, check=True).stdout.decode("utf-8")
    # What Graphviz says of itself would change with its version.
    drawn = re.sub(r"<!--.*?-->\n?", "", drawn, flags=re.S)
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    mark = f"<!-- drawn from {text.name}, sha256 {digest} -->\n<svg"
    text.with_suffix(".svg").write_text(drawn.replace("<svg", mark, 1), encoding="utf-8")
    print(text.with_suffix(".svg").name)


if __name__ == "__main__":
    texts = sorted(pathlib.Path(__file__).resolve().parent.glob("*.dot"))
    for each in texts:
        draw(each)
    sys.exit(0 if texts else "no texts here")
