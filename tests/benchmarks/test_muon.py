"""The trainings' Muon beside torch's, which computes in bfloat16."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.emoji.world.muon import DECAY, Muon, zeropower


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_singular_values_are_made_about_one_in_their_directions(rows, columns, seed):
    gradient = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 1e3
    made = zeropower(gradient, 10)
    u, s, v = torch.linalg.svd(gradient, full_matrices=False)
    inner = u.T @ made @ v.T
    clear = s / s.norm() > 0.02
    assert ((inner.diagonal()[clear] - 0.95).abs() < 0.3).all()
    assert (inner - inner.diagonal().diag()).abs().max() < 1e-3


def test_updates_are_torchs_to_bfloat16():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(24, 40)) for _ in range(2))
    own = Muon([ours], lr=0.02)
    other = torch.optim.Muon([theirs], lr=0.02, weight_decay=DECAY, ns_steps=4, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = torch.randn(24, 40)
        theirs.grad = ours.grad.clone()
        own.step()
        other.step()
    moved = (ours - 1).norm()
    assert (ours - theirs).norm() < 0.02 * moved


def test_a_kernel_is_a_matrix_and_what_has_no_gradient_stays():
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(6, 4, 3, 3))
    matrix, still = torch.nn.Parameter(kernel.detach().flatten(1).clone()), torch.nn.Parameter(torch.ones(3, 3))
    kernel.grad = torch.randn(6, 4, 3, 3)
    matrix.grad = kernel.grad.flatten(1).clone()
    Muon([kernel, still], lr=0.1).step()
    Muon([matrix], lr=0.1).step()
    assert torch.equal(kernel.detach().flatten(1), matrix.detach()) and (still == 1).all()
