"""Multi-label metrics: precision, recall, F1, average precision, thresholds, blends.

    python evaluate.py runs/tiny/best.pt              # prints format_report, writes report.csv

P is the predicted and T the true label set of an image (or, of a class, the image sets):

    precision = |P & T| / |P|     recall = |P & T| / |T|     F1 = 2 |P & T| / (|P| + |T|)

The headline is example-based (average="samples"): the mean over images of these three. Its F1 is
the mean of the images' F1, not the harmonic mean of the mean precision and mean recall.

Empty sets: 0 / 0 is `zero_division`, by default 0. So an image without prediction has precision 0,
one without label recall 0, and one with neither F1 0.

Inputs are numpy arrays or CPU tensors and are never changed; results are plain floats. Every figure
of given scores is independent of the order of the images, bit for bit, hence of ranks.

Sources  Godbole & Sarawagi 2004 (example-based measures); Everingham et al. 2010 (11-point AP);
         Xu et al., CVPR 2015 (A2D; its 11-point mAP is of videos and 36 classes).
Differs  The A2D course code adds 1e-8 to denominators: within 1e-7 of zero_division=0.
         scikit-learn gives a class without positives AP 0; here it is NaN and mAP leaves it out.
"""

import csv
import itertools
import math

import numpy as np

THRESHOLDS = [i / 100 for i in range(1, 100)]  # what best_threshold tries
RATIOS = ("precision", "recall", "f1")
COLUMNS = ("name", "support", "predicted", *RATIOS, "ap")  # of the per-class table


def _binary(pred, target):
    """Both as (N, C) int64."""
    pred = np.asarray(pred)
    target = np.asarray(target)
    if pred.shape != target.shape or pred.ndim != 2 or pred.size == 0:
        raise ValueError(f"pred {pred.shape} and target {target.shape} must be (N, C), N and C > 0")
    for name, array in (("pred", pred), ("target", target)):
        wrong = (array != 0) & (array != 1)
        for n, c in np.argwhere(wrong)[:1]:
            raise ValueError(f"{name} must be 0 or 1, is {array[n, c]} at row {n}, class {c}")
    return pred.astype(np.int64), target.astype(np.int64)


def _scores(scores, low=-math.inf, high=math.inf, name="scores"):
    """As (N, C) float64."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"{name} {scores.shape} must be (N, C), N and C > 0")
    right = (scores >= low) & (scores <= high)  # of NaN neither is true
    for n, c in np.argwhere(~right)[:1]:
        raise ValueError(f"{name} must be {low} to {high}, is {scores[n, c]} at row {n}, class {c}")
    return scores


def _exact_mean(numerators, denominators, zero_division=0) -> float:
    """The mean of N ratios of integers, rounded once at the end: in any order the same."""
    sums = np.bincount(denominators, numerators)  # of the ratios with each denominator
    present = np.flatnonzero(sums).tolist()
    common = math.lcm(*present)
    total = sum(int(sums[denominator]) * (common // denominator) for denominator in present)
    undefined = int((denominators == 0).sum())
    return (total + zero_division * undefined * common) / (common * len(numerators))


def precision_recall_f1(pred, target, average="samples", zero_division=0):
    """Precision, recall and F1 of 0/1 predictions.

    pred, target   (N, C) 0/1 of any dtype
    average        "samples": mean over images; "macro": mean over all C classes, those without
                   positives too; "micro": of the sums over images and classes; None: per class
    zero_division  0 or 1, the value of 0 / 0
    returns        (precision, recall, f1): floats in [0, 1]; for None float64 (C,)
    raises         ValueError on values other than 0 and 1, unequal shapes, N == 0 or C == 0
    """
    if average not in ("samples", "micro", "macro", None) or zero_division not in (0, 1):
        raise ValueError(f"average {average!r} or zero_division {zero_division!r} is unknown")

    # In counts of labels: per image, over all, or per class.
    pred, target = _binary(pred, target)
    axis = {"samples": 1, "micro": None}.get(average, 0)
    hits = (pred & target).sum(axis)  # (N,), () or (C,)
    p = pred.sum(axis)
    t = target.sum(axis)
    fractions = (hits, p), (hits, t), (2 * hits, p + t)

    # Means of images are exact, so that no order of the images, batches or ranks changes them.
    if average == "samples":
        return tuple(_exact_mean(*fraction, zero_division) for fraction in fractions)

    ratios = []
    for numerators, denominators in fractions:
        undefined = np.full(denominators.shape, float(zero_division))
        ratios.append(np.divide(numerators, denominators, out=undefined, where=denominators > 0))
    if average is None:
        return tuple(ratios)
    return tuple(float(ratio.mean()) for ratio in ratios)


def average_precision(scores, target, eleven_point=False):
    """Area under the precision-recall curve of each class. Its np.nanmean is the mAP.

    scores        (N, C), larger is likelier; images of equal score enter the curve together
    target        (N, C) 0/1
    eleven_point  False: sum_k (R_k - R_{k-1}) P_k over the distinct scores k, largest first;
                  True: mean over r = 0, 0.1 .. 1 of the largest P_k with R_k >= r (VOC 2007, A2D)
    returns       (C,) float64 in [0, 1]; NaN for a class without positives
    raises        ValueError as precision_recall_f1, and on NaN scores
    """
    scores = _scores(scores)
    _, target = _binary(np.zeros(scores.shape), target)
    result = np.full(scores.shape[1], np.nan)
    for c in np.flatnonzero(target.any(0)):
        # The curve has a point for each distinct score: images of equal score enter together.
        order = np.argsort(-scores[:, c])
        ranked = scores[order, c]
        ends = np.append(ranked[1:] != ranked[:-1], True)  # of each run of equals
        last = ends.nonzero()[0]
        hits = target[order, c].cumsum()[last]
        precision = hits / (last + 1)

        if eleven_point:  # recall in integers: in floats 3/10 >= 0.1 * 3 is false
            highest = [precision[10 * hits >= r * hits[-1]].max() for r in range(11)]
            result[c] = sum(highest) / 11
        else:
            gained = np.diff(hits, prepend=0)
            result[c] = (gained * precision).sum() / hits[-1]
    return result


def decide(scores, threshold=0.5, min_labels=0):
    """The predicted labels: scores >= threshold, and at least `min_labels` of each image.

    scores      (N, C); compared in float64
    threshold   float or (C,), in the unit of the scores
    min_labels  0..C; images with fewer get their highest other scores too, the lowest index first
                among equals. 1 is the top-1 fallback
    returns     (N, C) bool
    raises      ValueError on NaN, a threshold of another shape, N == 0 or C == 0
    """
    scores = _scores(scores)
    threshold = np.asarray(threshold, dtype=np.float64)
    C = scores.shape[1]
    usable = threshold.shape in ((), (C,)) and not np.isnan(threshold).any()
    if not usable or not 0 <= min_labels <= C:
        raise ValueError(f"threshold {threshold} (1 or {C}) or min_labels {min_labels} is unusable")

    # Labels that are predicted anyway come first, so that min_labels counts them.
    pred = scores >= threshold
    if min_labels:
        rank = -np.where(pred, np.inf, scores)
        order = np.argsort(rank, axis=1, kind="stable")
        np.put_along_axis(pred, order[:, :min_labels], True, axis=1)
    return pred


def best_threshold(scores, target):
    """The threshold of the best example-based F1 on these images. Say which set they are.

    scores   (N, C) in [0, 1]
    target   (N, C) 0/1
    returns  (threshold, f1): the first of 0.01, 0.02 .. 0.99 to reach the maximum
    raises   ValueError as precision_recall_f1, and on scores outside [0, 1] or NaN
    """
    scores = _scores(scores, 0, 1)
    _, target = _binary(np.zeros(scores.shape), target)
    # The first of equal ones counts, hence exact means: in floats, equal means may differ.
    truth = target > 0
    f1 = []
    for threshold in THRESHOLDS:
        pred = scores >= threshold
        hits = (pred & truth).sum(1)  # (N,)
        sizes = pred.sum(1) + truth.sum(1)
        f1.append(_exact_mean(2 * hits, sizes))
    return THRESHOLDS[f1.index(max(f1))], max(f1)


def blend_weights(weights):
    """As (M,) float64; raises ValueError unless they are >= 0 and sum to 1."""
    weights = np.asarray(weights, dtype=np.float64)
    if not (weights.min() >= 0 and abs(weights.sum() - 1) < 1e-6):
        raise ValueError(f"weights {weights} are not shares of 1: must be >= 0 and sum to 1")
    return weights


def blend(members, weights):
    """The weighted mean of probabilities: (M, N, C) in [0, 1], (M,) -> (N, C) float64 in [0, 1].

    raises  ValueError on weights that `blend_weights` refuses, or other than M
    """
    mixture = 0
    for weight, member in zip(blend_weights(weights), members, strict=True):
        mixture = mixture + weight * np.asarray(member, dtype=np.float64)
    return np.minimum(mixture, 1)  # weights such as 1/M may round up


def fit_blend(members, target):
    """Weights of the `blend` of the best example-based F1, at its best threshold, on these images.
    Say which set they are: on others the gain is smaller, or none.

    members  (M, N, C) in [0, 1]: probabilities of M networks, M >= 1
    target   (N, C) 0/1
    returns  (M,) float64, >= 0, sum 1: the best of the plain mean and, for M <= 3, all multiples of
             1/20; beyond, from the mean, each member's weight in turn is varied from 0 to 1 by
             1/20, the others in proportion, in three rounds. So it scores no less, here, than the
             mean or a member alone. Equal F1: the nearest to uniform
    raises   ValueError on unequal shapes, values outside [0, 1], NaN, no member
    cost     22 (M = 2), 232 (M = 3), beyond at most 66 M times best_threshold, which is linear
             in N C: 9 s for M = 5, N = 2,400, C = 43 on a core of an AMD EPYC
    """
    members = [_scores(p, 0, 1, f"member {m}") for m, p in enumerate(members)]
    if len({p.shape for p in members}) != 1:
        raise ValueError(f"members must be of one shape, are {[p.shape for p in members]}")
    M = len(members)

    def rank(weights):
        distance = ((weights - 1 / M) ** 2).sum()
        _, f1 = best_threshold(blend(members, weights), target)
        return f1, -round(float(distance), 9)  # rounded, so that permuted weights are a tie

    # All mixtures of two or three; of more there are too many, so one weight is moved at a time.
    best = np.full(M, 1 / M)
    if M <= 3:
        twentieths = itertools.product(range(21), repeat=M)
        grid = [np.divide(k, 20) for k in twentieths if sum(k) == 20]
        return max([best, *grid], key=rank)

    for m in 3 * list(range(M)):
        if best[m] < 1:
            alone = np.eye(M)[m]
            others = best / (1 - best[m]) * (np.arange(M) != m)  # sum 1
            line = [(1 - k / 20) * others + k / 20 * alone for k in range(21)]
            best = max([best, *line], key=rank)
    return best


def constant_answer(frequency, target, class_names):
    """The scores of an answer that looks at no image: the zero of all others.

    It predicts the commonest label of the training images, alone, and its probabilities are the
    classes' frequencies there, in [1e-4, 1 - 1e-4] as is the bias that training begins with.
    frequency  (C,) in [0, 1]: shares of the training images that have the label
    target     (N, C) 0/1
    returns    {"answer": its name, "precision", "recall", "f1": example-based, "loss": the mean
               binary cross-entropy}
    """
    # As set_prior_bias clips them: training begins with the loss of this answer.
    frequency = np.asarray(frequency, dtype=np.float64)
    frequency = np.clip(frequency, 1e-4, 1 - 1e-4)
    target = np.asarray(target)
    commonest = int(frequency.argmax())
    pred = np.zeros(target.shape)
    pred[:, commonest] = 1
    log_likelihood = np.where(target == 1, np.log(frequency), np.log1p(-frequency))
    loss = -log_likelihood.mean()
    scores = _named(pred, target)
    return {"answer": class_names[commonest], **scores, "loss": float(loss)}


def _named(pred, target, average="samples"):
    """{"precision", "recall", "f1"}."""
    return dict(zip(RATIOS, precision_recall_f1(pred, target, average), strict=True))


def report(scores, target, threshold, class_names, threshold_from="given", frequency=None):
    """All figures of an evaluation, as a dict of plain numbers that JSON can hold.

    scores          (N, C) in [0, 1]
    target          (N, C) 0/1
    threshold       float; all but `decisions` is of scores >= threshold
    class_names     C; if each is "actor-action", actors and actions are also scored alone
    threshold_from  name of the set on which the threshold was chosen
    frequency       (C,) of the training images, for `constant_answer`; None: "constant" is None
    returns         "samples", "micro", "macro", "actor", "action": {precision, recall, f1};
                    "decisions": the example-based ones at "0.5" and "chosen", and with "+top1",
                    the highest score of images that have no prediction;
                    "classes": [{name, support, predicted, precision, recall, f1, ap}], ap None
                    without positives, "mAP" the mean over the "mAP_classes" others; "constant"
                    what `constant_answer` returns; and more
    raises          ValueError as best_threshold
    """
    scores = _scores(scores, 0, 1)
    pred = decide(scores, threshold)
    pred, target = _binary(pred, target)

    decisions = {}
    # Both with the labels as they are decided, and with one for each image at least.
    for name, at in (("0.5", 0.5), ("chosen", threshold)):
        decisions[name] = _named(decide(scores, at), target)
        decisions[f"{name}+top1"] = _named(decide(scores, at, min_labels=1), target)

    classes = _class_rows(scores, pred, target, class_names)
    known = [row["ap"] for row in classes if row["ap"] is not None]
    # An image without true and predicted labels has a Jaccard index of 0 / 0, here 0.
    hits = (pred & target).sum(1)  # (N,)
    union = (pred | target).sum(1)
    result = {
        "images": len(pred),
        "threshold": float(threshold),
        "threshold_from": threshold_from,
        "decisions": decisions,
        "samples": _named(pred, target, "samples"),
        "micro": _named(pred, target, "micro"),
        "macro": _named(pred, target, "macro"),
        "mAP": sum(known) / len(known) if known else None,
        "mAP_classes": len(known),
        "subset_accuracy": float((pred == target).all(1).mean()),
        "hamming_loss": float((pred != target).mean()),
        "jaccard": math.fsum(hits / np.maximum(union, 1)) / len(pred),
        "labels_true": float(target.sum(1).mean()),
        "empty_targets": int((~target.any(1)).sum()),
        "labels_predicted": float(pred.sum(1).mean()),
        "empty_predictions": int((~pred.any(1)).sum()),
        "classes": classes,
        "constant": None,
    }
    if frequency is not None:
        result["constant"] = constant_answer(frequency, target, class_names)

    # The label "dog-eating" is right in its actor where the image has any dog's label.
    pairs = [name.split("-") for name in class_names]
    if all(len(pair) == 2 for pair in pairs):
        actors, actions = np.array(pairs).T
        for part, names in (("actor", actors), ("action", actions)):
            same = names[:, None] == np.unique(names)  # (C, groups)
            groups = same.astype(int)
            result[part] = _named(pred @ groups > 0, target @ groups > 0)
    return result


def _class_rows(scores, pred, target, class_names):
    """A dict of COLUMNS for each class."""
    # JSON has no NaN: a class without positives has an average precision of None.
    ap = average_precision(scores, target).tolist()
    ap = [None if math.isnan(x) else x for x in ap]

    counts = [target.sum(0), pred.sum(0)]
    columns = counts + list(precision_recall_f1(pred, target, None))  # each (C,)
    columns = [column.tolist() for column in columns]
    rows = zip(class_names, *columns, ap, strict=True)
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def is_at_zero(report):
    """Whether the F1 is at most a point above that of the constant answer."""
    return report["samples"]["f1"] - report["constant"]["f1"] <= 0.01


def format_zero(report):
    """One sentence that sets the F1 beside that of the constant answer."""
    f1 = 100 * report["samples"]["f1"]
    zero = 100 * report["constant"]["f1"]
    always = f"always answering {report['constant']['answer']}"
    if is_at_zero(report):
        return f"F1 {f1:.1f} % is no better than {always}, {zero:.1f} %"
    return f"F1 {f1:.1f} %, where {always} has {zero:.1f} %"


BEST, WORST = 10, 5  # classes that format_report shows


def format_report(report):
    """The report as text: the best and the worst classes, the averages, then the headline."""
    # The headline: the decisions, below the score of an answer that looks at no image.
    chosen = f">= {report['threshold']:.3g} ({report['threshold_from']})"
    names = ">= 0.5", ">= 0.5, else top 1", chosen, f">= {report['threshold']:.3g}, else top 1"
    headline = []
    if report["constant"]:
        headline.append((f"always answering {report['constant']['answer']}", report["constant"]))
    for name, scores in zip(names, report["decisions"].values(), strict=True):
        headline.append((f"mean over images, {name}", scores))

    classes = sorted(report["classes"], key=lambda row: -row["f1"])
    rows = [(row["name"], row) for row in classes]
    macro = f"macro, {len(classes)} classes; mAP, {report['mAP_classes']}"
    # Averages, in the columns of the classes.
    averages = [("micro", report["micro"])]
    averages.append((macro, report["macro"] | {"ap": report["mAP"]}))
    for part in ("actor", "action"):
        if part in report:
            averages.append((f"{part} alone", report[part]))
    width = max(len(name) for name, _ in rows + averages + headline)

    def block(rows):
        lines = []
        for name, row in rows:
            line = f"{name:<{width}}"
            for key in COLUMNS[1:]:
                cell = row.get(key, "")
                cell = f"{100 * cell:.1f}" if isinstance(cell, float) else cell
                line += f"{'-' if cell is None else cell:>7}"
            lines.append(line.rstrip())
        return "\n".join(lines)

    # Of many classes, the best and the worst say most.
    head = f"{f'scores {chosen}, in %':<{width}}   true   pred      P      R     F1     AP"
    table = block(rows)
    hidden = len(classes) - BEST - WORST
    if hidden > 0:
        between = f"… {hidden} classes between them, in report.csv"
        table = f"{block(rows[:BEST])}\n{between}\n{block(rows[-WORST:])}"

    totals = """
{images} images, {empty_targets} without label, {empty_predictions} without prediction
{labels_true:.2f} labels per image, {labels_predicted:.2f} predicted; subset accuracy \
{subset_accuracy:.3f}, Jaccard {jaccard:.3f}, Hamming loss {hamming_loss:.4f}
""".format(**report)

    text = f"{head}\n{table}\n\n{block(averages)}\n{totals}\n{block(headline)}"
    if report["constant"] and "loss" in report:
        of_constant = report["constant"]["loss"]
        text += f"\nloss {report['loss']:.4f}, of the constant answer {of_constant:.4f}"
    if report["constant"] and is_at_zero(report):
        text += f"\n{format_zero(report)}"
    return text


def write_report_csv(path, report):
    """One row a class, in class order; ratios in [0, 1], an undefined AP empty."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(report["classes"])


def write_predictions(path, names, class_names, scores, pred, target=None):
    """One row an image: name, predicted labels, true ones where known, the score of each class."""

    def joined(row):
        chosen = [name for name, yes in zip(class_names, row, strict=True) if yes]
        return "|".join(chosen)

    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "predicted", "labels", *class_names])
        for i, name in enumerate(names):
            true = "" if target is None else joined(target[i])
            digits = [f"{score:.4f}" for score in scores[i]]
            writer.writerow([name, joined(pred[i]), true, *digits])
