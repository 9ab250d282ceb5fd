"""One compute thread per test process: the tests' tensors are tiny, and more threads than cores cost tenfold."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
