#!/usr/bin/env python3
"""Tests of what bench/run.py does with numbers: placements, quantiles, tests of two samples, verdicts, plots, tables."""

from __future__ import annotations

import random
import sys
import unittest
import xml.etree.ElementTree
from pathlib import Path
from typing import Any, Dict, List

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

import compare  # noqa: E402
import plots  # noqa: E402
import report  # noqa: E402
import rows  # noqa: E402
import samples  # noqa: E402


def run_of(before_ns: float, after_ns: float, **more: Any) -> Dict[str, Any]:
    counters = {"pingpong_before_ns": before_ns, "pingpong_after_ns": after_ns, **more.pop("counters", {})}
    return {"round": 0, "counters": counters, **more}


def noisy(middle: float, count: int, seed: int, spread: float = 0.05) -> List[float]:
    numbers = random.Random(seed)
    return [middle * numbers.lognormvariate(0, spread) for _ in range(count)]


class Placements(unittest.TestCase):
    def test_one_cluster_is_one_placement(self) -> None:
        self.assertEqual(len(samples.classify(noisy(60, 200, 1))), 1)

    def test_clusters_with_a_gap_between_them_are_placements(self) -> None:
        found = samples.classify([*noisy(30, 30, 1), *noisy(60, 50, 2), *noisy(300, 20, 3)])
        self.assertEqual([round(placement.median_ns / 10) for placement in found], [3, 6, 30])
        self.assertIn("two threads of one core", found[0].describe())
        self.assertIn("distant", found[2].describe())

    def test_a_cluster_without_a_gap_does_not_span_more_than_a_factor_of_two(self) -> None:
        for placement in samples.classify([50 * 1.02 ** step for step in range(100)]):
            self.assertLessEqual(placement.high_ns, samples.SPAN_MAX * placement.low_ns)

    def test_nothing_has_no_placement(self) -> None:
        self.assertEqual(samples.classify([]), [])

    def test_a_repetition_during_which_the_ping_pong_changed_is_dropped(self) -> None:
        raw = {"some": [run_of(60, 62), run_of(60, 90)]}
        samples.mark(raw)
        self.assertEqual([run["kept"] for run in raw["some"]], [True, False])

    def test_only_repetitions_of_the_commonest_placement_are_kept(self) -> None:
        raw = {"some": [run_of(60, 60), run_of(61, 61), run_of(200, 200)],
               "other": [run_of(60, 62), run_of(210, 210)]}
        placements = samples.mark(raw)
        self.assertEqual(len(placements), 2)
        self.assertEqual([run["kept"] for run in raw["some"]], [True, True, False])
        self.assertEqual([run["kept"] for run in raw["other"]], [True, False])
        self.assertEqual(samples.placement_of(raw["other"]), 0)

    def test_a_benchmark_with_far_more_of_another_placement_keeps_that(self) -> None:
        raw = {"some": [run_of(60, 60) for _ in range(20)],
               "other": [run_of(60, 60), *(run_of(210, 210) for _ in range(3))]}
        samples.mark(raw)
        self.assertEqual([run["kept"] for run in raw["other"]], [False, True, True, True])

    def test_without_a_ping_pong_all_are_kept(self) -> None:
        raw = {"some": [{"round": 0, "counters": {"join_ns": 5.0}}]}
        self.assertEqual(samples.mark(raw), [])
        self.assertTrue(raw["some"][0]["kept"])

    def test_both_sides_of_a_comparison_need_a_placement(self) -> None:
        raw = {"some": [*(run_of(60, 60, side="A") for _ in range(9)), run_of(200, 200, side="A"),
                        *(run_of(200, 200, side="B") for _ in range(2))]}
        samples.mark(raw)
        self.assertEqual([run["side"] for run in raw["some"] if run["kept"]], ["A", "B", "B"])


class Quantiles(unittest.TestCase):
    def test_histograms_are_read_as_they_are_written(self) -> None:
        self.assertEqual(samples.parse_histograms("port=100:3,207:1 bare=90:4"),
                         {"port": {100: 3, 207: 1}, "bare": {90: 4}})
        self.assertEqual(samples.parse_histograms("port= bare=90:4"), {"port": {}, "bare": {90: 4}})

    def test_a_quantile_of_merged_histograms_is_that_of_all_times(self) -> None:
        whole = samples.merged([{time: 1 for time in range(1, 501)}, {time: 1 for time in range(501, 1001)}])
        self.assertEqual([samples.quantile(whole, share) for share in (0.0, 0.5, 0.99, 0.999, 1.0)],
                         [1, 500, 990, 999, 1000])

    def test_there_is_no_quantile_of_nothing(self) -> None:
        with self.assertRaises(ValueError):
            samples.quantile({}, 0.5)


class TwoSamples(unittest.TestCase):
    def test_mann_whitney_is_exact_without_ties(self) -> None:
        self.assertAlmostEqual(samples.mann_whitney([1, 2, 3], [4, 5, 6]), 2 / 20)
        # U = 3 of 5 and 5: 7 of the 252 orders have as little or less, at one end.
        self.assertAlmostEqual(samples.mann_whitney([1, 2, 3, 4, 8], [5, 6, 7, 9, 10]), 2 * 7 / 252)
        self.assertEqual(samples.mann_whitney([1, 4], [2, 3]), 1.0)

    def test_the_approximation_is_near_the_exact_chance(self) -> None:
        first, second = noisy(100, 20, 1), noisy(104, 20, 2)
        exact = samples.mann_whitney(first, second)
        approximate = samples.mann_whitney([*first, first[0]], second)
        self.assertLess(abs(exact - approximate), 0.05)

    def test_equal_samples_do_not_differ(self) -> None:
        self.assertEqual(samples.mann_whitney([5, 5, 5], [5, 5, 5]), 1.0)
        self.assertEqual(samples.mann_whitney([], [5]), 1.0)

    def test_holm_multiplies_the_least_chance_by_the_number_of_tests(self) -> None:
        for found, expected in zip(samples.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]):
            self.assertAlmostEqual(found, expected)

    def test_the_interval_of_a_ratio_holds_the_ratio(self) -> None:
        low, high = samples.ratio_interval(noisy(100, 15, 1), noisy(120, 15, 2))
        self.assertTrue(1.1 < low < 1.2 < high < 1.3, (low, high))


def two_sides(first: List[float], second: List[float]) -> List[Dict[str, Any]]:
    return [run_of(60, 60, side=side, counters={"some_ns": value})
            for side, values in (("A", first), ("B", second)) for value in values]


SOME = rows.Figure("some", "some", "ns", rows.counter("some_ns"))


class Verdicts(unittest.TestCase):
    def verdicts(self, first_to_second: float, figure_count: int = 100) -> List[str]:
        figures = [rows.Figure(f"figure {number}", f"benchmark {number}", "ns", rows.counter("some_ns"))
                   for number in range(figure_count)]
        raw = {figure.benchmark: two_sides(noisy(100, compare.REPETITIONS, 2 * number),
                                           noisy(100 * first_to_second, compare.REPETITIONS, 2 * number + 1))
               for number, figure in enumerate(figures)}
        samples.mark(raw)
        return [done.verdict for done in compare.compare(raw, figures)]

    def test_a_build_against_itself_is_noise(self) -> None:
        self.assertEqual(set(self.verdicts(1.0)), {"noise"})

    def test_a_change_far_beyond_the_noise_is_a_change(self) -> None:
        self.assertEqual(set(self.verdicts(1.5)), {"change"})

    def test_what_one_build_did_not_measure_is_left_out(self) -> None:
        raw = {"some": two_sides([1.0, 2.0], [])}
        raw["some"].append(run_of(60, 60, side="B"))
        samples.mark(raw)
        self.assertEqual(compare.compare(raw, [SOME]), [])

    def test_counts_of_zero_have_no_ratio(self) -> None:
        raw = {"some": two_sides([0.0] * 3, [0.0, 0.0, 1.0])}
        samples.mark(raw)
        self.assertEqual([(done.ratio, done.verdict) for done in compare.compare(raw, [SOME])], [(1.0, "noise")])

    def test_the_table_says_what_changed_first(self) -> None:
        raw = {"some": two_sides(noisy(100, 10, 1), noisy(200, 10, 2)), "other": two_sides([1.0] * 10, [1.0] * 10)}
        samples.mark(raw)
        other = rows.Figure("other", "other", "ns", rows.counter("some_ns"))
        text = compare.markdown(compare.compare(raw, [other, SOME]), ["one", "two"])
        self.assertIn("2 figures, of which 1 changed", text)
        self.assertLess(text.index("| some: "), text.index("| other: "))


class Plots(unittest.TestCase):
    def check(self, svg: str) -> xml.etree.ElementTree.Element:
        root = xml.etree.ElementTree.fromstring(svg)
        self.assertTrue(root.tag.endswith("svg"))
        self.assertNotIn("nan", svg)
        return root

    def texts(self, root: xml.etree.ElementTree.Element) -> List[str]:
        return [element.text or "" for element in root.iter() if element.tag.endswith("text")]

    def test_a_plot_is_well_formed_and_names_its_axes_units_and_lines(self) -> None:
        root = self.check(plots.chart("a <title> & more", plots.Axis("size", "B", binary=True),
                                      plots.Axis("throughput", "GB/s"),
                                      [plots.Series("port & bare", [(8, 0.1), (1 << 26, 9.0)], 0, True)], "a note"))
        texts = self.texts(root)
        for text in ("a <title> & more", "size (B)", "throughput (GB/s)", "port & bare", "a note", "4 Ki", "2 Mi"):
            self.assertIn(text, texts)

    def test_percentiles_are_stretched_towards_the_tail(self) -> None:
        histogram = {100: 9_000, 200: 990, 4_000: 9, 90_000: 1}
        points = plots.distribution(histogram)
        self.assertEqual(points[0], (0.0, 100.0))
        self.assertLess(points[-1][0], 1)
        texts = self.texts(self.check(plots.chart("tail", plots.Axis("share", percentile=True), plots.Axis("time", "ns"),
                                                  [plots.Series("port", points)])))
        for text in ("50%", "90%", "99.99%", "1 µs", "time"):
            self.assertIn(text, texts)

    def test_one_point_and_no_point_make_a_plot_too(self) -> None:
        for points in ([], [(8, 1.0)], [(8, 0.0)]):
            self.check(plots.chart("few", plots.Axis("x"), plots.Axis("y"), [plots.Series("some", points)]))


MACHINE = {"date": "today", "processors": [0, 1], "system": "Linux 6"}


class Reports(unittest.TestCase):
    def test_a_report_says_which_bar_holds_and_keeps_the_samples(self) -> None:
        raw = {"some": [run_of(60, 60, counters={"some_ns": value, "process_count": 4, "processor_count": 2})
                        for value in (60.0, 66.0, 90.0)]}
        placements = samples.mark(raw)
        bar = rows.Bar("some / ping-pong", "some", "ratio", lambda c: c["some_ns"] / rows.ping_pong_ns(c), 1.05)
        done = report.make_report(raw, placements, MACHINE, False, [bar], [SOME])
        self.assertEqual([(row["value"], row["bar"], row["holds"], len(row["samples"])) for row in done["bars"]],
                         [(1.1, 1.05, False, 3)])
        text = report.markdown(done)
        self.assertIn("| some / ping-pong (oversubscribed) | 1.1 | at most 1.05 | **no** | 3 (0) |", text)
        self.assertIn("- A: ping-pong 60 to 60 ns", text)

    def test_a_tail_without_enough_messages_is_left_out(self) -> None:
        run = run_of(60, 60, histograms={"port": {100: 990, 5_000: 10}, "bare": {90: 1_000}})
        raw = {rows.latency_benchmark("spin", "8B", 10_000): [run]}
        done = report.make_report(raw, samples.mark(raw), MACHINE, False, [], [])
        text = report.markdown(done, list(report.make_plots(done)))
        self.assertIn("| port | spinning | 8 B | 10,000 | 0.1 | 0.1 |  |  | 5 | 1,000 | A |", text)
        self.assertIn("![latency spin 8B](latency-spin-8B.svg)", text)

    def test_no_two_rows_have_one_name(self) -> None:
        for kind in (rows.BARS, rows.FIGURES):
            names = [row.name if kind is rows.BARS else (row.name, row.benchmark) for row in kind]
            self.assertEqual(len(names), len(set(names)))

    def test_every_point_of_the_sweeps_is_a_figure(self) -> None:
        names = {figure.name for figure in rows.FIGURES}
        done = {"figures": [{"name": name, "value": 1.0} for name in names], "tails": [],
                "machine": {"processors": [0, 1]}}
        found = report.make_plots(done)
        self.assertEqual(sorted(found), ["processes.svg", "size.svg"])
        self.assertEqual(found["size.svg"].count("<circle"), 2 * len(rows.SIZES) + 6)
        self.assertEqual(found["processes.svg"].count("<circle"), 4 * len(rows.PAIRS))


if __name__ == "__main__":
    unittest.main()
