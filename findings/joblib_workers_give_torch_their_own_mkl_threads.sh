#!/usr/bin/env bash
# joblib 1.6.0 with torch 2.13.0: in joblib's processes torch has cores // n_jobs threads, whatever OMP_NUM_THREADS says.
#
# joblib sets the variables for numbers of threads in its processes one by one, each unless it is given: with
# OMP_NUM_THREADS alone given, MKL_NUM_THREADS becomes cores // n_jobs. torch, where it is built with MKL, takes its number
# from MKL, and then tells OpenMP. So a user who says OMP_NUM_THREADS=1, as several programs share the machine, gets more,
# and one who says more gets fewer.
#
# Seen on 2026-11-30, Python 3.11, x86-64, two cores:
#   here: OMP_NUM_THREADS=2, MKL_NUM_THREADS=None, torch has 2 thread(s)
#   in a worker of 2: OMP_NUM_THREADS=2, MKL_NUM_THREADS=1, torch has 1 thread(s)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.13.0 joblib==1.6.0 numpy==2.4.6

cat > threads.py <<'PYTHON'
import os

from joblib import Parallel, cpu_count, delayed


def threads():
    import torch

    return os.environ.get("OMP_NUM_THREADS"), os.environ.get("MKL_NUM_THREADS"), torch.get_num_threads()


if __name__ == "__main__":
    assert cpu_count() >= 2, "needs two cores"
    here, (worker, _) = threads(), Parallel(2)(delayed(threads)() for _ in range(2))
    for where, (omp, mkl, count) in (("here", here), ("in a worker of 2", worker)):
        print(f"{where}: OMP_NUM_THREADS={omp}, MKL_NUM_THREADS={mkl}, torch has {count} thread(s)")
    asked, half = str(cpu_count()), cpu_count() // 2
    assert here == (asked, None, cpu_count())
    assert worker == (asked, str(half), half), "no longer so"
PYTHON
unset MKL_NUM_THREADS
OMP_NUM_THREADS=$(venv/bin/python -c "import joblib; print(joblib.cpu_count())") venv/bin/python threads.py
echo "as described"
