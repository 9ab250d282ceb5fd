"""Statistics over ranks equal those of the whole batch."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dseq_jepa.evaluation.batch_norm import RankBatchNorm2d


def statistics(rank: int, port: int, out: Path) -> None:
    """On one of two ranks: half of a batch through RankBatchNorm2d."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    x, weight = torch.randn(6, 4, 3, 3) * 3 + 1, torch.randn(6, 4, 3, 3)
    norm = RankBatchNorm2d(4)
    mine = x[3 * rank : 3 * rank + 3].clone().requires_grad_()
    result = norm(mine)
    (result * weight[3 * rank : 3 * rank + 3]).sum().backward()
    torch.save({"y": result.detach(), "dx": mine.grad, "norm": norm.state_dict()}, out / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_statistics_over_ranks_equal_those_of_the_whole_batch(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from pathlib import Path; from tests.evaluation.test_batch_norm import statistics; "
    code += "statistics(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))"
    ranks = [subprocess.Popen([sys.executable, "-c", code, str(r), str(port), str(tmp_path)]) for r in (0, 1)]
    assert [process.wait(timeout=300) for process in ranks] == [0, 0]
    torch.manual_seed(0)
    x, weight = (torch.randn(6, 4, 3, 3) * 3 + 1).requires_grad_(), torch.randn(6, 4, 3, 3)
    norm = nn.BatchNorm2d(4)
    result = norm(x)
    (result * weight).sum().backward()
    parts: list[dict[str, Any]] = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.allclose(torch.cat([part["y"] for part in parts]), result, atol=1e-5)
    assert x.grad is not None
    assert torch.allclose(torch.cat([part["dx"] for part in parts]), x.grad, atol=1e-5)
    for name in ("running_mean", "running_var"):
        assert torch.allclose(parts[0]["norm"][name], norm.state_dict()[name], atol=1e-5)
        assert torch.equal(parts[0]["norm"][name], parts[1]["norm"][name])
