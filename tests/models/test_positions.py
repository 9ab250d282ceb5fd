import numpy as np
import pytest

from dseq_jepa.models.positions import sincos_2d
from tests.reference.vit import sincos_positions


@pytest.mark.parametrize(("grid", "width"), [(1, 4), (3, 8), (8, 96), (14, 384)])
def test_positions_equal_the_loop_over_rows_and_columns(grid: int, width: int) -> None:
    found = sincos_2d(grid, width)
    assert found.dtype == np.float32
    assert np.allclose(found, sincos_positions(grid, width).numpy(), atol=1e-7, rtol=0)


def test_a_width_that_cannot_be_quartered_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4, got 30"):
        sincos_2d(4, 30)
