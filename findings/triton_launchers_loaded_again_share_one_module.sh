#!/usr/bin/env bash
# triton 3.6.0: modules in C that it builds under one name, as "__triton_launcher" for the launchers of all kernels, are one
# module object once a file is loaded again: what was loaded first answers for the second.
#
# CPython hands out, for a single-phase extension whose file and name it has loaded before, whatever module is in
# sys.modules under that name, and writes the extension's functions into it. A launcher is loaded again whenever another
# kernel has the same signature. Triton reads the function right after loading, so with one thread all is well. Of two
# threads that load kernels at the same time, one can read the other's function: a launch on a GPU then ended in
#   TypeError: function takes exactly 41 arguments (69 given)
# in one of 2,400 tests whose kernels were loaded by threads. The sequence below is that of two threads, one after the
# other, and needs no GPU. From 3.7.0 on Triton has no launchers in C.
#
# Seen on 2026-11-30, Python 3.11, x86-64:
#   first and second apart: 1, 2
#   the first one loaded again: it is the second's module, first 1, second 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q triton==3.6.0 setuptools

cat > twice.py <<'PYTHON'
from triton.runtime.build import compile_module_from_src

SOURCE = """
#include <Python.h>
static PyObject *which(PyObject *self, PyObject *none) { return PyLong_FromLong(NUMBER); }
static PyMethodDef methods[] = {{"which", which, METH_NOARGS, ""}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "of_one_name", NULL, -1, methods};
PyMODINIT_FUNC PyInit_of_one_name(void) { return PyModule_Create(&definition); }
"""


def loaded(number):
    return compile_module_from_src(SOURCE.replace("NUMBER", str(number)), "of_one_name")


first, second = loaded(1), loaded(2)
apart = first.which(), second.which()
print("first and second apart: %d, %d" % apart)
again = loaded(1)
print(f"the first one loaded again: it is the second's module, first {again.which()}, second {second.which()}")
assert apart == (1, 2)
assert again is second and second.which() == 1, "no longer so"
PYTHON
TRITON_CACHE_DIR="$folder/cache" venv/bin/python twice.py
echo "as described"
