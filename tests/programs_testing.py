"""What the tests of examples share: programs in a domain of the test's own, which is gone in the end."""

import os
import pathlib
import re
import signal
import subprocess
import unittest


def need_program_for(test, user, program):
    """Skips a test that wants another user to run a program, where the build lies in a folder that nobody else may enter."""
    try:
        status = subprocess.run([program, "--help"], user=user, extra_groups=[], stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL).returncode
    except PermissionError:
        status = 126
    if status != 0:
        test.skipTest(f"user {user} cannot run {program}")


class ProgramsTest(unittest.TestCase):
    def setUp(self):
        self.domain = f"{type(self).__name__.lower()}.{os.getpid()}.{self.id().rsplit('.', 1)[-1][:40]}"
        self.prefix = f"weir+{os.geteuid()}+{self.domain}+"
        self.environment = dict(os.environ)
        self.addCleanup(self.remove_files)

    def files(self):
        return sorted(path.name for path in pathlib.Path("/dev/shm").iterdir() if path.name.startswith(self.prefix))

    def remove_files(self):
        for name in self.files():
            os.unlink(f"/dev/shm/{name}")

    def assert_nothing_is_left(self):
        self.assertEqual(self.files(), [self.prefix + "lock"])

    def start_command(self, *command):
        process = subprocess.Popen(list(map(str, command)), env=self.environment, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process

    def wait_for(self, process, wanted):
        """Reads its lines until one matches, and returns that."""
        said = ""
        for line in process.stdout:
            said += line
            if re.search(wanted, line):
                return line
        self.fail(f"it ended ({process.wait()}) without saying {wanted}; it said:\n{said}")

    def kill(self, *processes):
        for process in processes:
            process.kill()
        for process in processes:
            self.assertEqual(process.wait(), -signal.SIGKILL)
