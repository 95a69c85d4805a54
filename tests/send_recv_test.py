#!/usr/bin/env python3
"""Drives `weir send` and `weir recv` as users of pipes do: in any order, several of each, interrupted and killed.

    tests/send_recv_test.py --weir build/main/tools/weir [NAME...]

Nothing waits for a time of its own: each step waits for what a process does, and Meson's timeout is over all of them.
"""

import argparse
import collections
import hashlib
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from programs_testing import ProgramsTest, need_program_for

weir = ""
large = 0  # bytes: many times what is in flight at once

CHUNKS_MAX = 16 * 512 * 1024  # what a pipe's chunks hold in all


class SendRecv(ProgramsTest):
    def setUp(self):
        super().setUp()
        self.port = self.domain[:58]
        self.prefix = f"weir+{os.geteuid()}+pipe.{self.port}+"
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-send-recv-test-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def start(self, verb, *arguments, port=None, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **options):
        process = subprocess.Popen([weir, verb, port or self.port, *map(str, arguments)], stdin=stdin, stdout=stdout,
                                   stderr=subprocess.PIPE, **options)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                self.addCleanup(stream.close)
        self.addCleanup(process.wait)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process

    def send(self, *arguments, **options):
        return self.start("send", *arguments, **options)

    def recv(self, *arguments, **options):
        return self.start("recv", *arguments, **options)

    def end(self, process, status=0):
        """Waits for its end. Returns what it wrote, and what it said."""
        output, errors = process.communicate()
        self.assertEqual(process.returncode, status, errors.decode())
        return output, errors.decode()

    def wait_until_asleep(self, process):
        """Until it is in the domain and has nothing to do."""
        looks = 0
        while looks < 20:
            self.assertIsNone(process.poll(), "it ended early")
            state = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            looks = looks + 1 if state == "S" and len(self.files()) > 2 else 0
            time.sleep(0.005)

    def file(self, name, content):
        path = self.folder / name
        path.write_bytes(content)
        return path

    # --- What it is for -------------------------------------------------------------------------------------------

    def test_tar_gives_the_same_tree_in_either_order(self):
        tree = self.folder / "tree"
        (tree / "deep" / "er").mkdir(parents=True)
        for number in range(30):
            (tree / "deep" / f"{number}").write_bytes(os.urandom(number * 7919))
        (tree / "deep" / "er" / "large").write_bytes(os.urandom(2 * CHUNKS_MAX))
        (tree / "deep" / "er" / "large").chmod(0o751)
        (tree / "link").symlink_to("deep/er/large")
        for sender_first in (False, True):
            copy = self.folder / f"copy{sender_first}"
            copy.mkdir()
            commands = [f"tar c -C {self.folder} tree | {weir} send {self.port}",
                        f"{weir} recv {self.port} | tar x -C {copy}"]
            first = subprocess.Popen(["sh", "-c", commands[not sender_first]])
            while len(self.files()) < 3:
                self.assertIsNone(first.poll())
                time.sleep(0.005)
            second = subprocess.run(["sh", "-c", commands[sender_first]])
            self.assertEqual((first.wait(), second.returncode), (0, 0))
            self.assertEqual(subprocess.run(["diff", "-r", "--no-dereference", tree, copy / "tree"]).returncode, 0)
            self.assertEqual((copy / "tree/deep/er/large").stat().st_mode, (tree / "deep/er/large").stat().st_mode)
            self.assert_nothing_is_left()

    def test_a_large_file_is_the_same_byte_for_byte(self):
        path = self.folder / "large"
        sent = hashlib.sha256()
        with open(path, "wb") as file:
            for _ in range(large // 1_000_000):
                part = os.urandom(1_000_000)
                sent.update(part)
                file.write(part)
            file.write(b"tail")
            sent.update(b"tail")
        for arguments, options in (([path], {}), ([], {"stdin": open(path, "rb")})):
            receiver = self.recv()
            sender = self.send(*arguments, **options)
            received = hashlib.sha256()
            while part := receiver.stdout.read(1 << 20):
                received.update(part)
            self.end(receiver)
            self.end(sender)
            self.assertEqual(received.hexdigest(), sent.hexdigest())
        options["stdin"].close()
        self.assert_nothing_is_left()

    def test_both_at_once_again_and_again(self):
        for round_number in range(20):
            text = f"round {round_number}\n".encode()
            processes = [self.recv(), self.send(self.file("text", text))]
            self.assertEqual(self.end(processes[0])[0], text)
            self.end(processes[1])
            self.assert_nothing_is_left()

    def test_nothing_at_all_ends_a_receiver_in_either_order(self):
        for first, second in ((self.send, self.recv), (self.recv, self.send)):
            processes = [first()]
            self.wait_until_asleep(processes[0])
            processes.append(second())
            for process in processes:
                self.assertEqual(self.end(process)[0], b"")
            self.assert_nothing_is_left()

    def test_files_go_one_after_the_other(self):
        fifo = self.folder / "fifo"
        os.mkfifo(fifo)
        receiver = self.recv()
        sender = self.send(self.file("a", b"first "), fifo, "-", self.file("b", b" last"), stdin=subprocess.PIPE)
        fifo.write_bytes(b"fifo ")
        sender.stdin.write(b"standard input")
        sender.stdin.close()
        sender.stdin = None
        self.assertEqual(self.end(receiver)[0], b"first fifo standard input last")
        self.end(sender)

    def test_files_of_all_sizes(self):
        chunk = 512 * 1024
        content = os.urandom(9 * chunk + 5)
        sizes = [1, chunk, 4 * chunk - 1, 4 * chunk, 4 * chunk + 1, 0, 9 * chunk, 9 * chunk + 5]
        files = [self.file(f"{size}", content[:size]) for size in sizes]
        sender = self.send(*files)
        self.assertEqual(self.end(self.recv())[0], b"".join(content[:size] for size in sizes))
        self.end(sender)
        with open(files[-1], "rb") as file:  # from where somebody has read it to
            os.lseek(file.fileno(), 1000, os.SEEK_SET)
            sender = self.send(stdin=file)
            self.assertEqual(self.end(self.recv())[0], content[1000:])
            self.end(sender)
            self.assertEqual(os.lseek(file.fileno(), 0, os.SEEK_CUR), len(content))

    def test_what_was_read_is_sent_at_once(self):
        receiver = self.recv()
        sender = self.send(stdin=subprocess.PIPE)
        for text in (b"a", b"bc", b"d" * 1000):
            sender.stdin.write(text)
            sender.stdin.flush()
            self.assertEqual(receiver.stdout.read(len(text)), text)
        self.end(sender)
        self.end(receiver)

    def test_several_send_and_several_receive_each_line_once(self):
        count = 3000
        receivers = [self.recv("--lines") for _ in range(2)]
        senders = [self.send("--lines", stdin=subprocess.PIPE) for _ in range(3)]
        lines = collections.Counter()
        # Until all are there: of several senders the first could have ended before the last has come.
        for number, sender in enumerate(senders):
            sender.stdin.write(f"hello {number}\n".encode())
            sender.stdin.flush()
        texts = {receiver: b"" for receiver in receivers}
        while sum(text.count(b"\n") for text in texts.values()) < len(senders):
            for stream in select.select([receiver.stdout for receiver in receivers], [], [])[0]:
                receiver = next(each for each in receivers if each.stdout is stream)
                texts[receiver] += os.read(stream.fileno(), 65536)
        wanted = collections.Counter(f"hello {number}".encode() for number in range(len(senders)))
        for number, sender in enumerate(senders):
            sent = [b"%d:%d:" % (number, line) + b"x" * (line % 977) for line in range(count)]
            wanted.update(sent)
            self.feed(sender, b"\n".join(sent))
        while receivers_open := [each for each in texts if not each.stdout.closed]:
            for stream in select.select([receiver.stdout for receiver in receivers_open], [], [])[0]:
                receiver = next(each for each in receivers if each.stdout is stream)
                text = os.read(stream.fileno(), 65536)
                texts[receiver] += text
                if not text:
                    stream.close()
        for process in senders + receivers:
            self.assertEqual(process.wait(), 0, process.stderr.read())
        for text in texts.values():
            self.assertTrue(text == b"" or text.endswith(b"\n"))
            lines.update(text.split(b"\n")[:-1])
        self.assertEqual(lines, wanted)
        self.assert_nothing_is_left()

    def feed(self, process, text):
        """In the background, as a pipe's other end."""
        child = os.fork()
        if child == 0:
            process.stdin.write(text)
            process.stdin.flush()
            os._exit(0)
        process.stdin.close()
        process.stdin = None
        self.addCleanup(os.waitpid, child, 0)

    def test_lines_are_messages(self):
        longest = 512 * 1024
        text = b"first\n\n" + b"y" * 5000 + b"\n" + b"z" * longest + b"\nno newline"
        for arguments, wanted in ((["--lines"], text + b"\n"), ([], text.replace(b"\n", b""))):
            sender = self.send("--lines", self.file("text", text))
            receiver = self.recv(*arguments)
            self.assertEqual(self.end(receiver)[0], wanted)
            self.end(sender)
        self.assert_nothing_is_left()

    def test_a_line_that_is_too_long_is_named(self):
        path = self.file("text", b"1\n2\n" + b"z" * (512 * 1024 + 1) + b"\n4\n")
        receiver = self.recv("--lines")
        self.wait_until_asleep(receiver)  # who comes after a sender has failed waits for another
        sender = self.send("--lines", path)
        said = self.end(sender, 1)[1]
        self.assertIn(f"line 3 of {path} is longer than a buffer, which holds 524288 bytes", said)
        output, said = self.end(receiver, 1)
        self.assertEqual(output, b"1\n2\n")
        self.assertIn("is not all", said)
        self.assert_nothing_is_left()

    def test_a_port_of_another_domain(self):
        self.prefix = f"weir+{os.geteuid()}+{self.domain}+"
        receiver = self.recv(port=f"{self.domain}/some.port")
        sender = self.send(self.file("text", b"text"), port=f"{self.domain}/some.port")
        self.assertEqual(self.end(receiver)[0], b"text")
        self.end(sender)
        self.assert_nothing_is_left()

    def test_pipes_of_one_domain_do_not_wait_for_each_others_buffers(self):
        self.prefix = f"weir+{os.geteuid()}+{self.domain}+"
        content = os.urandom(3 * CHUNKS_MAX)
        first = self.send(self.file("content", content), port=f"{self.domain}/a")
        self.wait_until_asleep(first)
        second = self.send(self.file("text", b"text"), port=f"{self.domain}/b")
        self.assertEqual(self.end(self.recv(port=f"{self.domain}/b"))[0], b"text")
        self.end(second)
        last = self.recv(port=f"{self.domain}/c")
        between = self.recv(port=f"{self.domain}/a")
        third = self.send(stdin=between.stdout, port=f"{self.domain}/c")
        self.assertEqual(self.end(last)[0], content)
        for process in (first, third):
            self.end(process)
        self.assertEqual(between.wait(), 0)
        self.assert_nothing_is_left()

    # --- Who waits for whom ---------------------------------------------------------------------------------------

    def test_a_sender_waits_for_a_slow_receiver(self):
        content = os.urandom(2 * CHUNKS_MAX)
        sender = self.send(stdin=subprocess.PIPE)
        descriptor = sender.stdin.fileno()
        os.set_blocking(descriptor, False)

        def feed(written):
            """Until nothing more is taken. Returns how much was, in all."""
            while True:
                self.wait_until_asleep(sender)
                try:
                    written += os.write(descriptor, content[written:])
                except BlockingIOError:
                    return written

        in_flight = feed(0)  # without a receiver, what there is room for
        self.assertLessEqual(in_flight, CHUNKS_MAX + (1 << 20))  # and the pipe to the sender
        receiver = self.recv()
        self.wait_until_asleep(receiver)
        written = feed(in_flight)
        self.assertLessEqual(written, in_flight + (1 << 20))  # and the pipe from the receiver
        os.set_blocking(descriptor, True)
        self.feed(sender, content[written:])
        self.assertEqual(self.end(receiver)[0], content)
        self.assertEqual(sender.wait(), 0)
        self.assert_nothing_is_left()

    def test_a_receiver_that_comes_after_a_stream_waits_for_the_next(self):
        slow = self.recv()
        content = os.urandom(200_000)  # one message, and more than a pipe holds
        self.end(self.send(self.file("content", content)))
        self.wait_until_asleep(slow)  # it has taken all, and cannot get rid of it
        late = self.recv()
        self.wait_until_asleep(late)
        self.end(self.send(self.file("text", b"text")))
        self.assertEqual(self.end(late)[0], b"text")
        self.assertEqual(self.end(slow)[0], content)
        self.assert_nothing_is_left()

    def test_a_receiver_that_took_nothing_breaks_no_pipe(self):
        sender = self.send(stdin=subprocess.PIPE)
        self.wait_until_asleep(sender)
        receiver = self.recv()
        self.wait_until_asleep(receiver)
        receiver.send_signal(signal.SIGINT)
        self.end(receiver, -signal.SIGINT)
        sender.stdin.write(b"text")
        sender.stdin.flush()
        self.wait_until_asleep(sender)
        receiver = self.recv()
        self.assertEqual(receiver.stdout.read(4), b"text")
        self.end(sender)
        self.end(receiver)
        self.assert_nothing_is_left()

    def test_what_is_kept_is_received_later(self):
        for text in (b"first\n", b"second\n"):
            self.end(self.send("--keep", self.file("text", text)))
            self.assertGreater(len(self.files()), 3)
        self.assertEqual(self.end(self.recv())[0], b"first\nsecond\n")
        self.assert_nothing_is_left()
        self.end(self.send("--keep"))
        self.end(self.send("--keep", self.file("text", b"third\n")))
        sender = self.send(self.file("text", b"fourth\n"))
        self.wait_until_asleep(sender)
        self.assertEqual(self.end(self.recv())[0], b"third\nfourth\n")
        self.end(sender)
        self.assert_nothing_is_left()

    def test_what_is_kept_outlives_a_sender_that_is_interrupted(self):
        self.end(self.send("--keep", self.file("text", b"kept")))
        sender = self.send(stdin=subprocess.PIPE)
        self.wait_until_asleep(sender)
        sender.send_signal(signal.SIGINT)
        self.assertEqual(sender.wait(), -signal.SIGINT)
        output, said = self.end(self.recv(), 1)
        self.assertEqual(output, b"kept")
        self.assertIn("was killed or interrupted", said)
        self.assert_nothing_is_left()

    def test_what_is_kept_is_not_lost_where_a_receiver_is_just_leaving(self):
        texts, wanted = b"", b""
        for number in range(30):
            receiver = self.recv()
            text = f"{number}\n".encode()
            wanted += 2 * text
            for _ in range(2):
                self.end(self.send("--keep", self.file("text", text)))
            texts += self.end(receiver)[0]
            if len(self.files()) > 1:
                texts += self.end(self.recv())[0]
            self.assertEqual(texts, wanted)
            self.assert_nothing_is_left()

    # --- Deaths ---------------------------------------------------------------------------------------------------

    def test_a_killed_sender_is_noticed(self):
        receiver = self.recv()
        sender = self.send(stdin=subprocess.PIPE)
        sender.stdin.write(b"some")
        sender.stdin.flush()
        self.assertEqual(receiver.stdout.read(4), b"some")
        self.kill(sender)
        self.assertIn(f"the sender of {self.port} was killed", self.end(receiver, 1)[1])
        self.assert_nothing_is_left()

    def test_what_a_killed_sender_had_sent_arrives(self):
        content = os.urandom(2 * CHUNKS_MAX)
        sender = self.send(self.file("content", content))
        self.wait_until_asleep(sender)
        self.kill(sender)
        output, said = self.end(self.recv(), 1)
        self.assertEqual(output, content[:CHUNKS_MAX])
        self.assertIn("is not all", said)
        self.assert_nothing_is_left()

    def test_a_killed_receiver_is_a_broken_pipe(self):
        for ignored, status in ((False, -signal.SIGPIPE), (True, 1)):
            receiver = self.recv()
            sender = self.send("/dev/zero", restore_signals=not ignored)
            receiver.stdout.read(1000)
            self.kill(receiver)
            said = self.end(sender, status)[1]
            self.assertIn(f"nobody receives from {self.port} any more" if ignored else "", said)
            self.assert_nothing_is_left()

    def test_a_pipe_that_is_broken_behind_the_receiver(self):
        for ignored, status in ((False, -signal.SIGPIPE), (True, 1)):
            receiver = self.recv(restore_signals=not ignored)
            sender = self.send("/dev/zero")
            head = subprocess.run(["head", "-c", "100000"], stdin=receiver.stdout, stdout=subprocess.PIPE)
            receiver.stdout.close()
            receiver.stdout = None
            self.assertEqual(head.stdout, bytes(100000))
            self.assertIn("Broken pipe" if ignored else "", self.end(receiver, status)[1])
            self.end(sender, -signal.SIGPIPE)
            self.assert_nothing_is_left()

    def test_a_full_disk(self):
        with open("/dev/full", "wb") as full:
            receiver = self.recv(stdout=full)
        sender = self.send("/dev/zero")
        self.assertIn("cannot write to the standard output: No space left", self.end(receiver, 1)[1])
        self.end(sender, -signal.SIGPIPE)
        self.assert_nothing_is_left()

    def test_signals_end_whatever_waits_and_nothing_is_left(self):
        content = self.file("content", os.urandom(2 * CHUNKS_MAX))
        waits = {
            "a sender with nothing, for a receiver": lambda: self.send(),
            "a sender, for a receiver": lambda: self.send(self.file("text", b"text")),
            "a sender, for a buffer": lambda: self.send(content),
            "a sender, for input": lambda: self.send(stdin=subprocess.PIPE),
            "a sender of lines, for input": lambda: self.send("--lines", stdin=subprocess.PIPE),
            "a receiver, for a sender": lambda: self.recv(),
        }
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            for name, start in waits.items():
                with self.subTest(wait=name, signal=number):
                    process = start()
                    self.wait_until_asleep(process)
                    process.send_signal(number)
                    self.assertEqual(process.wait(), -number)
                    self.assert_nothing_is_left()

    def test_a_signal_at_any_time_ends_a_sender(self):
        for _ in range(30):  # most of them just before it waits
            sender = self.send(stdin=subprocess.PIPE)
            while len(self.files()) < 5:
                pass
            sender.send_signal(signal.SIGINT)
            self.assertEqual(sender.wait(), -signal.SIGINT)
            self.assert_nothing_is_left()

    def test_an_interrupted_sender_is_no_end_of_the_stream(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            receiver = self.recv()
            sender = self.send(stdin=subprocess.PIPE)
            sender.stdin.write(b"some")
            sender.stdin.flush()
            self.assertEqual(receiver.stdout.read(4), b"some")
            sender.send_signal(number)
            self.assertEqual(sender.wait(), -number)
            self.assertIn("was killed or interrupted", self.end(receiver, 1)[1])
            self.assert_nothing_is_left()

    def test_an_interrupted_receiver_is_a_broken_pipe(self):
        for busy in (True, False):
            receiver = self.recv()
            sender = self.send("/dev/zero" if busy else "-", stdin=subprocess.PIPE)
            if not busy:
                sender.stdin.write(b"some")
                sender.stdin.flush()
            receiver.stdout.read(4)
            receiver.send_signal(signal.SIGTERM)  # while it writes, or waits
            self.assertEqual(receiver.wait(), -signal.SIGTERM)
            if not busy:
                sender.stdin.write(b"more")
                sender.stdin.flush()
            self.assertEqual(sender.wait(), -signal.SIGPIPE)
            self.assert_nothing_is_left()

    def test_both_ends_interrupted_at_once_leave_nothing(self):
        for _ in range(15):
            with open("/dev/null", "wb") as null:
                processes = [self.recv(stdout=null), self.send("/dev/zero")]
            for process in processes:
                self.wait_until_running(process)
            for process in processes:
                process.send_signal(signal.SIGINT)
            self.assertEqual(processes[0].wait(), -signal.SIGINT)
            self.assertIn(processes[1].wait(), (-signal.SIGINT, -signal.SIGPIPE))
            self.assertIn(self.files(), ([], [self.prefix + "lock"]))  # they may have been interrupted before they joined

    def wait_until_running(self, process):
        """Until it has its signals in hand, and moves data."""
        def used():
            fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return int(fields[11]) + int(fields[12])  # ticks of the clock

        while used() < 3:
            self.assertIsNone(process.poll())
            time.sleep(0.002)

    def test_ignored_signals_stay_ignored(self):
        def ignore():
            signal.signal(signal.SIGINT, signal.SIG_IGN)

        receiver = self.recv(preexec_fn=ignore)
        sender = self.send(stdin=subprocess.PIPE, preexec_fn=ignore)
        self.wait_until_asleep(sender)
        for process in (sender, receiver):
            process.send_signal(signal.SIGINT)
        sender.stdin.write(b"text")
        sender.stdin.close()
        sender.stdin = None
        self.assertEqual(self.end(receiver)[0], b"text")
        self.end(sender)

    # --- What is said ---------------------------------------------------------------------------------------------

    def test_what_cannot_be_is_said(self):
        missing = self.folder / "missing"
        for verb, arguments, status, words in (
            ("send", [], 2, "PORT"),
            ("recv", [], 2, "PORT"),
            ("recv", ["a b"], 2, '"a b" is no port: write NAME or DOMAIN/NAME'),
            ("recv", ["a/b/c"], 2, "is no port"),
            ("send", ["/a"], 2, "is no port"),
            ("send", ["a" * 59], 2, "is no port"),
            ("recv", [self.port, "--frobnicate"], 2, "--frobnicate"),
            ("recv", [self.port, "--user", "nobody.of.this.name"], 2, "there is no user nobody.of.this.name"),
            ("send", [self.port, missing], 2, f"cannot read {missing}: No such file or directory; nothing was sent"),
            ("send", [self.port, self.folder], 2, "is a directory"),
            ("send", [self.port, "--pool", "none"], 1, "has no pool none"),
        ):
            with self.subTest(verb=verb, arguments=arguments):
                result = subprocess.run([weir, verb, *map(str, arguments)], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                self.assertEqual((result.returncode, result.stdout), (status, ""), result.stderr)
                self.assertIn(words, result.stderr)
                self.assertEqual([name for name in self.files() if not name.endswith("+lock")], [])

    def test_another_users_domain(self):
        if os.geteuid() == 0:
            need_program_for(self, 65534, weir)
            receiver = self.recv("--user", "0", user=65534, extra_groups=[])
        else:
            receiver = self.recv("--user", "0")
        self.assertIn(f"cannot join domain pipe.{self.port}", self.end(receiver, 1)[1])

    def test_a_pool_that_is_there_can_be_used(self):
        self.end(self.send("--keep", self.file("text", b"one ")))
        pool = f"send.{self.port}"
        sender = self.send("--pool", pool, self.file("text", b"two"))
        self.wait_until_asleep(sender)
        self.assertEqual(self.end(self.recv())[0], b"one two")
        self.end(sender)
        self.assert_nothing_is_left()

    def test_on_a_terminal_a_line_tells_how_far_it_is(self):
        for verb, arguments, wanted in (
            ("send", [], rb"\r +\d+%  [\d.]+ .?i?B of 16.0 MiB  (-|[\d.]+ .?i?B/s)"),
            ("recv", [], rb"\r[\d.]+ .?i?B  (-|[\d.]+ .?i?B/s)  waits for the sender"),
            ("send", ["--quiet"], None),
            ("recv", ["--quiet"], None),
        ):
            with self.subTest(verb=verb, arguments=arguments):
                self.assert_shown(verb, arguments, wanted)

    def assert_shown(self, verb, arguments, wanted):
        try:
            terminal, other_end = pty.openpty()
        except OSError as error:
            self.skipTest(f"no terminal to be had here: {error}")
        content = self.file("content", bytes(2 * CHUNKS_MAX))
        options = {"stderr": other_end, "env": dict(os.environ, TERM="xterm")}
        if verb == "send":
            process = subprocess.Popen([weir, "send", self.port, content, *arguments], stdin=subprocess.DEVNULL, **options)
        else:
            process = subprocess.Popen([weir, "recv", self.port, *arguments], stdout=subprocess.DEVNULL, **options)
        os.close(other_end)
        if verb == "recv":
            other = self.send(stdin=subprocess.PIPE)
            other.stdin.write(b"some")
            other.stdin.flush()
        shown = b""
        if wanted is None:
            self.wait_until_asleep(process)
        while wanted is not None and not re.search(wanted, shown):
            shown += os.read(terminal, 65536)
        if verb == "send":
            other = self.recv()
        self.end(other)
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
        self.assertEqual(process.wait(), 0)
        if wanted is None:
            self.assertEqual(shown, b"")
        else:
            self.assertTrue(shown.endswith(b"\r\x1b[K"), "the line is taken away at the end")

    def test_elsewhere_nothing_is_said(self):
        sender = self.send(self.file("content", bytes(2 * CHUNKS_MAX)))
        self.wait_until_asleep(sender)
        time.sleep(0.3)  # several lines' time
        receiver = self.recv()
        self.assertEqual(self.end(receiver)[1], "")
        self.assertEqual(self.end(sender)[1], "")

    def test_the_help_fits_a_screen_and_has_an_example(self):
        for verb in ("send", "recv"):
            lines = subprocess.run([weir, verb, "--help"], stdout=subprocess.PIPE, text=True,
                                   check=True).stdout.removesuffix("\n").split("\n")
            self.assertLessEqual(len(lines), 24)
            self.assertLessEqual(max(map(len, lines)), 80)
            self.assertIn("  tar c DIR | weir send x        and elsewhere: weir recv x | tar x", lines)
            self.assertIn("Exit status:", "\n".join(lines))


if __name__ == "__main__":
    # Whoever runs the tests may ignore these (nohup does), and what is ignored is inherited.
    for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(ignored) == signal.SIG_IGN:
            signal.signal(ignored, signal.SIG_DFL)
    parser = argparse.ArgumentParser()
    parser.add_argument("--weir", required=True)
    parser.add_argument("--large", type=int, default=150_000_000, help="bytes of the large file")
    parser.add_argument("names", nargs="*", help="tests to run, all by default")
    arguments = parser.parse_args()
    weir = os.path.abspath(arguments.weir)
    large = arguments.large
    unittest.main(argv=[sys.argv[0], *(f"SendRecv.{name}" for name in arguments.names)], verbosity=2)
