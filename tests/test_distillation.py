"""Distillation: each method is its formula, the teacher is left alone, and what helps to match features is not kept."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeopt.train.distillation import Asked, DecoupledKD, Dist, Distillation, Divergence, Hinton
from edgeopt.train.features import ADAPTER, FeatureMatching, last_features

STUDENT = np.array([[2.0, 0.0, -1.0, 0.5], [0.0, 1.0, 1.5, -2.0], [-0.5, 0.3, 0.0, 2.2]])
TEACHER = np.array([[3.0, 1.0, -2.0, 0.0], [0.5, 2.5, 0.0, -1.0], [0.0, 0.0, 1.0, 1.5]])
TRUE = np.array([0, 1, 3])


def _softmax(values: np.ndarray) -> np.ndarray:
    exponents = np.exp(values - values.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum(axis=1).mean())


def _of_true_and_others(values: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """(the true class, the rest) and the rest among themselves, picture by picture."""
    p = _softmax(values / temperature)
    true = p[range(len(p)), TRUE]
    rest = np.array([np.delete(row, label) for row, label in zip(p, TRUE, strict=True)])
    return np.stack([true, 1 - true], axis=1), rest / rest.sum(axis=1, keepdims=True)


def _hinton(temperature: float) -> float:
    return temperature**2 * _kl(_softmax(TEACHER / temperature), _softmax(STUDENT / temperature))


def _dkd(temperature: float, alpha: float, beta: float) -> float:
    (teacher, teacher_rest), (student, student_rest) = (
        _of_true_and_others(values, temperature) for values in (TEACHER, STUDENT)
    )
    return temperature**2 * (alpha * _kl(teacher, student) + beta * _kl(teacher_rest, student_rest))


def _dist(temperature: float) -> float:
    p, q = _softmax(TEACHER / temperature), _softmax(STUDENT / temperature)
    pictures = [np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)]
    classes = [np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)]
    return temperature**2 * (2 - float(np.mean(pictures)) - float(np.mean(classes)))


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        (Hinton(2.0), _hinton(2.0)),
        (DecoupledKD(3.0, alpha=0.7, beta=5.0), _dkd(3.0, 0.7, 5.0)),
        (Dist(1.5), _dist(1.5)),
    ],
    ids=["hinton", "dkd", "dist"],
)
def test_each_divergence_is_its_formula_and_nothing_for_equal_answers(divergence: Divergence, expected: float) -> None:
    student, teacher, true = torch.tensor(STUDENT), torch.tensor(TEACHER), torch.tensor(TRUE)
    assert expected > 0.1
    assert divergence(student, teacher, true).item() == pytest.approx(expected, rel=1e-6)
    assert divergence(teacher, teacher, true).item() == pytest.approx(0.0, abs=1e-9)
    shares = 0.7 * functional.one_hot(true, 4).double() + 0.3 * functional.one_hot((true + 1) % 4, 4).double()
    assert divergence(student, teacher, shares).item() == pytest.approx(expected, rel=1e-6), "mixed: the larger share"


def test_dkd_with_the_teachers_own_weight_is_hintons() -> None:
    p = _softmax(TEACHER[:1] / 2.0)
    student, teacher, true = torch.tensor(STUDENT[:1]), torch.tensor(TEACHER[:1]), torch.tensor(TRUE[:1])
    decoupled = DecoupledKD(2.0, alpha=1.0, beta=1 - float(p[0, TRUE[0]]))
    assert decoupled(student, teacher, true).item() == pytest.approx(Hinton(2.0)(student, teacher, true).item())


def tiny(width: int = 6, classes: int = 4) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(width)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Dropout(0.5), nn.Linear(width, classes),
        )  # fmt: skip


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 16, 16, generator=generator), torch.arange(count) % 4


@pytest.mark.parametrize("divergence", [Hinton(2.0), DecoupledKD(2.0), Dist(2.0)], ids=["hinton", "dkd", "dist"])
def test_the_loss_is_weighted_and_trains_the_student_alone(divergence: Divergence) -> None:
    teacher, student = tiny(6).train(), tiny(5).eval()
    images, targets = batch()
    before = copy.deepcopy(teacher.state_dict())
    asked = Asked(teacher)
    loss = Distillation(asked, divergence, weight=0.7)(student, images, targets)
    loss.backward()
    assert all(parameter.grad is None for parameter in asked.like(images).parameters()), "nor the copy that is asked"
    with torch.no_grad():
        wanted, given = copy.deepcopy(teacher).eval()(images), student(images)
        expected = 0.7 * divergence(given, wanted, targets) + 0.3 * functional.cross_entropy(given, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher.training, "the caller's module is not touched, a copy in eval mode teaches"
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student[6].weight.grad is not None
    assert student[6].weight.grad.abs().max() > 0
    recorded = torch.cat([targets[:, None].float(), wanted], dim=1)
    again = Distillation(None, divergence, weight=0.7)(student, images, recorded)
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)


def test_a_teacher_trained_on_later_does_not_change_the_objective() -> None:
    teacher = tiny()
    student = copy.deepcopy(teacher).eval()
    images, targets = batch()
    objective = Distillation(teacher, weight=1.0)
    before = objective(student, images, targets).item()
    assert before == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        teacher[6].weight.mul_(-3)
    assert objective(student, images, targets).item() == before


def test_features_are_matched_through_an_adapter_that_leaves_with_the_training() -> None:
    teacher, student = tiny(7).train(), tiny(5).eval()
    names = set(student.state_dict())
    images, targets = batch()
    objective = FeatureMatching(teacher, student, images[:2], weight=0.25)
    with objective.adapted(student, seed=3) as adapter:
        assert isinstance(adapter, nn.Conv2d)
        loss = objective(student, images, targets)
        loss.backward()
        with torch.no_grad():
            wanted = nn.Sequential(*copy.deepcopy(teacher).eval()[:3])(images).double()
            maps = nn.Sequential(*student[:3])(images).double()
            weight, bias = adapter.weight.double().view(7, 5), adapter.bias.double().view(7, 1, 1)  # type: ignore[union-attr]
            adapted = torch.einsum("oc,nchw->nohw", weight, maps) + bias
            apart = ((adapted - wanted) ** 2).mean() / (wanted**2).mean()
            expected = 0.25 * apart + 0.75 * functional.cross_entropy(student(images).double(), targets)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert adapter.weight.grad is not None
        assert student[0].weight.grad is not None
        assert all(parameter.grad is None for parameter in teacher.parameters())
        assert any(ADAPTER in name for name in student.state_dict()), "checkpoints hold it"
    assert set(student.state_dict()) == names
    itself = FeatureMatching(student, student, images, weight=1.0)
    with itself.adapted(student):  # as wide: the adapter is the identity
        assert itself(student, images, targets).item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "is_map"),
    [("test_resnet", True), ("test_efficientnet", True), ("test_vit", False), ("test_convnext", False)],
)
def test_the_last_features_of_a_family_are_found(name: str, is_map: bool) -> None:
    model = timm.create_model(name, num_classes=5).eval()
    size = model.pretrained_cfg["input_size"][-1]
    found = last_features(model, torch.randn(2, 3, size, size))
    assert found.is_map is is_map
    assert model.get_submodule(found.classifier) is model.get_classifier()
    assert found.channels == model.num_features
