#!/usr/bin/env python3
"""Runs the pipelines of examples/ on real files: in several processes, which are killed on the way and started again, and
on each path that a scheduler can sleep on.

    tests/pipelines_test.py THRESHOLD COPY_SOURCE COPY_WORKER COPY_SINK SPLIT COUNT MERGE

Nothing waits for a time of its own: each step waits for what a program says, and Meson's timeout is over all of them.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import unittest

from programs_testing import ProgramsTest

threshold, source, worker, sink, split, count, merge = [""] * 7
repository = pathlib.Path(__file__).resolve().parent.parent

CHUNK = 1 << 18
WAIT_PATHS = ("io_uring", "futex_waitv", "recheck")
# Longer than any test: whoever works that long is killed in the middle of it.
FOR_EVER_MS = 3_600_000


def real_text(byte_count):
    """Text of this repository and of this machine, as often as it takes, in plain ASCII: wc's answers to other bytes
    differ from one version to the next."""
    paths = [path for folder in ("docs", "include/weir", "lib", "tests", "examples")
             for path in sorted((repository / folder).glob("*.*"))]
    paths += sorted(pathlib.Path("/usr/share/common-licenses").glob("*"))
    text = b"\n".join(path.read_bytes() for path in paths if path.is_file())
    text = bytes(byte for byte in text if byte in b"\t\n" or 32 <= byte < 127)
    return (text * (byte_count // len(text) + 1))[:byte_count]


def masked(content, key):
    return content.translate(bytes(byte ^ key for byte in range(256)))


class Pipelines(ProgramsTest):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def make_file(self, content, name="in"):
        path = self.folder / name
        path.write_bytes(content)
        return path

    def start(self, program, *arguments):
        return self.start_command(program, *arguments, "--domain", self.domain)

    def start_and_wait(self, program, *arguments):
        process = self.start(program, *arguments)
        self.wait_for(process, "is there|goes on")
        return process

    def end(self, process, code=0):
        """Waits for its end, and returns what it said last."""
        said = process.stdout.read()
        self.assertEqual(process.wait(), code, said)
        return said

    def run_on_each_path(self, test):
        for path in WAIT_PATHS:
            self.environment["WEIR_WAIT_PATH"] = path
            with self.subTest(path=path):
                if self.is_available(path):
                    test()
                    self.assert_nothing_is_left()

    def is_available(self, path):
        """Not everything is everywhere; what is there is used without fail."""
        nothing = self.make_file(b"", "nothing")
        result = subprocess.run([threshold, nothing, self.folder / "out", self.domain], env=self.environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if result.returncode == 0:
            return True
        self.assertIn(path, result.stdout)
        self.assertNotEqual(path, "recheck")
        print(f"{path} is not to be had here: {result.stdout.strip()}", flush=True)
        return False

    # --- one process ------------------------------------------------------------------------------------------------

    def test_a_block_of_ones_own_in_one_process(self):
        content = os.urandom(3_000_000) + b"\x7f\x80"
        copy = self.folder / "out"
        for path in WAIT_PATHS:
            self.environment["WEIR_WAIT_PATH"] = path
            with self.subTest(path=path):
                if self.is_available(path):
                    subprocess.run([threshold, self.make_file(content), copy, self.domain], env=self.environment, check=True)
                    self.assertEqual(copy.read_bytes(),
                                     content.translate(bytes(0 if byte < 128 else 255 for byte in range(256))))

    # --- the copy ---------------------------------------------------------------------------------------------------

    def copy_is_whole(self, original, copy, key=0):
        if key == 0:
            self.assertEqual(subprocess.run(["cmp", original, copy], check=False).returncode, 0)
        else:
            self.assertEqual(copy.read_bytes(), masked(original.read_bytes(), key))

    def test_a_file_is_copied_by_three_processes(self):
        original = self.make_file(os.urandom(30_000_001))
        copy = self.folder / "copy"

        def test():
            copy.write_bytes(bytes(31_000_000))  # longer than what comes
            processes = [self.start(source, original), self.start(worker, "--key", 201), self.start(sink, copy)]
            said = [self.end(process) for process in processes]
            self.assertIn("115 of 115 chunks are written, 0 are under way, 0 were lost", said[0])
            self.copy_is_whole(original, copy, key=201)

        self.run_on_each_path(test)

    def test_several_workers_one_behind_the_other_and_beside(self):
        original = self.make_file(real_text(20_000_000))
        copy = self.folder / "copy"

        def test():
            processes = [self.start(sink, copy)]
            processes += [self.start(worker, "--key", 77, "--to", "masked") for _ in range(2)]
            processes += [self.start(worker, "--key", 77, "--from", "masked") for _ in range(2)]
            processes += [self.start(source, original)]
            for process in processes:
                self.end(process)
            self.copy_is_whole(original, copy)

        self.run_on_each_path(test)

    def test_files_of_odd_sizes(self):
        copy = self.folder / "copy"
        for size in (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 64 * CHUNK):
            with self.subTest(size=size):
                original = self.make_file(os.urandom(size))
                processes = [self.start(sink, copy), self.start(worker), self.start(source, original)]
                said = [self.end(process) for process in processes]
                self.assertIn("0 are under way, 0 were lost", said[2])
                self.copy_is_whole(original, copy)
                self.assert_nothing_is_left()

    def test_what_a_killed_worker_held_is_sent_again(self):
        original = self.make_file(os.urandom(60 * CHUNK + 5))
        copy = self.folder / "copy"

        def test():
            reader = self.start(source, original)
            writer = self.start(sink, copy)
            sluggard = self.start(worker, "--work-ms", FOR_EVER_MS)
            self.wait_for(sluggard, "works on chunk")  # and holds it
            other = self.start(worker)
            self.wait_for(reader, "60 of 61 chunks are written, 1 are under way, 0 were lost")
            self.kill(sluggard)
            self.assertIn("61 of 61 chunks are written, 0 are under way, 1 were lost", self.end(reader))
            self.end(other)
            self.end(writer)
            self.copy_is_whole(original, copy)

        self.run_on_each_path(test)

    def test_source_and_sink_go_on_while_the_only_worker_is_killed_and_started_again(self):
        original = self.make_file(os.urandom(200 * CHUNK + 99))
        copy = self.folder / "copy"

        def test():
            reader = self.start(source, original)
            writer = self.start(sink, copy)
            for _ in range(5):
                victim = self.start(worker, "--work-ms", 20)
                for _ in range(8):
                    self.wait_for(victim, "works on chunk")
                self.kill(victim)
            last = self.start(worker)
            self.assertRegex(self.end(reader), "201 of 201 chunks are written, 0 are under way, [0-5] were lost")
            self.end(last)
            self.end(writer)
            self.copy_is_whole(original, copy)

        self.run_on_each_path(test)

    def test_a_stopped_worker_is_waited_for(self):
        original = self.make_file(os.urandom(40 * CHUNK))
        copy = self.folder / "copy"
        reader = self.start(source, original)
        writer = self.start(sink, copy)
        stopped = self.start(worker, "--work-ms", 300)
        self.wait_for(stopped, "works on chunk")
        stopped.send_signal(signal.SIGSTOP)
        other = self.start(worker)
        said = self.wait_for(reader, "(39|40) of 40 chunks are written, [01] are under way, 0 were lost")
        stopped.send_signal(signal.SIGCONT)
        self.assertIn("40 of 40 chunks are written, 0 are under way, 0 were lost", said + self.end(reader))
        for process in (writer, stopped, other):
            self.end(process)
        self.copy_is_whole(original, copy)
        self.assert_nothing_is_left()

    def test_each_of_the_three_is_killed_and_finds_its_ports_again(self):
        original = self.make_file(os.urandom(200 * CHUNK + 1))
        copy = self.folder / "copy"
        commands = {source: (original,), worker: ("--work-ms", 20), sink: (copy,)}

        def test():
            processes = {program: self.start(program, *arguments) for program, arguments in commands.items()}
            for victims in ((sink,), (source,), (worker,), (source, sink), (source, worker, sink)):
                for _ in range(5):
                    self.wait_for(processes[worker], "works on chunk")
                self.kill(*(processes[victim] for victim in victims))
                for victim in victims:
                    processes[victim] = self.start(victim, *commands[victim])
                    if victim == sink:
                        self.wait_for(processes[sink], "goes on")
            self.kill(processes[worker])
            processes[worker] = self.start(worker)  # a quick one
            for process in processes.values():
                self.end(process)
            self.copy_is_whole(original, copy)

        self.run_on_each_path(test)

    def test_two_files_do_not_mix(self):
        reader = self.start(source, self.make_file(b"one", "one"))
        writer = self.start_and_wait(sink, self.folder / "copy")
        self.wait_for(reader, "0 of 1 chunks are written, 1 are under way")
        second = self.start(source, self.make_file(b"other", "other"))
        self.assertIn("another file is copied", self.end(second, code=1))
        self.kill(reader, writer)

    def test_a_sink_that_cannot_write_says_so_and_the_copy_goes_on_with_the_next(self):
        original = self.make_file(os.urandom(10 * CHUNK))
        copy = self.folder / "copy"
        reader = self.start(source, original)
        other = self.start(worker)
        self.assertIn("No space left", self.end(self.start(sink, "/dev/full"), code=1))
        writer = self.start(sink, copy)
        for process in (reader, other, writer):
            self.end(process)
        self.copy_is_whole(original, copy)
        self.assert_nothing_is_left()

    # --- the word count ---------------------------------------------------------------------------------------------

    def wc(self, text):
        said = subprocess.run(["wc", text], env={**os.environ, "LC_ALL": "C"}, check=True, stdout=subprocess.PIPE,
                              text=True).stdout
        return " ".join(said.split()[:3]) + "\n"

    def count_words(self, text, counter_count):
        # The first counter may be done before the last has come, which then would wait for the next text.
        counters = [self.start_and_wait(count) for _ in range(counter_count)]
        adder, cutter = self.start(merge), self.start(split, text)
        self.assertEqual(self.end(cutter), "")
        for counter in counters:
            self.assertEqual(self.end(counter), "")
        return self.end(adder)

    def test_words_are_counted_as_wc_does(self):
        text = self.make_file(real_text(20_000_000))
        self.run_on_each_path(lambda: self.assertEqual(self.count_words(text, 3), self.wc(text)))

    def test_words_of_odd_texts(self):
        word = b"x" * 300_000
        for content in (b"", b"\n", b"word", b"word\n", b" " * 200_000, word, word + b"\n" + word,
                        b" " + word + b" \t\v" + word, b"y" * 65_535 + b" z", b"y" * 65_536 + b" z", b"\f\r a\v b\n\n c"):
            with self.subTest(begin=content[:10], size=len(content)):
                text = self.make_file(content)
                self.assertEqual(self.count_words(text, 2), self.wc(text))
                self.assert_nothing_is_left()

    def test_what_a_killed_counter_had_taken_is_named(self):
        text = self.make_file(real_text(5_000_000))

        def test():
            adder = self.start(merge)
            counter = self.start_and_wait(count)
            sluggard = self.start_and_wait(count, "--work-ms", FOR_EVER_MS)
            counter.send_signal(signal.SIGSTOP)
            cutter = self.start(split, text)
            number = re.search(r"counts in chunk (\d+)", self.wait_for(sluggard, "counts in chunk"))[1]
            counter.send_signal(signal.SIGCONT)
            self.kill(sluggard)
            self.end(cutter)
            self.end(counter)
            self.assertIn(f"chunk {number} is missing", self.end(adder, code=1))

        self.run_on_each_path(test)

    def test_the_only_counter_is_killed_and_another_one_comes(self):
        text = self.make_file(real_text(8_000_000))

        def test():
            adder, cutter = self.start(merge), self.start(split, text)
            victim = self.start(count, "--work-ms", 20)
            for _ in range(5):
                self.wait_for(victim, "counts in chunk")
            self.kill(victim)
            other = self.start(count)
            self.end(cutter)
            self.end(other)
            said = adder.stdout.read()
            lost = re.findall(r"chunk (\d+) is missing", said)
            self.assertLessEqual(len(lost), 1, said)
            self.assertEqual(adder.wait(), len(lost), said)
            if not lost:
                self.assertEqual(said, self.wc(text))

        self.run_on_each_path(test)

    def test_what_cannot_be_is_said(self):
        for program, arguments, words in (
                (source, [], "usage:"), (source, [self.folder / "none"], "No such file"),
                (source, [self.folder], "directory"),
                (worker, ["--key", "256"], "--key wants a number from 0 to 255"), (worker, ["--what", 1], "usage:"),
                (sink, [self.folder], "directory"), (split, [self.folder / "none"], "No such file"),
                (count, ["more"], "usage:"), (merge, ["more"], "usage:")):
            with self.subTest(words=words):
                self.assertIn(words, self.end(self.start(program, *arguments), code=1))


if __name__ == "__main__":
    threshold, source, worker, sink, split, count, merge = map(os.path.abspath, sys.argv[1:8])
    unittest.main(argv=sys.argv[:1] + sys.argv[8:], verbosity=2)
