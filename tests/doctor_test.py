#!/usr/bin/env python3
"""Drives `weir doctor` as its users do, with domains that are dead, stuck or broken. What this machine is like is not
asserted, only that what is said of it holds together.

    tests/doctor_test.py --weir build/main/tools/weir --member build/main/tests/doctor_member [NAME...]
"""

import argparse
import ctypes
import errno
import json
import os
import pathlib
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import time
import unittest

from programs_testing import ProgramsTest

weir = ""
member = ""

LEVELS = ("fine", "note", "warning", "problem")


class Doctor(ProgramsTest):
    def setUp(self):
        super().setUp()
        for variable in ("WEIR_WAIT_PATH", "NO_COLOR"):
            self.environment.pop(variable, None)

    def run_doctor(self, *arguments, status=None):
        result = subprocess.run([weir, "doctor", *arguments], env=self.environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if status is not None:
            self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        return result

    def report(self, *arguments):
        """What it says in JSON, after a look that it holds together."""
        result = self.run_doctor("--json", *arguments)
        self.assertEqual(result.stderr, "")
        report = json.loads(result.stdout)
        for finding in report["findings"]:
            self.assertIn(finding["level"], LEVELS)
            self.assertRegex(finding["check"], r"^[a-z_]+$")
            self.assertNotEqual(finding["what"], "")
            self.assertEqual("to_do" in finding, finding["level"] != "fine", finding)
        for level in LEVELS[1:]:
            self.assertEqual(report[f"{level}_count"],
                             sum(finding["level"] == level for finding in report["findings"]), report)
        self.assertEqual(result.returncode, 1 if report["problem_count"] else 0)
        return report["findings"]

    def findings(self):
        """What it says of the test's domain, by check."""
        found = [finding for finding in self.report(self.domain) if finding.get("domain") == self.domain]
        for finding in found:
            self.assertEqual(finding["user"], os.geteuid())
        return {finding["check"]: finding for finding in found}

    def only_finding(self, level, check):
        found = self.findings()
        self.assertEqual({name: finding["level"] for name, finding in found.items()}, {check: level}, found)
        return found[check]

    def start_member(self, *mode):
        process = self.start_command(member, self.domain, *mode)
        child = self.wait_for(process, "child") if mode == ("raw_clone",) else ""
        self.wait_for(process, "ready")
        return (process, int(child.split()[1])) if child else process

    def path(self, ending):
        return pathlib.Path(f"/dev/shm/{self.prefix}{ending}")

    # --- The machine ----------------------------------------------------------------------------------------------

    def test_what_it_says_of_the_machine_holds_together(self):
        findings = [finding for finding in self.report() if "domain" not in finding]
        checks = [finding["check"] for finding in findings if finding["check"] != "domains"]
        self.assertEqual(len(checks), len(set(checks)), checks)
        self.assertLessEqual({"shared_memory", "shared_memory_size", "remove_ipc", "huge_pages", "fork", "futex_waitv",
                              "io_uring", "wait_path", "pidfd", "open_files", "processors"}, set(checks))
        for finding in findings:
            if finding["check"] in ("shared_memory", "rename", "locks", "wait_path"):
                self.assertNotEqual(finding["level"], "problem", finding)  # or no other test would have passed

    def test_people_and_machines_are_told_the_same(self):
        process = self.start_member()
        said = self.run_doctor(self.domain).stdout
        for finding in self.report(self.domain):
            if finding["check"] != "shared_memory_size":  # others make and remove files
                self.assertRegex(said, rf"(?m)^  {finding['level']} +{re.escape(finding['what'])}$")
                if "to_do" in finding:
                    self.assertIn(f"\n           to do: {finding['to_do']}\n", said)
        self.assertIn(f"\ndomain {self.domain}\n", said)
        self.assertRegex(said, r"\n\d+ problems?, \d+ warnings?, \d+ notes?\n$")
        self.kill(process)

    def test_the_wait_path_is_the_one_that_a_scheduler_takes(self):
        def wait_path():
            return next(finding for finding in self.report(self.domain) if finding["check"] == "wait_path")

        self.environment["WEIR_WAIT_PATH"] = "recheck"
        self.assertEqual(wait_path()["level"], "warning")
        self.assertIn("WEIR_WAIT_PATH", wait_path()["to_do"])
        self.environment["WEIR_WAIT_PATH"] = "nonsense"
        self.assertEqual(wait_path()["level"], "problem")
        self.run_doctor(self.domain, status=1)

    def test_io_uring_that_a_filter_forbids_is_a_note_and_workers_sleep_elsewhere(self):
        def forbid():  # io_uring_setup is EPERM, as docker's filter has it
            instructions = struct.pack("=HBBIHBBIHBBIHBBI",
                                       0x20, 0, 0, 0,  # load the call's number
                                       0x15, 0, 1, 425,
                                       0x06, 0, 0, 0x00050000 | errno.EPERM,
                                       0x06, 0, 0, 0x7fff0000)
            buffer = ctypes.create_string_buffer(instructions)
            program = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(buffer)))
            libc = ctypes.CDLL(None, use_errno=True)
            no_new_privileges, set_filter, filter_mode = 38, 22, 2
            if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_filter, filter_mode, program, 0, 0):
                os._exit(77)

        result = subprocess.run([weir, "doctor", "--json"], env=self.environment, stdout=subprocess.PIPE,
                                preexec_fn=forbid)
        if result.returncode == 77:
            self.skipTest("no seccomp here")
        found = {finding["check"]: finding for finding in json.loads(result.stdout)["findings"]}
        self.assertEqual(found["io_uring"]["level"], "note")
        self.assertNotIn("memory_lock", found)
        self.assertNotIn("io_uring", found["wait_path"]["what"])
        if found["futex_waitv"]["level"] == "fine":
            self.assertEqual(found["wait_path"]["level"], "fine")
            self.assertIn("futex_waitv", found["wait_path"]["what"])

    def test_it_leaves_nothing_behind(self):
        doctor = subprocess.Popen([weir, "doctor", self.domain], env=self.environment, stdout=subprocess.DEVNULL)
        doctor.wait()
        self.assertEqual(list(pathlib.Path("/dev/shm").glob(f"weir+*+doctor.{doctor.pid}+*")), [])

    # --- Domains --------------------------------------------------------------------------------------------------

    def test_a_domain_at_work_is_fine(self):
        processes = [self.start_member(), self.start_member()]
        self.assertRegex(self.only_finding("fine", "members")["what"], r"^2 members, 1 pool, 1 port; 5 files of ")
        self.kill(*processes)

    def test_a_domain_that_is_not_there_is_a_problem(self):
        self.assertIn("no domain", self.only_finding("problem", "domains")["what"])
        self.path("lock").touch()  # which stays of a domain that has ended
        self.assertIn("no domain", self.only_finding("problem", "domains")["what"])
        found = [finding for finding in self.report() if finding["check"] == "domains"]
        self.assertTrue(any("lock file" in finding["what"] for finding in found), found)

    def test_a_domain_whose_members_were_all_killed_is_left_over(self):
        processes = [self.start_member() for _ in range(3)]
        self.kill(*processes)
        found = self.only_finding("warning", "leftover")
        self.assertIn("nobody is left of 3 members", found["what"])
        self.assertIn("5 files of ", found["what"])
        self.assertIn(f"process {processes[0].pid}", found["what"])
        self.assertIn(f"weir rm {self.domain}", found["to_do"])
        self.run_doctor(self.domain, status=0)

    def test_a_member_that_died_among_others_is_noted(self):
        first, second = self.start_member(), self.start_member()
        self.kill(first)
        found = self.only_finding("note", "dead_members")
        self.assertIn(f"process {first.pid}", found["what"])
        self.assertNotIn(f"process {second.pid}", found["what"])
        self.assertIn(f"weir reap {self.domain}", found["to_do"])
        self.kill(second)

    def test_a_stopped_member_is_noted(self):
        process = self.start_member()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        self.assertIn(f"kill -CONT {process.pid}", self.only_finding("note", "stopped")["to_do"])
        self.kill(process)

    def test_who_keeps_the_lock_of_a_dead_member_is_named(self):
        process, child = self.start_member("raw_clone")
        try:
            self.only_finding("fine", "members")
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            for _ in range(2):  # a zombie, and nothing at all
                found = self.only_finding("problem", "kept_lock")
                self.assertIn(f"(process {process.pid}) is gone", found["what"])
                self.assertIn(f"by process {child} (", found["what"])
                self.assertIn(f"kill {child} ", found["to_do"])
                process.wait()
        finally:
            os.kill(child, signal.SIGKILL)
        while self.findings().get("kept_lock"):  # its death takes a while
            time.sleep(0.01)
        self.only_finding("warning", "leftover")

    def test_a_member_that_lost_its_lock_is_a_problem(self):
        process = self.start_member("lost_lock")
        found = self.only_finding("problem", "lost_lock")
        self.assertIn(f"process {process.pid}", found["what"])
        self.kill(process)
        self.only_finding("warning", "leftover")

    def test_a_stopped_holder_of_the_lock_of_joining_is_named(self):
        process = self.start_command(member, self.domain, "hold")
        self.wait_for(process, "ready")
        found = self.only_finding("note", "joining")
        self.assertIn(f"process {process.pid} (", found["what"])
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        found = self.only_finding("problem", "joining")
        self.assertIn(f"process {process.pid} (", found["what"])
        self.assertIn(f"kill -CONT {process.pid}", found["to_do"])
        self.kill(process)

    def test_segments_that_nobody_lists_are_noted(self):
        process = self.start_member()
        registry_id = next(name for name in self.files() if name.endswith(".port"))[len(self.prefix):].split(".")[0]
        half_made = self.path(f"{registry_id}.200.7.1.port")
        half_made.write_bytes(b"x" * 5000)
        found = self.only_finding("note", "unlisted")
        self.assertIn(half_made.name, found["what"])
        self.assertIn("half-made", found["what"])
        half_made.unlink()
        former = self.path("1f.0.0.1.port")
        former.write_bytes(b"x" * 5000)
        found = self.only_finding("note", "unlisted")
        self.assertIn(former.name, found["what"])
        self.assertIn("earlier domain", found["what"])
        self.kill(process)

    def test_a_segment_that_is_missing_is_a_problem(self):
        for kind in ("port", "control", "payload"):
            with self.subTest(kind=kind):
                process = self.start_member()
                lost = next(name for name in self.files() if name.endswith("." + kind))
                os.unlink(f"/dev/shm/{lost}")
                self.assertIn(lost, self.only_finding("problem", "segments")["what"])
                self.kill(process)
                self.remove_files()

    def test_a_registry_of_another_version_is_a_problem(self):
        self.kill(self.start_member())
        with open(self.path("registry"), "r+b") as file:
            file.seek(8)  # layout_version of SegmentHeader
            version, = struct.unpack("=I", file.read(4))
            file.seek(8)
            file.write(struct.pack("=I", version + 1))
        found = self.only_finding("problem", "registry")
        self.assertIn("another version", found["what"])

    def test_files_without_a_registry_are_left_over(self):
        self.kill(self.start_member())
        self.path("registry").unlink()
        self.assertRegex(self.only_finding("warning", "leftover")["what"], r"^3 files of ")

    def test_what_is_no_file_under_a_name_is_a_problem(self):
        os.mkfifo(self.path("lock"))
        found = self.only_finding("problem", "files")
        self.assertIn(str(self.path("lock")), found["what"])

    def test_a_domain_that_comes_and_goes_is_never_a_problem(self):
        stop = time.monotonic() + 3
        while time.monotonic() < stop:
            process = self.start_member()
            process.kill()  # at the same time as the look
            found = self.findings()
            self.assertLessEqual(set(found), {"leftover", "dead_members", "members"})
            process.wait()

    # --- What one sees --------------------------------------------------------------------------------------------

    def test_a_name_that_cannot_be_is_wrong_usage(self):
        for arguments in (["a+b"], [""], ["--frobnicate"]):
            with self.subTest(arguments=arguments):
                result = self.run_doctor(*arguments, status=2)
                self.assertEqual(result.stdout, "")
                self.assertNotEqual(result.stderr, "")

    def test_the_help_fits_a_screen_and_has_an_example(self):
        help_text = self.run_doctor("--help", status=0).stdout
        lines = help_text.rstrip("\n").split("\n")
        self.assertLessEqual(len(lines), 24)
        self.assertLessEqual(max(map(len, lines)), 80)
        self.assertIn("\n  weir doctor camera", help_text)

    def shown_on_a_terminal(self, **variables):
        try:
            terminal, other_end = pty.openpty()
        except OSError as error:
            self.skipTest(f"no terminal to be had here: {error}")
        doctor = subprocess.Popen([weir, "doctor", self.domain], env=dict(self.environment, **variables),
                                  stdin=subprocess.DEVNULL, stdout=other_end)
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
        doctor.wait()
        self.assertIn(b"this machine", shown)
        return shown

    def test_there_are_colours_on_a_terminal_alone_and_where_they_are_wanted(self):
        self.assertIn(b"\x1b[32m", self.shown_on_a_terminal(TERM="xterm"))
        self.assertIn(b"\x1b[32m", self.shown_on_a_terminal(TERM="xterm", NO_COLOR=""))
        self.assertNotIn(b"\x1b", self.shown_on_a_terminal(TERM="xterm", NO_COLOR="1"))
        self.assertNotIn(b"\x1b", self.shown_on_a_terminal(TERM="dumb"))
        self.environment["TERM"] = "xterm"
        for arguments in ([], ["--json"]):
            self.assertNotIn("\x1b", self.run_doctor(self.domain, *arguments).stdout)

    def test_nobody_reads_what_it_prints(self):
        with open("/dev/full", "w") as full:
            result = subprocess.run([weir, "doctor", self.domain], stdout=full, stderr=subprocess.PIPE, text=True,
                                    env=self.environment)
        self.assertEqual(result.returncode, 1)
        self.assertIn("cannot write", result.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--weir", required=True)
    parser.add_argument("--member", required=True, help="doctor_member.cpp, built")
    parser.add_argument("names", nargs="*", help="tests to run, all by default")
    arguments = parser.parse_args()
    weir = os.path.abspath(arguments.weir)
    member = os.path.abspath(arguments.member)
    unittest.main(argv=[sys.argv[0], *(f"Doctor.{name}" for name in arguments.names)], verbosity=2)
