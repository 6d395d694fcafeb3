"""The perceptron by hand."""

from __future__ import annotations

import torch

from twotower.models.mlp import MLP


def test_by_hand() -> None:
    model = MLP(input_width=2, hidden=[2], output_width=1)
    values = [[[1.0, 1.0], [1.0, -1.0]], [0.5, 0.0], [[2.0, 3.0]], [-10.0]]
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(value))
    # (1, 2): hidden 3.5 and relu(-1) = 0 -> -3; (2, 1): 3.5 and 1 -> 0; the last layer is linear.
    assert model(torch.tensor([[1.0, 2.0], [2.0, 1.0]])).tolist() == [[-3], [0]]


def test_widths() -> None:
    assert MLP(input_width=3, hidden=[8, 5]).width == 5
    assert MLP(input_width=3, hidden=[8, 5], output_width=2).width == 2
    assert MLP(input_width=3, hidden=[], output_width=2)(torch.zeros(4, 3)).shape == (4, 2)
    nothing = MLP(input_width=3, hidden=[])
    assert nothing.width == 3
    assert torch.equal(nothing(torch.ones(1, 3)), torch.ones(1, 3))


def test_without_a_last_layer_the_outputs_are_hidden_ones() -> None:
    assert (MLP(input_width=3, hidden=[50])(torch.randn(20, 3)) >= 0).all()


def test_dropout_in_training_alone() -> None:
    model = MLP(input_width=3, hidden=[1000], dropout=0.4)
    with torch.no_grad():
        first, second = list(model.parameters())
        first.zero_()
        second.fill_(1.0)
    outputs = model(torch.zeros(1, 3))
    share = (outputs == 0).float().mean().item()
    assert 0.3 < share < 0.5
    assert torch.equal(model.eval()(torch.zeros(1, 3)), torch.ones(1, 1000))


def test_every_parameter_gets_a_gradient() -> None:
    model = MLP(input_width=3, hidden=[8, 5], output_width=2)
    model(torch.randn(16, 3)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_batch_norm_by_hand() -> None:
    model = MLP(input_width=1, hidden=[1], batch_norm=True)
    linear = next(model.parameters())
    with torch.no_grad():
        linear.fill_(1.0)
    # 1 and 3: mean 2, deviation 1, so -1 and 1 before the ReLU.
    outputs = model(torch.tensor([[1.0], [3.0]]))
    torch.testing.assert_close(outputs, torch.tensor([[0.0], [1.0]]), atol=1e-4, rtol=0)


def test_batch_norm_takes_a_batch_of_one_row() -> None:
    model = MLP(input_width=3, hidden=[4], batch_norm=True)
    model(torch.randn(50, 3))
    row = torch.randn(1, 3)
    trained_on = model(row)
    assert torch.equal(trained_on, model.eval()(row))
