import pytest
import torch

from trl_ext.trainer_kit.masked import masked_mean, masked_sums, masked_variance, masked_whiten


def test_by_hand():
    values = torch.tensor([[1.0, 2.0, 9.0], [6.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    # Σ = 1 + 2 + 6 = 9 over 3 tokens; mean 3; variance (4 + 1 + 9) / 3 = 14/3
    assert masked_sums(values, mask=mask).tolist() == [9.0, 3.0]
    assert masked_mean(values, mask) == 3.0
    assert masked_variance(values, mask) == pytest.approx(14 / 3)
    expected = torch.tensor([[-2.0, -1.0, 0.0], [3.0, 0.0, 0.0]]) / (14 / 3) ** 0.5
    torch.testing.assert_close(masked_whiten(values, mask), expected)


def test_whitened_tokens_have_mean_0_and_variance_1():
    values, mask = torch.randn(5, 9) * 7 + 100, torch.rand(5, 9) > 0.4
    whitened = masked_whiten(values, mask)
    assert masked_mean(whitened, mask) == pytest.approx(0.0, abs=1e-5)
    assert masked_variance(whitened, mask) == pytest.approx(1.0, abs=1e-4)


def test_what_is_masked_has_no_influence():
    values, mask = torch.randn(3, 4), torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    junk = values.masked_fill(mask == 0, float("nan"))
    torch.testing.assert_close(masked_whiten(junk, mask), masked_whiten(values, mask))


@pytest.mark.parametrize("mask", [[[0, 0]], [[1, 0]], [[1, 1]]])
def test_equal_values_one_or_none_become_0(mask):
    assert masked_whiten(torch.full((1, 2), 5.0), torch.tensor(mask)).tolist() == [[0.0, 0.0]]


def test_sums_run_over_processes():
    class TwoEqualProcesses:
        def reduce(self, tensor, reduction):
            assert reduction == "sum"
            return 2 * tensor

    values, mask = torch.tensor([[1.0, 3.0]]), torch.ones(1, 2)
    assert masked_sums(values, mask=mask, accelerator=TwoEqualProcesses()).tolist() == [8.0, 4.0]
    assert masked_mean(values, mask, TwoEqualProcesses()) == 2.0
