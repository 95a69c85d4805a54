#!/usr/bin/env python3
"""Runs the examples that people start in several terminals: in any order, killed, and started again.

    tests/examples_test.py SEND RECEIVE CAMERA_PRODUCER CAMERA_CONSUMER

Nothing waits for a time of its own: each step waits for what a program says, and Meson's timeout is over all of them.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import unittest

from programs_testing import ProgramsTest

send, receive, producer, consumer = "", "", "", ""


class Examples(ProgramsTest):
    def start_producer(self, *arguments):
        process = self.start_command(producer, "--domain", self.domain, *arguments)
        self.wait_for(process, "films")
        return process

    def start_consumer(self, *arguments):
        process = self.start_command(consumer, "--domain", self.domain, *arguments)
        self.wait_for(process, "viewer is there")
        return process

    def sleep_count(self, process):
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)$", status, re.M).group(1))

    def end(self, process):
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
        self.assertEqual(process.wait(), 0, said)
        return said

    def test_the_readmes_programs_find_each_other_in_either_order(self):
        for first, second in ((send, receive), (receive, send)):
            with self.subTest(first=first):
                processes = [self.start_command(program, self.domain) for program in (first, second)]
                said = [process.communicate()[0] for process in processes]
                self.assertEqual([process.returncode for process in processes], [0, 0], said)
                self.assertIn("100 frames came as they were sent; the sender is done", "".join(said))
                self.assert_nothing_is_left()

    def test_a_receiver_is_told_that_the_sender_was_killed(self):
        sender = self.start_command(send, self.domain)
        looks = 0
        while looks < 20:  # until it sleeps, because the port is full
            self.assertIsNone(sender.poll())
            state = pathlib.Path(f"/proc/{sender.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            looks = looks + 1 if state == "S" and len(self.files()) == 5 else 0
            time.sleep(0.005)
        self.kill(sender)
        receiver = self.start_command(receive, self.domain)
        self.assertEqual(receiver.communicate()[0], "8 frames came as they were sent; the sender died\n")
        self.assertEqual(receiver.returncode, 1)
        self.assert_nothing_is_left()

    def test_the_cameras_programs_are_killed_and_started_again(self):
        viewer = self.start_consumer()
        camera = self.start_producer("--rate", 500)
        self.wait_for(viewer, r"^[1-9]\d* frames seen")
        self.kill(camera)
        self.wait_for(viewer, "the last camera died; waiting for a new one")

        camera = self.start_producer("--rate", 500)
        self.wait_for(viewer, r", [1-9]\d* a second.* 2 cameras so far")
        self.kill(viewer)

        # The camera goes on without it; a new viewer sees the newest frames, in what was there all the time.
        viewer = self.start_consumer()
        self.wait_for(viewer, r"^[1-9]\d* frames seen")
        self.assertRegex(self.end(camera), "is done; it found no buffer for 0 frames")
        self.wait_for(viewer, "the last camera closed its end; waiting for a new one")
        self.assertIn("viewer is done", self.end(viewer))
        self.assert_nothing_is_left()

    def test_when_all_were_killed_the_next_ones_go_on(self):
        # Small frames, seldom: so that it sleeps after each also where all is slow.
        camera = self.start_producer("--rate", 100, "--bytes", 1000)
        viewer = self.start_consumer()
        self.wait_for(viewer, r"^[1-9]\d* frames seen")
        self.kill(viewer)
        wanted = self.sleep_count(camera) + 20  # it sleeps after each frame
        while self.sleep_count(camera) < wanted:
            time.sleep(0.005)
        self.kill(camera)
        self.assertEqual(len(self.files()), 5)
        viewer = self.start_consumer("--frames", 8)  # what was queued is still there
        self.assertIn("viewer is done", viewer.communicate()[0])
        self.assertEqual(viewer.returncode, 0)
        self.assert_nothing_is_left()

    def test_several_cameras_and_viewers_share_a_port(self):
        cameras = [self.start_producer("--rate", 400, "--bytes", 1000) for _ in range(3)]
        viewers = [self.start_consumer("--frames", 200) for _ in range(2)]
        for viewer in viewers:
            self.assertIn("viewer is done", viewer.communicate()[0])
            self.assertEqual(viewer.returncode, 0)
        for camera in cameras:
            self.end(camera)
        self.assert_nothing_is_left()

    def test_a_camera_that_is_given_a_number_of_frames_ends(self):
        camera = self.start_producer("--frames", 50, "--rate", 1000)
        camera.communicate()
        self.assertEqual(camera.returncode, 0)
        self.assert_nothing_is_left()

    def test_what_cannot_be_is_said(self):
        for arguments, words in ((["--rate", "0"], "--rate wants a number"), (["--frobnicate"], "usage:"),
                                 (["--bytes", "1000000"], "--bytes wants"), (["--domain", "a/b"], "a/b")):
            result = subprocess.run([producer, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            self.assertEqual(result.returncode, 1)
            self.assertIn(words, result.stdout)


if __name__ == "__main__":
    send, receive, producer, consumer = map(os.path.abspath, sys.argv[1:5])
    unittest.main(argv=sys.argv[:1] + sys.argv[5:], verbosity=2)
