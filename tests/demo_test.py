#!/usr/bin/env python3
"""Drives `weir demo` as its users do: with files that exist and files that do not, and with kills from all sides.

    tests/demo_test.py --weir build/main/tools/weir [NAME...]
"""

import argparse
import hashlib
import os
import pathlib
import pty
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from programs_testing import need_program_for

weir = ""

CHUNK = 65536 - 128  # the bytes of a file that one buffer carries
large = 0  # bytes that take long enough to do something on the way
stuck_write = None  # what makes a collector stop in the middle of a write (stuck_write.cpp)
PROCESSES = {"weir producer 1", "weir producer 2", "weir producer 3", "weir worker 1", "weir worker 2",
             "weir collector"}


def processes_of(session):
    """The processes of a session that still run, by their pid."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, rest = re.fullmatch(r"\d+ \((.*)\) (.*)\n", (entry / "stat").read_text(), re.S).groups()
            except OSError:
                continue
            state, fields = rest.split()[0], rest.split()
            if int(fields[3]) == session and state not in "ZX":
                found[int(entry.name)] = name
    return found


def files_of(pid):
    """What a demo has in shared memory."""
    return sorted(path.name for path in pathlib.Path("/dev/shm").glob(f"weir+{os.geteuid()}+demo.{pid}+*"))


class Demo(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-demo-test-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.scratch = self.folder / "scratch"  # where the demo makes its temporary folders
        self.scratch.mkdir()
        self.environment = dict(os.environ, TMPDIR=str(self.scratch))

    def file(self, name, content):
        path = self.folder / name
        path.write_bytes(content)
        return path

    def holes(self, name, size):
        path = self.folder / name
        with open(path, "wb") as file:
            file.truncate(size)
        return path

    def run_demo(self, *arguments, status=0, **options):
        demo = subprocess.Popen([weir, "demo", *map(str, arguments)], env=self.environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        output, errors = demo.communicate()
        self.assertEqual(demo.returncode, status, output + errors)
        self.assert_nothing_is_left(demo)
        return subprocess.CompletedProcess(demo.args, demo.returncode, output, errors)

    def assert_nothing_is_left(self, demo):
        self.assertEqual(list(self.scratch.iterdir()), [], "the temporary folder is still there")
        self.assertEqual(files_of(demo.pid), [], "something is left in /dev/shm")

    def start_demo(self, *arguments, **options):
        """Runs it in a session of its own, until all of its processes are there."""
        demo = subprocess.Popen([weir, "demo", *map(str, arguments)], env=self.environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                                **options)
        self.addCleanup(demo.stdout.close)
        self.addCleanup(demo.stderr.close)
        self.addCleanup(demo.wait)
        self.addCleanup(lambda: demo.poll() is None and demo.kill())
        while not PROCESSES <= set(processes_of(demo.pid).values()):
            self.assertIsNone(demo.poll(), "it ended early")
            time.sleep(0.005)
        return demo

    def pid(self, demo, name):
        return next(pid for pid, found in processes_of(demo.pid).items() if found == name)

    def assert_gone(self, demo):
        while processes_of(demo.pid):  # a watchdog is over us
            time.sleep(0.005)

    def missing_chunks(self, output):
        """What the demo says is missing: (path, first byte, last byte)."""
        number = lambda text: int(text.replace(",", ""))
        return [(path, number(first), number(last)) for path, first, last in
                re.findall(r"^      message [\d,]+ of producer \d: (.*), bytes ([\d,]+) to ([\d,]+)$", output, re.M)]

    # --- What it is for -------------------------------------------------------------------------------------------

    def test_copies_are_equal_whatever_the_sizes(self):
        sizes = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 65536, 5_000_000, 12_345_678]
        files = [self.file(f"{size}.bin", os.urandom(size)) for size in sizes]
        kept = self.folder / "kept"
        output = self.run_demo(*files, "--keep", kept).stdout
        self.assertEqual(sorted(path.name for path in kept.iterdir()), sorted(path.name for path in files))
        for path in files:
            self.assertEqual((kept / path.name).read_bytes(), path.read_bytes(), path.name)
            self.assertIn(hashlib.sha256(path.read_bytes()).hexdigest()[:16], output)
        messages = sum(max(1, -(-size // CHUNK)) for size in sizes)
        self.assertIn(f"{messages} of {messages} messages arrived, each once; all bytes are equal by SHA-256", output)
        self.assertIn(f"no buffer moved: its offset was the producer's in {2 * messages} looks", output)
        self.assertIn("all 64 buffers are free again", output)

    def test_one_file_goes_through_all_three_producers(self):
        path = self.file("alone", os.urandom(3_000_000))
        output = self.run_demo(path).stdout
        for number in (1, 2, 3):
            messages = re.search(rf"^  producer {number} +\d+ +(\d+) ", output, re.M).group(1)
            self.assertGreater(int(messages), 10, output)

    def test_the_same_file_twice_gives_two_copies(self):
        path = self.file("twice", os.urandom(100_000))
        kept = self.folder / "kept"
        self.run_demo(path, path, "--keep", kept)
        self.assertEqual((kept / "twice").read_bytes(), path.read_bytes())
        self.assertEqual((kept / "twice.2").read_bytes(), path.read_bytes())

    def test_many_small_files(self):
        files = [self.file(f"{number}", b"%d" % number) for number in range(500)]
        kept = self.folder / "kept"
        output = self.run_demo(*files, "--keep", kept).stdout
        self.assertIn("500 of 500 messages arrived", output)
        for path in files:
            self.assertEqual((kept / path.name).read_bytes(), path.read_bytes())

    def test_without_files_it_takes_the_systems_libraries(self):
        output = self.run_demo("--bytes-max", "3MB").stdout
        self.assertRegex(output, r"^\d+ files?, [\d.]+ .?i?B, as ")
        self.assertIn("all bytes are equal by SHA-256", output)

    def test_bytes_max_cuts_what_is_named(self):
        first = self.file("first", os.urandom(300_000))
        second = self.file("second", os.urandom(300_000))
        third = self.file("third", os.urandom(300_000))
        kept = self.folder / "kept"
        output = self.run_demo(first, second, third, "--bytes-max", 400_000, "--keep", kept).stdout
        self.assertEqual((kept / "first").read_bytes(), first.read_bytes())
        self.assertEqual((kept / "second").read_bytes(), second.read_bytes()[:100_000])
        self.assertFalse((kept / "third").exists())
        self.assertIn("leaves out 1 file", output)

    # --- Processes are killed ---------------------------------------------------------------------------------------

    def run_with_kills(self, files, seed):
        """Looks that each process was killed once, and that all arrived but for what is named. Returns the missing chunks,
        how many messages came twice, and what the demo said."""
        kept = self.folder / "kept"
        shutil.rmtree(kept, ignore_errors=True)  # of a run before that found something
        output = self.run_demo("--kill", "--seed", seed, "--keep", kept, *files).stdout
        self.assertIn(f"(--seed {seed})", output)
        victims = re.findall(r"^  (.*) \(process \d+\) was killed when [\d,]+ of [\d,]+ messages? had arrived; "
                             r"process \d+ went on$", output, re.M)
        self.assertEqual({f"weir {name}" for name in victims}, PROCESSES, output)
        self.assertEqual(len(victims), len(PROCESSES))
        for name in victims:
            self.assertRegex(output, rf"(?m)^  {name} +\d+ .* killed$")
            self.assertRegex(output, rf"(?m)^  {name} again +\d+ .*[^d]$")
        missing = self.missing_chunks(output)
        named = sum(map(int, re.findall(r"it had claimed (\d+) messages?, which went with it", output)))
        self.assertEqual(len(missing), named, output)
        for path in files:
            wanted = bytearray(path.read_bytes())
            for _, first, last in (chunk for chunk in missing if chunk[0] == str(path)):
                self.assertEqual(first % CHUNK, 0)
                wanted[first:last + 1] = bytes(last + 1 - first)
            self.assertEqual((kept / path.name).read_bytes(), wanted, f"seed {seed}: {path.name}\n{output}")
        messages = sum(max(1, -(-path.stat().st_size // CHUNK)) for path in files)
        repeated = output.count("it came twice, and was written once")
        self.assertIn(f"{messages - len(missing):,} of {messages:,} messages arrived, each once"
                      + (f" but for {repeated} sent again" if repeated else "") + ";", output)
        self.assertIn("all 64 buffers are free again", output)
        shutil.rmtree(kept)
        return missing, repeated, output

    def test_each_killed_process_takes_along_what_it_had_claimed_and_nothing_else(self):
        files = [self.file(f"{number}.bin", os.urandom(4_000_000)) for number in range(4)]
        seeds = random.randrange(1_000_000)
        claimed_count = 0
        for seed in range(seeds, seeds + 20):
            claimed_count += len(self.run_with_kills(files, seed)[0])
            if claimed_count >= 3 and seed >= seeds + 2:
                return
        self.fail(f"nobody had claimed anything in 20 runs from seed {seeds} on")

    def test_a_producer_killed_right_after_a_push_sends_that_message_again(self):
        files = [self.file(f"{number}.bin", os.urandom(5_000_000)) for number in range(4)]
        seeds = random.randrange(1_000_000)
        runs = 20 if large > 50_000_000 else 4  # where all is slow
        for seed in range(seeds, seeds + runs):
            if self.run_with_kills(files, seed)[1] > 0:
                return
        # That moment lasts some microseconds, and no program can be made to be at it.
        self.skipTest(f"no producer was killed right after a push in {runs} runs from seed {seeds} on")

    def test_a_collector_killed_in_the_middle_of_a_write_leaves_the_chunk_whole_or_not_at_all(self):
        if stuck_write is None:
            self.skipTest("nothing can be loaded into this build")
        # All of these messages together fit into the ports and buffers: nobody waits for the collector, which is stuck from
        # its first write on, whoever is killed before it is.
        files = [self.file(f"{number}.bin", os.urandom(12 * CHUNK - 1)) for number in range(4)]
        log = self.folder / "log"
        self.environment.update(LD_PRELOAD=stuck_write, WEIR_TEST_STUCK_LOG=str(log))
        for written in ("none", "half", "whole"):
            with self.subTest(written=written):
                self.environment["WEIR_TEST_STUCK"] = written
                for _ in range(3):
                    missing, _, output = self.run_with_kills(files, random.randrange(1_000_000))
                    offset, size, path = log.read_text().rstrip("\n").split(" ", 2)
                    log.unlink()
                    chunk = (str(self.folder / pathlib.Path(path).name), int(offset), int(offset) + int(size) - 1)
                    # Its buffer has gone with the collector, so a half is taken back; all of it is known by its digest. (It
                    # comes once more where its producer was killed as well, right after that push: then it is not missing
                    # either way.)
                    if written == "whole" or chunk in missing:
                        break
                self.assertEqual(chunk in missing, written != "whole", f"{chunk}\n{output}")

    def test_a_kill_comes_before_the_end_however_little_there_is(self):
        for size in (0, 1, CHUNK + 1, 3 * CHUNK):
            output = self.run_demo("--kill", self.file("little", os.urandom(size))).stdout
            self.assertEqual(output.count(" was killed when "), len(PROCESSES), output)
            self.assertRegex(output, r"all (other )?bytes are equal by SHA-256")

    # --- What goes wrong ------------------------------------------------------------------------------------------

    def test_a_byte_that_differs_is_found(self):
        path = self.holes("holes", large)
        demo = self.start_demo(path)
        producers = [self.pid(demo, f"weir producer {number}") for number in (1, 2, 3)]
        copy = None
        while copy is None or copy.stat().st_blocks == 0:
            self.assertIsNone(demo.poll(), "it ended early")
            copy = next(self.scratch.glob("weir-demo-*/holes"), None)
        for pid in producers:
            os.kill(pid, signal.SIGSTOP)  # the end waits for us
        with open(copy, "r+b") as file:
            # The first page with data may begin with the end of a chunk that is still to come; the second does not.
            file.seek(os.lseek(file.fileno(), 0, os.SEEK_DATA) + 4096)
            file.write(b"x")
        for pid in producers:
            os.kill(pid, signal.SIGCONT)
        output, errors = demo.communicate()
        self.assertEqual(demo.returncode, 1, output + errors)
        self.assertIn(f"weir: {path} and its copy differ", errors)
        self.assertIn("DIFFERS", output)
        self.assertNotIn("equal by SHA-256", output)
        self.assert_nothing_is_left(demo)

    def test_usage_errors_come_before_anything_starts(self):
        good = self.file("good", b"good")
        (self.folder / "full").mkdir()
        self.file("full/something", b"")
        for arguments, words in [
            ([self.folder], "is a directory"),
            ([self.folder / "none"], "No such file"),
            (["/dev/null"], "not a regular file"),
            ([good, "--bytes-max", "0"], "is no size"),
            ([good, "--bytes-max=-1"], "is no size"),
            ([good, "--bytes-max", "many"], "is no size"),
            ([good, "--seed", "1"], "--kill"),
            ([good, "--seed", "x", "--kill"], "--seed"),
            ([good, "--keep", self.folder / "full"], "something in it"),
            ([good, "--keep", good], "Not a directory"),
            ([good, "--frobnicate"], "--frobnicate"),
        ]:
            with self.subTest(arguments=arguments):
                result = self.run_demo(*arguments, status=2)
                self.assertEqual(result.stdout, "")
                self.assertIn(words, result.stderr)

    def test_a_file_that_must_not_be_read_is_named_before_anything_starts(self):
        path = self.file("secret", b"secret")
        path.chmod(0)
        if os.geteuid() != 0:
            result = self.run_demo(path, status=2)
        else:
            # Root reads everything: somebody else is asked, with a program that they may run.
            self.folder.chmod(0o755)
            self.scratch.chmod(0o777)
            need_program_for(self, 65534, weir)
            result = self.run_demo(path, status=2, user=65534, extra_groups=[])
        self.assertIn("secret cannot be read: Permission denied", result.stderr)

    def test_files_that_are_not_what_they_say(self):
        result = self.run_demo("/proc/cpuinfo", status=1)
        self.assertRegex(result.stderr, r"weir: producer \d: /proc/cpuinfo says that it is empty, and is not")

    def test_a_disk_that_is_full(self):
        path = self.holes("large", 30_000_000)

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))  # more than is in shared memory

        result = self.run_demo(path, status=1, preexec_fn=limit)
        self.assertRegex(result.stderr, r"weir: collector: cannot write .*/large: File too large; make room")

    def test_no_room_for_the_copies(self):
        room = shutil.disk_usage(self.scratch).free
        path = self.holes("huge", min(4 * room, (1 << 43)))
        result = self.run_demo(path, status=2)
        self.assertIn("the copies need", result.stderr)

    def test_a_process_that_somebody_kills_is_named(self):
        for name in ("producer 2", "worker 1", "collector"):
            with self.subTest(name=name):
                demo = self.start_demo(self.holes("holes", large))
                os.kill(self.pid(demo, "weir " + name), signal.SIGKILL)
                output, errors = demo.communicate()
                self.assertEqual(demo.returncode, 1, output + errors)
                self.assertRegex(errors, rf"weir: {name} \(process \d+\) was killed by signal 9 \(Killed\)")
                self.assert_gone(demo)
                self.assert_nothing_is_left(demo)

    def test_interrupted_from_the_terminal_it_leaves_nothing_behind(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with self.subTest(signal=number):
                demo = self.start_demo(self.holes("holes", large))
                os.killpg(demo.pid, number)
                demo.communicate()
                self.assertEqual(demo.returncode, -number)
                self.assert_gone(demo)
                self.assert_nothing_is_left(demo)

    def test_its_processes_die_with_it_and_the_next_one_removes_its_files(self):
        demo = self.start_demo(self.holes("holes", large))
        other = self.start_demo(self.holes("others", large))
        demo.kill()
        demo.communicate()
        self.assert_gone(demo)
        for folder in self.scratch.glob("weir-demo-*"):
            if (folder / "holes").exists():
                shutil.rmtree(folder)
        self.assertNotEqual(files_of(demo.pid), [])
        last = subprocess.run([weir, "demo", self.file("little", b"little")], env=self.environment,
                              stdout=subprocess.DEVNULL)
        self.assertEqual(last.returncode, 0)
        self.assertEqual(files_of(demo.pid), [])
        output, errors = other.communicate()  # which was none of its business
        self.assertEqual(other.returncode, 0, output + errors)
        self.assertEqual(files_of(other.pid), [])

    def test_each_stage_is_a_program_that_joins_by_name_and_only_producers_open_the_files(self):
        path = self.holes("holes", large)
        demo = self.start_demo(path)
        stages = {name: pid for pid, name in processes_of(demo.pid).items() if name in PROCESSES}
        for pid in stages.values():
            os.kill(pid, signal.SIGSTOP)
        try:
            for name, pid in stages.items():
                command = pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
                self.assertEqual(command[1:3], ["demo-stage", name.split()[1]])
                self.assertEqual(command[-1], f"demo.{demo.pid}")
                opened = {os.path.realpath(link) for link in pathlib.Path(f"/proc/{pid}/fd").iterdir()}
                if "producer" not in name:
                    self.assertNotIn(os.path.realpath(path), opened)
        finally:
            for pid in stages.values():
                os.kill(pid, signal.SIGCONT)
        output, errors = demo.communicate()
        self.assertEqual(demo.returncode, 0, output + errors)
        self.assert_nothing_is_left(demo)

    def test_a_stage_is_nothing_to_start_by_hand(self):
        for arguments in (["producer", "0", "0", "0", "none"], ["cook", "0", "0", "0", "none"], ["worker"]):
            result = subprocess.run([weir, "demo-stage", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                    text=True)
            self.assertIn(result.returncode, (1, 2))
            self.assertNotEqual(result.stderr, "")
        self.assertNotIn("demo-stage", subprocess.run([weir, "--help"], stdout=subprocess.PIPE, text=True).stdout)

    def test_a_stopped_worker_holds_nobody_up_but_what_it_has_claimed(self):
        demo = self.start_demo(self.holes("holes", large))
        stopped = self.pid(demo, "weir worker 1")
        os.kill(stopped, signal.SIGSTOP)
        while any(name.startswith("weir producer") for name in processes_of(demo.pid).values()):
            self.assertIsNone(demo.poll(), "it ended early")  # the producers end: the other worker takes everything
            time.sleep(0.005)
        os.kill(stopped, signal.SIGCONT)
        output, errors = demo.communicate()
        self.assertEqual(demo.returncode, 0, output + errors)
        self.assertIn("all bytes are equal by SHA-256", output)

    # --- What one sees --------------------------------------------------------------------------------------------

    def test_on_a_terminal_a_line_tells_how_far_it_is(self):
        try:
            terminal, other_end = pty.openpty()
        except OSError as error:
            self.skipTest(f"no terminal to be had here: {error}")
        demo = subprocess.Popen([weir, "demo", self.holes("holes", large)], stderr=other_end,
                                stdout=subprocess.DEVNULL, env=dict(self.environment, TERM="xterm"))
        os.close(other_end)
        shown = b""
        while True:
            select.select([terminal], [], [])
            try:
                more = os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
            if not more:
                break
            shown += more
        os.close(terminal)
        self.assertEqual(demo.wait(), 0)
        self.assertRegex(shown, rb"\r +\d+%  [\d.]+ .?i?B of [\d.]+ MiB  [\d.]+ .?i?B/s  \d+ of 64 buffers in flight")
        self.assertTrue(shown.endswith(b"\r\x1b[K"), "the line is taken away at the end")

    def test_in_a_pipe_no_line_is_rewritten(self):
        result = self.run_demo(self.holes("holes", 20_000_000))
        self.assertNotIn("\r", result.stdout + result.stderr)
        self.assertNotIn("\x1b", result.stdout + result.stderr)

    def test_nobody_reads_what_it_prints(self):
        path = self.file("some", os.urandom(100_000))
        read_end, write_end = os.pipe()
        os.close(read_end)
        with open("/dev/full", "w") as full, os.fdopen(write_end, "w") as broken:
            for where in (full, broken):
                result = subprocess.run([weir, "demo", path], stdout=where, stderr=subprocess.PIPE, text=True,
                                        env=self.environment)
                self.assertEqual(result.returncode, 1, result.stderr)
                self.assertIn("cannot write", result.stderr)
                self.assertEqual(list(self.scratch.iterdir()), [])

    def test_the_help_fits_a_screen_and_has_examples(self):
        for arguments in (["--help"], ["demo", "--help"]):
            result = subprocess.run([weir, *arguments], stdout=subprocess.PIPE, text=True, check=True)
            lines = result.stdout.split("\n")
            self.assertLessEqual(len(lines), 30)
            self.assertLessEqual(max(map(len, lines)), 80)
            self.assertIn("weir demo --kill", result.stdout)
        self.assertRegex(subprocess.run([weir, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout,
                         r"^weir \d+\.\d+\.\d+\n$")

    def test_a_verb_that_does_not_exist(self):
        for arguments in ([], ["frobnicate"], ["--frobnicate"]):
            result = subprocess.run([weir, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self.assertEqual(result.returncode, 2)
            self.assertIn("--help" if arguments else "Usage", result.stderr)


if __name__ == "__main__":
    # Whoever runs the tests may ignore these (nohup does), and what is ignored is inherited.
    for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(ignored) == signal.SIG_IGN:
            signal.signal(ignored, signal.SIG_DFL)
    parser = argparse.ArgumentParser()
    parser.add_argument("--weir", required=True)
    parser.add_argument("--large", type=int, default=150_000_000, help="bytes that take half a second or more")
    parser.add_argument("--stuck-write", help="stuck_write.cpp, built")
    parser.add_argument("names", nargs="*", help="tests to run, all by default")
    arguments = parser.parse_args()
    weir = os.path.abspath(arguments.weir)
    large = arguments.large
    stuck_write = os.path.abspath(arguments.stuck_write) if arguments.stuck_write else None
    unittest.main(argv=[sys.argv[0], *(f"Demo.{name}" for name in arguments.names)], verbosity=2)
