"""How attention and its mask are caught: what would change the result is refused by name, never dropped."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import masking_utils

from cupola.compiler.frontend.attention import Mask, _attention_interface, _mask, _scaled_dot_product_attention, attention, number_layers
from cupola.runtime.errors import UnsupportedError

QKV = [torch.zeros(1, 2, 3, 4, device="meta") for _ in range(3)]
CAUSAL, BOTH_WAYS = SimpleNamespace(is_causal=True), SimpleNamespace(is_causal=False)


@pytest.mark.parametrize("name", ["indices", "block_indices", "position_bias", "sinks", "what_comes_next_year"])
def test_an_argument_that_no_kernel_knows_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"its attention takes {name}"):
        _attention_interface(CAUSAL, *QKV, Mask(), **{name: torch.ones(3)})


def test_arguments_that_change_nothing_pass() -> None:
    out, _ = _attention_interface(CAUSAL, *QKV, Mask(), position_ids=torch.ones(1, 3), output_attentions=False, cu_seq_lens_q=None)
    assert out.shape == (1, 3, 2, 4)


USES: dict[str, Callable[[Any], Any]] = {
    "ndim": lambda mask: mask.ndim,
    "dtype": lambda mask: mask.dtype == torch.bool,
    "add": lambda mask: torch.ones(2, 2) + mask,
    "radd|add": lambda mask: mask + torch.ones(2, 2),
    "where": lambda mask: torch.where(mask, torch.ones(2), torch.zeros(2)),
    "masked_fill": lambda mask: torch.ones(2).masked_fill(mask, 0.0),
    "indexing": lambda mask: mask[:, :, 1:],
}


@pytest.mark.parametrize("use", USES)
def test_computing_with_the_mask_is_refused(use: str) -> None:
    with pytest.raises(UnsupportedError, match=f"computes with its attention mask .*({use})"):
        USES[use](Mask())


def test_a_mask_may_be_passed_on_and_cut_to_the_keys_that_there_are() -> None:
    mask = Mask(window=8)
    assert mask is not None and mask[:, :, :, :5] is mask and mask[..., :5] is mask
    assert isinstance(mask[:, :, :5], Mask) and mask.window == 8


def test_masks_of_transformers_become_windows() -> None:
    assert _mask(mask_function=masking_utils.causal_mask_function).window == 0
    assert _mask(mask_function=masking_utils.sliding_window_causal_mask_function(8)).window == 8
    both = masking_utils.and_masks(
        masking_utils.sliding_window_causal_mask_function(8), masking_utils.sliding_window_causal_mask_function(4)
    )
    assert _mask(mask_function=both).window == 4


CHUNKED = masking_utils.chunked_causal_mask_function(4, torch.zeros(1))
UNION = masking_utils.or_masks(masking_utils.causal_mask_function)
OTHERS: dict[str, Callable[[], Any]] = {
    "chunked_overlay": lambda: _mask(mask_function=CHUNKED),
    "or_masks": lambda: _mask(mask_function=UNION),
    "bidirectional_mask_function": lambda: _mask(mask_function=masking_utils.bidirectional_mask_function),
    "masks some of its tokens": lambda: _mask(attention_mask=torch.ones(1, 3)),
    "takes a mask of its own": lambda: torch.ones(1, 1, 3, 3),
}


@pytest.mark.parametrize("problem", OTHERS)
def test_other_masks_are_refused_where_attention_takes_them(problem: str) -> None:
    mask = OTHERS[problem]()
    with pytest.raises(UnsupportedError, match=problem):
        _attention_interface(CAUSAL, *QKV, mask)
    with pytest.raises(UnsupportedError, match=problem):
        _scaled_dot_product_attention(*QKV, attn_mask=mask)


MADE: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str | None]] = {
    "ones": (lambda x: torch.ones(1, x.shape[0]), None),
    "ones as booleans": (lambda x: torch.ones(1, x.shape[0]).to(torch.bool), None),
    "zeros": (lambda x: torch.zeros(1, x.shape[0]), "masks some of its tokens"),
    "of the input": (lambda x: (x > 0)[None], "masks some of its tokens"),
    "ones times the input": (lambda x: torch.ones(1, x.shape[0]) * x, "masks some of its tokens"),
}


@pytest.mark.parametrize("made", MADE)
def test_a_mask_of_ones_that_a_model_makes_masks_nothing(made: str) -> None:
    make, problem = MADE[made]
    found: list[Mask] = []

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found.append(_mask(attention_mask=make(x)))
            return x + 1

    torch.export.export(Model(), (torch.zeros(7),), dynamic_shapes={"x": {0: torch.export.Dim("n", min=2)}}, strict=False)
    assert {mask.problem is None for mask in found} == {problem is None}
    assert all(problem in str(mask.problem) for mask in found if problem)


def _written(ids: torch.Tensor) -> torch.Tensor:
    ids[:, 0] = 0
    return ids


BLOCKS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], bool]] = {
    "of no block": (lambda x: torch.full((1, x.shape[0]), -1), True),
    "of one block": (lambda x: torch.full((1, x.shape[0]), 0), False),
    "of one that is written later": (lambda x: _written(torch.full((1, x.shape[0]), -1)), False),
    "of blocks by the input": (lambda x: x[None].long() - 1, False),
}


@pytest.mark.parametrize("is_traced", [True, False])
@pytest.mark.parametrize("made", BLOCKS)
def test_a_union_with_blocks_of_images_is_known_where_no_token_is_in_one(made: str, is_traced: bool) -> None:
    make, is_known = BLOCKS[made]
    found: list[Mask] = []

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            union = masking_utils.or_masks(masking_utils.causal_mask_function, masking_utils.blockwise_overlay(make(x)))
            found.append(_mask(mask_function=masking_utils.and_masks(union, masking_utils.sliding_window_overlay(8))))
            return x + 1

    if is_traced:
        torch.export.export(Model(), (torch.zeros(7),), dynamic_shapes={"x": {0: torch.export.Dim("n", min=2)}}, strict=False)
    else:
        Model()(torch.ones(7))
    assert {(mask.problem is None, mask.window) for mask in found} == {(is_known, 8 if is_known else 0)}
    assert is_known or all("or_masks" in str(mask.problem) for mask in found)


def test_attention_that_sees_later_tokens_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="sees later tokens"):
        _attention_interface(BOTH_WAYS, *QKV, Mask())
    with pytest.raises(UnsupportedError, match="sees later tokens"):
        _scaled_dot_product_attention(*QKV)
    assert _scaled_dot_product_attention(*QKV, is_causal=True).shape == (1, 2, 3, 4)


def test_each_attention_of_a_graph_is_a_layer_of_its_own() -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(2):  # one module, run twice
                x = attention(x, x, x, None, None, 0, 1.0, 0, 0.0).transpose(1, 2)
            return x

    graph = torch.export.export(Twice(), (torch.zeros(1, 2, 3, 4),)).graph
    number_layers(graph)
    assert [node.args[5] for node in graph.nodes if node.target is torch.ops.cupola.attention.default] == [0, 1]
