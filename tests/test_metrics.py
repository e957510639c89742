"""metrics.py against scikit-learn, a worked example, and sets and fractions counted one by one."""

import csv
import itertools
import json
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as peer
import torch

import metrics

GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics_example.json").read_text())
Y, S, EXPECTED = np.array(GOLDEN["Y"]), np.array(GOLDEN["S"]), GOLDEN["expected"]
TOL = 1e-12  # float64 sums of at most 300 terms in [0, 1]: rounding stays below 300 * 1.1e-16


def random_labels(seed, n, c, density):
    return (np.random.default_rng(seed).random((n, c)) < density).astype(np.int64)


def cases():
    shapes = [(300, 43, 0.03), (50, 7, 0.5), (1, 5, 0.5), (20, 2, 0.9)]
    for seed, (n, c, density) in enumerate(shapes):
        yield random_labels(2 * seed, n, c, density), random_labels(2 * seed + 1, n, c, density)
    pred, target = random_labels(20, 40, 6, 0.4), random_labels(21, 40, 6, 0.4)
    pred[::3] = 0  # images without prediction, without label, with neither
    target[::2] = 0
    yield pred, target
    pred, target = pred.copy(), target.copy()
    pred[:, [0, 1]] = 0  # classes never predicted, never true, neither
    target[:, [1, 2]] = 0
    yield pred, target
    for a in (np.zeros((4, 3), int), np.ones((4, 3), int)):
        for b in (np.zeros((4, 3), int), np.ones((4, 3), int)):
            yield a, b
    yield np.eye(1, 3, dtype=int), np.eye(1, 3, 1, dtype=int)  # N = 1, disjoint


def columns(seed, n):
    """C = 1, with labels, predictions and images of all four kinds."""
    return random_labels(seed, n, 1, 0.5), random_labels(seed + 1, n, 1, 0.5)


def ratio(numerator, denominator, zero_division=0):
    return Fraction(int(numerator), int(denominator)) if denominator else Fraction(zero_division)


def by_sets(pred, target, zero_division=0):
    """Example-based P, R, F1 as exact fractions, from the definition, one image at a time."""
    totals = [Fraction(0)] * 3
    for p_row, t_row in zip(pred, target, strict=True):
        P, T = ({c for c, on in enumerate(row) if on} for row in (p_row, t_row))
        terms = [(len(P & T), len(P)), (len(P & T), len(T)), (2 * len(P & T), len(P) + len(T))]
        totals = [a + ratio(*b, zero_division) for a, b in zip(totals, terms, strict=True)]
    return [total / len(pred) for total in totals]


# ---- precision, recall, F1 ----------------------------------------------------------------------

@pytest.mark.parametrize("zero_division", [0, 1])
@pytest.mark.parametrize("average", ["samples", "micro", "macro", None])
def test_prf_is_scikit_learns(average, zero_division):
    for pred, target in cases():
        expected = peer.precision_recall_fscore_support(
            target, pred, average=average, zero_division=zero_division)[:3]
        got = metrics.precision_recall_f1(pred, target, average, zero_division)
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOL)
        if average is None:
            assert all(x.shape == (pred.shape[1],) and x.dtype == np.float64 for x in got)
        else:
            assert all(type(x) is float for x in got)


@pytest.mark.parametrize("zero_division", [0, 1])
def test_prf_of_images_is_the_rounded_fraction(zero_division):
    one_class = [columns(seed, n) for seed, n in enumerate([1, 1, 1, 1, 9, 30])]
    for pred, target in [*cases(), *one_class]:
        expected = tuple(float(x) for x in by_sets(pred, target, zero_division))
        assert metrics.precision_recall_f1(pred, target, "samples", zero_division) == expected


@pytest.mark.parametrize("zero_division", [0, 1])
def test_prf_of_one_class_is_scikit_learns_binary(zero_division):
    for seed in range(12):
        pred, target = columns(seed, 1 + seed)
        expected = peer.precision_recall_fscore_support(
            target[:, 0], pred[:, 0], average="binary", zero_division=zero_division)[:3]
        for average in ("micro", "macro", None):
            got = metrics.precision_recall_f1(pred, target, average, zero_division)
            np.testing.assert_allclose(np.ravel(got), expected, rtol=0, atol=TOL)


def test_f1_is_the_mean_of_the_images_f1():
    # Image 1: P 1, R 1/4, F1 2/5. Image 2: P 1/4, R 1, F1 2/5. Their harmonic mean would be 5/8.
    pred, target = [[1, 0, 0, 0], [1, 1, 1, 1]], [[1, 1, 1, 1], [0, 1, 0, 0]]
    assert metrics.precision_recall_f1(pred, target) == (0.625, 0.625, 0.4)


@pytest.mark.parametrize("threshold", [0.5, 0.4])
def test_worked_example(threshold):
    expected = EXPECTED[f"t={threshold}"]
    pred = metrics.decide(S, threshold)
    for average in ("samples", "micro", "macro"):
        for zero_division in (0, 1):
            np.testing.assert_allclose(
                metrics.precision_recall_f1(pred, Y, average, zero_division),
                expected[f"{average}_zd{zero_division}"], rtol=0, atol=TOL)
    per_class = metrics.precision_recall_f1(pred, Y, None)
    np.testing.assert_allclose(per_class[2], expected["per_class_f1_zd0"], rtol=0, atol=TOL)
    # The course adds 1e-8 to denominators of at least 1: at most 1e-8 a term.
    np.testing.assert_allclose(
        metrics.precision_recall_f1(pred, Y), expected["course_eps"], rtol=0, atol=1e-7)
    report = metrics.report(S, Y, threshold, list("abcde"))
    assert report["subset_accuracy"] == pytest.approx(expected["subset_accuracy"], abs=TOL)
    assert report["hamming_loss"] == pytest.approx(expected["hamming_loss"], abs=TOL)
    assert report["jaccard"] == pytest.approx(expected["jaccard_samples_zd0"], abs=TOL)


def test_worked_example_of_rankings():
    for threshold, min_labels, name in ((0.5, 1, "t=0.5+top1"), (2.0, 1, "top1"), (2.0, 2, "top2")):
        got = metrics.precision_recall_f1(metrics.decide(S, threshold, min_labels), Y)
        np.testing.assert_allclose(got, EXPECTED[name], rtol=0, atol=TOL)
    np.testing.assert_allclose(metrics.average_precision(S, Y), EXPECTED["ap"], rtol=0, atol=TOL)
    np.testing.assert_allclose(
        metrics.average_precision(S, Y, eleven_point=True), EXPECTED["ap11"], rtol=0, atol=TOL)


def test_any_array_of_zeros_and_ones_will_do_and_is_left_alone():
    pred, target = random_labels(1, 30, 6, 0.4), random_labels(2, 30, 6, 0.4)
    expected = metrics.precision_recall_f1(pred, target)
    for convert in (lambda a: a.tolist(), lambda a: a.astype(bool), lambda a: a.astype(np.float32),
                    lambda a: a.astype(np.uint8), lambda a: np.repeat(a, 2, axis=1)[:, ::2],
                    np.asfortranarray, torch.from_numpy, lambda a: torch.from_numpy(a).half(),
                    lambda a: torch.from_numpy(a.T.copy()).T):
        a, b = convert(pred), convert(target)
        assert metrics.precision_recall_f1(a, b) == expected
        assert np.array_equal(np.asarray(a), pred) and np.array_equal(np.asarray(b), target)


@pytest.mark.parametrize("bad", [0.5, 2, -1, np.nan, np.inf])
@pytest.mark.parametrize("place", ["pred", "target"])
def test_values_other_than_0_and_1_are_refused(bad, place):
    good, wrong = np.ones((3, 4)), np.ones((3, 4))
    wrong[1, 2] = bad
    pair = (wrong, good) if place == "pred" else (good, wrong)
    with pytest.raises(ValueError, match=f"{place} .* row 1, class 2"):
        metrics.precision_recall_f1(*pair)


@pytest.mark.parametrize("pred, target", [((3, 4), (4, 3)), ((0, 4), (0, 4)), ((3, 0), (3, 0)),
                                          ((4,), (4,)), ((1, 4), (3, 4)), ((2, 3, 4), (2, 3, 4))])
def test_shapes_that_cannot_be_scored_are_refused(pred, target):
    for function in (metrics.precision_recall_f1, metrics.average_precision,
                     metrics.best_threshold):
        with pytest.raises(ValueError, match="must be"):
            function(np.zeros(pred), np.zeros(target))


@pytest.mark.parametrize("options", [{"average": "weighted"}, {"zero_division": np.nan},
                                     {"zero_division": "warn"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="unknown"):
        metrics.precision_recall_f1([[1]], [[1]], **options)


# ---- average precision --------------------------------------------------------------------------

def scored_cases():
    rng = np.random.default_rng(0)
    yield rng.random((200, 5)), random_labels(1, 200, 5, 0.2)
    yield rng.integers(0, 4, (200, 5)) / 4, random_labels(2, 200, 5, 0.3)  # many ties
    yield np.full((30, 3), 0.5), random_labels(3, 30, 3, 0.5)  # nothing but ties
    yield rng.normal(size=(50, 3)).astype(np.float32), random_labels(4, 50, 3, 0.3)  # logits
    yield np.array([[0.0], [-0.0], [1.0]]), np.array([[1], [0], [0]])  # the two zeros are a tie
    yield rng.random((1, 4)), np.ones((1, 4), int)
    yield rng.random((20, 2)), np.ones((20, 2), int)
    yield rng.random((20, 4))[::2, ::2], random_labels(5, 20, 4, 0.5)[::2, ::2]


def test_average_precision_is_scikit_learns():
    for scores, target in scored_cases():
        for order in (slice(None), slice(None, None, -1)):  # ties in either order
            got = metrics.average_precision(scores[order], target[order])
            for c in range(target.shape[1]):
                expected = peer.average_precision_score(target[:, c], scores[:, c])
                assert got[c] == pytest.approx(expected, abs=TOL)


def test_eleven_point_average_precision_from_the_definition():
    for scores, target in scored_cases():
        got = metrics.average_precision(scores, target, eleven_point=True)
        for c in range(target.shape[1]):
            points = []  # (recall, precision) at each distinct score
            for cut in set(scores[:, c].tolist()):
                taken = target[scores[:, c] >= cut, c]
                hits = taken.sum()
                points.append((ratio(hits, target[:, c].sum()), ratio(hits, len(taken))))
            best = [max(p for r, p in points if r >= Fraction(i, 10)) for i in range(11)]
            assert got[c] == pytest.approx(float(sum(best) / 11), abs=TOL)


def test_eleven_point_recall_of_three_tenths_counts_as_reached():
    # Ten positives: three first, then 90 negatives, then seven. P is 1 up to R = 0.3 exactly, and
    # 10 / 100 from there on: (4 * 1 + 7 * 0.1) / 11.
    target = np.array([1] * 3 + [0] * 90 + [1] * 7)[:, None]
    got = metrics.average_precision(-np.arange(100.0)[:, None], target, eleven_point=True)
    assert got[0] == pytest.approx(4.7 / 11, abs=TOL)


@pytest.mark.parametrize("eleven_point", [False, True])
def test_average_precision_without_positives_is_nan_and_infinite_scores_rank(eleven_point):
    scores = np.array([[np.inf, 1.0], [np.inf, 2.0], [-np.inf, 3.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = metrics.average_precision(scores, [[1, 0], [0, 0], [0, 0]], eleven_point)
    assert got[0] == 0.5 and np.isnan(got[1])  # the two infinities are a tie: P = 1/2 at R = 1


# ---- decisions and threshold --------------------------------------------------------------------

def decide_slowly(scores, threshold, min_labels):
    """The definition, one label at a time."""
    result = []
    for row in np.asarray(scores, float).tolist():
        limits = np.broadcast_to(threshold, len(row)).tolist()
        chosen = {c for c, score in enumerate(row) if score >= limits[c]}
        while len(chosen) < min_labels:
            rest = [c for c in range(len(row)) if c not in chosen]
            top = max(row[c] for c in rest)
            chosen.add(next(c for c in rest if row[c] == top))
        result.append([c in chosen for c in range(len(row))])
    return np.array(result)


@pytest.mark.parametrize("min_labels", [0, 1, 2, 5])
def test_decide_from_the_definition(min_labels):
    rng = np.random.default_rng(0)
    tied = rng.integers(0, 5, (60, 5)) / 4
    for scores in (rng.random((60, 5)), tied, torch.from_numpy(tied).float(), tied.T[:5, :5],
                   np.full((2, 5), 0.25), np.full((1, 5), -np.inf), 1e6 * (tied - 0.5)):
        before = np.asarray(scores).copy()
        for threshold in (0.5, 0.75, 1.5, 0, np.array([0.2, 0.9, 0.5, 2.0, 0.0])):
            got = metrics.decide(scores, threshold, min_labels)
            assert got.dtype == bool
            assert np.array_equal(got, decide_slowly(scores, threshold, min_labels))
        assert np.array_equal(np.asarray(scores), before)


def test_decide_includes_the_threshold_and_takes_the_lowest_index_of_equals():
    assert metrics.decide([[0.5, np.nextafter(0.5, 0)]]).tolist() == [[True, False]]
    assert metrics.decide([[0.1, 0.3, 0.3, 0.2]], 0.5, 1).tolist() == [[False, True, False, False]]
    assert metrics.decide([[0.0, -0.0, 0.0]], 0.5, 1).tolist() == [[True, False, False]]


def test_decide_compares_float32_scores_with_one_and_with_many_thresholds_alike():
    scores = np.array([[0.1, 0.3, 0.7]], dtype=np.float32)  # 0.7 rounds down in float32, 0.1 up
    for threshold in (0.1, 0.3, 0.7):
        many = metrics.decide(scores, np.full(3, threshold))
        assert np.array_equal(metrics.decide(scores, threshold), many)


@pytest.mark.parametrize("options", [{"threshold": np.nan}, {"threshold": [0.5, 0.5]},
                                     {"threshold": [0.5]}, {"threshold": [[0.5] * 3]},
                                     {"min_labels": -1}, {"min_labels": 4}])
def test_decide_refuses_unusable_options(options):
    with pytest.raises(ValueError, match="unusable"):
        metrics.decide(np.full((3, 3), 0.1), **options)


def test_nan_scores_are_refused_everywhere():
    scores = np.full((3, 4), 0.5)
    scores[2, 1] = np.nan
    target = np.ones((3, 4))
    for call in (lambda: metrics.decide(scores), lambda: metrics.average_precision(scores, target),
                 lambda: metrics.best_threshold(scores, target),
                 lambda: metrics.report(scores, target, 0.5, list("abcd"))):
        with pytest.raises(ValueError, match="nan at row 2, class 1"):
            call()


@pytest.mark.parametrize("bad", [-0.01, 1.01, np.inf, -3.0])
def test_logits_are_refused_where_probabilities_are_needed(bad):
    scores = np.array([[0.2, bad]])
    for call in (lambda: metrics.best_threshold(scores, [[0, 1]]),
                 lambda: metrics.report(scores, [[0, 1]], 0.5, ["a", "b"])):
        with pytest.raises(ValueError, match="row 0, class 1"):
            call()


def test_best_threshold_is_the_first_of_the_exact_maxima():
    assert metrics.best_threshold(S, Y) == (0.27, pytest.approx(0.5571428571428572, abs=TOL))
    for seed in range(12):  # few images and coarse scores: maxima tie, with different summands
        scores = np.random.default_rng(seed).integers(0, 101, (6, 9)) / 100
        before = scores.copy()
        target = random_labels(seed, 6, 9, 0.3 if seed % 2 else 0.05)  # 0.05: images without label
        exact = [by_sets(scores >= i / 100, target)[2] for i in range(1, 100)]
        best = exact.index(max(exact))
        assert metrics.best_threshold(scores, target) == ((best + 1) / 100, float(exact[best]))
        assert np.array_equal(scores, before)


def test_best_threshold_sees_equal_means_of_different_fractions_as_equal():
    # Up to 0.3 the images' F1 are 3/4, 2/3, 2/3, above it 3/4, 1, 1/3: the same mean, 25/36, but
    # added up in float64 the second is larger.
    scores = [[0.9, 0.9, 0.9, 0, 0.9, 0], [0.9, 0.3, 0, 0, 0, 0], [0.9, 0.3, 0.3, 0.9, 0.9, 0.3]]
    target = [[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert metrics.best_threshold(scores, target) == (0.01, 25 / 36)


def test_best_threshold_gives_the_f1_of_its_decisions_to_the_bit():
    for scores, target in ((np.random.default_rng(seed).random((300, 43)),
                            random_labels(seed + 9, 300, 43, 0.03)) for seed in range(3)):
        threshold, f1 = metrics.best_threshold(scores, target)
        pred = metrics.decide(scores, threshold)
        assert metrics.precision_recall_f1(pred, target)[2] == f1


# ---- blending -----------------------------------------------------------------------------------

def blend_cases(M, N, C, seeds):
    """Random members, the last of which know most."""
    for seed in range(seeds):
        target = random_labels(100 * M + seed, N, C, 0.3)
        noise = np.random.default_rng(seed).normal(size=(M, N, C))
        skill = np.linspace(0, 3, M)[:, None, None]
        yield 1 / (1 + np.exp(1 - noise - skill * (target - 0.5))), target


def f1_of(members, weights, target):
    return metrics.best_threshold(metrics.blend(members, weights), target)[1]


def f1_slowly(scores, target):
    """Largest example-based F1 over the thresholds, in float64."""
    pred = scores >= np.arange(1, 100)[:, None, None] / 100  # (99, N, C)
    hits, sizes = (pred & (target > 0)).sum(2), pred.sum(2) + target.sum(1)
    return (2 * hits / np.maximum(sizes, 1)).mean(1).max()


@pytest.mark.parametrize("M", [1, 2, 3])
def test_fit_blend_finds_what_brute_force_finds(M):
    for members, target in blend_cases(M, 6, 4, 6):
        grid = [np.array(k) / 20 for k in itertools.product(range(21), repeat=M) if sum(k) == 20]
        grid.append(np.full(M, 1 / M))
        every = [f1_slowly(np.einsum("m,mnc->nc", w, members), target) for w in grid]
        far = [((w - 1 / M) ** 2).sum() for w in grid]
        nearest = min(d for d, f1 in zip(far, every, strict=True) if f1 > max(every) - TOL)
        got = metrics.fit_blend(members, target)
        assert f1_of(members, got, target) == pytest.approx(max(every), abs=TOL)
        assert ((got - 1 / M) ** 2).sum() == pytest.approx(nearest, abs=TOL)


@pytest.mark.parametrize("M, decimals", [  # 1: F1 ties, and scores lie on thresholds
    (1, 1), (2, 1), (2, 15), (3, 1), (3, 15), (4, 1), (4, 15),
    pytest.param(6, 1, marks=pytest.mark.slow),
])  # fmt: skip
def test_fit_blend_is_no_worse_than_the_mean_and_each_member(M, decimals):
    for members, target in blend_cases(M, 20, 5, 1 + (M < 4)):
        members = members.round(decimals)
        got = metrics.fit_blend(members, target)
        assert got.shape == (M,) and got.dtype == np.float64
        assert (got >= 0).all() and got.sum() == pytest.approx(1, abs=TOL)
        f1 = f1_of(members, got, target)
        assert f1 >= f1_of(members, np.full(M, 1 / M), target)
        assert f1 >= max(metrics.best_threshold(member, target)[1] for member in members)


@pytest.mark.parametrize("M", [2, 4])
def test_fit_blend_does_not_depend_on_the_order_and_changes_nothing(M):
    members, target = next(blend_cases(M, 12, 5, 1))
    before = members.copy(), target.copy()
    got = metrics.fit_blend(members, target)
    order = np.random.default_rng(M).permutation(12)
    assert np.array_equal(metrics.fit_blend(members[:, order], target[order]), got)
    assert np.array_equal(metrics.fit_blend(torch.from_numpy(members), target.tolist()), got)
    assert np.array_equal(members, before[0]) and np.array_equal(target, before[1])


def test_fit_blend_of_equal_members_is_uniform():
    for M in (2, 3, 4):
        members, target = next(blend_cases(1, 20, 5, 1))
        assert metrics.fit_blend([members[0]] * M, target).tolist() == [1 / M] * M


def test_fit_blend_of_many_finds_two_that_complete_each_other():
    # The first two know one half of the images each and are undecided on the other; the rest are
    # always wrong. Neither the mean nor a member is right everywhere, 0.9 and 0.1 of the two are.
    target = random_labels(0, 20, 6, 0.4)
    target[:, 0] = 1
    right, left = 0.1 + 0.8 * target, np.arange(20)[:, None] < 10
    members = [1 - target, np.where(left, right, 0.5), 1 - target, np.where(left, 0.5, right)]
    singles = [metrics.best_threshold(member, target)[1] for member in members]
    assert max(*singles, f1_of(members, [0.25] * 4, target)) < 0.9
    assert f1_of(members, metrics.fit_blend(members, target), target) == 1


def test_blend_is_the_weighted_mean_and_stays_in_range():
    rng = np.random.default_rng(0)
    for M in (1, 2, 3, 6, 11):
        members = rng.random((M, 5, 4))
        weights = rng.dirichlet(np.ones(M))
        expected = np.average(members, axis=0, weights=weights)
        np.testing.assert_allclose(metrics.blend(members, weights), expected, rtol=0, atol=TOL)
        for _ in range(50):  # of some, the sum in float64 is above 1
            assert metrics.blend(np.ones((M, 1, 1)), rng.dirichlet(np.ones(M))).max() <= 1


@pytest.mark.parametrize("weights", [[0.5, 0.4], [1.5, -0.5], [np.nan, 1.0], [1.0],
                                     [0.5, 0.25, 0.25]])
def test_blend_refuses_weights_that_are_none(weights):
    with pytest.raises(ValueError, match="sum to 1|zip"):
        metrics.blend(np.full((2, 3, 4), 0.5), weights)


def test_fit_blend_names_what_is_wrong():
    good, target = np.full((3, 4), 0.5), np.ones((3, 4))
    for bad, words in ((np.nan, "member 1 .*nan at row 2, class 3"), (1.5, "member 1 .*1.5 at")):
        broken = good.copy()
        broken[2, 3] = bad
        with pytest.raises(ValueError, match=words):
            metrics.fit_blend([good, broken], target)
    for members in ([], [good, good[:2]], [good, good[:1]]):
        with pytest.raises(ValueError, match="members must be of one shape"):
            metrics.fit_blend(members, target)
    for members, labels in ((good, target), ([good, good], target[:2]), ([good], target[0])):
        with pytest.raises(ValueError, match="must be .N, C."):
            metrics.fit_blend(members, labels)
    with pytest.raises(ValueError, match="0 or 1"):
        metrics.fit_blend([good], target / 2)


# ---- report -------------------------------------------------------------------------------------

NAMES = [f"{actor}-{action}" for actor in ("adult", "ball", "car")
         for action in ("flying", "rolling", "none")]


def example(seed=0, n=120):
    target = random_labels(seed, n, 9, 0.15)
    target[:, 4] = 0  # a class without positives
    noise = np.random.default_rng(seed).normal(size=target.shape)
    return 1 / (1 + np.exp(-(noise - 2 + 3 * target))), target


def test_report_holds_scikit_learns_figures():
    scores, target = example()
    report = metrics.report(scores, target, 0.3, NAMES, threshold_from="half of val")
    pred = scores >= 0.3
    top = np.eye(9, dtype=bool)[scores.argmax(1)]

    def fallback(decided):
        return np.where(decided.any(1, keepdims=True), decided, top)

    def prf(decided, average="samples", truth=target):
        return dict(zip(("precision", "recall", "f1"), peer.precision_recall_fscore_support(
            truth, decided, average=average, zero_division=0)[:3], strict=True))

    for average in ("samples", "micro", "macro"):
        assert report[average] == pytest.approx(prf(pred, average), abs=TOL)
    for name, decided in (("0.5", scores >= 0.5), ("0.5+top1", fallback(scores >= 0.5)),
                          ("chosen", pred), ("chosen+top1", fallback(pred))):
        assert report["decisions"][name] == pytest.approx(prf(decided), abs=TOL)
    # actor = class // 3, action = class % 3; a group is on if one of its classes is
    for part, axis in (("actor", 2), ("action", 1)):
        grouped = [a.reshape(-1, 3, 3).max(axis) for a in (pred, target)]
        assert report[part] == pytest.approx(prf(grouped[0], truth=grouped[1]), abs=TOL)
        line = next(x for x in metrics.format_report(report).split("\n") if f"{part} alone" in x)
        assert line.split()[2:] == [f"{100 * x:.1f}" for x in report[part].values()]
    ap = [peer.average_precision_score(target[:, c], scores[:, c]) for c in range(9) if c != 4]
    figures = {
        "images": 120, "threshold": 0.3, "mAP": np.mean(ap), "mAP_classes": 8,
        "subset_accuracy": peer.accuracy_score(target, pred),
        "hamming_loss": peer.hamming_loss(target, pred),
        "jaccard": peer.jaccard_score(target, pred, average="samples", zero_division=0),
        "labels_true": target.sum() / 120, "labels_predicted": pred.sum() / 120,
        "empty_targets": sum(not any(row) for row in target),
        "empty_predictions": sum(not any(row) for row in pred),
    }
    assert {key: report[key] for key in figures} == pytest.approx(figures, abs=TOL)
    assert report["threshold_from"] == "half of val"
    per_class = peer.precision_recall_fscore_support(target, pred, zero_division=0)
    for c, row in enumerate(report["classes"]):
        assert (row["name"], row["support"], row["predicted"]) == (
            NAMES[c], target[:, c].sum(), pred[:, c].sum())
        got = [row[key] for key in ("precision", "recall", "f1")]
        np.testing.assert_allclose(got, [x[c] for x in per_class[:3]], rtol=0, atol=TOL)
    aps = [row["ap"] for row in report["classes"]]
    assert aps.pop(4) is None
    assert aps == pytest.approx(ap, abs=TOL)


def test_report_is_plain_json_and_does_not_depend_on_the_order_of_the_images():
    scores, target = example(1)
    before = scores.copy(), target.copy()
    report = metrics.report(torch.from_numpy(scores), torch.from_numpy(target), 0.3, NAMES)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(scores))
        assert metrics.report(scores[order], target[order], 0.3, NAMES) == report
    assert np.array_equal(scores, before[0]) and np.array_equal(target, before[1])


def test_report_without_a_positive_and_with_names_of_other_forms():
    report = metrics.report([[0.2, 0.7]], [[0, 0]], 0.5, ["cat-none", "dog"])
    assert report["mAP"] is None and report["mAP_classes"] == 0
    assert report["samples"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert "actor" not in report and "action" not in report
    text = metrics.format_report(report)
    assert "alone" not in text and "mAP, 0" in text


@pytest.mark.parametrize("names", [NAMES[:8], [*NAMES, "dog-none"]])
def test_report_needs_one_name_a_class(names):
    with pytest.raises(ValueError, match="zip"):
        metrics.report(*example(), 0.5, names)


def test_text_fits_a_screen_and_says_where_the_threshold_is_from(monkeypatch):
    target = random_labels(3, 200, 43, 0.05)
    target[:, 42] = 0
    scores = np.where(target == 1, 0.9, 0.1)  # everything right,
    scores[:, 40] = 0.1  # but class 40 never predicted
    names = [f"class {c:02}" for c in range(43)]
    report = metrics.report(scores, target, 0.25, names, threshold_from="train")
    short = metrics.format_report(report).split("\n")
    assert short[11] == "… 28 classes between them, in report.csv"
    monkeypatch.setattr(metrics, "BEST", 43)
    text = metrics.format_report(report)
    lines = text.split("\n")
    assert short[:11] == lines[:11] and short[12:] == lines[39:]  # ten classes, and five
    assert len(lines) <= 60 and max(map(len, lines)) <= 100
    assert lines[0].startswith("scores >= 0.25 (train), in %")
    assert all(f"class {c:02}" in text for c in range(43))
    assert [line.split()[:2] for line in lines[42:44]] == [["class", "40"], ["class", "42"]]
    assert lines[42].split()[2:] == [str(target[:, 40].sum()), "0", "0.0", "0.0", "0.0",
                                     f"{100 * report['classes'][40]['ap']:.1f}"]
    assert lines[43].split()[2:] == ["0", "0", "0.0", "0.0", "0.0", "-"]
    # Every column ends where its title ends.
    titles = ("true", "pred", " P", " R", "F1", "AP")
    ends = [lines[0].index(title) + len(title) for title in titles]
    for line in lines[1:44]:
        assert len(line) == ends[-1]
        assert all(line[end - 1] != " " and (end == ends[-1] or line[end] == " ") for end in ends)
    for line, name, row in ((lines[45], "micro", report["micro"]),
                            (lines[46], "macro, 43 classes; mAP, 42",
                             {**report["macro"], "ap": report["mAP"]})):
        assert line.startswith(name + " ")
        assert line[len(name):].split() == [f"{100 * x:.1f}" for x in row.values()]
    last = [line.split()[-3:] for line in lines[-4:]]
    for got, prf in zip(last, report["decisions"].values(), strict=True):
        assert got == [f"{100 * prf[key]:.1f}" for key in ("precision", "recall", "f1")]
    assert ">= 0.25 (train)" in lines[-2]


def test_the_constant_answer_is_scored_by_its_definition():
    """Against scikit-learn, on classes of which the second is the commonest in training."""
    target = random_labels(5, 60, 4, 0.3)
    always = metrics.constant_answer([1.0, 0.0], [[1, 0], [0, 1]], ["a", "b"])
    assert always["loss"] == pytest.approx(-(np.log(1 - 1e-4) + np.log(1e-4)) / 2)
    frequency = [0.2, 0.6, 0.0, 1.0 / 3]
    pred = np.tile([0, 1, 0, 0], (60, 1))
    theirs = peer.precision_recall_fscore_support(
        target, pred, average="samples", zero_division=0
    )[:3]
    probabilities = np.tile([0.2, 0.6, 1e-4, 1 / 3], (60, 1))  # 0 would make the loss infinite
    losses = [peer.log_loss(target[:, c], probabilities[:, c]) for c in range(4)]
    names = ["a-b", "c-d", "e-f", "g-h"]
    constant = metrics.constant_answer(frequency, target, names)
    assert constant["answer"] == "c-d"
    assert [constant[key] for key in metrics.RATIOS] == pytest.approx(theirs, rel=1e-12)
    assert constant["loss"] == pytest.approx(np.mean(losses), rel=1e-12)

    report = metrics.report(pred * 0.9, target, 0.5, names, frequency=frequency)
    assert report["constant"] == constant
    text = metrics.format_report(report | {"loss": 0.7})
    row = next(line for line in text.split("\n") if line.startswith("always answering c-d"))
    assert row.split()[-3:] == [f"{100 * score:.1f}" for score in theirs]
    assert f"loss 0.7000, of the constant answer {constant['loss']:.4f}" in text
    same = f"F1 {100 * theirs[2]:.1f} % is no better than always answering c-d"
    assert same in text  # as this network answers so itself
    perfect = metrics.report(target * 0.9, target, 0.5, names, frequency=frequency)
    assert "no better" not in metrics.format_report(perfect)
    assert metrics.format_zero(perfect).startswith("F1 ")


@pytest.mark.parametrize("labelled", [True, False])
def test_predictions_are_names_and_scores(tmp_path, labelled):
    scores, pred = [[0.25, 0.75], [0.5, 0.00004]], [[False, True], [True, True]]
    target = [[1, 0], [0, 0]] if labelled else None
    path = tmp_path / "predictions.csv"
    metrics.write_predictions(path, ["v/1", "v,2"], ["a-b", "c"], scores, pred, target)
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["name", "predicted", "labels", "a-b", "c"],
        ["v/1", "c", "a-b" if labelled else "", "0.2500", "0.7500"],
        ["v,2", "a-b|c", "", "0.5000", "0.0000"],
    ]


def test_csv_has_every_class_in_order_at_full_precision(tmp_path):
    scores, target = example(2)
    names = ["plain", "comma, inside", 'a "quote"', "Füße", *NAMES[4:]]
    report = metrics.report(scores, target, 0.3, names)
    metrics.write_report_csv(tmp_path / "report.csv", report)
    with open(tmp_path / "report.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == names
    assert rows[4]["ap"] == ""
    for row, expected in zip(rows, report["classes"], strict=True):
        for key in ("support", "predicted", "precision", "recall", "f1", "ap"):
            assert (float(row[key]) if row[key] else None) == expected[key]
