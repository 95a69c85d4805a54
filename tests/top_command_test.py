#!/usr/bin/env python3
"""Drives `weir top` as its users do: on terminals of several sizes and in pipes, over domains that work, that were killed,
that go away, and that are not there.

    tests/top_command_test.py --weir build/main/tools/weir --load build/main/tests/top_load [NAME...]
"""

import argparse
import fcntl
import os
import pathlib
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import unittest

import programs_testing

weir = ""
load_program = ""


class Page:
    """What a terminal shows, of the sequences that weir top is known to send; any other is an error. `shown` is what was
    there when a page was last whole."""

    def __init__(self, columns, rows):
        self.unread = b""
        self.is_cut = False
        self.bells = 0
        self.is_second = False
        self.shows_cursor = True
        self.wraps = True
        self.styles = set()
        self.resize(columns, rows)

    def resize(self, columns, rows):
        self.columns, self.rows = columns, rows
        self.cells = [[" "] * columns for _ in range(rows)]
        self.row = self.column = 0
        self.shown = ""

    def feed(self, data):
        self.unread += data
        while self.unread:
            if self.unread[:1] != b"\x1b":
                self.put(chr(self.unread[0]))
                self.unread = self.unread[1:]
                continue
            # What is not read for long is given up in the middle, then drawn anew: a terminal begins anew at an escape.
            cut = re.match(rb"\x1b(\[\??[\d;]*)?(?=\x1b)", self.unread)
            if cut is not None:
                self.is_cut = True
                self.unread = self.unread[cut.end():]
                continue
            match = re.match(rb"\x1b\[(\??)([\d;]*)([A-Za-z])", self.unread)
            if match is None:
                assert re.fullmatch(rb"\x1b(\[(\??)[\d;]*)?", self.unread), f"an unknown sequence: {self.unread[:20]!r}"
                return  # the rest of it comes
            self.obey(*(part.decode() for part in match.groups()))
            self.unread = self.unread[match.end():]

    def put(self, letter):
        assert " " <= letter <= "~", f"{letter!r} was sent"
        assert self.row < self.rows, f"row {self.row} of {self.rows} was written to"
        assert self.column < self.columns, f"a line is longer than {self.columns}: {self.text()}"
        self.cells[self.row][self.column] = letter
        self.column += 1

    def obey(self, private, numbers, what):
        first = int(numbers.split(";")[0] or 0)
        if self.is_cut and (private, what) != ("", "m"):
            assert private or (what, first) == ("J", 2), f"a page that was cut goes on with {numbers}{what}"
            self.is_cut = False
        if private:
            is_on = {"h": True, "l": False}[what]
            if first == 1049:
                self.is_second = is_on
            elif first == 25:
                self.shows_cursor = is_on
            elif first == 7:
                self.wraps = is_on
            elif first == 2026:  # a page begins, or is whole
                if not is_on:
                    self.shown = self.text()
            else:
                raise AssertionError(f"mode {first}")
        elif what == "H":
            self.row, self.column = (int(number) - 1 for number in numbers.split(";"))
        elif what == "K":
            self.cells[self.row][self.column:] = [" "] * (self.columns - self.column)
        elif what == "J":
            for row in range(0 if first == 2 else self.row, self.rows):
                self.cells[row] = [" "] * self.columns
        elif what == "m":
            self.styles.update(numbers.split(";"))
        else:
            raise AssertionError(f"sequence {numbers}{what}")

    def text(self):
        return "\n".join("".join(row).rstrip() for row in self.cells)


class Terminal:
    """weir top on a terminal."""

    def __init__(self, test, *arguments, columns=120, rows=40, environment=None):
        try:
            self.end, self.other_end = pty.openpty()
        except OSError as error:
            test.skipTest(f"no terminal to be had here: {error}")
        self.test = test
        self.page = Page(columns, rows)
        self.set_size(columns, rows)
        self.modes_before = termios.tcgetattr(self.other_end)
        self.process = subprocess.Popen([weir, "top", *arguments], stdin=self.other_end, stdout=self.other_end,
                                        stderr=subprocess.PIPE, text=True, start_new_session=True,
                                        preexec_fn=lambda: fcntl.ioctl(1, termios.TIOCSCTTY, 0),
                                        env=dict(os.environ, TERM="xterm", **(environment or {})))
        test.addCleanup(self.close)

    def set_size(self, columns, rows):
        fcntl.ioctl(self.other_end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stderr.close()
        os.close(self.end)
        os.close(self.other_end)

    def resize(self, columns, rows):
        """The kernel sends the signal. What was sent before is of the old size."""
        self.read(0.2)
        self.page.resize(columns, rows)
        self.set_size(columns, rows)

    def press(self, keys):
        os.write(self.end, keys.encode())

    def read(self, seconds):
        """What comes within a time."""
        deadline = time.monotonic() + seconds
        while select.select([self.end], [], [], max(0, deadline - time.monotonic()))[0]:
            self.page.feed(os.read(self.end, 65536))

    def wait_for(self, wanted):
        """Until the page shows it; a watchdog is over us."""
        deadline = time.monotonic() + 60
        while not re.search(wanted, self.page.shown, re.M):
            self.read(0.02)
            if self.process.poll() is not None:
                self.read(0.02)
                break
            if time.monotonic() > deadline:
                break
        self.test.assertRegex(self.page.shown, re.compile(wanted, re.M))
        return self.page.shown

    def assert_given_back(self):
        self.read(0.1)
        self.test.assertEqual(termios.tcgetattr(self.other_end), self.modes_before)
        self.test.assertFalse(self.page.is_second)
        self.test.assertTrue(self.page.shows_cursor)
        self.test.assertTrue(self.page.wraps)

    def assert_ends(self, status):
        # What nobody reads would hold it up.
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read(0.02)
        self.test.assertEqual(self.process.poll(), status, self.process.stderr.read() if self.process.poll() else "")
        self.assert_given_back()


class Top(programs_testing.ProgramsTest):
    def setUp(self):
        super().setUp()
        self.environment.pop("NO_COLOR", None)

    def start_load(self, processes=4, ports=6, streams=1):
        load = subprocess.Popen([load_program, self.domain, str(processes), str(ports), str(streams)],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(self.end_load, load)
        load.pids = list(map(int, load.stdout.readline().split()[1:]))
        self.assertEqual(len(load.pids), processes)
        return load

    def end_load(self, load):
        load.stdin.close()
        load.stdout.close()
        load.wait()

    def run_top(self, *arguments, status=0, **options):
        result = subprocess.run([weir, "top", *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, env=self.environment, **options)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        return result

    def row(self, text, name):
        """The cells of a table's row."""
        return re.search(rf"^{re.escape(name)} .*$", text, re.M).group(0).replace("[ ", "[").split()

    # --- In a pipe --------------------------------------------------------------------------------------------------

    def test_one_look_at_a_domain_at_work(self):
        load = self.start_load()
        result = self.run_top(self.domain, "--once", "--interval", 0.3)
        self.assertEqual(result.stderr, "")
        self.assertRegex(result.stdout.split("\n")[0],
                         rf"^{re.escape(self.domain)}  4 alive  buffers: \d+ of 1024 free  \d+ held  \d+ queued  "
                         r"/dev/shm: 4\.\d MiB  \d\d:\d\d:\d\d$")
        self.assertRegex(result.stdout, r"(?m)^port-0 .* \d+/64 +64 +[\d.]+[kM] +[\d.]+[kM] .* 1x1  (flows|full)$")
        self.assertRegex(result.stdout, r"(?m)^port-3 .* 0/64 .* 1x1  idle$")
        self.assertRegex(result.stdout, rf"(?m)^worker-0 +{load.pids[0]} +\d+  alive +\d+ +\d+ +[\d.]+[kM] +0")
        self.assertRegex(result.stdout, r"(?m)^worker-1 .* 0 +[\d.]+[kM]( |$)")
        self.assertRegex(result.stdout, r"(?m)^worker-3 .* pop port-2$")
        self.assertRegex(result.stdout, r"(?m)^frames .* 4k +1024 ")
        self.assertNotIn("\x1b", result.stdout)

    def test_blocks_come_until_there_were_enough(self):
        self.start_load()
        output = self.run_top(self.domain, "-n", 3, "--interval", 0.1).stdout
        self.assertEqual(len(re.findall(r"^PORT ", output, re.M)), 3)
        self.assertEqual(len(re.findall(r"^POOL ", output, re.M)), 3)

    def test_it_ends_in_silence_when_nobody_reads_on(self):
        self.start_load()
        for restore in (True, False):  # a shell's child, and a child of who ignores SIGPIPE
            top = subprocess.Popen([weir, "top", self.domain, "--interval", "0.1"], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, restore_signals=restore)
            top.stdout.readline()
            top.stdout.close()
            self.assertEqual(top.wait(), -signal.SIGPIPE)
            self.assertEqual(top.stderr.read(), b"")
            top.stderr.close()

    def test_a_full_disk_is_an_error(self):
        self.start_load()
        with open("/dev/full", "w") as full:
            result = subprocess.run([weir, "top", self.domain, "--once", "--interval", "0.1"], stdout=full,
                                    stderr=subprocess.PIPE, text=True)
        self.assertEqual(result.returncode, 1)
        self.assertIn("cannot write", result.stderr)

    def test_it_is_sorted_as_one_likes(self):
        self.start_load(processes=4, ports=6)
        ports = lambda *options: re.findall(r"^(port-\d)", self.run_top(self.domain, "--once", "--interval", 0.1,
                                                                        *options).stdout, re.M)
        self.assertEqual(ports("--sort", "name"), [f"port-{number}" for number in range(6)])
        self.assertEqual(ports("--sort", "name", "--reverse"), [f"port-{number}" for number in reversed(range(6))])
        self.assertEqual(ports("--sort", "in")[0], "port-0")

    def test_all_of_the_users_domains_are_looked_at_without_a_name(self):
        self.start_load()
        output = self.run_top("--once", "--interval", 0.1).stdout
        self.assertRegex(output, rf"(?m)^{re.escape(self.domain)}  4 alive  ")
        self.assertRegex(output, rf"(?m)^({re.escape(self.domain)}/)?port-0 ")
        output = self.run_top("--once", "--interval", 0.1, "--user", os.geteuid()).stdout
        self.assertRegex(output, rf"(?m)^{re.escape(self.domain)}  4 alive  ")

    # --- Domains in all states --------------------------------------------------------------------------------------

    def test_dead_members_are_marked_and_what_they_left(self):
        load = self.start_load()
        for pid in load.pids:
            os.kill(pid, signal.SIGKILL)
        for _ in range(200):
            output = self.run_top(self.domain, "--once", "--interval", 0.1).stdout
            if "4 dead" in output:
                break
        self.assertRegex(output, r"(?m)^.*  0 alive  4 dead  ")
        self.assertIn("all members are dead; what they left stays until somebody joins", output)
        self.assertRegex(output, r"(?m)^worker-0 .*  dead ")
        self.assertRegex(output, r"(?m)^port-0 .*  consumers dead$")

    def test_a_stopped_process_is_not_dead_and_what_it_holds_up_is_stuck(self):
        load = self.start_load()
        os.kill(load.pids[1], signal.SIGSTOP)
        self.run_top(self.domain, "--once", "--interval", 0.3)  # the port fills up
        output = self.run_top(self.domain, "--once", "--interval", 0.3).stdout
        self.assertRegex(output, r"(?m)^worker-1 .*  stopped ")
        self.assertRegex(output, r"(?m)^port-0 .* 64/64 .*  stuck$")
        self.assertRegex(output, r"(?m)^worker-0 .*  alive .* push port-0$")
        self.assertIn("4 alive", output)

    def test_no_domain_is_an_error_that_says_what_to_do_where_it_does_not_wait(self):
        error = self.run_top("no-such-domain", "--once", status=1).stderr
        self.assertIn("there is no domain no-such-domain of user ", error)
        error = self.run_top("--once", "--user", 3999999999, status=1).stderr
        self.assertIn("there is no domain of user 3999999999: ", error)
        self.assertIn("name not allowed", self.run_top("a/b", status=2).stderr)

    def test_a_domain_that_goes_meanwhile_fails_what_was_to_be_counted(self):
        load = self.start_load()
        top = subprocess.Popen([weir, "top", self.domain, "-n", "1000", "--interval", "0.1"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
        top.stdout.readline()
        self.end_load(load)
        _, error = top.communicate()
        self.assertEqual(top.returncode, 1)
        self.assertIn("has gone while it was looked at", error)

    def test_in_a_pipe_it_waits_for_a_domain_to_come_and_to_come_back(self):
        top = self.start_command(weir, "top", self.domain, "--interval", "0.1")
        self.wait_for(top, "it is not there; waiting for it")
        load = self.start_load()
        self.wait_for(top, "^port-0 ")
        self.end_load(load)
        self.wait_for(top, "it is gone; waiting for it to come back")
        self.start_load()
        self.wait_for(top, "^port-0 ")
        top.terminate()
        self.assertEqual(top.wait(), -signal.SIGTERM)

    # --- On a terminal ----------------------------------------------------------------------------------------------

    def test_every_size_shows_what_fits(self):
        self.start_load(processes=6, ports=20)
        top = Terminal(self, self.domain, "--interval", "0.1", "--sort", "in", columns=100, rows=30)
        top.wait_for(r"^port-0 .* (flows|full)")
        top.press("++++++")  # what comes then is for the new size
        top.wait_for("every 10 s")
        for columns, rows in ((120, 40), (80, 24), (40, 8), (200, 60), (20, 5), (7, 3), (1, 1), (80, 24)):
            top.resize(columns, rows)
            if columns >= 40:
                text = top.wait_for(r"^port-0 .* (flows|full)")
                self.assertIn("more" if rows < 40 else "POOL", text)
                self.assertIn("q quit", text.split("\n")[-1])
            else:
                top.wait_for(rf"\A{re.escape(self.domain[0])}")  # the page complains of what is too long
        self.assertTrue(top.page.is_second)
        self.assertFalse(top.page.wraps)
        top.press("q")
        top.assert_ends(0)

    def test_keys_choose_what_is_shown(self):
        self.start_load(processes=6, ports=60)
        top = Terminal(self, self.domain, "--interval", "0.1", columns=100, rows=24)
        top.wait_for("^PORT .*(.|\n)*^PROCESS .*(.|\n)*^POOL ")
        top.press("m")
        self.assertNotIn("PORT ", top.wait_for(r"(?<!\n\n)^PROCESS .*(.|\n)*worker-5(.|\n)*\n\n"))
        top.press("b")
        top.wait_for(r"^POOL (.|\n)*^frames")
        top.press("p")
        first = top.wait_for(r"^PORT (.|\n)*\.\.\. 40 more$")
        top.press("\033[B\033[B")
        second = top.wait_for(r"^\.\.\. 38 more$")
        self.assertNotEqual(first.split("\n")[2], second.split("\n")[2])
        top.press("\033[6~\033[6~\033[6~\033[6~\033[6~\033[6~")
        top.wait_for(r"^port-\d+ (.|\n)*(?<!more)\n every")
        top.press("\033[H")
        top.wait_for(r"^\.\.\. 40 more$")
        top.press("s")
        top.wait_for("by name")
        top.press(">>>>")
        top.wait_for(r"^PORT .*\nport-0 (.|\n)*by in")
        top.press("r")
        top.press("<")
        top.wait_for("by peak")
        top.press("h")
        top.wait_for("PgUp")
        top.press("x")
        top.wait_for("^PORT ")
        top.press("+")
        top.wait_for(r"every 0\.2 s")
        top.press("-")
        top.wait_for(r"every 0\.1 s")
        top.press(" ")
        paused = top.wait_for("PAUSED")
        top.read(0.5)
        self.assertEqual(top.page.shown, paused)
        top.resize(90, 20)
        top.wait_for(r"^PORT (.|\n)*PAUSED")
        top.press(" ")
        top.wait_for(r"^PORT (.|\n)*every 0\.1 s,(?! PAUSED)")
        top.press("q")
        top.assert_ends(0)

    def test_one_of_several_domains_can_be_chosen(self):
        self.start_load()
        other = subprocess.Popen([load_program, self.domain + ".other", "2", "2", "1"], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, text=True)
        self.addCleanup(self.end_load, other)
        other.stdout.readline()
        top = Terminal(self, "--interval", "0.1", columns=250, rows=100)  # others may have domains too
        name = re.escape(self.domain)
        both = rf"{name}/port-0 (.|\n)*{name}.other/port-0 "
        top.wait_for(both)
        for _ in range(1000):
            top.press("d")
            top.read(0.1)
            # Where the domain of somebody else that was chosen ends, all are shown again.
            if re.search(rf"^{name}  4 alive .*(\n(?!{name}).*)?\nPORT ", top.page.shown):
                break
        self.assertNotIn("/port-0", top.wait_for("^port-0 "))
        top.press("q")
        top.assert_ends(0)

    def test_the_terminal_is_given_back_on_every_way_out(self):
        self.start_load()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            top = Terminal(self, self.domain, "--interval", "0.1")
            top.wait_for("^port-0 ")
            self.assertNotEqual(termios.tcgetattr(top.other_end), top.modes_before)
            top.process.send_signal(number)
            top.assert_ends(-number)
        top = Terminal(self, self.domain)
        top.wait_for("^port-0 ")
        top.press("\x03")  # by the key, which is the kernel's
        top.assert_ends(-signal.SIGINT)
        top = Terminal(self, self.domain, "--interval", "0.1", "--count", "2")
        top.assert_ends(0)

    def state_of(self, process):
        return pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

    def test_it_is_stopped_and_goes_on(self):
        self.start_load()
        top = Terminal(self, self.domain, "--interval", "0.1")
        top.wait_for("^port-0 ")
        # The kernel does not stop by SIGTSTP who has no shell in its session: it gives the terminal back and takes it.
        for number in (signal.SIGTSTP, signal.SIGSTOP):
            top.process.send_signal(number)
            if number == signal.SIGSTOP:
                while self.state_of(top.process) != "T":
                    time.sleep(0.005)
                top.page.resize(120, 40)  # whatever was done to it meanwhile
                termios.tcsetattr(top.other_end, termios.TCSANOW, top.modes_before)
            top.process.send_signal(signal.SIGCONT)
            top.wait_for("^port-0 ")
            while termios.tcgetattr(top.other_end) == top.modes_before:
                top.read(0.01)
        top.press("q")
        top.assert_ends(0)

    def test_a_domain_that_goes_is_waited_for_on_the_screen(self):
        load = self.start_load()
        top = Terminal(self, self.domain, "--interval", "0.1")
        top.wait_for("^port-0 ")
        self.end_load(load)
        self.assertNotIn("port-0", top.wait_for("it is gone; waiting for it to come back"))
        self.start_load()
        top.wait_for("^port-0 ")
        top.press("q")
        top.assert_ends(0)

    def test_colour_is_there_unless_it_is_refused(self):
        self.start_load()
        for environment, has_colour in (({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False)):
            top = Terminal(self, self.domain, "--interval", "0.1", environment=environment)
            top.wait_for("flows|full")
            self.assertEqual(bool({"31", "32", "33"} & top.page.styles), has_colour)
            top.press("q")
            top.assert_ends(0)

    def test_a_terminal_that_can_do_nothing_gets_plain_text(self):
        self.start_load()
        for arguments, environment in ((["--batch"], {}), ([], {"TERM": "dumb"})):
            end, other_end = pty.openpty()
            top = subprocess.Popen([weir, "top", self.domain, "-n", "1", "--interval", "0.1", *arguments],
                                   stdout=other_end, env=dict(os.environ, **environment))
            os.close(other_end)
            shown = b""
            while select.select([end], [], [], 60)[0]:
                try:
                    shown += os.read(end, 65536)
                except OSError:
                    break
            os.close(end)
            self.assertEqual(top.wait(), 0)
            self.assertIn(b"port-0", shown)
            self.assertNotIn(b"\x1b", shown)

    def test_a_terminal_that_goes_away_ends_it(self):
        self.start_load()
        end, other_end = pty.openpty()
        top = subprocess.Popen([weir, "top", self.domain], stdin=other_end, stdout=other_end,
                               env=dict(os.environ, TERM="xterm"))
        os.close(other_end)
        os.read(end, 10)
        os.close(end)
        top.wait()

    def test_a_terminal_that_nobody_reads_does_not_hold_it_up(self):
        self.start_load(processes=6, ports=60)
        top = Terminal(self, self.domain, "--interval", "0.1", columns=200, rows=100)
        top.wait_for("^port-0 ")
        for _ in range(40):  # much more than the kernel keeps for it
            top.process.send_signal(signal.SIGCONT)
            time.sleep(0.02)
        top.process.send_signal(signal.SIGTERM)
        self.assertEqual(top.process.wait(), -signal.SIGTERM)

    # --- Wrong usage ------------------------------------------------------------------------------------------------

    def test_wrong_usage_says_what_is_right(self):
        for arguments, wanted in ((["--interval", "0.01"], "0.1 to 3600 seconds"),
                                  (["--interval", "nan"], "0.1 to 3600 seconds"),
                                  (["--sort", "colour"], "there are name, fill, depth"),
                                  (["--user", "nobody-at-all"], "no such user"),
                                  (["-n", "0"], "give 1 or more"),
                                  (["--once", "-n", "2"], "give one of them"),
                                  (["--frobnicate"], "--help"),
                                  (["one", "two"], "--help")):
            result = self.run_top(*arguments, status=2)
            self.assertIn(wanted, result.stderr)
            self.assertEqual(result.stdout, "")

    def test_the_help_fits_a_screen_and_has_an_example(self):
        lines = self.run_top("--help").stdout.split("\n")
        self.assertLessEqual(len(lines), 24)
        self.assertLessEqual(max(map(len, lines)), 80)
        self.assertTrue(any(line.startswith("  weir top ") for line in lines))


if __name__ == "__main__":
    # Whoever runs the tests may ignore these (nohup does), and what is ignored is inherited.
    for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(ignored) == signal.SIG_IGN:
            signal.signal(ignored, signal.SIG_DFL)
    parser = argparse.ArgumentParser()
    parser.add_argument("--weir", required=True)
    parser.add_argument("--load", required=True, help="top_load, built")
    parser.add_argument("names", nargs="*", help="tests to run, all by default")
    arguments = parser.parse_args()
    weir = os.path.abspath(arguments.weir)
    load_program = os.path.abspath(arguments.load)
    unittest.main(argv=[sys.argv[0], *(f"Top.{name}" for name in arguments.names)], verbosity=2)
