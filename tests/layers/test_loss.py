"""The losses and Accuracy beyond the recorded cases, and the indices they read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from building import gradient, make, randn
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_compat import proto
from caffe_compat.errors import NetError, ParseError
from caffe_compat.layers.indices import _mark_outside

FLT_MIN = np.finfo(np.float32).tiny


def labels(*shape: int, classes: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed)).double()


def write_matrix(path, values: np.ndarray) -> str:
    blob = proto.BVLC.message("BlobProto")(data=values.ravel())
    blob.shape.dim.extend(values.shape)
    path.write_bytes(blob.SerializeToString())
    return str(path)


class TestBottomsThatDoNotFit:
    @pytest.mark.parametrize("type", ["SoftmaxWithLoss", "InfogainLoss", "MultinomialLogisticLoss", "HingeLoss",
                                      "EuclideanLoss", "SigmoidCrossEntropyLoss", "ContrastiveLoss"])
    def test_items(self, type):
        third = {"InfogainLoss": [(3, 3)], "ContrastiveLoss": [(4,)]}.get(type, [])
        message = r'it .*"b0" and "b1" must have as many items \(axis 0\) each, found 4 3 .* 5 3'
        with pytest.raises(NetError, match=message):
            make(type, (4, 3), (5, 3), *third)
        with pytest.raises(NetError, match="must have as many items"):
            make(type, (), (), *third)

    @pytest.mark.parametrize(("type", "x", "label", "message"), [
        ("SoftmaxWithLoss", (2, 3, 4), (2, 3), r'"b1" must hold 2 4 \(8\) labels, found 2 3'),
        ("Accuracy", (2, 3, 4), (2, 3), r'"b1" must hold 2 4 \(8\) labels, found 2 3'),
        ("MultinomialLogisticLoss", (2, 3), (2, 2), "one label an item, found 2 2"),
        ("EuclideanLoss", (2, 3), (2, 4), "as many values an item"),
        ("SigmoidCrossEntropyLoss", (2, 3), (2, 4), "as many targets as scores"),
    ])
    def test_labels(self, type, x, label, message):
        with pytest.raises(NetError, match=message) as caught:
            make(type, x, label)
        assert caught.value.blob == "b1"

    @pytest.mark.parametrize(("shapes", "blob"), [
        ([(4, 3), (4, 2), (4,)], "b1"), ([(4, 3), (4, 3), (4, 2)], "b2"), ([(4, 3), (4, 3), (3,)], "b2"),
        ([(4, 3, 2, 1), (4, 3, 2, 1), (4,)], "b0"),
    ])
    def test_pairs(self, shapes, blob):
        with pytest.raises(NetError, match=f'"{blob}" must be 4 x'):
            make("ContrastiveLoss", *shapes)


class TestLabelsOutOfRange:
    @pytest.mark.parametrize("type", ["SoftmaxWithLoss", "InfogainLoss", "MultinomialLogisticLoss", "HingeLoss",
                                      "Accuracy"])
    @pytest.mark.parametrize("bad", [-1.0, 3.0])
    def test_on_the_cpu(self, type, bad):
        matrix = [torch.eye(3)] * (type == "InfogainLoss")
        layer = make(type, (2, 3), (2,), *[tuple(values.shape) for values in matrix])
        with pytest.raises(NetError, match=rf'it .*"b1" holds {bad:.0f}, which must lie between 0 and 2') as caught:
            layer.forward(torch.rand(2, 3), torch.tensor([0.0, bad]), *matrix)
        assert caught.value.blob == "b1"

    def test_elsewhere_they_count_nan(self):
        index, count = _mark_outside(torch.tensor([0, -1, 2, 3]), torch.tensor([1.0, 1.0, 0.0, 1.0]), 3)
        assert index.tolist() == [0, 0, 2, 2]
        assert count.isnan().tolist() == [False, True, False, True]
        assert count[[0, 2]].tolist() == [1, 0]

    @pytest.mark.gpu
    @pytest.mark.parametrize("type", ["SoftmaxWithLoss", "MultinomialLogisticLoss", "HingeLoss", "Accuracy"])
    def test_on_a_gpu_the_loss_is_nan(self, type):
        layer = make(type, (2, 3), (2,))
        x = torch.rand(2, 3, device="cuda")
        assert layer.forward(x, torch.tensor([0.0, 3.0], device="cuda")).isnan()
        assert not layer.forward(x, torch.tensor([0.0, 2.0], device="cuda")).isnan()

    def test_an_ignored_label_may_be_any(self):
        layer = make("SoftmaxWithLoss", (2, 3), (2,), param="loss_param { ignore_label: 255 }")
        x = randn(2, 3)
        loss = layer.forward(x, torch.tensor([255.0, 1.0]))
        torch.testing.assert_close(loss, -x.log_softmax(1)[1, 1])
        assert not gradient(loss, x)[0][0].any()


class TestSoftmaxWithLoss:
    @pytest.mark.parametrize("x", [(6, 4), (3, 4, 2), (2, 4, 3, 5)])
    def test_is_the_mean_negative_log_probability(self, x):
        label = labels(x[0], *x[2:], classes=4)
        scores = randn(*x)
        expected = torch.nn.functional.cross_entropy(scores, label.long())
        torch.testing.assert_close(make("SoftmaxWithLoss", x, tuple(label.shape)).forward(scores, label), expected)

    @pytest.mark.parametrize(("mode", "divisor"), [("FULL", 24), ("VALID", 17), ("BATCH_SIZE", 4), ("NONE", 1)])
    def test_normalization(self, mode, divisor):
        label = torch.zeros(4, 2, 3).double()
        label.view(-1)[:7] = 9
        layer = make("SoftmaxWithLoss", (4, 5, 2, 3), (4, 2, 3),
                     param=f"loss_param {{ ignore_label: 9 normalization: {mode} }}")
        x = randn(4, 5, 2, 3)
        loss = layer.forward(x, label)
        picked = -x.log_softmax(1)[:, 0][label == 0]
        torch.testing.assert_close(loss, picked.sum() / divisor)

    def test_clamps_the_value_only(self):
        """A probability of less than FLT_MIN costs -log(FLT_MIN), and is still pulled up."""
        x = torch.tensor([[0.0, 200.0]], requires_grad=True)
        loss = make("SoftmaxWithLoss", (1, 2), (1,)).forward(x, torch.zeros(1))
        assert loss.item() == pytest.approx(-np.log(FLT_MIN), rel=1e-6)
        assert gradient(loss, x)[0].tolist() == [[-1, 1]]

    def test_second_top_is_the_probabilities_without_gradient(self):
        layer = make("SoftmaxWithLoss", (2, 3, 4), (2, 4), tops=2)
        x = randn(2, 3, 4)
        loss, p = layer.forward(x, labels(2, 4, classes=3))
        torch.testing.assert_close(p, x.softmax(1).detach())
        assert loss.requires_grad and not p.requires_grad
        assert layer.top_shapes == [(), (2, 3, 4)]

    def test_no_items(self):
        x = torch.zeros(0, 3, requires_grad=True)
        assert make("SoftmaxWithLoss", (0, 3), (0,)).forward(x, torch.zeros(0)).item() == 0

    @given(st.integers(0, 1000), st.integers(1, 5), st.integers(2, 6))
    @settings(max_examples=20, deadline=None)
    def test_gradient_sums_to_zero_over_classes(self, seed, items, classes):
        x = randn(items, classes, seed=seed)
        loss = make("SoftmaxWithLoss", (items, classes), (items,)).forward(x, labels(items, classes=classes, seed=seed))
        torch.testing.assert_close(gradient(loss, x)[0].sum(1), torch.zeros(items, dtype=torch.float64))


class TestInfogainLoss:
    @pytest.mark.parametrize("shape", [(6, 4), (2, 4, 3, 5)])
    def test_of_the_identity_is_softmax_with_loss(self, shape):
        x, label = randn(*shape), labels(shape[0], *shape[2:], classes=4)
        info = make("InfogainLoss", shape, tuple(label.shape), (4, 4)).forward(x, label, torch.eye(4))
        plain = make("SoftmaxWithLoss", shape, tuple(label.shape)).forward(x, label)
        torch.testing.assert_close(info, plain)
        torch.testing.assert_close(gradient(info, x), gradient(plain, x))

    def test_reads_its_matrix_from_a_file(self, tmp_path, monkeypatch):
        matrix = np.random.default_rng(0).random((3, 3), dtype=np.float32)
        write_matrix(tmp_path / "h.binaryproto", matrix.reshape(1, 1, 3, 3))
        monkeypatch.chdir(tmp_path)  # a relative name is relative to where one is
        x, label = randn(4, 3), labels(4, classes=3)
        layer = make("InfogainLoss", (4, 3), (4,), param='infogain_loss_param { source: "h.binaryproto" }')
        given = make("InfogainLoss", (4, 3), (4,), (3, 3))
        torch.testing.assert_close(layer.forward(x, label), given.forward(x, label, torch.from_numpy(matrix)))

    def test_without_a_matrix(self):
        with pytest.raises(NetError, match="source must name the file of the matrix"):
            make("InfogainLoss", (4, 3), (4,))

    def test_file_that_is_missing_or_something_else(self, tmp_path):
        (tmp_path / "text").write_text("not a matrix")
        for name in ("missing", "text"):
            with pytest.raises(ParseError, match=f"^{tmp_path / name}: "):
                make("InfogainLoss", (4, 3), (4,), param=f'infogain_loss_param {{ source: "{tmp_path / name}" }}')

    def test_matrix_of_another_size(self, tmp_path):
        message = r"there are 3 classes, so the infogain matrix must be 3 x 3; found 2 2 \(4\)"
        with pytest.raises(NetError, match=message):
            make("InfogainLoss", (4, 3), (4,), (2, 2))
        path = write_matrix(tmp_path / "h", np.zeros((2, 2), np.float32))
        with pytest.raises(NetError, match=message):
            make("InfogainLoss", (4, 3), (4,), param=f'infogain_loss_param {{ source: "{path}" }}')

    def test_deprecated_normalize(self):
        with pytest.raises(NetError, match="does not take the deprecated normalize; use normalization"):
            make("InfogainLoss", (4, 3), (4,), (3, 3), param="loss_param { normalize: true }")


def test_multinomial_logistic_loss_of_a_softmax_is_softmax_with_loss():
    x, label = randn(5, 4), labels(5, classes=4)
    apart = make("MultinomialLogisticLoss", (5, 4), (5,)).forward(make("Softmax", (5, 4)).forward(x), label)
    fused = make("SoftmaxWithLoss", (5, 4), (5,)).forward(x, label)
    torch.testing.assert_close(apart, fused)
    torch.testing.assert_close(gradient(apart, x), gradient(fused, x))


@pytest.mark.parametrize(("norm", "expected"), [("L1", (1.5 + 0 + 0.5 + 0 + 1 + 3) / 2),
                                                ("L2", (1.5 ** 2 + 0.5 ** 2 + 1 + 3 ** 2) / 2)])
def test_hinge_loss(norm, expected):
    """Labels 0 and 1: margins 1 - (-0.5), 1 - 2, 1 - 0.5 and so on, by hand."""
    x = torch.tensor([[-0.5, -2.0, -0.5], [-3.0, 0.0, 2.0]])
    layer = make("HingeLoss", (2, 3), (2,), param=f"hinge_loss_param {{ norm: {norm} }}")
    assert layer.forward(x, torch.tensor([0.0, 1.0])).item() == pytest.approx(expected)


def test_hinge_loss_reads_as_many_labels_as_there_are_items():
    x = randn(2, 3)
    many = make("HingeLoss", (2, 3), (2, 2)).forward(x, torch.tensor([[0.0, 1.0], [2.0, 2.0]]))
    torch.testing.assert_close(many, make("HingeLoss", (2, 3), (2,)).forward(x, torch.tensor([0.0, 1.0])))


def test_euclidean_loss_pulls_both_bottoms():
    a, b = randn(4, 3), randn(4, 3, seed=1)
    loss = make("EuclideanLoss", (4, 3), (4, 3)).forward(a, b)
    torch.testing.assert_close(loss, ((a - b) ** 2).sum() / 8)
    to_a, to_b = gradient(loss, a, b)
    torch.testing.assert_close(to_a, (a - b).detach() / 4)
    torch.testing.assert_close(to_b, -to_a)


class TestSigmoidCrossEntropyLoss:
    @pytest.mark.parametrize(("param", "divisor"), [("", 4), ("normalization: FULL", 12), ("normalization: NONE", 1),
                                                    ("normalize: true", 12), ("normalize: false", 4)])
    def test_is_the_cross_entropy(self, param, divisor):
        x, target = randn(4, 3), torch.rand(4, 3, generator=torch.Generator().manual_seed(1)).double()
        p = x.sigmoid()
        expected = -(target * p.log() + (1 - target) * (1 - p).log()).sum() / divisor
        loss = make("SigmoidCrossEntropyLoss", (4, 3), (4, 3), param=f"loss_param {{ {param} }}").forward(x, target)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient(loss, x)[0], (p - target).detach() / divisor)

    def test_stays_finite(self):
        x = torch.tensor([[1e4, -1e4]], requires_grad=True)
        loss = make("SigmoidCrossEntropyLoss", (1, 2), (1, 2)).forward(x, torch.tensor([[0.0, 1.0]]))
        assert loss.item() == 2e4
        assert gradient(loss, x)[0].tolist() == [[1, -1]]


class TestContrastiveLoss:
    PAIRS = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.3, 0.4], [3.0, 4.0]])

    @pytest.mark.parametrize(("param", "expected"), [
        ("", (25 + 0.5 ** 2 + 0) / 6), ("margin: 7", (25 + 6.5 ** 2 + 2 ** 2) / 6),
        ("legacy_version: true", (25 + 0.75 + 0) / 6), ("legacy_version: true margin: 30", (25 + 29.75 + 5) / 6),
    ])
    def test_by_hand(self, param, expected):
        """Distances 5 (similar), 0.5 and 5 (not)."""
        layer = make("ContrastiveLoss", (3, 2), (3, 2), (3,), param=f"contrastive_loss_param {{ {param} }}")
        assert layer.forward(*self.PAIRS, torch.tensor([1.0, 0.0, 0.0])).item() == pytest.approx(expected)

    def test_gradient_pushes_apart_what_is_not_similar(self):
        """By margin - d, times a unit vector but for the 1e-4, over the number of pairs."""
        a, b = (bottom.clone().requires_grad_() for bottom in self.PAIRS)
        loss = make("ContrastiveLoss", (3, 2), (3, 2), (3,)).forward(a, b, torch.zeros(3))
        to_a, to_b = gradient(loss, a, b)
        expected = 0.5 * torch.tensor([0.3, 0.4]) / (0.5 + 1e-4) / 3
        torch.testing.assert_close(to_a[1], expected)
        torch.testing.assert_close(to_b, -to_a)
        assert not to_a[[0, 2]].any()

    def test_pairs_of_no_distance_have_a_finite_gradient(self):
        a = torch.ones(2, 3, requires_grad=True)
        loss = make("ContrastiveLoss", (2, 3), (2, 3), (2,)).forward(a, torch.ones(2, 3), torch.zeros(2))
        assert loss.item() == 0.5
        assert not gradient(loss, a)[0].any()


class TestAccuracy:
    @given(st.integers(1, 4), st.sampled_from(["", "ignore_label: 1", "ignore_label: 77"]), st.integers(0, 1000))
    @settings(max_examples=40, deadline=None)
    def test_by_counting(self, top_k, ignore, seed):
        """Against loops, of so few values that there are ties."""
        rng = np.random.default_rng(seed)
        x, label = rng.integers(0, 4, (3, 4, 2)), rng.integers(0, 3, (3, 2))
        layer = make("Accuracy", (3, 4, 2), (3, 2), tops=2, param=f"accuracy_param {{ top_k: {top_k} {ignore} }}")
        accuracy, per_class = layer.forward(torch.from_numpy(x).float(), torch.from_numpy(label).float())
        hits, seen = np.zeros(4), np.zeros(4)
        for n, place in np.ndindex(3, 2):
            true = label[n, place]
            if ignore == "ignore_label: 1" and true == 1:
                continue
            seen[true] += 1
            hits[true] += (x[n, :, place] >= x[n, true, place]).sum() <= top_k
        assert accuracy.item() == pytest.approx(hits.sum() / max(1, seen.sum()))
        np.testing.assert_allclose(per_class.numpy(), hits / np.maximum(1, seen), rtol=1e-6)

    @pytest.mark.parametrize(("top_k", "expected"), [(1, 0), (2, 0), (3, 1)])
    def test_equal_scores_are_misses(self, top_k, expected):
        layer = make("Accuracy", (2, 3), (2,), param=f"accuracy_param {{ top_k: {top_k} }}")
        assert layer.forward(torch.ones(2, 3), torch.tensor([0.0, 2.0])).item() == expected

    def test_more_than_the_classes(self):
        with pytest.raises(NetError, match=r"accuracy_param.top_k is 4, but there are only 3 classes"):
            make("Accuracy", (2, 3), (2,), param="accuracy_param { top_k: 4 }")
