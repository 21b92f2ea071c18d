#!/usr/bin/env bash
# torch 2.13.0: under torch.compile, torch.utils.checkpoint.checkpoint takes only some forms of context_fn. Given its own
# default by name, noop_context_fn, it raises InternalTorchDynamoError; left out, the same call compiles.
#
# All run without compile. What else dynamo cannot trace is a graph break and runs uncompiled, as a print does; this is an
# error also without fullgraph. The default is looked for with `is` on dynamo's stand-in for the value, which never
# matches. A module-level function, one that was made beforehand, and a functools.partial are taken; a function or lambda
# made in the compiled code and a callable object are not. Of a bound method only the function is kept: it is called
# without self, and the TypeError names the user's method. A partial of the bound method is a way round.
#
# Seen on 2026-11-30, Python 3.11, backend "eager":
#   print beside the checkpoint: runs
#   not given: runs
#   noop_context_fn: InternalTorchDynamoError, LazyVariableTracker
#   function of the module: runs
#   partial: runs
#   partial of bound method: runs
#   function made before: runs
#   function made inside: InternalTorchDynamoError, NestedUserFunctionVariable
#   lambda: InternalTorchDynamoError, NestedUserFunctionVariable
#   callable object: InternalTorchDynamoError, LazyVariableTracker
#   bound method: TypeError, missing 1 required positional argument: 'self'
#
# Issue 890 of TransformerEngine met the default in 2024. seqlab.models.recomputation gives no contexts under compile.
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.13.0 numpy==2.4.6
cat > contexts.py <<'PYTHON'
import re
from functools import partial

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)


def policy(context, operation, *arguments, **settings):
    return CheckpointPolicy.PREFER_RECOMPUTE


def contexts():
    return create_selective_checkpoint_contexts(policy)


class Contexts:
    def __call__(self):
        return contexts()

    def method(self):
        return contexts()


def maker():
    def made():
        return contexts()

    return made


layer, held, made_before = torch.nn.Linear(4, 4), Contexts(), maker()


def run(x, **settings):
    return checkpoint(layer, x, use_reentrant=False, **settings)


def printing(x):
    print(end="")
    return run(x)


CASES = {
    "print beside the checkpoint": printing,
    "not given": lambda x: run(x),
    "noop_context_fn": lambda x: run(x, context_fn=noop_context_fn),
    "function of the module": lambda x: run(x, context_fn=contexts),
    "partial": lambda x: run(x, context_fn=partial(create_selective_checkpoint_contexts, policy)),
    "partial of bound method": lambda x: run(x, context_fn=partial(held.method)),
    "function made before": lambda x: run(x, context_fn=made_before),
    "function made inside": lambda x: run(x, context_fn=maker()),
    "lambda": lambda x: run(x, context_fn=lambda: contexts()),
    "callable object": lambda x: run(x, context_fn=held),
    "bound method": lambda x: run(x, context_fn=held.method),
}
for name, function in CASES.items():
    torch._dynamo.reset()
    x = torch.ones(2, 4, requires_grad=True)
    function(x).sum().backward()
    expected, x.grad = x.grad, None
    try:
        torch.compile(function, backend="eager")(x).sum().backward()
        assert torch.equal(x.grad, expected)
        print(f"{name}: runs")
    except Exception as error:
        what = re.search(r"\w+Variable(Tracker)?|missing 1 .*'self'", str(error))
        print(f"{name}: {type(error).__name__}, {what[0] if what else error}")
PYTHON
sed -n '/^# Seen on/,/^#$/s/^#   //p' "$script" > expected
TORCH_LOGS=-all venv/bin/python -W ignore contexts.py 2> errors | tee seen || { cat errors; exit 1; }
diff expected seen
