#!/usr/bin/env python3
"""What the repository demands of itself and no compiler checks.

    tests/tidy.py [--root DIR] [--compiler CXX] [--include DIR] [CHECK...]
    tests/tidy.py --self-test
    tests/tidy.py --list

Without a CHECK every check runs. Each problem is one line, `file:line: check: what is wrong and what to do`;
the last line counts them. Exit status: 0 no problem, 1 problems, 2 the checks could not run.

Looked at are the files that git tracks, and new ones that it does not ignore; outside of a git checkout, all
files below the root except build directories.

`--self-test` proves that every check can fail. Each file in tests/tidy_samples/<check>/ is a small repository
in one text file:

    Words that say what the sample is about, up to the first file.
    expect README.md:1 no such file          a problem where no mark can stand
    == include/weir/ring.hpp                 a file of that repository begins
    int x = word.load(); @@ names no memory order

The mark ` @@ words` is cut off before the check reads the file; it says that the check must report, for this
very line, a problem whose text contains these words. `@/` stands for a slash, so that no sample has a machine's paths in it. `== name (no newline at the end)` does what it says. A
sample in a file good_*.txt expects nothing, one in bad_*.txt something. What is reported has to be exactly
what is expected, every check needs both kinds, and every place in this script that reports a problem must be
reached by some sample.

Only the standard library is used; Python 3.9 is enough.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import dataclasses
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple

# The layer of every header below include/weir. A header includes only headers of strictly lower layers.
LAYERS: Dict[str, int] = {
    "platform.hpp": 0,
    "error.hpp": 1, "offset_ptr.hpp": 1, "futex.hpp": 1, "file.hpp": 1, "fork_guard.hpp": 1, "reference.hpp": 1,
    "process.hpp": 2, "segment.hpp": 2, "ring.hpp": 2, "event_count.hpp": 2, "free_hints.hpp": 2, "process_table.hpp": 2,
    "buffer_pool.hpp": 3, "registry.hpp": 3,
    "port.hpp": 4,
    "reap.hpp": 5,
    "domain.hpp": 6,
    "block.hpp": 7, "observer.hpp": 7,
    "blocks.hpp": 8, "scheduler.hpp": 8,
}
UMBRELLA = "weir.hpp"  # includes every other header, and has nothing of its own

# Headers without operations of their own need no `Progress:` line.
NO_OPERATIONS = {"platform.hpp", "error.hpp", UMBRELLA}

ESSAY_LINES_MIN = 10

HEADERS = "include/weir/"
CASES = "tests/crash/cases.txt"
SELF = ("tests/tidy.py", "tests/tidy_samples/")  # these name what they look for
# Patches and files that follow their projects' ways; inputs that a fuzzer made.
OF_OTHERS = ("subprojects/packagefiles/", "tests/fuzz/corpus/")

CPP_SUFFIXES = (".hpp", ".cpp", ".h", ".hh", ".cc", ".c", ".ipp", ".inc")
PROSE_SUFFIXES = (".md", ".rst")

STANDARD_HEADERS = set("""
    algorithm any array atomic barrier bit bitset cassert cctype cerrno cfenv cfloat charconv chrono cinttypes
    climits clocale cmath compare complex concepts condition_variable coroutine csetjmp csignal cstdarg
    cstddef cstdint cstdio cstdlib cstring ctime cuchar cwchar cwctype deque exception execution filesystem
    format forward_list fstream functional future initializer_list iomanip ios iosfwd istream iterator latch
    limits list locale map memory memory_resource mutex new numbers numeric optional ostream queue random
    ranges ratio regex scoped_allocator semaphore set shared_mutex source_location span sstream stack
    stdexcept stop_token streambuf string string_view syncstream system_error thread tuple type_traits
    typeindex typeinfo unordered_map unordered_set utility valarray variant vector version
    assert.h ctype.h errno.h fenv.h float.h inttypes.h limits.h locale.h math.h setjmp.h signal.h stdarg.h
    stdatomic.h stddef.h stdint.h stdio.h stdlib.h string.h time.h uchar.h wchar.h
""".split())
# What one source of the library may include beyond that, where the build has found it.
OPTIONAL_HEADERS = {"lib/sleeper_io_uring.cpp": ("liburing.h",)}
SYSTEM_HEADERS = set("""
    cxxabi.h dirent.h dlfcn.h elf.h endian.h fcntl.h grp.h immintrin.h libgen.h link.h poll.h pthread.h pwd.h sched.h
    semaphore.h spawn.h syscall.h termios.h ucontext.h unistd.h arm_acle.h x86intrin.h
""".split())
SYSTEM_PREFIXES = ("sys/", "linux/", "asm/")


class CannotRun(Exception):
    """The checks cannot be run at all; says why."""


# ---- reports -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, order=True)
class Problem:
    path: str
    line: int
    check: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.check}: {self.message}"


class Report:
    """Collects problems, and the lines of this script that reported any: the self-test wants to see all."""

    def __init__(self, check: str) -> None:
        self.check = check
        self.problems: Set[Problem] = set()
        self.sites: Set[int] = set()

    def add(self, path: str, line: int, message: str) -> None:
        self.problems.add(Problem(path, line, self.check, message))
        self.sites.add(sys._getframe(1).f_lineno)


# ---- C++ text ----------------------------------------------------------------------------------------------

LEXER = re.compile(r"""
    (?P<splice>\\[ \t]*\n)
  | (?P<newline>\n)
  | (?P<space>[ \t\r\f\v]+)
  | (?P<comment>//(?:\\\n|[^\n])*|/\*.*?(?:\*/|\Z))
  | (?P<string>(?:u8|[uUL])?R"(?P<fence>[^()\\\s]{0,16})\(.*?\)(?P=fence)"|(?:u8|[uUL])?"(?:\\.|[^"\\\n])*")
  | (?P<char>(?:u8|[uUL])?'(?:\\.|[^'\\\n])+')
  | (?P<number>\.?\d(?:[eEpP][+-]|'?\w|\.)*)
  | (?P<word>[A-Za-z_]\w*)
  | (?P<punct>->\*?|::|\+\+|--|<<=|<=>|&&|\|\||<<|[-+*/%&|^!=<]=|.)
""", re.VERBOSE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Token:
    kind: str  # string, char, number, word, punct; in code also `directive`: a preprocessor line stood here
    text: str
    line: int


class Comment:
    """A run of lines that hold nothing but comments, or the comment after the code of a line together with
    the lines that go on with it in the same column."""

    def __init__(self, line: int, column: int, after_code: bool) -> None:
        self.first = line
        self.last = line
        self.column = column
        self.after_code = after_code
        self.lines: List[Tuple[int, str]] = []  # line number, text without the comment signs

    def append(self, line: int, raw: str) -> None:
        for offset, text in enumerate(raw.split("\n")):
            text = text.strip()
            text = re.sub(r"^(//[/!]?<?|/\*+[*!]?)", "", text)
            text = re.sub(r"\*/$", "", text)
            if raw.startswith("/*") and offset > 0:
                text = re.sub(r"^\*+", "", text)
            self.lines.append((line + offset, text.strip()))
            self.last = line + offset

    @property
    def text(self) -> str:
        return " ".join(text for _, text in self.lines)


class Source:
    """A C++ file taken apart: its code as tokens, its directives, its comments."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.code: List[Token] = []  # without comments; each preprocessor line is one token `directive`
        self.directives: List[List[Token]] = []
        self.comments: List[Comment] = []
        self.code_lines: Set[int] = set()
        self._lex(text)
        self.match = self._match_brackets()

    def _lex(self, text: str) -> None:
        line, line_start = 1, 0
        in_directive = False
        pending: List[Tuple[int, int, str]] = []
        last_end = 0  # the last line with code so far
        for found in LEXER.finditer(text):
            kind, token_text = str(found.lastgroup), found.group()
            if found.group("string") is not None:
                kind = "string"  # lastgroup names the fence of a raw string
            if kind == "newline":
                in_directive = False
            elif kind == "comment":
                pending.append((line, found.start() - line_start, token_text))
            elif kind not in ("space", "splice"):
                if token_text == "#" and last_end < line and not in_directive:
                    in_directive = True
                    self.directives.append([])
                    self.code.append(Token("directive", "#", line))
                token = Token(kind, token_text, line)
                if in_directive:
                    self.directives[-1].append(token)
                else:
                    self.code.append(token)
                last_end = line + token_text.count("\n")
                self.code_lines.update(range(line, last_end + 1))
            newlines = token_text.count("\n")
            if newlines:
                line += newlines
                line_start = found.start() + token_text.rindex("\n") + 1
        self._collect(pending)

    def _collect(self, pending: List[Tuple[int, int, str]]) -> None:
        current: Optional[Comment] = None
        for line, column, raw in pending:
            after_code = line in self.code_lines
            goes_on = (current is not None and not after_code and line == current.last + 1
                       and (not current.after_code or column == current.column))
            if current is not None and after_code and current.after_code and line == current.last:
                goes_on = True  # two comments on one line
            if not goes_on or current is None:
                current = Comment(line, column, after_code)
                self.comments.append(current)
            current.append(line, raw)

    def _match_brackets(self) -> Dict[int, int]:
        match: Dict[int, int] = {}
        opened: List[int] = []
        closer = {")": "(", "]": "[", "}": "{"}
        for index, token in enumerate(self.code):
            if token.kind != "punct":
                continue
            if token.text in "([{":
                opened.append(index)
            elif token.text in closer:
                # Conditional compilation may unbalance brackets; take the nearest one of the kind.
                while opened and self.code[opened[-1]].text != closer[token.text]:
                    opened.pop()
                if opened:
                    start = opened.pop()
                    match[start], match[index] = index, start
        return match

    def includes(self) -> Iterator[Tuple[int, str, bool]]:
        """Line, name, and whether it stands in angle brackets."""
        for tokens in self.directives:
            if len(tokens) < 3 or tokens[1].text != "include":
                continue
            if tokens[2].kind == "string":
                yield tokens[0].line, tokens[2].text.strip('"'), False
            elif tokens[2].text == "<":
                yield tokens[0].line, "".join(token.text for token in tokens[3:]).split(">")[0], True

    def comment_ending_at(self, line: int) -> Optional[Comment]:
        """The comment that fills the lines up to this one and does not begin behind code."""
        for comment in self.comments:
            if comment.last == line and not comment.after_code:
                return comment
        return None

    def is_block(self, index: int) -> bool:
        """Whether the `{` at index opens a block (of statements or members), and not a braced initializer."""
        if index == 0:
            return True
        before = self.code[index - 1]
        if before.kind == "word":
            if before.text in ("else", "do", "try", "const", "noexcept", "override", "final", "mutable"):
                return True
            if before.text == "return":
                return False
        elif before.text not in ("=", ",", "(", ">", "{"):
            return True
        elif before.text == "{":
            return self.is_block(index - 1)
        elif before.text != ">":
            return False
        # After a name or a `>`: `Type{`, or `struct Name {`, `-> Type {`, `requires C<T> {`.
        for back in range(index - 1, -1, -1):
            token = self.code[back]
            if token.kind == "directive" or token.text in (";", "{", "}"):
                break
            if token.text in ("struct", "class", "union", "enum", "namespace", "requires", "concept"):
                return True
            if token.text == "->" and self.code[back - 1].text in (")", "noexcept", "const", "mutable"):
                return True
        return False

    def statement(self, index: int) -> Tuple[int, int]:
        """First and last line of the statement, as far as its first block, that the token at index is in."""
        start = index
        while start > 0:
            before = self.code[start - 1]
            if before.kind == "directive":
                break
            if before.kind == "punct":
                if before.text == ";":
                    break
                if before.text == "{" and self.is_block(start - 1):
                    break
                if before.text in ")]}" and start - 1 in self.match:
                    opening = self.match[start - 1]
                    if before.text == "}" and self.is_block(opening) and not self._goes_on_after_block(start):
                        break
                    start = opening
                    continue
            start -= 1
        end = index
        while end + 1 < len(self.code):
            token = self.code[end]
            if token.kind == "directive" or token.text in (";", "}"):
                break
            if token.text in ("(", "[", "{") and end in self.match:
                if token.text == "{" and self.is_block(end):
                    break
                end = self.match[end]
            end += 1
        return self.code[start].line, max(self.code[index].line, self.code[end].line)

    def _goes_on_after_block(self, index: int) -> bool:
        """Whether an expression goes on after a `}`, as it does behind a lambda's body."""
        return self.code[index].text in (")", "(", ",", ".", "]")


# ---- the repository ----------------------------------------------------------------------------------------


def is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


class Repository:
    def __init__(self, root: Path, compiler: List[str], include_directories: List[str]) -> None:
        self.root = root
        self.compiler = compiler
        self.include_directories = include_directories
        self.files = sorted(self._list())
        self._texts: Dict[str, Optional[str]] = {}
        self._sources: Dict[str, Source] = {}

    def _list(self) -> Iterable[str]:
        if (self.root / ".git").exists() and shutil.which("git"):
            listed = subprocess.run(
                ["git", "-C", str(self.root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
            if listed.returncode == 0:
                names = set(os.fsdecode(listed.stdout).split("\0")) - {""}
                return [name for name in names if is_plain_file(self.root / name)]
        return list(self._walk())

    def _walk(self) -> Iterator[str]:
        for directory, names, files in os.walk(self.root):
            here = Path(directory)
            names[:] = [name for name in names
                        if name not in (".git", "__pycache__")
                        and not (here / name / "meson-private").exists()
                        and here.relative_to(self.root).as_posix() != "subprojects"]
            for name in files:
                if is_plain_file(here / name):
                    yield (here / name).relative_to(self.root).as_posix()

    def text(self, path: str) -> Optional[str]:
        """The text of a file; None when it is binary."""
        if path not in self._texts:
            data = (self.root / path).read_bytes()
            try:
                self._texts[path] = None if b"\0" in data else data.decode("utf-8")
            except UnicodeDecodeError:
                self._texts[path] = None
        return self._texts[path]

    def texts(self) -> Iterator[Tuple[str, str]]:
        for path in self.files:
            text = self.text(path)
            if text is not None:
                yield path, text

    def source(self, path: str) -> Source:
        if path not in self._sources:
            self._sources[path] = Source(path, self.text(path) or "")
        return self._sources[path]

    def sources(self, *below: str) -> List[Source]:
        return [self.source(path) for path in self.files
                if path.endswith(CPP_SUFFIXES) and path.startswith(below or "")
                and not path.startswith(SELF + OF_OTHERS)]

    def headers(self) -> List[Source]:
        return [source for source in self.sources(HEADERS) if source.path.endswith((".hpp", ".h", ".hh"))]


# ---- layers ------------------------------------------------------------------------------------------------


def weir_header(path: str, name: str, in_angles: bool) -> Optional[str]:
    """The key in LAYERS of what an #include in the file at path means; None for no header of the library."""
    if name.startswith("weir/"):
        return name[len("weir/"):]
    if not in_angles and path.startswith(HEADERS):
        return os.path.normpath(os.path.join(os.path.dirname(path), name))[len(HEADERS):]
    return None


def check_layers(repo: Repository, report: Report) -> None:
    """Headers include only from lower layers, and nothing that a user would have to install."""
    present = set()
    for source in repo.sources(HEADERS, "lib/"):
        is_header = source.path.startswith(HEADERS)
        key = source.path[len(HEADERS):] if is_header else Path(source.path).stem + ".hpp"
        layer = LAYERS.get(key)
        if is_header:
            present.add(key)
            if layer is None and key != UMBRELLA:
                report.add(source.path, 1, "is in no layer: give it one in LAYERS at the head of "
                           "tests/tidy.py")
            said = re.search(r"\(layer (\d+)\)", source.comments[0].lines[0][1]) if source.comments else None
            if said and layer is not None and int(said.group(1)) != layer:
                report.add(source.path, source.comments[0].first, f"says layer {said.group(1)}; LAYERS at "
                           f"the head of tests/tidy.py says {layer}")
        for line, name, in_angles in source.includes():
            included = weir_header(source.path, name, in_angles)
            if included is not None:
                if included == UMBRELLA:
                    report.add(source.path, line, f"includes <weir/{UMBRELLA}>: include the headers it "
                               "needs instead")
                elif included not in LAYERS:
                    report.add(source.path, line, f"includes <weir/{included}>, which is in no layer of "
                               "tests/tidy.py")
                elif layer is not None and LAYERS[included] >= layer and (is_header or included != key):
                    report.add(source.path, line, f"is of layer {layer} and includes <weir/{included}> of "
                               f"layer {LAYERS[included]}: only strictly lower layers may be included")
            elif "boost" in name.lower():
                pass  # reported below, as in all other files
            elif name == "iostream":
                report.add(source.path, line, "<iostream> brings static initializers into every user: do "
                           "without")
            elif not (name in STANDARD_HEADERS or name in SYSTEM_HEADERS or name.startswith(SYSTEM_PREFIXES)
                      or name in OPTIONAL_HEADERS.get(source.path, ())
                      or (not in_angles and (repo.root / os.path.dirname(source.path) / name).is_file())):
                report.add(source.path, line, f"<{name}> is neither the library's nor the standard's nor "
                           "the system's: the library has no dependencies but liburing")
    if UMBRELLA in present:
        umbrella = repo.source(HEADERS + UMBRELLA)
        for token in umbrella.code:
            if token.kind != "directive":
                report.add(umbrella.path, token.line, f"{UMBRELLA} includes the other headers and has no "
                           "code itself")
                break
        listed = {weir_header(umbrella.path, name, in_angles) for _, name, in_angles in umbrella.includes()}
        for key in sorted(present - listed - {UMBRELLA}):
            report.add(umbrella.path, 1, f"does not include <weir/{key}>")
    for path, text in repo.texts():
        if path.endswith(PROSE_SUFFIXES) or path.startswith(SELF + OF_OTHERS + ("docs/",)):
            continue
        for number, line_text in enumerate(text.split("\n"), 1):
            if "boost" in line_text.lower():
                report.add(path, number, "Boost has no place here, not even by name")


# ---- orders ------------------------------------------------------------------------------------------------
#
# In include/ and lib/ the names in ACCESS_NAMES are kept for atomics: whatever is called by one of them
# through `.` or `->` is an atomic access and names its order, `std::memory_order_acquire` (with or without
# `std::`). A class of our own therefore calls its methods something else. NAMES_IF_ORDERED are too common for
# that (`clear`); they are accesses when they are given an order.
#
# What a comment says about an access that is not relaxed:
#
#     // (2) release: licenses the consumer to read the payload; pairs with (5) in try_pop()
#     // (3) acq_rel, on failure acquire: what it buys; pairs with (7), (9) in port.hpp, (4) in push()
#
# Groups of partners are separated by `, and`, `, with` or `;`, or end with `in <place>`: `in name.hpp` goes
# for the whole group before it, a function's name in its place is for the reader, and a group without any is
# of this file: `pairs with (2), (3), and (1) in port.hpp` is (2) and (3) here and (1) there. Such a comment
# stands on the lines of the access's statement, or directly above the statement; one comment may hold several
# labels, each beginning a line. A relaxed access has `relaxed:` and a reason in the same places; above a run
# of consecutive lines that all belong to statements with relaxed accesses, one reason is enough.

ACCESS_NAMES = {
    "load", "store", "exchange", "compare_exchange_weak", "compare_exchange_strong", "fetch_add", "fetch_sub",
    "fetch_and", "fetch_or", "fetch_xor", "fetch_max", "fetch_min", "test_and_set",
}
NAMES_IF_ORDERED = {"clear", "test", "wait"}
FREE_ACCESS = re.compile(r"atomic_(load|store|exchange|compare_exchange|fetch|flag)_?\w*$"
                         r"|__atomic_(?!\w*fence)\w+$")
ORDERS = ("relaxed", "acquire", "release", "acq_rel", "seq_cst")
LABEL = re.compile(r"\((\d+)\)\s+(relaxed|acquire|release|acq_rel|seq_cst)\b"
                   r"(?:,?\s+on failure\s+(relaxed|acquire|seq_cst)\b)?\s*:")
LABEL_LIKE = re.compile(r"\((\d+)\)\s+(relaxed|consume|acquire|release|acq_rel|seq_cst)\b")
RELAXED_REASON = re.compile(r"(?<!failure )\brelaxed:\s*(.*)")
PAIRS_WITH = re.compile(r"\bpairs with\s+")
PAIR_NUMBER = re.compile(r"\((\d+)\)")
PAIR_PLACE = re.compile(r"\s+in\s+((?:[\w:~<>/]|\.\w)+(?:\(\))?)(?:\s+(?:of|in)\s+([\w/]+\.[hc]pp))?")
PAIR_SEPARATOR = re.compile(r"\s*(?P<new_group>;\s*(?:and\s+)?(?:with\s+)?|,\s*(?:and|with|and\s+with)\s+)?"
                            r"(?:,\s*|and\s+)?(?=\(\d+\))")
REASON_WORDS_MIN = 2  # "as (1)" is a reason


@dataclasses.dataclass
class Label:
    """`(n) order[, on failure order]: reason; pairs with (m)`."""
    path: str
    line: int
    number: int
    order: str
    on_failure: Optional[str]
    text: str
    partners: List[Tuple[str, int]] = dataclasses.field(default_factory=list)  # file ("" is this one), number
    access: Optional["Access"] = None


@dataclasses.dataclass
class Access:
    path: str
    line: int
    name: str
    order: str
    on_failure: Optional[str]  # of a compare_exchange
    first_line: int  # of its statement
    last_line: int
    close_line: int

    def releases(self) -> bool:
        return self.order in ("release", "acq_rel", "seq_cst") and self.name != "load"

    def acquires(self) -> bool:
        return ((self.order in ("acquire", "acq_rel", "seq_cst") and self.name != "store")
                or self.on_failure in ("acquire", "seq_cst"))


def labels_of(source: Source, comment: Comment) -> List[Label]:
    labels: List[Label] = []
    open_label: Optional[Label] = None
    for line, text in comment.lines:
        found = LABEL.match(text)
        if found and (found.group(2) != "relaxed" or found.group(3)):
            open_label = Label(source.path, line, int(found.group(1)), found.group(2), found.group(3),
                               text[found.end():])
            labels.append(open_label)
        elif not text or RELAXED_REASON.match(text):
            open_label = None
        elif open_label is not None:
            open_label.text += " " + text
    for label in labels:
        label.partners = partners_of(label.text)
    return labels


def partners_of(text: str) -> List[Tuple[str, int]]:
    partners: List[Tuple[str, int]] = []
    for found in PAIRS_WITH.finditer(text):
        at = found.end()
        unplaced: List[int] = []
        while True:
            number = PAIR_NUMBER.match(text, at)
            if not number:
                break
            unplaced.append(int(number.group(1)))
            at = number.end()
            place = PAIR_PLACE.match(text, at)
            if place:
                at = place.end()
                file = place.group(2) or (place.group(1) if place.group(1).endswith((".hpp", ".cpp")) else "")
                partners += [(os.path.basename(file), n) for n in unplaced]
                unplaced = []
            separator = PAIR_SEPARATOR.match(text, at)
            if not separator:
                break
            if separator.group("new_group"):
                partners += [("", n) for n in unplaced]
                unplaced = []
            at = separator.end()
        partners += [("", n) for n in unplaced]
    return partners


def orders_in_arguments(source: Source, opening: int) -> List[str]:
    """The memory orders named in a call's own arguments, not in those of calls among them."""
    orders: List[str] = []
    closing = source.match.get(opening, opening)
    index = opening + 1
    while index < closing:
        token = source.code[index]
        if token.text in ("(", "[", "{") and index in source.match:
            index = source.match[index]
        elif token.kind == "word" and token.text.startswith("memory_order_"):
            orders.append(token.text[len("memory_order_"):])
        elif token.text == "memory_order" and source.code[index + 1].text == "::":
            orders.append(source.code[index + 2].text)
        index += 1
    return orders


def accesses_of(source: Source, report: Report) -> List[Access]:
    accesses: List[Access] = []
    code = source.code
    for index, token in enumerate(code[:-1]):
        if token.kind != "word" or code[index + 1].text != "(":
            continue
        by_member = index > 0 and code[index - 1].text in (".", "->")
        if not by_member:
            if FREE_ACCESS.match(token.text):
                report.add(source.path, token.line, f"{token.text}() is an atomic access that this check "
                           "cannot read: use std::atomic_ref and its members")
            continue
        orders = orders_in_arguments(source, index + 1)
        if token.text not in ACCESS_NAMES and not (token.text in NAMES_IF_ORDERED and orders):
            continue
        if not orders:
            report.add(source.path, token.line, f".{token.text}() names no memory order: name it (a method "
                       "of our own that is no atomic access needs another name)")
            continue
        strange = [order for order in orders if order not in ORDERS]
        if strange:
            report.add(source.path, token.line, f"memory_order_{strange[0]} is not used here: one of "
                       + ", ".join(ORDERS))
            continue
        on_failure: Optional[str] = None
        order = orders[0]
        if token.text.startswith("compare_exchange"):
            if len(orders) == 1 and order != "relaxed":
                report.add(source.path, token.line, f".{token.text}() names no order for its failure: name "
                           "it as well")
                continue
            on_failure = orders[-1]
        elif len(orders) > 1:
            report.add(source.path, token.line, f".{token.text}() chooses among several memory orders: "
                       "write one call for each, so that each says what its order buys")
            continue
        first, last = source.statement(index)
        close_line = code[source.match.get(index + 1, index)].line
        accesses.append(Access(source.path, token.line, token.text, order, on_failure, first, last, close_line))
    return accesses


def report_hidden_accesses(source: Source, report: Report) -> None:
    """Accesses that do not look like any: operators on atomics, and what is inside of macros."""
    for directive in source.directives:
        if directive[1:2] and directive[1].text == "define":
            for before, token in zip(directive[3:], directive[4:]):
                if token.text.startswith("memory_order") or (before.text in (".", "->")
                                                             and token.text in ACCESS_NAMES):
                    report.add(source.path, token.line, "an atomic access in a macro is seen neither by "
                               "this check nor by a reader: make it a function")
                    break
    code = source.code
    for index, token in enumerate(code):
        if token.text not in ("atomic", "atomic_ref") or token.kind != "word":
            continue
        name = index + 1
        if name < len(code) and code[name].text == "<":
            depth = 0
            while name < len(code):
                depth += {"<": 1, ">": -1}.get(code[name].text, 0)
                name += 1
                if depth == 0:
                    break
        if name < len(code) and code[name].text == "&":
            name += 1
        if name + 1 >= len(code) or code[name].kind != "word" or code[name + 1].text not in "({;=,)":
            continue
        if code[name + 1].text == "(" and is_function(source, name + 1):
            continue
        for use in scope_of(source, name):
            if use == name or code[use].text != code[name].text or code[use].kind != "word":
                continue
            before, after = code[use - 1].text, code[use + 1].text
            member = before in (".", "->", "::") and code[use - 2].text != "this"
            declared = before in ("*", "&", ">") or (code[use - 1].kind == "word"
                                                     and before not in ("return", "else", "do"))
            if not member and not declared and (
                    before in ("++", "--") or after in ("++", "--", "=", "+=", "-=", "&=", "|=", "^=")):
                report.add(source.path, code[use].line, f"an operator on the atomic `{code[use].text}` is "
                           "seq_cst without saying so: call the member and name the order")


def is_function(source: Source, opening: int) -> bool:
    """Whether the parentheses behind a name hold parameters, and not what the name is initialized with."""
    code, closing = source.code, source.match.get(opening, opening)
    if code[closing + 1:closing + 2] and code[closing + 1].text not in (";", ","):
        return True
    return closing == opening + 1 or any(
        code[at].kind == "word" and (code[at - 1].kind == "word" or
                                     (code[at - 1].text in "*&" and (code[at - 2].kind == "word"
                                                                     or code[at - 2].text == ">")))
        for at in range(opening + 2, closing))


def scope_of(source: Source, index: int) -> range:
    """The tokens among which a name that is declared at index may be used."""
    for back in range(index, -1, -1):
        text = source.code[back].text
        closing = source.match.get(back)
        if text in ("(", "{") and closing is not None and closing > index:
            if text == "{":
                return range(back, closing)
            for body in range(closing, len(source.code)):  # a parameter: the function's body
                if source.code[body].text == ";":
                    break
                if source.code[body].text == "{" and body in source.match:
                    return range(body, source.match[body])
            return range(back, closing)
    return range(len(source.code) - 1)


def comments_for(source: Source, access: Access) -> List[Comment]:
    """The comments that may speak about an access, the nearest first: on the lines of the call, above it
    inside of its statement, directly above the statement, on the statement's last line."""
    on_call = [c for c in source.comments if c.first <= access.close_line and c.last >= access.line
               and c.first >= access.line]
    inside = [c for c in source.comments if access.first_line <= c.first < access.line]
    above = source.comment_ending_at(access.first_line - 1)
    at_end = [c for c in source.comments if access.close_line < c.first <= access.last_line]
    return on_call + inside[::-1] + ([above] if above else []) + at_end


def check_orders(repo: Repository, report: Report) -> None:
    """Every atomic access names its order, and says what that buys and with whom, or why none is needed."""
    by_file: Dict[str, Dict[int, Label]] = {}
    for source in repo.sources("include/", "lib/"):
        accesses = accesses_of(source, report)
        report_hidden_accesses(source, report)
        labels = {id(c): labels_of(source, c) for c in source.comments}
        numbered = by_file.setdefault(os.path.basename(source.path), {})
        for comment in source.comments:
            for label in labels[id(comment)]:
                if label.number in numbered:
                    report.add(source.path, label.line, f"({label.number}) is used twice in this file, "
                               f"first in line {numbered[label.number].line}: give each access a number of "
                               "its own")
                else:
                    numbered[label.number] = label
        relaxed_lines: Set[int] = set()
        for access in accesses:
            if access.order == "relaxed" and access.on_failure in (None, "relaxed"):
                relaxed_lines.update(range(access.first_line, access.last_line + 1))
        for access in accesses:
            if access.order == "relaxed" and access.on_failure in (None, "relaxed"):
                require_reason(source, access, relaxed_lines, report)
            else:
                attach_label(source, access, labels, report)
        for label in (label for comment in source.comments for label in labels[id(comment)]):
            if label.access is None and numbered[label.number] is label:
                report.add(source.path, label.line, f"({label.number}) stands at no atomic access: put it "
                           "directly above or behind the one it is about, or remove it")
        for comment in source.comments:
            for line, text in comment.lines:
                if LABEL_LIKE.match(text) and not LABEL.match(text):
                    report.add(source.path, line, "looks like the comment of an atomic access, and is none: "
                               "write `(n) order: what it buys; pairs with (m)`")
    check_pairs(by_file, report)


def require_reason(source: Source, access: Access, relaxed_lines: Set[int], report: Report) -> None:
    """A relaxed access says why, on its statement's lines or above its run of relaxed statements."""
    candidates = comments_for(source, access)
    line = access.first_line
    while line - 1 in relaxed_lines:
        line -= 1
    above = source.comment_ending_at(line - 1)
    for comment in candidates + ([above] if above else []):
        found = RELAXED_REASON.search(comment.text)
        if found:
            if not found.group(1):
                report.add(source.path, comment.first, "`relaxed:` gives no reason: say why nothing is "
                           "decided on it")
            return
    report.add(source.path, access.line, f".{access.name}() is relaxed and does not say why: add a comment "
               "`// relaxed: <why nothing is decided on it>`")


def attach_label(source: Source, access: Access, labels: Dict[int, List[Label]], report: Report) -> None:
    free = [label for comment in comments_for(source, access) for label in labels[id(comment)]
            if label.access is None]

    def fits(label: Label) -> bool:
        return label.order == access.order and (label.on_failure or access.on_failure) == access.on_failure

    label = next((label for label in free if fits(label)), free[0] if free else None)
    if label is None:
        report.add(source.path, access.line, f".{access.name}() is {access.order} and has no comment: add "
                   f"`// (n) {access.order}: <what it buys>; pairs with (m) in <where>`")
        return
    label.access = access
    if label.order != access.order:
        report.add(source.path, label.line, f"({label.number}) says {label.order}, the code in line "
                   f"{access.line} says {access.order}")
    elif label.on_failure is not None and label.on_failure != access.on_failure:
        report.add(source.path, label.line, f"({label.number}) says {label.on_failure} on failure, the code "
                   f"in line {access.line} says {access.on_failure or 'nothing of failure'}")
    elif label.on_failure is None and access.on_failure not in (None, "relaxed"):
        report.add(source.path, label.line, f"({label.number}) does not tell the order on failure: write "
                   f"`({label.number}) {access.order}, on failure {access.on_failure}: ...`")
    pairs = PAIRS_WITH.search(label.text)
    bought = label.text[:pairs.start()] if pairs else label.text
    if len(bought.split()) < REASON_WORDS_MIN:
        report.add(source.path, label.line, f"({label.number}) does not say what the order buys: "
                   "`(n) order: <what it buys>; pairs with (m)`")


def check_pairs(by_file: Dict[str, Dict[int, Label]], report: Report) -> None:
    for file, labels in by_file.items():
        for label in labels.values():
            if not label.partners:
                report.add(label.path, label.line, f"({label.number}) names no partner: `pairs with (m)`, or "
                           "`pairs with (m) in <file>.hpp`")
            for other_file, number in label.partners:
                partner = by_file.get(other_file or file, {}).get(number)
                where = f" in {other_file}" if other_file else ""
                if partner is None:
                    report.add(label.path, label.line, f"({label.number}) pairs with ({number}){where}, "
                               "which does not exist")
                    continue
                back = [(other or (other_file or file), n) for other, n in partner.partners]
                if (file, label.number) not in back:
                    there = "" if not other_file or other_file == file else f" in {file}"
                    report.add(label.path, label.line, f"({label.number}) pairs with ({number}){where}, "
                               "whose comment does not name it back: add `pairs with "
                               f"({label.number}){there}` there")
                a, b = label.access, partner.access
                if a is None or b is None or a.order == b.order == "seq_cst":
                    continue
                if not (a.releases() and b.acquires()) and not (a.acquires() and b.releases()):
                    report.add(label.path, label.line, f"({label.number}) pairs with ({number}){where}, but "
                               "neither of them releases what the other acquires")


# ---- fences ------------------------------------------------------------------------------------------------

FENCE = re.compile(r"(__)?(c11_)?atomic_(thread|signal)_fence$|__sync_\w+$"
                   r"|_mm_[lsm]fence$|__builtin_ia32_[lsm]fence$|__(dmb|dsb|isb)$")
BARRIER_INSTRUCTION = re.compile(r"\b([lsm]fence|dmb|dsb|lock)\b")


def check_fences(repo: Repository, report: Report) -> None:
    """No stand-alone fences: ThreadSanitizer cannot see them, and the order belongs on an access."""
    for source in repo.sources():
        for tokens in [source.code] + source.directives:
            for index, token in enumerate(tokens):
                if token.kind != "word":
                    continue
                if FENCE.match(token.text):
                    report.add(source.path, token.line, f"{token.text} is a stand-alone fence: put the "
                               "order on an atomic access")
                if token.text in ("asm", "__asm", "__asm__"):
                    strings = asm_strings(tokens, index)
                    if "lock cmpxchg16b" in " ".join(strings):
                        continue  # an access, which the language does not have
                    clobbers = source.path.startswith(("include/", "lib/")) and '"memory"' in strings
                    if clobbers or BARRIER_INSTRUCTION.search(" ".join(strings)):
                        report.add(source.path, token.line, "inline assembly as a memory barrier: put the "
                                   "order on an atomic access (an instruction that is no barrier needs no "
                                   "\"memory\" clobber)")


def asm_strings(tokens: List[Token], index: int) -> List[str]:
    strings: List[str] = []
    for token in tokens[index + 1:]:
        if token.text == ";":
            break
        if token.kind == "string":
            strings.append(token.text)
    return strings


# ---- markers -----------------------------------------------------------------------------------------------

MARKER = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|\b([Nn]ot implemented)\b")
MERGE_MARKER = re.compile(r"(<<<<<<<|>>>>>>>|\|\|\|\|\|\|\|)( |$)")


def check_markers(repo: Repository, report: Report) -> None:
    """Nothing is left over: no reminders, no halves of a merge, no stray white space."""
    for path, text in repo.texts():
        if path.startswith(OF_OTHERS):
            continue
        is_patch = path.endswith((".patch", ".diff"))  # an empty context line is a space
        lines = text.split("\n")
        for number, line in enumerate(lines, 1):
            if not path.startswith(SELF):
                found = MARKER.search(line)
                if found:
                    report.add(path, number, f"`{found.group()}`: finish it, or make it an issue")
                if MERGE_MARKER.match(line) or (line == "=======" and not path.endswith(PROSE_SUFFIXES)):
                    report.add(path, number, "left over from a merge: resolve it")
            if line != line.rstrip() and not is_patch and not path.startswith(SELF):
                report.add(path, number, "white space at the end of the line: remove it")
            if "\t" in line and path.endswith(CPP_SUFFIXES):
                report.add(path, number, "a tab: indent by 4 spaces (in a string, write \\t)")
        if text and not text.endswith("\n"):
            report.add(path, len(lines), "the last line does not end: add a newline")


# ---- self-contained ----------------------------------------------------------------------------------------

COMPILER_ERROR = re.compile(r"(?m)^(?P<file>[^\n:]+):(?P<line>\d+)(?::\d+)?: (?:fatal )?error: (?P<text>.*)$")


def check_self_contained(repo: Repository, report: Report) -> None:
    """Each header compiles as the only one, and a second time in the same file."""
    if not repo.headers():
        return
    with tempfile.TemporaryDirectory(prefix="weir-tidy-") as scratch, \
            concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:

        def compile_alone(header: Source) -> Tuple[Source, int, str]:
            name = header.path[len("include/"):]
            unit = Path(scratch) / (name.replace("/", "_") + ".cpp")
            unit.write_text(f"#include <{name}>\n#include <{name}>\n", encoding="utf-8")
            command = repo.compiler + ["-fsyntax-only", "-std=c++20", "-Wall", "-Wextra", "-Werror",
                                       "-I" + str(repo.root / "include")]
            command += ["-I" + directory for directory in repo.include_directories] + [str(unit)]
            try:
                done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, check=False,
                                      env={**os.environ, "LC_ALL": "C"})
            except OSError as error:
                raise CannotRun(f"no compiler: {error}; choose one with --compiler") from error
            return header, done.returncode, done.stdout.decode("utf-8", "replace")

        for header, status, output in pool.map(compile_alone, repo.headers()):
            if status == 0:
                continue
            where, line, text = header.path, 1, (output.strip().split("\n") or [""])[0]
            found = COMPILER_ERROR.search(output)
            if found:
                text = found.group("text")
                try:
                    where = Path(found.group("file")).resolve().relative_to(repo.root.resolve()).as_posix()
                    line = int(found.group("line"))
                except ValueError:  # in a header that is not ours, or in our two lines
                    text = f"{found.group('file')}:{found.group('line')}: {text}"
            report.add(where, line, f"<{header.path[len('include/'):]}> does not compile as the only "
                       f"header: {text}")


# ---- readme ------------------------------------------------------------------------------------------------
#
# A ```cpp block in README.md or below docs/ is a run of whole lines of one file examples/<name>.cpp, word for
# word; only the indentation that all its lines share may differ. There is nothing to mark in either place.
# examples/meson.build, which makes an executable and a test of each example, has to name the file (as
# '<name>' or '<name>.cpp'). Of a header examples/<name>.hpp, it has to name a file that includes it.

README = "README.md"
DOCS = "docs/"
FENCE_LINE = re.compile(r"^(?P<indent>\s*)(?P<fence>`{3,}|~{3,})\s*(?P<info>[^`]*)$")
CPP_WORDS = {"cpp", "c++", "cxx", "cc", "hpp"}


def pages(repo: Repository) -> List[str]:
    """The README and all pages of the documentation."""
    return [path for path in repo.files if path == README or (path.startswith(DOCS) and path.endswith(".md"))]


def markdown_blocks(text: str) -> Iterator[Tuple[int, str, Optional[List[str]]]]:
    """Each fenced block: the line of its fence, its language, its lines; None for one without an end."""
    opened: Optional[Tuple[int, str, str, List[str]]] = None
    for number, line in enumerate(text.split("\n"), 1):
        found = FENCE_LINE.match(line)
        if opened is None:
            if found:
                words = found.group("info").split()
                opened = number, found.group("fence"), words[0].lower().strip("{.}") if words else "", []
        elif found and not found.group("info").strip() and found.group("fence").startswith(opened[1]):
            yield opened[0], opened[2], opened[3]
            opened = None
        else:
            opened[3].append(line)
    if opened is not None:
        yield opened[0], opened[2], None


def dedented(lines: List[str]) -> List[str]:
    return textwrap.dedent("\n".join(lines)).split("\n")


def contains_run(lines: List[str], wanted: List[str]) -> bool:
    count = len(wanted)
    return any(lines[at].strip() == wanted[0].strip() and dedented(lines[at:at + count]) == wanted
               for at in range(len(lines) - count + 1))


def check_readme(repo: Repository, report: Report) -> None:
    """The code of the README and of the documentation is code that is compiled and run."""
    if README not in repo.files:
        report.add(README, 1, "does not exist")
    build_file = "examples/meson.build"
    build = (repo.text(build_file) or "") if build_file in repo.files else ""
    examples = [path for path in repo.files if path.startswith("examples/") and path.endswith((".cpp", ".hpp"))]
    for page in pages(repo):
        any_cpp = False
        for number, language, block in markdown_blocks(repo.text(page) or ""):
            if block is None:
                report.add(page, number, "this block has no end")
                continue
            if language not in CPP_WORDS:
                continue
            any_cpp = True
            wanted = dedented(block)
            while wanted and not wanted[-1].strip():
                wanted.pop()
            while wanted and not wanted[0].strip():
                wanted.pop(0)
            sources = [path for path in examples
                       if wanted and contains_run((repo.text(path) or "").split("\n"), wanted)]
            if not sources:
                report.add(page, number, "this code is in no file of examples/ as it stands here: take it "
                           "from one, line by line")
            elif not any(is_built_and_run(repo, build, path) for path in sources):
                report.add(page, number, f"{sources[0]} is not built and run: name it in {build_file}, which "
                           "makes an executable() and a test() of it")
        if not any_cpp and page == README:
            report.add(page, 1, "shows no code: put a short example from examples/ into a ```cpp block")


def is_built_and_run(repo: Repository, build: str, path: str) -> bool:
    if path.endswith(".hpp"):
        included = re.compile(r'(?m)^\s*#\s*include\s*"' + re.escape(os.path.basename(path)) + '"')
        return any(is_built_and_run(repo, build, user) for user in repo.files
                   if user.startswith("examples/") and user.endswith(".cpp")
                   and included.search(repo.text(user) or ""))
    build = re.sub(r"(?m)#.*$", "", build)
    name = re.escape(os.path.basename(path)[:-len(".cpp")])
    return all(re.search(wanted, build) for wanted in (rf"'{name}(\.cpp)?'", r"\bexecutable\(", r"\btest\("))


# ---- links -------------------------------------------------------------------------------------------------
#
# What a page of the documentation links to is there, and docs/README.md, the index, links to each page.

LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
INDEX = "docs/README.md"


def links_of(page: str, text: str) -> Iterator[Tuple[int, str]]:
    """The line and the path of each link to a place in the repository; not those inside of code."""
    fence = ""
    for number, line in enumerate(text.split("\n"), 1):
        found = FENCE_LINE.match(line)
        if found and not fence:
            fence = found.group("fence")
        elif found and found.group("fence").startswith(fence):
            fence = ""
        elif not fence:
            for link in LINK.finditer(re.sub(r"`[^`]*`", "", line)):
                target = link.group("target").split("#")[0]
                if target and "://" not in target:
                    yield number, os.path.normpath(os.path.join(os.path.dirname(page), target))


def check_links(repo: Repository, report: Report) -> None:
    """What the documentation links to is there, and its index has all pages."""
    linked: Set[str] = set()
    for page in [path for path in repo.files if path.endswith(".md") and not path.startswith(SELF + OF_OTHERS)]:
        for number, target in links_of(page, repo.text(page) or ""):
            if page == INDEX:
                linked.add(target)
            if target not in repo.files and not any(path.startswith(target + "/") for path in repo.files):
                report.add(page, number, f"links to {target}, which is not there")
    if INDEX in repo.files:
        for page in pages(repo):
            if page not in linked and page not in (README, INDEX):
                report.add(INDEX, 1, f"has no link to {page}: it is the index of all pages")
    elif len(pages(repo)) > 1:
        report.add(INDEX, 1, "does not exist: it is the index of all pages")


# ---- pictures ----------------------------------------------------------------------------------------------
#
# A picture docs/pictures/<name>.svg is drawn from the text <name>.dot beside it by docs/pictures/draw.py, which
# writes the text's hash into it. So this needs no Graphviz.

PICTURES = "docs/pictures/"
PICTURE_HASH = re.compile(r"<!-- drawn from (?P<source>\S+), sha256 (?P<hash>[0-9a-f]{64}) -->")


def check_pictures(repo: Repository, report: Report) -> None:
    """Each picture is drawn from the text beside it, as that is now."""
    for path in repo.files:
        if not path.startswith(PICTURES) or not path.endswith((".dot", ".svg")):
            continue
        text = path[:-len(".svg")] + ".dot"
        picture = path[:-len(".svg")] + ".svg"
        if picture not in repo.files:
            report.add(path, 1, f"{picture} is not there: draw it with ./dev pictures")
        elif text not in repo.files:
            report.add(path, 1, f"{text}, which it is drawn from, is not there")
        elif path == picture:
            found = PICTURE_HASH.search(repo.text(picture) or "")
            wanted = hashlib.sha256((repo.text(text) or "").encode("utf-8")).hexdigest()
            if not found or found.group("source") != os.path.basename(text):
                report.add(path, 1, "does not say which text it was drawn from: draw it with ./dev pictures")
            elif found.group("hash") != wanted:
                report.add(path, 1, f"is older than {text}: draw it anew with ./dev pictures")


# ---- deaths ------------------------------------------------------------------------------------------------
#
# The comment of a public operation says what a death in the middle of it leaves behind, and names the cases
# of the kill harness that show it:
#
#     // If the caller dies here: the buffer is free or held, reaping returns it. [crash: allocate, contended]
#
# An operation that cannot leave anything behind says so: `[crash: none, it only reads]`. Each comment with a
# `Progress:` line has such a line too, unless the header's opening comment has one that goes for all
# operations. tests/crash/cases.txt lists the cases, one a line; the harness's own test keeps it equal to what
# the harness knows.

DEATH = re.compile(r"(?<![`'\"])If the caller dies here:")
CRASH = re.compile(r"\[crash:\s*([^\]]*)\]")
CASE = re.compile(r"[A-Za-z0-9_.:/-]+$")


def death_notes(comment: Comment) -> Iterator[Tuple[int, str]]:
    """Each `If the caller dies here:` of a comment, with its text up to an empty line or the next of them."""
    lines = comment.lines
    for at, (line, text) in enumerate(lines):
        found = DEATH.search(text)
        if not found:
            continue
        note = text[found.end():]
        for _, following in lines[at + 1:]:
            if not following or DEATH.search(following):
                break
            note += " " + following
        yield line, note


def check_deaths(repo: Repository, report: Report) -> None:
    """Whatever a header says about deaths is shown by the kill harness, and whatever that shows is said."""
    cases: Dict[str, int] = {}
    if CASES in repo.files:
        for number, line in enumerate((repo.text(CASES) or "").split("\n"), 1):
            name = line.strip()
            if not name or name.startswith("#"):
                continue
            if not CASE.match(name):
                report.add(CASES, number, f"`{name}` is no name of a case: one name a line")
            elif name in cases:
                report.add(CASES, number, f"`{name}` stands here twice")
            else:
                cases[name] = number
    else:
        report.add(CASES, 1, "does not exist: list the kill harness's cases there")
    named: Set[str] = set()
    for header in repo.headers():
        first_code = min((t.line for t in header.code if t.kind != "directive"), default=sys.maxsize)
        in_essay = any(list(death_notes(c)) for c in header.comments if c.first < first_code)
        for comment in header.comments:
            notes = list(death_notes(comment))
            needed = (not notes and not in_essay and comment.first > first_code
                      and header.path[len(HEADERS):] not in NO_OPERATIONS)
            for line, text in comment.lines:
                if text.startswith("Progress:") and needed:
                    report.add(header.path, line, "an operation that states its progress also has a line "
                               "`If the caller dies here: ... [crash: case]`")
                    break
            for line, note in notes:
                found = CRASH.search(note)
                if not found:
                    report.add(header.path, line, "names no case of the kill harness: end it with `[crash: "
                               "case, ...]`, or `[crash: none, <why>]`")
                    continue
                names = [name.strip() for name in found.group(1).split(",")]
                if names[0] == "none":
                    if not "".join(names[1:]):
                        report.add(header.path, line, "`[crash: none]` gives no reason: `[crash: none, "
                                   "<why>]`")
                    continue
                for name in names:
                    named.add(name)
                    if name not in cases and CASES in repo.files:
                        report.add(header.path, line, f"`{name}` is no case of the kill harness: {CASES} "
                                   "lists them")
    for name, number in cases.items():
        if name not in named:
            report.add(CASES, number, f"`{name}` is named by no header: the operation that it kills says so "
                       f"in `If the caller dies here: ... [crash: {name}]`")


# ---- operations --------------------------------------------------------------------------------------------
#
# A public operation is a function of a public header, outside of namespace detail, that others may call and
# that does something: it is no accessor. Its comment says what it does, `Progress:`, `If the caller dies here:`
# (what that has to look like: deaths, above) and, unless it is noexcept, `Throws:` or what it returns. A
# comment goes for all declarations up to the next empty line; what goes for all operations of a class or of
# a header is said once, in the comment of the class or in the opening comment.
#
# Accessors are functions of one `return` that read no shared word, and what is constexpr. Destructors,
# operators, what is defaulted or deleted, and constructors that are noexcept, are not asked for; what overrides
# is described where it was declared first.

FIXED = ("Progress:", "If the caller dies here:", "Throws:")
SHARED_ACCESS = {"shared", "load", "store", "fetch_add", "exchange", "compare_exchange_strong", "load_shared"}


@dataclasses.dataclass
class Operation:
    name: str
    first: int  # line
    last: int   # line
    is_noexcept: bool
    is_asked: bool
    around: List[int]  # first lines of the classes that it is in


class Declarations:
    """Finds the functions that a header declares to the public."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.code = source.code
        self.found: List[Operation] = []
        self._scan(0, len(self.code), "", True, [])

    def _text(self, at: int) -> str:
        return self.code[at].text if at < len(self.code) else ""

    def _after(self, at: int) -> int:
        """Behind the bracket that opens at `at`."""
        return self.source.match.get(at, at) + 1

    def _scan(self, at: int, end: int, class_name: str, is_public: bool, around: List[int]) -> None:
        while at < end:
            text = self._text(at)
            if text in ("public", "private", "protected") and self._text(at + 1) == ":":
                is_public = text == "public"
                at += 2
            elif self.code[at].kind == "directive" or text in (";", "}"):
                at += 1
            else:
                at = self._declaration(at, end, class_name, is_public, around)

    def _declaration(self, at: int, end: int, class_name: str, is_public: bool, around: List[int]) -> int:
        start = at
        name_at = -1
        is_assigned = False
        words: Set[str] = set()
        while at < end:
            text = self._text(at)
            if text == "template" and self._text(at + 1) == "<":
                at = self._behind_angles(at + 1)
                continue
            if text == "[":
                at = self._after(at)
                continue
            if text == ";":
                return at + 1
            if text == "=":
                is_assigned = True
            if text == "(":
                before = self.code[at - 1]
                is_name = before.kind == "word" and before.text not in (
                    "alignas", "decltype", "noexcept", "requires", "static_assert", "explicit")
                if not is_assigned and (is_name or "operator" in words):
                    name_at = at - 1
                    break
                at = self._after(at)
                continue
            if text == "{":
                return self._block(start, at, words, is_public, around)
            words.add(text)
            at += 1
        if name_at < 0:
            return at
        return self._function(start, name_at, words, class_name, is_public, around)

    def _behind_angles(self, at: int) -> int:
        depth = 0
        while at < len(self.code):
            text = self._text(at)
            if text == "<":
                depth += 1
            elif text == ">":
                depth -= 1
                if depth == 0:
                    return at + 1
            elif text == "(":
                at = self._after(at)
                continue
            at += 1
        return at

    def _block(self, start: int, opening: int, words: Set[str], is_public: bool, around: List[int]) -> int:
        closing = self.source.match.get(opening, opening)
        if "namespace" in words:
            if "detail" not in words and self._text(opening - 1) != "namespace":
                self._scan(opening + 1, closing, "", True, around)
        elif words & {"class", "struct", "union"} and "enum" not in words:
            if is_public:
                names = [self._text(at) for at in range(start, opening)]
                key = next(at for at, text in enumerate(names) if text in ("class", "struct", "union"))
                before_bases = names[key + 1:names.index(":") if ":" in names else len(names)]
                name = next((text for text in reversed(before_bases)
                             if re.match(r"[A-Za-z_]\w*$", text) and text != "final"), "")
                self._scan(opening + 1, closing, name, "class" not in words,
                           around + [self.code[start].line])
        return closing + 1

    def _function(self, start: int, name_at: int, words: Set[str], class_name: str, is_public: bool,
                  around: List[int]) -> int:
        at = self._after(name_at + 1)
        after: List[str] = []
        while at < len(self.code) and self._text(at) not in ("{", ";", ":"):
            after.append(self._text(at))
            at = self._after(at) if self._text(at) in ("(", "[") else at + 1
        if self._text(at) == ":":
            at += 1
            while at < len(self.code):  # the members that a constructor makes
                while self._text(at) not in ("(", "{"):
                    at += 1
                at = self._after(at)
                if self._text(at) != ",":
                    break
        body = range(at + 1, self.source.match.get(at, at)) if self._text(at) == "{" else range(0)
        last = self._after(at) if self._text(at) == "{" else at + 1
        name = self._text(name_at)
        is_accessor = ("constexpr" in words or ("const" in after and "noexcept" in after and len(body) > 0
                       and self._text(body.start) == "return"
                       and sum(self._text(each) == ";" for each in body) == 1
                       and not any(self._text(each) in SHARED_ACCESS for each in body)))
        is_own = not words & {"friend", "using", "static_assert", "operator", "~", "typedef"}
        is_made = "default" in after or "delete" in after or "override" in after
        is_quiet_constructor = name == class_name and "noexcept" in after
        is_elsewhere = self._text(name_at - 1) == "::" or self._text(name_at + 2) == "*"  # a definition, or a pointer
        if is_public and is_own and not is_elsewhere:
            self.found.append(Operation(
                name, self.code[start].line, self.code[last - 1].line, "noexcept" in after,
                not (is_accessor or is_made or is_quiet_constructor), around))
        return last


def said_in(comment: Optional[Comment]) -> Set[str]:
    """Which of the fixed lines a comment has. Returning something is said in other words too."""
    if comment is None:
        return set()
    said = {words for words in FIXED if any(text.startswith(words) for _, text in comment.lines)}
    if re.search(r"\b[Rr]eturns?\b|(^|\. )(Whether|How many|Names each)\b", comment.text):
        said.add("Throws:")
    return said


def check_operations(repo: Repository, report: Report) -> None:
    """Each public operation says what it does, its progress, what a death in it leaves, and how it fails."""
    for header in repo.headers():
        if header.path[len(HEADERS):] in NO_OPERATIONS:
            continue
        first_code = min((t.line for t in header.code if t.kind != "directive"), default=sys.maxsize)
        essay: Set[str] = set()
        for comment in header.comments:
            if comment.first < first_code:
                essay |= said_in(comment)
        last = 0
        is_described = False
        said_of_group: Set[str] = set()
        for operation in Declarations(header).found:
            comment = header.comment_ending_at(operation.first - 1)
            if last != (comment.first if comment else operation.first) - 1:
                is_described, said_of_group = False, set()
            is_described = is_described or comment is not None
            said_of_group = said_of_group | said_in(comment)
            last = operation.last
            if not operation.is_asked:
                continue
            said = essay | said_of_group
            for line in operation.around:
                said = said | said_in(header.comment_ending_at(line - 1))
            if not is_described:
                report.add(header.path, operation.first, f"{operation.name}() has no comment: what it does")
            missing = [words for words in FIXED if words not in said
                       and not (words == "Throws:" and operation.is_noexcept)]
            if missing:
                report.add(header.path, operation.first, f"{operation.name}() does not say "
                           + ", ".join(f"`{words}`" for words in missing))


# ---- headers-essay -----------------------------------------------------------------------------------------


def check_headers_essay(repo: Repository, report: Report) -> None:
    """A header opens with what a newcomer reads first, and says what progress its operations make."""
    for header in repo.headers():
        guards = [d for d in header.directives if [t.text for t in d[1:3]] == ["pragma", "once"]]
        guards += [d for d in header.directives[:2] if [t.text for t in d[1:2]] in (["ifndef"], ["define"])]
        guard_lines = {token.line for d in guards for token in d}
        first_code = min(header.code_lines - guard_lines, default=sys.maxsize)
        essay = [text for comment in header.comments for line, text in comment.lines
                 if line < first_code and not re.search(r"SPDX-|Copyright", text)]
        while essay and not essay[-1]:
            essay.pop()
        if len(essay) < ESSAY_LINES_MIN:
            report.add(header.path, 1, f"opens with {len(essay)} lines of comment, not {ESSAY_LINES_MIN}: "
                       "say what it is for, how it is used, who may call what at once, what a death leaves "
                       "behind, and its limits")
        if header.path[len(HEADERS):] not in NO_OPERATIONS and not any(
                re.search(r"\bProgress:", comment.text) for comment in header.comments):
            report.add(header.path, 1, "no operation states its progress: `Progress: wait-free`, lock-free "
                       "or blocking")


# ---- names -------------------------------------------------------------------------------------------------

MACHINE_PATH = re.compile(r"(?<![\w.$})/~*%>-])/(work|root)/")


def check_names(repo: Repository, report: Report) -> None:
    """Nothing names a place that exists on one machine only."""
    for path, text in repo.texts():
        for number, line in enumerate(text.split("\n"), 1):
            found = MACHINE_PATH.search(line)
            if found and not path.startswith(SELF):
                report.add(path, number, f"`{found.group()}` is a place on somebody's machine: write a "
                           "relative path")


# ---- running -----------------------------------------------------------------------------------------------

CHECKS: Dict[str, Callable[[Repository, Report], None]] = {
    "layers": check_layers,
    "orders": check_orders,
    "fences": check_fences,
    "markers": check_markers,
    "self-contained": check_self_contained,
    "readme": check_readme,
    "links": check_links,
    "pictures": check_pictures,
    "deaths": check_deaths,
    "operations": check_operations,
    "headers-essay": check_headers_essay,
    "names": check_names,
}


def run_check(name: str, repo: Repository) -> Report:
    report = Report(name)
    CHECKS[name](repo, report)
    return report


def counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def run(repo: Repository, names: List[str]) -> int:
    problems: Set[Problem] = set()
    for name in names:
        problems |= run_check(name, repo).problems
    for problem in sorted(problems):
        print(problem)
    print(f"tidy: {counted(len(names), 'check')}, {counted(len(repo.files), 'file')}, "
          f"{counted(len(problems), 'problem')}")
    return 1 if problems else 0


# ---- the self-test -----------------------------------------------------------------------------------------

SAMPLE_FILE = re.compile(r"^== (\S+)( \(no newline at the end\))?$")
SAMPLE_EXPECT = re.compile(r"^expect (\S+):(\d+) (.+)$")
Expected = List[Tuple[str, int, str]]  # file, line, words of the problem's text


def unpack(sample: Path, root: Path) -> Expected:
    """Writes a sample's files below root."""
    expected: Expected = []
    files: Dict[str, List[str]] = {}
    unended: Set[str] = set()
    current = ""
    text = sample.read_text(encoding="utf-8")
    for line in text[:-1 if text.endswith("\n") else None].split("\n"):
        line = line.replace("@/", "/")
        begins = SAMPLE_FILE.match(line)
        if begins:
            current = begins.group(1)
            files[current] = []
            if begins.group(2):
                unended.add(current)
        elif current:
            content, *marks = line.split(" @@ ")
            files[current].append(content)
            expected += [(current, len(files[current]), mark) for mark in marks]
        else:
            expects = SAMPLE_EXPECT.match(line)
            if expects:
                expected.append((expects.group(1), int(expects.group(2)), expects.group(3)))
    if not files:
        raise CannotRun(f"{sample}: holds no file")
    for name, lines in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(("\n".join(lines) + ("" if name in unended or not lines else "\n")).encode("utf-8"))
    return expected


def differences(expected: Expected, problems: Set[Problem]) -> Iterator[str]:
    """What was expected and not reported, or reported and not expected."""
    left = sorted(problems)
    for path, line, words in expected:
        hit = next((p for p in left if (p.path, p.line) == (path, line) and words in p.message), None)
        if hit:
            left.remove(hit)
        else:
            yield f"not caught: {path}:{line}: ... {words} ..."
    for problem in left:
        yield f"not expected: {problem}"


def reporting_lines() -> Set[int]:
    """The lines of this script that report a problem."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    return {node.lineno for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add"
            and isinstance(node.func.value, ast.Name) and node.func.value.id == "report"}


def self_test(compiler: List[str]) -> int:
    samples = Path(__file__).resolve().parent / "tidy_samples"
    failures: List[str] = []
    reached: Set[int] = set()
    count = 0
    for name in CHECKS:
        for kind in ("good", "bad"):
            if not list((samples / name).glob(kind + "_*.txt")):
                failures.append(f"{name}: has no {kind} sample")
    for sample in sorted(samples.glob("*/*")):
        name, label = sample.parent.name, sample.relative_to(samples).as_posix()
        if name not in CHECKS or not re.match(r"(good|bad)_\w+\.txt$", sample.name):
            failures.append(f"{label}: is no sample: <check>/good_<what>.txt or <check>/bad_<what>.txt")
            continue
        count += 1
        with tempfile.TemporaryDirectory(prefix="weir-tidy-") as scratch:
            expected = unpack(sample, Path(scratch))
            report = run_check(name, Repository(Path(scratch), compiler, []))
            reached |= report.sites
            failures += [f"{label}: {difference}" for difference in differences(expected, report.problems)]
            if bool(expected) != sample.name.startswith("bad"):
                failures.append(f"{label}: expects {counted(len(expected), 'problem')}, against its name")
            failures += [f"{label}: {difference}" for difference in
                         command_differences(Path(scratch), name, compiler, report.problems)]
    for line in sorted(reporting_lines() - reached):
        failures.append(f"tests/tidy.py:{line}: no sample reaches this report")
    for failure in failures:
        print(failure)
    print(f"tidy self-test: {counted(count, 'sample')}, {counted(len(reached), 'kind')} of problems seen, "
          f"{counted(len(failures), 'failure')}")
    return 1 if failures else 0


def command_differences(root: Path, name: str, compiler: List[str], problems: Set[Problem]) -> Iterator[str]:
    """The command, run by itself, prints the same problems and says so in its exit status."""
    command = [sys.executable, __file__, "--root", str(root), "--compiler", shlex.join(compiler), name]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    lines = done.stdout.decode("utf-8").split("\n")
    if lines[:-2] != [str(problem) for problem in sorted(problems)]:
        yield "the command prints something else: " + " | ".join(lines)
    if done.returncode != (1 if problems else 0):
        yield f"the command's exit status is {done.returncode} with {counted(len(problems), 'problem')}"


def main(arguments: List[str]) -> int:
    parser = argparse.ArgumentParser(description="Checks of the repository that no compiler makes.")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent,
                        help="the repository (default: the one this script is in)")
    parser.add_argument("--compiler", default=os.environ.get("CXX", "c++"),
                        help="the command that compiles C++ (default: $CXX, or c++)")
    parser.add_argument("--include", action="append", default=[], metavar="DIR",
                        help="a further include directory, for generated headers")
    parser.add_argument("--self-test", action="store_true", help="run the checks over their samples")
    parser.add_argument("--list", action="store_true", help="name the checks")
    parser.add_argument("checks", nargs="*", metavar="CHECK")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.checks) - set(CHECKS))
    if unknown:
        parser.error(f"no check is called {unknown[0]}; there are {', '.join(CHECKS)}")
    if options.list:
        for name, check in CHECKS.items():
            print(f"{name:<16}{(check.__doc__ or '').strip()}")
        return 0
    try:
        compiler = shlex.split(options.compiler)
        if options.self_test:
            return self_test(compiler)
        if not options.root.is_dir():
            raise CannotRun(f"{options.root} is no directory")
        return run(Repository(options.root, compiler, options.include), options.checks or list(CHECKS))
    except CannotRun as error:
        print(f"tidy: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
