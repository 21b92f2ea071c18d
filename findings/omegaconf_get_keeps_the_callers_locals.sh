#!/usr/bin/env bash
# OmegaConf 2.3.1: asking a config in struct mode for a key that it lacks, by get() or by "in", keeps the caller's frame,
# and all of its local variables, alive until Python's garbage collector runs.
#
# Inside, a missing key is an exception that is caught; it ends in a reference cycle whose traceback leads to the frames
# of all callers. A function that builds a large object and asks its config an optional question so hands the object
# out with a second owner: after `del` it stays, on a GPU with its memory. Hydra composes configs in struct mode.
# OmegaConf.select, and get() on a config without struct mode, keep nothing.
#
# Seen on 2026-11-30, Python 3.11:
#   struct get: kept, struct in: kept, struct select: freed, plain get: freed
#
# seqlab asks by OmegaConf.select where a model exists; tests/inference/test_inference_graphs.py holds that `del` frees it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile omegaconf==2.3.1
cat > kept.py <<'PYTHON'
import gc
import weakref

from omegaconf import OmegaConf

gc.disable()


class Large:
    pass


def caller(config, question):
    large = Large()
    question(config)
    return weakref.ref(large)


struct, plain = OmegaConf.create({"a": 1}), OmegaConf.create({"a": 1})
OmegaConf.set_struct(struct, True)
questions = {
    "struct get": (struct, lambda config: config.get("b")),
    "struct in": (struct, lambda config: "b" in config),
    "struct select": (struct, lambda config: OmegaConf.select(config, "b")),
    "plain get": (plain, lambda config: config.get("b")),
}
print(", ".join(f"{name}: {'freed' if caller(*each)() is None else 'kept'}" for name, each in questions.items()))
PYTHON
venv/bin/python kept.py | tee out.txt
[ "$(cat out.txt)" = "struct get: kept, struct in: kept, struct select: freed, plain get: freed" ]
echo "as described"
