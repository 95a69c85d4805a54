#!/usr/bin/env python3
"""Drives weir ls, stat, check, reap and rm over domains that work, whose processes were killed, and that are corrupted.

    tests/look_test.py --weir build/main/tools/weir --examples build/main/examples [NAME...]
"""

import argparse
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import programs_testing  # noqa: E402

weir = ""
examples = pathlib.Path()

HEADER = 4096  # the bytes of a segment in front of its data


class LookTest(programs_testing.ProgramsTest):
    def weir(self, *arguments, status=0):
        done = subprocess.run([weir, *map(str, arguments)], env=self.environment, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        return done

    def look(self):
        [domain] = json.loads(self.weir("ls", "--json", self.domain).stdout)
        return domain

    def start(self, name):
        return self.start_command(examples / f"example_{name}", "--domain", self.domain)

    def wait_until(self, is_so, *processes):
        """Looks again and again, while the processes run; at first the domain may not be there, or half made."""
        while True:
            done = subprocess.run([weir, "ls", "--json", self.domain], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                  check=False)
            if done.returncode == 0 and is_so(json.loads(done.stdout)[0]):
                return
            for process in processes:
                self.assertIsNone(process.poll())
            time.sleep(0.02)

    def start_pair(self):
        consumer = self.start("camera_consumer")
        producer = self.start("camera_producer")
        self.wait_until(lambda domain: any(port["consumers"]["counters"]["messages"] > 3 for port in domain["ports"]),
                        consumer, producer)
        return producer, consumer

    def copies(self, *left_out):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-look-test-"))
        self.addCleanup(shutil.rmtree, folder)
        for name in self.files():
            if not name.endswith((".payload", *left_out)):
                shutil.copy(f"/dev/shm/{name}", folder)
        return folder

    def test_a_domain_at_work(self):
        producer, consumer = self.start_pair()
        domain = self.look()
        members = {member["pid"]: member for member in domain["members"]}
        self.assertEqual(set(members), {producer.pid, consumer.pid})
        self.assertEqual({member["life"] for member in members.values()}, {"alive"})
        [port] = domain["ports"]
        self.assertEqual([one["slot"] for one in port["producers"]["handles"]], [members[producer.pid]["slot"]])
        self.assertEqual([one["slot"] for one in port["consumers"]["handles"]], [members[consumer.pid]["slot"]])
        text = self.weir("ls", self.domain).stdout
        for wanted in (str(producer.pid), str(consumer.pid), "alive", port["name"], domain["pools"][0]["name"]):
            self.assertIn(wanted, text)
        self.assertIn(self.domain, self.weir("ls").stdout)
        self.assertIn(port["name"], self.weir("stat", self.domain).stdout)
        first = json.loads(self.weir("stat", "--json", self.domain).stdout)[0]["ports"][0]["producers"]["counters"]
        while True:
            second = json.loads(self.weir("stat", "--json", self.domain).stdout)[0]["ports"][0]["producers"]["counters"]
            self.assertGreaterEqual(second["messages"], first["messages"])
            if second["messages"] > first["messages"]:
                break
        self.assertIn(f"{self.domain}: sound", self.weir("check", self.domain).stdout)
        done = self.weir("rm", self.domain, status=1)
        self.assertIn("has live members", done.stderr)
        self.assertIsNone(producer.poll())

    def test_looking_makes_no_member_and_changes_no_file(self):
        consumer = self.start("camera_consumer")
        self.wait_until(lambda domain: domain["ports"], consumer)
        consumer.send_signal(19)  # SIGSTOP: it changes nothing either
        while "T" != pathlib.Path(f"/proc/{consumer.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]:
            time.sleep(0.01)
        before = {name: pathlib.Path(f"/dev/shm/{name}").read_bytes() for name in self.files()}
        for verb in ("ls", "stat", "check"):
            self.weir(verb, self.domain)
            self.weir(verb, self.domain, "--json")
        after = {name: pathlib.Path(f"/dev/shm/{name}").read_bytes() for name in self.files()}
        self.assertEqual(before, after)

    def test_killed_processes_are_dead_and_are_reaped(self):
        producer, consumer = self.start_pair()
        consumer.send_signal(19)
        self.kill(producer, consumer)
        domain = self.look()
        self.assertEqual({member["life"] for member in domain["members"]}, {"dead"})
        self.assertIn("2 dead", self.weir("ls").stdout.replace("+ ", ""))
        self.assertIn("nobody is in it", self.weir("ls").stdout)
        check = self.weir("check", self.domain).stdout
        self.assertIn("sound", check)
        self.assertIn(f"weir reap {self.domain}", check)
        self.assertIn("reaped 2 of 2 dead", self.weir("reap", self.domain).stdout)
        self.assertIn("nobody is dead", self.weir("reap", self.domain).stdout)
        after = self.look()
        self.assertEqual(after["members"], [])
        self.assertEqual(after["ports"][0]["depth"], domain["ports"][0]["depth"])  # messages stay
        self.weir("check", "--idle", self.domain)
        self.assertIn("removed", self.weir("rm", self.domain).stdout)
        self.assertEqual(self.files(), [])
        self.weir("rm", self.domain, status=1)
        lock_file = pathlib.Path(f"/dev/shm/{self.prefix}lock")  # which stays of one that ended in good order
        lock_file.touch(mode=0o600)
        self.assertIn("only its lock file was left", self.weir("rm", self.domain).stdout)
        self.assertFalse(lock_file.exists())

    def test_a_domain_in_use_is_removed_by_force(self):
        producer, consumer = self.start_pair()
        self.weir("rm", "--force", self.domain)
        self.assertIsNone(producer.poll())
        self.assertIsNone(consumer.poll())
        self.assertIn("there is no domain", self.weir("ls", self.domain, status=1).stderr)

    def test_copies_are_checked_post_mortem(self):
        self.kill(*self.start_pair())
        folder = self.copies()
        self.weir("rm", self.domain)
        self.assertIn("sound", self.weir("check", "--from", folder).stdout)
        self.assertIn("unknown", self.weir("ls", "--from", folder, self.domain).stdout)
        self.assertIn("raw", self.weir("stat", "--from", folder).stdout)

    def test_broken_words_are_named(self):
        self.kill(*self.start_pair())
        folder = self.copies()
        [control] = folder.glob("*.control")
        words = bytearray(control.read_bytes())
        domain = self.look()
        count = domain["pools"][0]["buffer_count"]
        place = HEADER + (len(words) - HEADER) // 4096 * 4096  # the file's end is padded to a page
        # The headers lie at the end of the pool's state; the last ones of zeroed pages are free buffers' or padding, so
        # the state of every word is set to one that nobody writes.
        changed = 0
        for offset in range(HEADER, place, 64):
            line = struct.unpack_from("<4Q", words, offset)
            if all(word & 7 in (0, 1, 2) for word in line) and line[0] >> 32 != 0 and changed < 3:
                struct.pack_into("<Q", words, offset, line[0] | 7)
                changed += 1
        self.assertGreater(changed, 0, f"of {count} buffers none was ever used")
        control.write_bytes(words)
        done = self.weir("check", "--from", folder, self.domain, status=1)
        self.assertRegex(done.stdout, r"broken")
        self.assertRegex(done.stdout, r"buffer \d+ reference 0: state 7 is none that is written")
        self.assertRegex(done.stdout, r"ports: 0 raw")
        [report] = json.loads(self.weir("check", "--json", "--from", folder, self.domain, status=1).stdout)
        self.assertFalse(report["is_sound"])
        self.assertTrue(report["broken"])

    def test_what_cannot_be_opened_is_an_error_and_no_crash(self):
        self.kill(*self.start_pair())
        folder = self.copies()
        [port] = folder.glob("*.port")
        content = port.read_bytes()
        for broken in (b"", content[:100], content[:8000], b"x" * len(content), bytes(len(content)), os.urandom(len(content))):
            port.write_bytes(broken)
            done = self.weir("check", "--from", folder, self.domain, status=1)
            self.assertIn(port.name, done.stdout)
            self.weir("ls", "--from", folder, self.domain, status=1)
        port.write_bytes(content)
        registry = folder / f"{self.prefix}registry"
        content = registry.read_bytes()
        for broken in (b"", content[:100], content[:8000], b"x" * len(content), bytes(len(content)),
                       content[:8] + struct.pack("<I", 1) + content[12:]):
            registry.write_bytes(broken)
            done = self.weir("check", "--from", folder, self.domain, status=1)
            self.assertIn("registry", done.stderr)

    def test_nothing_there(self):
        empty = tempfile.mkdtemp(prefix="weir-look-test-")
        self.addCleanup(os.rmdir, empty)
        for verb in ("ls", "stat"):
            self.assertIn("there is no domain", self.weir(verb, "--from", empty).stderr)
            self.assertEqual(json.loads(self.weir(verb, "--from", empty, "--json").stdout), [])
        self.weir("check", "--from", empty, status=1)
        for verb in ("ls", "stat", "check", "reap", "rm"):
            self.assertIn(f"no domain {self.domain}", self.weir(verb, self.domain, status=1).stderr)
            self.assertIn("use 1 to 64 of", self.weir(verb, "a/b", status=2).stderr)
            self.assertIn("no such user", self.weir(verb, "--user", "nobody-of-that-name", self.domain, status=2).stderr)
        self.assertEqual(self.files(), [])
        self.weir("rm", status=2)

    def test_help_fits_a_screen_and_has_an_example(self):
        for verb in ("ls", "stat", "check", "reap", "rm"):
            lines = self.weir(verb, "--help").stdout.splitlines()
            self.assertLessEqual(len(lines), 24, verb)
            self.assertLessEqual(max(map(len, lines)), 80, verb)
            self.assertTrue(any(line.startswith(f"  weir {verb}") for line in lines), verb)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--weir", required=True)
    parser.add_argument("--examples", required=True, type=pathlib.Path)
    options, rest = parser.parse_known_args()
    weir, examples = options.weir, options.examples
    unittest.main(argv=[sys.argv[0], *rest])
