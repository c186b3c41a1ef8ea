import torch

from trl_ext.ppo.value_loss import clipped_value_error, value_is_clipped


def test_by_hand():
    values = torch.tensor([[1.0, 1.0, 0.1, -1.0]])
    old, returns = torch.zeros(1, 4), torch.tensor([[2.0, 0.5, 1.0, 1.0]])
    # clip 0.2: trusted = .2, .2, .1, −.2
    # ½ max((1−2)², (.2−2)²) = 1.62; ½ max(.25, .09) = .125; ½ .81 = .405 (inside); ½ max(4, 1.44) = 2
    expected = torch.tensor([[1.62, 0.125, 0.405, 2.0]])
    torch.testing.assert_close(clipped_value_error(values, old, returns, clip=0.2), expected)
    assert value_is_clipped(values, old, returns, clip=0.2).tolist() == [[True, False, False, False]]


def test_no_gradient_from_a_move_that_is_too_large_towards_the_return():
    values = torch.tensor([1.0, 1.0], requires_grad=True)
    clipped_value_error(values, torch.tensor([0.0, 0.95]), torch.tensor([2.0, 2.0]), clip=0.2).sum().backward()
    assert values.grad.tolist() == [0.0, -1.0]  # V − R where the move is small


def test_wide_clip_is_plain_squared_error():
    values, old, returns = torch.randn(3, 2, 5)
    expected = 0.5 * (values - returns) ** 2
    torch.testing.assert_close(clipped_value_error(values, old, returns, clip=1e6), expected)
