#!/usr/bin/env python3
"""Writes the reference, from the comments of the public headers.

    docs/reference.py --output DIR      runs doxygen; DIR/html/index.html is the reference
    docs/reference.py --filter HEADER   prints a header as doxygen is to see it

A warning of doxygen is an error. Exit status: 0 done, 1 doxygen had something to say, 77 there is no doxygen.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Iterator, List

root = pathlib.Path(__file__).resolve().parent.parent

FIXED_LINE = re.compile(r"(Progress|If the caller dies here|Throws|Returns|Limits|Source):\s+(?P<rest>.*)$")
DOC_LINE = re.compile(r"(?P<indent>\s*)///(?!<) ?(?P<text>.*)$")


def escaped(text: str) -> str:
    """Text in which doxygen finds no markup but what the headers use: `code`, *words* and lists."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else re.sub(r"(?<!&)([<>@\\#%~])", r"\\\1", piece) for piece in pieces)


def fixed_lines(indent: str, text: str) -> Iterator[str]:
    """A line of a comment; of what each operation says in the same words, a paragraph with a title."""
    found = FIXED_LINE.match(text)
    if found:
        yield f"{indent}///"
        yield f"{indent}/// @par {found.group(1)}"
        text = found.group("rest")
    yield f"{indent}/// {escaped(text)}".rstrip()


def essay(lines: List[str]) -> Iterator[str]:
    """The header's opening comment, which is an ordinary one: the page of the file."""
    yield "/// @file"
    in_code = False
    in_table = False
    for line in lines:
        text = line[2:]
        is_code = text.startswith("     ")
        if is_code != in_code and (is_code or text.strip()):
            yield "/// @code{.unparsed}" if is_code else "/// @endcode"
            in_code = is_code
        text = text.strip() if not is_code else text[5:]
        is_table = not in_code and text.startswith("|")
        if is_table and not in_table:
            yield "///"
        if in_code:
            yield f"/// {text}".rstrip()
        elif is_table:
            yield "/// " + escaped(text).replace(" || ", " \u2225 ")
        else:
            yield from fixed_lines("", text)
        if is_table and not in_table:
            yield "/// " + re.sub(r"[^|]+", "---", text)
        in_table = is_table
    if in_code:
        yield "/// @endcode"


def for_doxygen(text: str) -> Iterator[str]:
    lines = text.split("\n")
    count = next((number for number, line in enumerate(lines) if not line.startswith("//")), len(lines))
    yield from essay(lines[:count])
    # A comment goes for all declarations up to the next empty line; doxygen wants it before each.
    comment: List[str] = []
    is_in_comment = False
    for line in lines[count:]:
        found = DOC_LINE.match(line)
        if found:
            if not is_in_comment:
                comment = []
            comment += fixed_lines(found.group("indent"), found.group("text"))
            is_in_comment = True
            continue
        is_first = is_in_comment
        is_in_comment = False
        if re.search(r"\)( noexcept)? = (delete|default);$", line) or re.match(r"\s*friend ", line):
            yield ""  # says nothing that needs words
            continue
        if is_first:
            yield from comment
        elif not line.strip():
            comment = []
        elif comment and re.match(r"(\s*)", comment[0]).group() == re.match(r"(\s*)", line).group() and (
                line.startswith("using ") or re.match(r"\s*\[\[nodiscard|.*\) (const )?noexcept|.*\);$", line)):
            yield from comment
        if re.match(r"(inline )?namespace ", line):
            yield re.sub(r"\[\[.*?\]\] ?|WEIR_[A-Z_]+ ?", "", line)
        elif "///< " in line:
            code, behind = line.split("///< ", 1)
            yield f"{code}///< {escaped(behind)}"
        else:
            yield line


# What a name and its type say is not said again: fields, and accessors. tests/tidy.py demands words for all operations.
SILENT = re.compile(r"Member .* \((variable|function)\) of .* is not documented")


def build(output: pathlib.Path) -> int:
    doxygen = shutil.which("doxygen")
    if not doxygen:
        print("there is no doxygen: install it, and run this again")
        return 77
    output.mkdir(parents=True, exist_ok=True)
    settings = (root / "docs" / "Doxyfile").read_text(encoding="utf-8")
    settings += f'\nOUTPUT_DIRECTORY = "{output.resolve()}"\n'
    done = subprocess.run([doxygen, "-"], input=settings, text=True, cwd=root, check=False, stderr=subprocess.PIPE,
                          env=dict(os.environ, PYTHONDONTWRITEBYTECODE="1"))
    problems = [line for line in done.stderr.split("\n") if line and not SILENT.search(line)]
    print("\n".join(problems + [f"reference: {len(problems)} lines of warnings"]))
    return 1 if problems or done.returncode else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the reference, from the comments of the public headers.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=pathlib.Path, metavar="DIR")
    what.add_argument("--filter", type=pathlib.Path, metavar="HEADER")
    options = parser.parse_args()
    if options.filter:
        print("\n".join(for_doxygen(options.filter.read_text(encoding="utf-8"))), end="")
        return 0
    return build(options.output)


if __name__ == "__main__":
    sys.exit(main())
