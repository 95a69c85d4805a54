#!/usr/bin/env python3
"""Runs `weir graph` and `weir metrics` on domains of programs that work, are stopped, and were killed.

    tests/graph_metrics_test.py WEIR SEND RECEIVE CAMERA_PRODUCER CAMERA_CONSUMER [NAME...]
"""

import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import unittest

from programs_testing import ProgramsTest, need_program_for

try:
    from prometheus_client.openmetrics.parser import text_string_to_metric_families
except ImportError:
    text_string_to_metric_families = None

weir, producer, consumer = "", "", ""

OTHER_USER = 65533  # who has no domains but those of these tests; root can run programs as anybody

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[n"\\])*)"'


def parsed(text):
    """What OpenMetrics text says: {(sample, labels): value}; ValueError where it breaks a rule of version 1.0."""
    lines = text.split("\n")
    if lines[-2:] != ["# EOF", ""]:
        raise ValueError("it does not end in # EOF and a line feed")
    families, samples, family = {}, {}, None
    for line in lines[:-2]:
        described = re.fullmatch(rf"# (TYPE|UNIT|HELP) ({NAME}) (.+)", line)
        if described:
            what, name, value = described.groups()
            if what == "TYPE":
                if name in families or value not in ("counter", "gauge"):
                    raise ValueError(f"twice, or no type: {line}")
                family = {"name": name, "TYPE": value, "count": 0}
                families[name] = family
            elif family is None or name != family["name"] or what in family or family["count"] or "HELP" in family:
                raise ValueError(f"out of its place: {line}")
            elif what == "UNIT" and not name.endswith("_" + value):
                raise ValueError(f"the name does not end in its unit: {line}")
            elif re.search(r'["\\]', value):
                raise ValueError(f"would have to be escaped: {line}")
            family[what] = value
            continue
        sample = re.fullmatch(rf"({NAME})\{{({LABEL}(?:,{LABEL})*)\}} (\d+)", line)  # all of ours are whole numbers
        if not sample:
            raise ValueError(f"neither sample nor description: {line}")
        name, labels = sample.group(1), re.findall(LABEL, sample.group(2))
        if family is None or name != family["name"] + ("_total" if family["TYPE"] == "counter" else ""):
            raise ValueError(f"outside of its family: {line}")
        if "HELP" not in family or len(dict(labels)) != len(labels):
            raise ValueError(f"no help, or a label twice: {line}")
        key = (name, tuple(sorted(labels)))
        if key in samples:
            raise ValueError(f"a series twice: {line}")
        samples[key] = int(sample.group(len(sample.groups())))
        family["count"] += 1
    for family in families.values():
        if family["name"].endswith(("_bytes", "_seconds")) and "UNIT" not in family:
            raise ValueError(f"a family without its unit: {family['name']}")
    return samples


class GraphMetrics(ProgramsTest):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-graph-test-"))
        self.addCleanup(shutil.rmtree, self.folder)

    @staticmethod
    def remove_files_of(user, domain):
        for path in pathlib.Path("/dev/shm").glob(f"weir+{user}+{domain}+*"):
            path.unlink()

    def run_weir(self, *arguments, status=0, **options):
        result = subprocess.run([weir, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, **options)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        self.assertEqual(result.stderr == "", status == 0, result.stderr)  # what failed is said, and only that
        return result

    def graph(self, *arguments):
        """The text, which dot understands."""
        text = self.run_weir("graph", self.domain, *arguments).stdout
        if shutil.which("dot"):
            drawn = subprocess.run(["dot", "-Tsvg"], input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self.assertEqual((drawn.returncode, drawn.stderr), (0, ""), text)
            self.assertIn("</svg>", drawn.stdout)
        return text

    def metrics(self, *arguments, status=0):
        text = self.run_weir("metrics", *(arguments or (self.domain,)), status=status).stdout
        if text_string_to_metric_families:
            list(text_string_to_metric_families(text))
        return parsed(text)

    def value(self, samples, name, domain=None, **labels):
        labels.update(domain=domain or self.domain, user=str(os.geteuid()))
        return samples[name, tuple(sorted(labels.items()))]

    def start_camera(self, *arguments, domain=None):
        self.addCleanup(self.remove_files_of, os.geteuid(), domain or self.domain)
        process = self.start_command(producer, "--domain", domain or self.domain, *arguments)
        self.wait_for(process, "films")
        return process

    def start_viewer(self):
        process = self.start_command(consumer, "--domain", self.domain)
        self.wait_for(process, "viewer is there")
        return process

    def stop(self, process):
        process.send_signal(signal.SIGSTOP)
        while pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
            time.sleep(0.001)

    # --- weir graph -------------------------------------------------------------------------------------------------

    def test_a_graph_shows_who_sends_how_much_to_whom(self):
        camera = self.start_camera("--rate", 200, "--bytes", 1000)
        viewer = self.start_viewer()
        text = self.graph("--interval", 2)
        for process, name in ((camera, "example_camera_producer"), (viewer, "example_camera_consumer")):
            self.assertRegex(text, rf'(?m)^  process_\d+ \[label="{name}\\nprocess {process.pid}, slot \d+\\nholds ')
        camera_id = re.search(rf"(process_\d+) .*process {camera.pid},", text).group(1)
        viewer_id = re.search(rf"(process_\d+) .*process {viewer.pid},", text).group(1)
        for arrow in (f"{camera_id} -> port_0", f"port_0 -> {viewer_id}"):
            rate = re.search(rf'{arrow} \[label="([\d.,]+) msg/s\\n([\d.]+ .?i?B)/s"\];', text)
            self.assertIsNotNone(rate, text)
            self.assertGreater(float(rate.group(1).replace(",", "")), 0)
            self.assertNotEqual(rate.group(2), "0 B")
        self.assertIn("when full: the oldest is dropped", text)
        self.assertNotIn("pool_0", text)
        self.assertIn('pool_0 [label="frames\\n32 buffers of 256.0 KiB', self.graph("--interval", 0, "--pools"))

    def test_a_graph_without_an_interval_tells_totals(self):
        viewer = self.start_viewer()
        self.stop(viewer)
        self.assertEqual(self.start_camera("--frames", 30, "--rate", 1000, "--bytes", 1000).wait(), 0)
        self.start_camera("--rate", 1, "--bytes", 1000)
        text = self.graph("--interval", 0)
        self.assertIn("totals since the ports were made", text)
        self.assertRegex(text, r'port_0 -> process_\d+ \[label="0 messages\\n0 B"\];')
        self.assertIn("8 of 8 messages, at most 8 so far", text)

    def test_a_stopped_consumer_makes_its_port_stuck(self):
        viewer = self.start_viewer()
        self.stop(viewer)
        self.assertEqual(self.start_camera("--frames", 20, "--rate", 1000).wait(), 0)
        text = self.graph("--interval", 0.2)
        self.assertRegex(text, rf"process {viewer.pid}, slot \d+.*STOPPED by a signal")
        self.assertRegex(text, r"(?m)^  port_0 .*STUCK: nothing was taken")
        self.assertRegex(text, r"port_0 -> process_\d+ .*takes nothing")
        self.assertIn("last producer closed its end", text)
        viewer.send_signal(signal.SIGCONT)
        while self.value(self.metrics(), "weir_port_depth", port="raw") > 0:
            time.sleep(0.005)
        text = self.graph("--interval", 0.2)
        self.assertNotIn("STUCK", text)
        self.assertNotIn("STOPPED", text)

    def test_a_graph_of_the_dead(self):
        camera = self.start_camera("--rate", 500, "--bytes", 1000)
        viewer = self.start_viewer()
        self.stop(viewer)  # so that nobody reaps
        self.kill(camera, viewer)
        text = self.graph("--interval", 0.1)
        self.assertEqual(text.count("DEAD, not reaped"), 2, text)
        self.assertEqual(text.count("died\", color="), 2, text)
        samples = self.metrics()
        self.assertEqual(self.value(samples, "weir_domain_members", state="dead"), 2)
        self.assertEqual(self.value(samples, "weir_domain_members", state="alive"), 0)
        self.assertEqual([value for (name, _), value in samples.items() if name == "weir_process_alive"], [0, 0])

    def test_an_end_whose_last_process_died_and_was_reaped(self):
        viewer = self.start_viewer()
        camera = self.start_camera("--rate", 500, "--bytes", 1000)
        self.wait_for(viewer, r"^[1-9]\d* frames seen")
        self.kill(camera)
        self.wait_for(viewer, "the last camera died")
        text = self.graph("--interval", 0)
        self.assertIn("last producer DIED", text)
        self.assertNotIn("DEAD", text)

    def test_messages_that_nobody_takes(self):
        self.start_camera("--rate", 500, "--bytes", 1000)
        while self.value(self.metrics(), "weir_port_depth", port="raw") == 0:
            time.sleep(0.005)
        text = self.graph("--interval", 0)
        self.assertIn("no consumer yet\\nNOBODY takes what is in it", text)

    def test_a_picture_is_drawn_by_dot(self):
        if not shutil.which("dot"):
            self.skipTest("there is no dot")
        self.start_camera("--rate", 10)
        self.assertIn("</svg>", self.run_weir("graph", self.domain, "--interval", 0, "--svg").stdout)
        for name, options, words in (("a.svg", [], "</svg>"), ("b.dot", [], "digraph"), ("c", [], "digraph"),
                                     ("d.xml", ["--svg"], "</svg>")):
            path = self.folder / name
            self.assertEqual(self.run_weir("graph", self.domain, "--interval", 0, "-o", path, *options).stdout, "")
            self.assertIn(words, path.read_text())
        self.assertEqual(len(list(self.folder.iterdir())), 4)  # no drafts

    def test_without_dot_it_says_what_to_do(self):
        self.start_camera("--rate", 10)
        path = self.folder / "a.svg"
        environment = dict(os.environ, PATH=str(self.folder))
        result = self.run_weir("graph", self.domain, "--interval", 0, "-o", path, status=1, env=environment)
        self.assertIn("install the package graphviz, or", result.stderr)
        dot = self.folder / "dot"
        dot.write_text("#!/bin/sh\nexit 3\n")
        dot.chmod(0o755)
        result = self.run_weir("graph", self.domain, "--interval", 0, "-o", path, status=1, env=environment)
        self.assertIn("failed", result.stderr)
        self.assertFalse(path.exists())
        self.assertIn("digraph", self.run_weir("graph", self.domain, "--interval", 0, env=environment).stdout)

    def test_a_domain_that_ends_between_the_looks(self):
        camera = self.start_camera("--rate", 100)
        graph = self.start_command(weir, "graph", self.domain, "--interval", 1)
        while not re.search(r"weir\+.*registry", pathlib.Path(f"/proc/{graph.pid}/maps").read_text()):
            self.assertIsNone(graph.poll())
            time.sleep(0.005)
        camera.send_signal(signal.SIGINT)
        self.assertIn("ended while it was looked at", graph.communicate()[0])
        self.assertEqual(graph.returncode, 1)

    # --- weir metrics -----------------------------------------------------------------------------------------------

    def test_counters_are_what_was_really_sent(self):
        viewer = self.start_viewer()
        self.stop(viewer)
        for frames, size in ((50, 1000), (30, 200)):
            camera = self.start_camera("--frames", frames, "--rate", 1000, "--bytes", size)
            self.assertEqual(camera.wait(), 0, camera.stdout.read())
        samples = self.metrics()
        ends = {"producer": (80, 50 * 1000 + 30 * 200), "consumer": (0, 0)}
        for end, (messages, size) in ends.items():
            self.assertEqual(self.value(samples, "weir_port_messages_total", port="raw", end=end), messages)
            self.assertEqual(self.value(samples, "weir_port_bytes_total", port="raw", end=end), size)
        self.assertEqual(self.value(samples, "weir_port_dropped_total", port="raw"), 72)
        self.assertEqual(self.value(samples, "weir_port_depth", port="raw"), 8)
        self.assertEqual(self.value(samples, "weir_port_capacity", port="raw"), 8)
        self.assertLessEqual(self.value(samples, "weir_port_high_water_mark", port="raw"), 8)  # it is sampled
        self.assertEqual(self.value(samples, "weir_port_handles", port="raw", end="producer"), 0)
        self.assertEqual(self.value(samples, "weir_port_handles", port="raw", end="consumer"), 1)
        self.assertEqual(self.value(samples, "weir_pool_buffers", pool="frames", state="free"), 24)
        self.assertEqual(self.value(samples, "weir_pool_buffers", pool="frames", state="used"), 8)
        self.assertEqual(self.value(samples, "weir_pool_references", pool="frames", state="queued"), 8)
        self.assertEqual(self.value(samples, "weir_pool_buffer_bytes", pool="frames"), 1 << 18)
        self.assertEqual(self.value(samples, "weir_domain_members", state="alive"), 1)
        self.assertEqual(self.value(samples, "weir_domain_up"), 1)
        self.assertEqual(self.value(samples, "weir_domain_unread"), 0)
        self.assertGreater(self.value(samples, "weir_domain_shared_memory_bytes", kind="payload"), 32 << 18)
        viewer.send_signal(signal.SIGCONT)
        while self.value(self.metrics(), "weir_port_messages_total", port="raw", end="consumer") < 8:
            time.sleep(0.005)
        samples = self.metrics()
        self.assertEqual(self.value(samples, "weir_port_bytes_total", port="raw", end="consumer"), 8 * 200)
        self.assertEqual(self.value(samples, "weir_port_depth", port="raw"), 0)

    def test_several_domains_share_the_families(self):
        other = self.domain + ".other"
        self.start_camera("--rate", 100)
        self.start_camera("--rate", 100, domain=other)
        samples = self.metrics(other, self.domain, other)
        for domain in (self.domain, other):
            self.assertEqual(self.value(samples, "weir_domain_up", domain=domain), 1)
            self.assertEqual(self.value(samples, "weir_port_capacity", domain=domain, port="raw"), 8)

    def test_a_domain_that_is_not_there_is_down(self):
        result = self.run_weir("metrics", self.domain, status=1)
        self.assertIn(f"there is no domain {self.domain} of user", result.stderr)
        samples = parsed(result.stdout)
        self.assertEqual(list(samples.values()), [0])
        self.assertEqual(self.value(samples, "weir_domain_up"), 0)

    def test_what_cannot_be_read_is_counted_and_named(self):
        self.start_camera("--rate", 10)
        port, = pathlib.Path("/dev/shm").glob(self.prefix + "*.port")
        port.unlink()
        result = self.run_weir("metrics", self.domain, status=1)
        self.assertIn(f"weir: {self.domain}: ", result.stderr)
        samples = parsed(result.stdout)
        self.assertEqual(self.value(samples, "weir_domain_up"), 1)
        self.assertEqual(self.value(samples, "weir_domain_unread"), 1)
        result = self.run_weir("graph", self.domain, "--interval", 0, status=1)
        self.assertIn("not in the picture", result.stderr)
        self.assertIn("incomplete: 1 thing could not be looked at", result.stdout)

    def test_a_file_of_metrics_is_whole_at_any_moment_and_for_all_to_read(self):
        self.start_camera("--rate", 100)
        path = self.folder / "weir.prom"
        old_mask = os.umask(0o077)
        self.addCleanup(os.umask, old_mask)
        self.run_weir("metrics", self.domain, "-o", path)
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o644)
        writers = [self.start_command(weir, "metrics", self.domain, "-o", path) for _ in range(20)]
        while any(writer.poll() is None for writer in writers):
            self.assertEqual(self.value(parsed(path.read_text()), "weir_domain_up"), 1)
        self.assertEqual([writer.returncode for writer in writers], [0] * 20)
        self.assertEqual(list(self.folder.iterdir()), [path])

    def test_files_that_are_none(self):
        self.start_camera("--rate", 100)
        link = self.folder / "link"
        link.symlink_to("target")
        (self.folder / "target").write_text("old")
        self.run_weir("metrics", self.domain, "-o", link)
        self.assertTrue(link.is_symlink())
        parsed((self.folder / "target").read_text())
        pipe = self.folder / "pipe"
        os.mkfifo(pipe)
        reader = self.start_command("cat", pipe)
        self.run_weir("metrics", self.domain, "-o", pipe)
        parsed(reader.communicate()[0])
        self.assertTrue(stat.S_ISFIFO(pipe.stat().st_mode))

    # --- Both -------------------------------------------------------------------------------------------------------

    def test_what_cannot_be_written(self):
        self.start_camera("--rate", 100)
        for verb, ending in (("graph", ".dot"), ("metrics", ".prom")):
            arguments = ["--interval", 0] if verb == "graph" else []
            result = self.run_weir(verb, self.domain, *arguments, "-o", self.folder / ("none/a" + ending), status=1)
            self.assertIn("No such file", result.stderr)
            folder = self.folder / ("folder" + ending)
            folder.mkdir()
            result = self.run_weir(verb, self.domain, *arguments, "-o", folder, status=1)
            self.assertIn("it is a folder", result.stderr)
            with open("/dev/full", "w") as full:
                status = subprocess.run([weir, verb, self.domain, *map(str, arguments)], stdout=full,
                                        stderr=subprocess.DEVNULL).returncode
            self.assertEqual(status, 1)

    def test_which_domain_is_meant(self):
        self.assertIn(f"there is no domain {self.domain} of user", self.run_weir("graph", self.domain, status=1).stderr)
        none = OTHER_USER - 1
        self.assertIn(f"there is no domain of user {none}", self.run_weir("graph", "--user", none, status=1).stderr)
        self.assertEqual(self.run_weir("metrics", "--user", none).stdout, "# EOF\n")
        other = self.domain + ".other"
        self.start_camera("--rate", 100)
        self.start_camera("--rate", 100, domain=other)
        self.assertIn("which domain? Name one: there are ", self.run_weir("graph", status=2).stderr)

    def test_another_users_only_domain(self):
        if os.geteuid() != 0:
            self.skipTest("only root can be another user")
        need_program_for(self, OTHER_USER, producer)
        self.addCleanup(self.remove_files_of, OTHER_USER, "*")

        def film(name, frames):
            process = subprocess.Popen([producer, "--domain", name, "--frames", str(frames), "--rate", "1000"],
                                       user=OTHER_USER, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            return process

        lasting = film("lasting", 1_000_000)
        while "lasting" not in self.run_weir("metrics", "--user", OTHER_USER).stdout:
            self.assertIsNone(lasting.poll())
        self.assertIn(f"domain lasting of user {OTHER_USER}",
                      self.run_weir("graph", "--user", OTHER_USER, "--interval", 0).stdout)
        # Domains that come and go are there or not; nothing fails for it.
        passing = [film(f"passing.{number}", 10) for number in range(10)]
        while any(process.poll() is None for process in passing):
            samples = parsed(self.run_weir("metrics", "--user", OTHER_USER).stdout)
            self.assertEqual(set(value for (name, _), value in samples.items() if name == "weir_domain_up"), {1})

    def test_wrong_usage(self):
        for arguments, words in [
            (["graph", "a/b"], "a/b"),
            (["graph", "--interval", "-1"], "--interval"),
            (["graph", "--interval", "nan"], "--interval"),
            (["graph", "--interval", "x"], "--interval"),
            (["graph", "-o", "a.png"], "weir graph | dot -Tpng"),
            (["graph", "--user", "no such user"], "no such user"),
            (["graph", "a", "b"], "b"),
            (["metrics", "a/b"], "a/b"),
            (["metrics", "a", "--all-users"], "--all-users"),
            (["metrics", "--user", "0", "--all-users"], "--all-users"),
            (["metrics", "--frobnicate"], "--frobnicate"),
        ]:
            with self.subTest(arguments=arguments):
                result = self.run_weir(*arguments, status=2)
                self.assertEqual(result.stdout, "")
                self.assertIn(words, result.stderr)

    def test_the_help_fits_a_screen(self):
        for verb in ("graph", "metrics"):
            lines = self.run_weir(verb, "--help").stdout.splitlines()
            self.assertLessEqual(len(lines), 24)
            self.assertLessEqual(max(map(len, lines)), 80)
            self.assertIn(f"  weir {verb} ", "\n".join(lines))
            self.assertNotIn("Excludes", "\n".join(lines))


if __name__ == "__main__":
    weir, _, _, producer, consumer = map(os.path.abspath, sys.argv[1:6])
    unittest.main(argv=sys.argv[:1] + sys.argv[6:], verbosity=2)
