#!/usr/bin/env python3
"""The man page and the completions know what the command knows, and the shells understand the completions.

    tests/manual_test.py --weir build/main/tools/weir [NAME...]
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
weir = ""


def run(*command, **options):
    return subprocess.run(list(map(str, command)), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          check=False, **options)


def complete(*words):
    return run(weir, "complete", *words).stdout.split()


class ManualTest(unittest.TestCase):
    manual = (ROOT / "tools" / "weir.1").read_text()

    def part_of(self, verb):
        """What the man page says of a verb."""
        found = re.search(rf"^\.It (Xo )?Nm Cm {verb}\b.*?(?=^\.It|^\.El)", self.manual, re.M | re.S)
        self.assertIsNotNone(found, f"the man page has no .It Nm Cm {verb}")
        return found.group()

    def test_the_man_page_has_each_verb_and_option(self):
        verbs = complete("")
        self.assertIn("check", verbs)
        for verb in verbs:
            part = self.part_of(verb)
            for option in complete(verb, "-"):
                if option in ("-h", "--help"):
                    continue
                self.assertRegex(part, rf"(Fl|,|\|) {re.escape(option[1:])}\b", f"{verb} {option}")
        self.assertEqual(sorted(re.findall(r"^\.It (?:Xo )?Nm Cm ([a-z]+)", self.manual, re.M)), sorted(verbs))

    @unittest.skipUnless(shutil.which("mandoc"), "no mandoc here")
    def test_the_man_page_is_well_formed(self):
        self.assertEqual(run("mandoc", "-Tlint", "-Wwarning", ROOT / "tools" / "weir.1").stdout, "")

    def test_every_help_fits_a_screen_and_has_an_example(self):
        for verb in ("", *complete("")):
            lines = run(weir, *filter(None, [verb]), "--help").stdout.splitlines()
            self.assertLessEqual(len(lines), 24, f"{verb}\n" + "\n".join(lines))
            self.assertLessEqual(max(map(len, lines)), 80, verb)
            self.assertTrue(any(re.match(rf"  \S.*\bweir {verb}|  weir {verb}", line) for line in lines), f"{verb} has no example")

    def test_completion_offers_what_fits(self):
        self.assertEqual(complete("che"), ["check"])
        self.assertIn("--force", complete("rm", "--f"))
        self.assertEqual(complete("check", "--from", ""), [])  # the shell offers files
        self.assertEqual(complete("nonsense", ""), [])
        self.assertEqual(complete(), [])

    @unittest.skipUnless(shutil.which("bash"), "no bash here")
    def test_bash_completes(self):
        script = f"source {ROOT}/tools/completion/weir.bash; COMP_WORDS=(weir check --i); COMP_CWORD=2; _weir; " \
                 "echo ${COMPREPLY[@]}; complete -p weir"
        done = run("bash", "-c", script, env=dict(os.environ, PATH=f"{pathlib.Path(weir).parent}:{os.environ['PATH']}"))
        self.assertEqual(done.stdout.splitlines()[0], "--idle")
        self.assertIn("-F _weir weir", done.stdout)

    @unittest.skipUnless(shutil.which("zsh"), "no zsh here")
    def test_zsh_completes(self):
        script = "compadd() { print -l -- ${(P)@[-1]} }; _files() { print files }; words=(weir check --i); CURRENT=3; " \
                 f"source {ROOT}/tools/completion/_weir"
        done = run("zsh", "-f", "-c", script,
                   env=dict(os.environ, PATH=f"{pathlib.Path(weir).parent}:{os.environ['PATH']}"))
        self.assertEqual(done.stdout.split(), ["--idle"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--weir", required=True)
    options, rest = parser.parse_known_args()
    weir = os.path.abspath(options.weir)
    unittest.main(argv=[sys.argv[0], *rest])
