"""Probably mislabelled pictures: confident learning on predictions of a classifier that did not see the picture.

Features of a frozen pretrained backbone, a logistic regression on them in five folds, and cleanlab (Northcutt, Jiang &
Chuang 2021, https://arxiv.org/abs/1911.00068) on the out-of-fold probabilities.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgeopt.console import Progress
from edgeopt.data.checks.issues import Issue, of
from edgeopt.data.dataset import Dataset, Item
from edgeopt.data.examine import Checked
from edgeopt.data.split import shuffled
from edgeopt.data.threads import in_threads, stacked
from edgeopt.picture_files import DEFAULT_MAX_PIXELS
from edgeopt.preprocess import PreprocessSpec, UInt8, normalize, prepare

IMAGE_SIZE = 128
FOLDS = 5
_BATCH = 32
#: Of the regression on features of length 1, shared by the pictures it is fitted on: the best of those tried on digits
#: and emoji with planted swaps. A penalty that does not shrink with them leaves small sets too unsure to flag anything.
_INVERSE_PENALTY = 15_000.0
#: A flagged picture is proposed to be left out when its own label is as improbable, and another as probable, as this.
_OWN_AT_MOST, _OTHER_AT_LEAST = 0.02, 0.5

Features = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float64]


def features(
    dataset: Dataset,
    items: Sequence[Item],
    model_name: str,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Progress | None = None,
) -> Features:
    """float32 (N, D): what the pretrained ``model_name`` hands its classifier, for ``items``, squashed to 128x128.

    Raises ModelError when its weights cannot be had.
    """
    import torch

    from edgeopt import models
    from edgeopt.models.features import classifier_inputs

    created = models.create(model_name, num_classes=2, pretrained=True, image_size=IMAGE_SIZE)
    spec = PreprocessSpec.model_validate({**models.preprocess_of(created.architecture), "resize": "squash"})

    def load(item: Item) -> UInt8:
        with dataset.open(item, max_pixels=max_pixels, draft=(2 * IMAGE_SIZE, 2 * IMAGE_SIZE)) as image:
            return prepare(image, spec)

    return classifier_inputs(
        created.model.to(memory_format=torch.channels_last),
        2,
        (normalize(batch, spec) for batch in stacked(in_threads(load, items), _BATCH)),
        told=None if progress is None else lambda done: progress(done, len(items)),
    )


def folds(labels: Sequence[int], groups: Sequence[str]) -> npt.NDArray[np.int64]:
    """A fold from 0 to 4 for each picture: pictures of a group in one, the groups of each class dealt out in turn."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    dealt: Counter[int] = Counter()
    result = np.zeros(len(labels), dtype=np.int64)
    for group in shuffled(list(members), seed=0):
        label = labels[members[group][0]]
        result[members[group]] = dealt[label] % FOLDS
        dealt[label] += 1
    return result


def out_of_fold(values: Features, labels: npt.NDArray[np.int64], groups: Sequence[str]) -> Probabilities:
    """float64 (N, classes): probabilities of each picture by a regression fitted on the other folds.

    ``labels`` are 0 to classes - 1, each present in two groups at least.
    """
    from sklearn.linear_model import LogisticRegression

    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit = values / np.maximum(lengths, 1e-12)
    fold = folds(labels.tolist(), groups)
    probabilities = np.zeros((len(labels), int(labels.max()) + 1))
    for number in range(FOLDS):
        held = fold == number
        if not held.any():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of not having converged: 200 steps rank as well as all
            strength = _INVERSE_PENALTY / int((~held).sum())
            regression = LogisticRegression(C=strength, max_iter=200).fit(unit[~held], labels[~held])
        probabilities[np.ix_(held, regression.classes_)] = regression.predict_proba(unit[held])
    return probabilities


def find(
    checked: Sequence[Checked], values: Features, groups: Sequence[str]
) -> tuple[list[Issue], list[tuple[str, float]], list[str]]:
    """The pictures flagged, every picture's (path, label quality), worst first, and the classes too small to check.

    ``values`` are the features and ``groups`` the groups of ``checked``.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    of_class: dict[str, set[str]] = defaultdict(set)
    for item, group in zip(checked, groups, strict=True):
        of_class[item.found.label].add(group)
    small = sorted(name for name, found in of_class.items() if len(found) < 2)
    names = sorted(of_class.keys() - set(small))
    rows = [index for index, item in enumerate(checked) if item.found.label not in small]
    if len(names) < 2:
        return [], [], small
    labels = np.asarray([names.index(checked[row].found.label) for row in rows], dtype=np.int64)
    probabilities = out_of_fold(values[rows], labels, [groups[row] for row in rows])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quality = get_label_quality_scores(labels, probabilities, method="self_confidence")
        flagged = find_label_issues(labels, probabilities, filter_by="both", n_jobs=1)
    issues = []
    for place in np.flatnonzero(flagged):
        item, own, best = checked[rows[place]], quality[place], int(probabilities[place].argmax())
        other = float(probabilities[place, best])
        issues.append(
            of(
                item,
                "label",
                1.0 - own,
                f"looks like {names[best]} ({other:.0%}) rather than {item.found.label} ({own:.0%})",
                suggested=names[best],
                leave_out=bool(own <= _OWN_AT_MOST and other >= _OTHER_AT_LEAST),
            )
        )
    order = np.argsort(quality, kind="stable")
    return issues, [(checked[rows[place]].found.path, float(quality[place])) for place in order], small
