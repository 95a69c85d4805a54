#!/usr/bin/env python3
"""Lets processes of different layout versions meet in one domain.

    tests/layout/layout_test.py OLDER OWN NEWER [NAME...]      the programs built from member.cpp
"""

import pathlib
import subprocess
import sys
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import programs_testing  # noqa: E402

programs = []

WRONG_LAYOUT = 3  # member's exit status for this error


class LayoutTest(programs_testing.ProgramsTest):
    def run_member(self, program, verb, status=0):
        done = subprocess.run([program, verb, self.domain], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              check=False)
        self.assertEqual(done.returncode, status, done.stdout)
        return done.stdout

    def start_maker(self, program):
        process = subprocess.Popen([program, "make", self.domain], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        self.wait_for(process, "^ready$")
        return process

    def pairs(self):
        for maker in range(3):
            for other in range(3):
                yield maker, other, programs[maker], programs[other]

    def test_processes_of_one_version_work_together(self):
        for program in programs:
            with self.subTest(program=program):
                maker = self.start_maker(program)
                for verb in "join", "look":
                    self.assertEqual(self.run_member(program, verb), "sound\n")
                self.assertEqual(self.run_member(program, "reap"), "nobody is dead\n")
                self.assertEqual(maker.communicate("")[0], "sound\n")
                self.assert_nothing_is_left()

    def test_a_process_of_another_version_is_refused_and_told_what_to_do_and_changes_nothing(self):
        for maker, other, make, program in self.pairs():
            if maker == other:
                continue
            with self.subTest(make=make, program=program):
                process = self.start_maker(make)
                files = self.files()
                for verb in "join", "look", "reap", "remove":
                    said = self.run_member(program, verb, WRONG_LAYOUT)
                    self.assertRegex(said, rf"{self.prefix.replace('+', '[+]')}registry: it has layout version "
                                           rf"{maker + 1}, this library has {other + 1}; ")
                    self.assertIn("use one version of weir in all processes", said)
                    self.assertIn("weir rm --force", said)
                self.assertEqual(self.files(), files)
                self.assertEqual(process.communicate("")[0], "sound\n")
                self.assert_nothing_is_left()

    def test_what_a_killed_process_of_another_version_left_is_refused_until_it_is_removed_by_force(self):
        for maker, other, make, program in self.pairs():
            if maker == other:
                continue
            with self.subTest(make=make, program=program):
                self.kill(self.start_maker(make))
                self.run_member(program, "join", WRONG_LAYOUT)
                self.assertEqual(self.run_member(program, "force"), "removed\n")
                self.assert_nothing_is_left()
                self.assertEqual(self.run_member(program, "join"), "sound\n")


if __name__ == "__main__":
    programs = sys.argv[1:4]
    unittest.main(argv=sys.argv[:1] + sys.argv[4:])
