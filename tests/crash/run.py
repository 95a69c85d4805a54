#!/usr/bin/env python3
"""The kill harness: runs its cases, and proves on seeded mistakes that it finds something.

    run.py --quick --program build/.../crash_o2        one built program, with samples of the steps
    run.py --seeds --program ... --domain-program ... --engine ...     seeds alone, on -O2 of one compiler
    run.py --full [--write-docs] [--keep FOLDER]       gcc and clang, -O0 and -O2, all steps, all seeds

A full run takes an hour or two on idle cores. With --keep, what a build had to report is kept in that folder, and a later
full run, with the same seed and no file of the library or the harness changed meanwhile, takes it from there.

Exit status: 0 nothing was found (and each seed was), 1 something was, 77 this machine cannot single-step.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import seeds as seed_table  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion"]
LINK = ["-Wl,-z,now", "-pthread", "-ldl", "-lrt"]
DOCS = ROOT / "docs" / "crash-safety.md"
SKIPPED = 77

# In quick mode -O0, which takes ten times the steps for the same accesses to shared memory, gets fewer samples, and
# leaves the longest cases to -O2.
QUICK = {"0": ["--few"], "2": []}
QUICK_LEFT_OUT = {"0": {"allocate_contended_12", "wait_for_buffer", "reap_two", "reap_killed_reaper"}, "2": set()}

# The programs, and what each is made of; the library's sources come to it.
PROGRAMS = {"crash": ("cases.cpp", "world.cpp", "main.cpp", "engine.cpp"),
            "crash_domain": ("domain_main.cpp", "domain_world.cpp", "domain_steps.cpp", "engine.cpp")}


def say(text=""):
    print(text, flush=True)


def run_logged(command, **options):
    return subprocess.run([str(part) for part in command], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False, **options)


class Broken(Exception):
    """Something other than a finding: it does not compile, a tool is missing."""


class Skipped(Exception):
    """This machine cannot single-step."""


def compile_all(compiler, flags, sources, folder, jobs):
    """Compiles C++ files to objects in `folder`, some at a time."""
    folder.mkdir(parents=True, exist_ok=True)

    def one(source):
        target = folder / (source.stem + ("_lib" if source.parent.name == "lib" else "") + ".o")
        result = run_logged([*compiler, "-std=c++20", *flags, "-c", source, "-o", target])
        if result.returncode != 0:
            raise Broken(f"{source.name} does not compile:\n{result.stdout}")
        return target

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, sources))


def link(compiler, objects, target):
    result = run_logged([*compiler, *objects, *LINK, "-o", target])
    if result.returncode != 0:
        raise Broken(f"{target.name} does not link:\n{result.stdout}")
    return target


def build(compiler, level, folder, jobs):
    """The whole harness with the library as it is: its programs."""
    flags = ["-O" + level, "-g", *WARNINGS, "-I", HERE, "-I", ROOT / "include"]
    own = {name: HERE / name for names in PROGRAMS.values() for name in names}
    library = sorted((ROOT / "lib").glob("*.cpp"))
    objects = compile_all(compiler, flags, [*own.values(), *library], folder, jobs)
    of_own = dict(zip(own, objects))
    return {program: link(compiler, [*(of_own[name] for name in names), *objects[len(own):]], folder / program)
            for program, names in PROGRAMS.items()}


def names_of(program):
    return run_logged([program, "--list"]).stdout.split()


def check_names(programs):
    """cases.txt, which the headers' comments are checked against, is what the programs have; of one alone, a part."""
    named = (HERE / "cases.txt").read_text().split()
    listed = [name for program in programs for name in names_of(program)]
    if len(programs) == len(PROGRAMS):
        good = listed == named
    else:
        good = listed != [] and any(named[at:at + len(listed)] == listed for at in range(len(named)))
    if not good:
        say("tests/crash/cases.txt lists other cases than the harness has:\n" + "\n".join(listed))
    return good


def run_cases(program, arguments, report):
    """Runs a program's cases; its output goes through. Returns its exit status and its report."""
    report.unlink(missing_ok=True)
    status = subprocess.run([str(program), *arguments, "--json", str(report)], check=False).returncode
    return status, json.loads(report.read_text())["cases"] if report.exists() else []


# --- Seeds ------------------------------------------------------------------------------------------------------------


def seed_arguments(seed, jobs):
    return ["--cases", seed["cases"], "--jobs", str(jobs), *seed.get("arguments", [])]


def program_of(seed):
    return seed.get("program", "crash")


def build_mistaken(apply, compiler, engine, folder, jobs, programs=tuple(PROGRAMS)):
    """The harness with a changed library; `apply` changes the copy. `engine` is what knows nothing of the library."""
    root = folder / "tree"
    for part in ("include", "lib"):
        shutil.copytree(ROOT / part, root / part)
    trouble = apply(root)
    if trouble:
        raise Broken(trouble)
    # One file instead of two: most of the time goes into the headers.
    both = folder / "world_and_cases.cpp"
    both.write_text('#include "world.cpp"\n#include "cases.cpp"\n')
    flags = ["-O2", "-I", HERE, "-I", root / "include"]
    sources = {"crash": [both], "crash_domain": [HERE / name for name in PROGRAMS["crash_domain"][:-1]]}
    own = [source for program in programs for source in sources[program]]
    objects = compile_all(compiler, flags, [*own, *sorted((root / "lib").glob("*.cpp"))], folder, jobs)
    of_own = dict(zip(own, objects))
    main = {"crash": engine, "crash_domain": [part for part in engine if "engine" in pathlib.Path(part).name]}
    return {program: link(compiler, [*(of_own[source] for source in sources[program]), *objects[len(own):],
                                     *main[program]], folder / program) for program in programs}


def first_finding(cases):
    for case in cases:
        for finding in case["findings"]:
            return case["name"], " ".join(finding.split())
    return "", ""


def try_seed(number, seed, programs, folder, jobs):
    """Looks whether a mistake is found. Returns whether, by which case, and what."""
    program = programs[program_of(seed)]
    started = time.monotonic()
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    result = run_logged([program, *seed_arguments(seed, jobs), "--stop-at-first", "--json", report],
                        env={**os.environ, seed_table.CHOICE_VARIABLE: str(number)})
    took = time.monotonic() - started
    cases = json.loads(report.read_text())["cases"] if report.exists() else []
    case, finding = first_finding(cases)
    caught = result.returncode == 1 and finding != ""
    say(f"{'found' if caught else 'NOT FOUND'}: {seed['name']} ({seed['what']}), in {took:.1f} s")
    say(f"    {case}: {finding[:300]}" if caught else result.stdout)
    return caught, case, finding


def stays_clean(programs, seeds, jobs):
    """Whether the library as it is has nothing to find in the very runs that find the seeds."""
    good = True
    for program, *arguments in sorted({(program_of(seed), *seed_arguments(seed, jobs)) for seed in seeds}):
        result = run_logged([programs[program], *arguments])
        good = good and result.returncode == 0
        say(f"{'clean' if result.returncode == 0 else 'NOT CLEAN'} without a mistake: {' '.join(arguments)}")
        if result.returncode != 0:
            say(result.stdout)
    return good


def unit_tests(folder):
    """Which mistakes the ordinary unit tests pass, as they are to: the mistakes are subtle. By the seeds' names."""
    tree = folder / "tree"
    files = run_logged(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT)
    if files.returncode == 0:
        for name in filter(None, files.stdout.split("\0")):
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tree / name)
    else:  # not a git checkout
        shutil.copytree(ROOT, tree, dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns("build", "build-*", ".git", "bench-report"))
    trouble = seed_table.apply_all(tree)
    if trouble:
        raise Broken(trouble)
    setup = run_logged(["meson", "setup", folder / "build", tree, "-Dbenchmarks=disabled", "-Dtools=disabled",
                        "-Dexamples=disabled"])
    if setup.returncode != 0:
        raise Broken(f"meson setup of the mistaken library:\n{setup.stdout[-3000:]}")
    listed = run_logged(["meson", "introspect", "--tests", folder / "build"])
    tests = [test for test in json.loads(listed.stdout) if any(suite.endswith("unit") for suite in test["suite"])]
    programs = {pathlib.Path(test["cmd"][0]).name for test in tests}
    compiled = run_logged(["ninja", "-C", folder / "build",
                           *[name for name in ninja_targets(folder / "build") if pathlib.Path(name).name in programs]])
    if compiled.returncode != 0:
        raise Broken(f"the unit tests of the mistaken library do not compile:\n{compiled.stdout[-3000:]}")
    passed = {}
    for number, seed in enumerate([{"name": "no mistake"}, *seed_table.SEEDS]):
        if seed.get("unit_tests_find_it"):
            continue
        result = run_logged(["meson", "test", "-C", folder / "build", "--no-rebuild", "--suite", "unit"],
                            env={**os.environ, seed_table.CHOICE_VARIABLE: str(number)})
        passed[seed["name"]] = result.returncode == 0
        say(f"{'passed' if result.returncode == 0 else 'FAILED'}: {len(tests)} unit tests with {seed['name']}")
        if result.returncode != 0:
            say(result.stdout[-3000:])
    return passed


def ninja_targets(folder):
    listed = run_logged(["ninja", "-C", folder, "-t", "targets", "all"])
    return [line.split(":")[0] for line in listed.stdout.splitlines() if ":" in line]


# --- Modes ------------------------------------------------------------------------------------------------------------


def quick(options):
    if not check_names([options.program]):
        return 1
    with tempfile.TemporaryDirectory(prefix="weir-crash-") as folder:
        names = [name for name in names_of(options.program) if name not in QUICK_LEFT_OUT[options.level]]
        arguments = ["--cases", ",".join(names), "--jobs", str(options.jobs), "--seed", str(options.seed),
                     *QUICK[options.level]]
        return run_cases(options.program, arguments, pathlib.Path(folder) / "report.json")[0]


def seeds_alone(options):
    with tempfile.TemporaryDirectory(prefix="weir-crash-") as name:
        folder = pathlib.Path(name)
        probe = run_logged([options.program, "--cases", "join", "--kill-steps", "1"])
        if probe.returncode == SKIPPED:
            say(probe.stdout)
            return SKIPPED
        # One build in which each mistake can be chosen. A seed without arguments of its own does what --quick does.
        mistaken = build_mistaken(seed_table.apply_all, shlex.split(options.compiler), options.engine, folder,
                                  options.jobs)
        caught = [try_seed(number, seed, mistaken, folder, options.jobs)[0]
                  for number, seed in enumerate(seed_table.SEEDS, 1)]
        clean = stays_clean({"crash": options.program, "crash_domain": options.domain_program},
                            [seed for seed in seed_table.SEEDS if "arguments" in seed], options.jobs)
        say(f"{sum(caught)} of {len(caught)} seeded mistakes found")
        return 0 if clean and all(caught) else 1


def seeds_one_by_one(compiler, engine, clean, folder, jobs):
    """Each mistake in a build of its own, as the compiler optimises it. Returns whether all is well, and what was."""
    good = stays_clean(clean, seed_table.SEEDS, jobs)
    found = {}
    for seed in seed_table.SEEDS:
        place = folder / seed["name"]
        try:
            mistaken = build_mistaken(lambda root: seed_table.apply(seed, root), compiler, engine, place, jobs,
                                      [program_of(seed)])
            found[seed["name"]] = try_seed(0, seed, mistaken, place, jobs)
        except Broken as error:
            found[seed["name"]] = (False, "", "")
            say(f"BROKEN: {error}")
        shutil.rmtree(place, ignore_errors=True)
    return good and all(caught for caught, _, _ in found.values()), found


def version_of(compiler):
    return run_logged([*compiler, "--version"]).stdout.splitlines()[0]


def fingerprint(options, compiler, level, *more):
    """What a result depends on: who compiled what, which steps are taken, and further files."""
    digest = hashlib.sha256(repr((version_of(compiler), level, options.seed)).encode())
    for path in sorted([*ROOT.glob("include/weir/*.hpp"), *ROOT.glob("lib/*.cpp"), *HERE.glob("*.[ch]pp"), *more]):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def kept(options, name, mark, make, is_good):
    """What make() returns, or what it returned in an earlier run with the same mark, if that was good."""
    path = options.keep / f"{name}.json" if options.keep else None
    if path and path.exists():
        entry = json.loads(path.read_text())
        if entry["mark"] == mark:
            say(f"as kept in {path}")
            return entry["result"]
    result = make()
    if path and is_good(result):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"mark": mark, "result": result}))
    return result


def full_cases(options, compiler, level, folder):
    """All cases of one build: their report."""
    programs = build(compiler, level, folder, options.jobs).values()
    if not check_names(programs):
        raise Broken("cases.txt is to be mended first")
    cases = []
    for program in programs:
        status, more = run_cases(program, ["--full", "--jobs", str(options.jobs), "--seed", str(options.seed)],
                                 folder / "report.json")
        if status == SKIPPED:
            raise Skipped
        if status not in (0, 1) or not more:
            raise Broken(f"the harness itself failed: exit status {status}")
        cases += more
    return cases


def unit_tests_or_nothing(folder):
    try:
        return unit_tests(folder)
    except Broken as error:
        say(f"BROKEN: {error}")
        return {}


def full(options):
    compilers = [shlex.split(name) for name in options.compilers.split(",")]
    missing = [compiler[0] for compiler in compilers if shutil.which(compiler[0]) is None]
    if missing:
        say(f"missing: {', '.join(missing)}")
        return 1
    first = compilers[0]
    reports = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="weir-crash-") as name:
        folder = pathlib.Path(name)
        for compiler in compilers:
            for level in ("0", "2"):
                title = f"{compiler[0]} -O{level}"
                say(f"\n== {title}: {version_of(compiler)}")
                cases = kept(options, title.replace(" ", ""), fingerprint(options, compiler, level),
                             lambda: full_cases(options, compiler, level, folder / title.replace(" ", "")),
                             lambda cases: not any(case["findings"] for case in cases))
                reports[title] = cases

        def seeds():
            base = folder / f"{first[0]}-O2"
            clean = {program: base / program for program in PROGRAMS}
            if not all(path.exists() for path in clean.values()):
                build(first, "2", base, options.jobs)
            return seeds_one_by_one(first, [base / "engine.o", base / "main.o"], clean, folder / "seeds", options.jobs)

        say(f"\n== seeded mistakes, {first[0]} -O2")
        good, found = kept(options, "seeds", fingerprint(options, first, "2", HERE / "seeds.py"), seeds,
                            lambda result: result[0])
        unit = {}
        if not options.no_unit_tests:
            say("\n== the unit tests, which each of these mistakes is to pass")
            mark = fingerprint(options, first, "", HERE / "seeds.py", *(ROOT / "tests").glob("*.?pp"))
            unit = kept(options, "unit", mark, lambda: unit_tests_or_nothing(folder / "unit"),
                        lambda unit: bool(unit) and all(unit.values()))
            good = good and bool(unit) and all(unit.values())
        if options.write_docs:
            write_docs(compilers, reports, found, unit, options.seed)
    deaths = sum(case["kills"] for cases in reports.values() for case in cases)
    frozen = sum(case["frozen"] for cases in reports.values() for case in cases)
    findings = sum(len(case["findings"]) for cases in reports.values() for case in cases)
    say(f"\n{deaths} deaths, {frozen} freezes, {findings} findings; "
        f"{sum(caught for caught, _, _ in found.values())} of {len(found)} seeded mistakes found; "
        f"{time.monotonic() - started:.0f} s")
    return 0 if good and findings == 0 else 1


# --- docs/crash-safety.md ---------------------------------------------------------------------------------------------


def how_found(finding):
    """In which kind of run: what a finding begins with, see main.cpp."""
    start = finding.split(":")[0]
    for kind, text in (("killed", "killed"), ("frozen", "frozen"), ("went on", "frozen"),
                       ("against", "in turns with an opponent")):
        if start.startswith(kind):
            return text
    if " in turns, seed " in start:
        return "two in turns"
    return "one frozen, one killed" if " killed " in start else "undisturbed"


def revision():
    """The commit that was tested, where it is one."""
    commit = run_logged(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT)
    changes = run_logged(["git", "status", "--porcelain", "--", "include", "lib", *HERE.glob("*.[ch]pp")], cwd=ROOT)
    return "" if commit.returncode != 0 or changes.stdout else f"commit {commit.stdout.strip()}; "


def tables(compilers, reports, found, unit, seed_number):
    lines = [f"A full run (`./dev crash`): {revision()}seed {seed_number}; "
             f"Linux {platform.release().split('-')[0]} on {platform.machine()}; "
             + "; ".join(version_of(compiler) for compiler in compilers) + ".", ""]
    lines += ["| build | steps | classes | deaths | freezes | findings |", "|---|--:|--:|--:|--:|--:|"]
    for title, cases in reports.items():
        lines.append(f"| {title} | {sum(case['steps'] for case in cases):,} | "
                     f"{sum(case['classes'] for case in cases):,} | {sum(case['kills'] for case in cases):,} | "
                     f"{sum(case['frozen'] for case in cases):,} | {sum(len(case['findings']) for case in cases):,} |")
    first = compilers[0][0]
    lines += ["", f"Steps and classes are those of {first}, -O0 and -O2; deaths and what was seen of the killed "
              "operation (not happened / in part / done), and freezes, are of all builds together.", "",
              "| case | what | steps | classes | deaths | not / part / done | freezes | slowest survivor | findings |",
              "|---|---|--:|--:|--:|--:|--:|--:|--:|"]
    for number, case in enumerate(reports[f"{first} -O0"]):
        every = [cases[number] for cases in reports.values()]
        low, high = case, reports[f"{first} -O2"][number]
        total = {key: sum(one[key] for one in every) for key in
                 ("kills", "frozen", "not_happened", "in_part", "done")}
        outcomes = " / ".join(f"{total[key]:,}" for key in ("not_happened", "in_part", "done"))
        if total["not_happened"] + total["in_part"] + total["done"] == 0:
            outcomes = ""
        steps = f"{low['steps']:,} / {high['steps']:,}" if low["steps"] else ""
        classes = f"{low['classes']} / {high['classes']}" if low["steps"] else ""
        slowest = max(one["slowest_percent"] for one in every)
        slowest = f"{slowest / 100:.2f}x" if slowest else ""
        lines.append(f"| `{case['name']}` | {case['what']} | {steps} | {classes} | {total['kills']:,} | {outcomes} | "
                     f"{total['frozen']:,} | {slowest} | {sum(len(one['findings']) for one in every)} |")
    every = [case for cases in reports.values() for case in cases]
    lines.append(f"| all | | | | {sum(case['kills'] for case in every):,} | | "
                 f"{sum(case['frozen'] for case in every):,} | | {sum(len(case['findings']) for case in every):,} |")
    slowest = max(case["slowest_percent"] for cases in reports.values() for case in cases)
    cell_accesses = max(case.get("cell_accesses", 0) for cases in reports.values() for case in cases)
    lines += ["", f"A survivor beside a frozen process never needed more than {slowest / 100:.1f} times the "
              "instructions that the same operation takes alone, and never looked at a ring's cells more than "
              f"{cell_accesses} times, where 2n + 64 (72, in a ring of 4 cells) is the bound.", "",
              "| seeded mistake | found by |" + (" unit tests |" if unit else ""),
              "|---|---|" + ("---|" if unit else "")]
    for seed in seed_table.SEEDS:
        caught, case, finding = found[seed["name"]]
        tests = {True: " pass |", False: " fail |", None: " find it |"}[unit.get(seed["name"])] if unit else ""
        lines.append(f"| {seed['what']} | {f'`{case}`, {how_found(finding)}' if caught else 'nothing'} |{tests}")
    return "\n".join(lines)


def write_docs(*results):
    begin, end = "<!-- begin: written by tests/crash/run.py -->", "<!-- end -->"
    text = DOCS.read_text()
    head, rest = text.split(begin)
    tail = rest.split(end)[1]
    DOCS.write_text(f"{head}{begin}\n{tables(*results)}\n{end}{tail}")
    say(f"wrote {DOCS.relative_to(ROOT)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--quick", action="store_true")
    mode.add_argument("--seeds", action="store_true")
    mode.add_argument("--full", action="store_true")
    parser.add_argument("--program", type=pathlib.Path, help="a built harness")
    parser.add_argument("--domain-program", type=pathlib.Path, help="for --seeds: the harness of named domains")
    parser.add_argument("--level", choices=sorted(QUICK), default="2", help="what --program was optimised with")
    parser.add_argument("--engine", type=pathlib.Path, nargs="+", help="the harness's own parts, as static libraries")
    parser.add_argument("--compiler", default="g++", help="for --seeds")
    parser.add_argument("--compilers", default="g++,clang++", help="for --full")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=20261123, help="of the random steps")
    parser.add_argument("--no-unit-tests", action="store_true", help="for --full: without the seeds' unit tests")
    parser.add_argument("--keep", type=pathlib.Path, help="for --full: where the reports of finished builds are kept")
    parser.add_argument("--write-docs", action="store_true", help="for --full: the tables of docs/crash-safety.md")
    options = parser.parse_args()
    if platform.machine() != "x86_64":
        say("skipped: the engine single-steps x86-64 processes")
        return SKIPPED
    say(f"seed {options.seed}")
    try:
        if options.quick:
            return quick(options)
        return seeds_alone(options) if options.seeds else full(options)
    except Skipped:
        return SKIPPED
    except Broken as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
