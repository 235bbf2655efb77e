import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustmerge_kit.draws import KeyedDraws

DRAWS = KeyedDraws.of(7, "layers.0.q_proj", ("a", "b"))


def whole(rows: int = 300, cols: int = 5, adapter: int | None = 0, purpose: str = "dare") -> torch.Tensor:
    return DRAWS.uniform(adapter, purpose, torch.empty(rows, cols))


def test_the_second_tile_is_the_philox_stream_of_its_own_key() -> None:
    digest = hashlib.sha256(b"7\x1flayers.0.q_proj\x1fb\x1fdare\x1f1").digest()
    stream = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    assert np.array_equal(whole(adapter=1)[128:256].numpy(), stream.random((128, 5), dtype=np.float32))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=6))
def test_any_split_into_row_blocks_gives_the_same_numbers(sizes: list[int]) -> None:
    blocks, row = [], 0
    for size in sizes:
        blocks.append(DRAWS.at_row(row).uniform(0, "dare", torch.empty(size, 3)))
        row += size
    assert torch.equal(torch.cat(blocks), whole(row, 3))


@pytest.mark.parametrize(
    "other",
    [
        KeyedDraws.of(8, "layers.0.q_proj", ("a", "b")),
        KeyedDraws.of(7, "layers.1.q_proj", ("a", "b")),
        KeyedDraws.of(7, "layers.0.q_proj", ("b", "a")),
    ],
    ids=["seed", "site", "identity"],
)
def test_each_part_of_the_key_matters(other: KeyedDraws) -> None:
    assert not torch.equal(other.uniform(0, "dare", torch.empty(4, 4)), whole(4, 4))
    assert not torch.equal(whole(4, 4, purpose="della"), whole(4, 4))


def test_position_in_the_stack_does_not_matter() -> None:
    swapped = KeyedDraws.of(7, "layers.0.q_proj", ("b", "a"))
    like = torch.empty(4, 4)
    assert torch.equal(swapped.uniform(1, "dare", like), DRAWS.uniform(0, "dare", like))
    assert torch.equal(swapped.uniform(None, "starts", like), DRAWS.uniform(None, "starts", like))


def test_a_batch_of_sites_holds_the_numbers_of_each_site() -> None:
    batch = KeyedDraws.of(7, ("x", "y"), ("a",)).uniform(0, "dare", torch.empty(2, 130, 3))
    for i, site in enumerate("xy"):
        assert torch.equal(batch[i], KeyedDraws.of(7, site, ("a",)).uniform(0, "dare", torch.empty(130, 3)))


def test_a_vector_is_one_row() -> None:
    assert torch.equal(DRAWS.uniform(0, "dare", torch.empty(6)), whole(1, 6)[0])


def test_uniforms_are_uniform_and_leave_the_global_generators_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    x = whole(1280, 50)
    assert x.dtype == torch.float32
    assert float(x.min()) >= 0
    assert float(x.max()) < 1
    assert abs(float(x.mean()) - 0.5) < 0.01
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index]


def test_a_shape_that_does_not_count_the_sites_is_refused() -> None:
    with pytest.raises(ValueError, match="does not hold 1 sites"):
        DRAWS.uniform(0, "dare", torch.empty(2, 3, 4))
