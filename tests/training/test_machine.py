"""The machine's use is measured, cheaply, and its absence stops nothing."""

import time

import torch

from dseq_jepa.training import machine
from dseq_jepa.training.machine import Machine


def test_a_busy_core_and_a_large_tensor_show() -> None:
    watched = Machine(torch.device("cpu"))
    before = watched.sample()
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    kept = torch.ones(64, 1 << 20)  # 256 MiB
    after = watched.sample()
    cores = len(machine.os.sched_getaffinity(0))
    assert 100 * 0.3 / (cores * 3) < after["system/cpu_utilization_percentage"] <= 100
    assert after["system/process_memory_megabytes"] - before["system/process_memory_megabytes"] > 200
    del kept


def test_a_sample_costs_less_than_a_millisecond_of_the_processor() -> None:
    watched = Machine(torch.device("cpu"))
    began = time.process_time()
    for _ in range(200):
        watched.sample()
    assert (time.process_time() - began) / 200 < 1e-3


def test_a_machine_without_a_driver_is_a_sentence_and_no_error(capsys, monkeypatch) -> None:
    if torch.cuda.is_available():
        assert "system/gpu_0_utilization_percentage" in Machine(torch.device("cuda")).sample()
        return
    watched = Machine(torch.device("cuda"))
    assert "the GPUs' use is not recorded: " in capsys.readouterr().err
    assert not [name for name in watched.sample() if "gpu" in name]
