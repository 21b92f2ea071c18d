#!/usr/bin/env bash
# hydra-core 1.3.8: the search for plugins runs a plugin's module again although it is imported already.
#
# Every class of the module then exists twice. Hydra registers and instantiates the second one, so for whoever imported
# the first one before the search, isinstance is false.
#
# Seen on 2026-11-29, Python 3.11:
#   times that the module ran before the search: 1
#   registered is the imported class: False
#   the module's class is the imported one: False
#   times that the module ran: 2
#
# seqlab keeps the classes of its plugins in hydra_plugins/ and what they do in seqlab.sweep, which runs once.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q hydra-core==1.3.8 omegaconf==2.3.1

mkdir -p hydra_plugins/example
cat > hydra_plugins/example/__init__.py <<'PYTHON'
import counter
from hydra.plugins.search_path_plugin import SearchPathPlugin

counter.runs += 1


class Example(SearchPathPlugin):
    def manipulate_search_path(self, search_path):
        pass
PYTHON
echo "runs = 0" > counter.py
cat > show.py <<'PYTHON'
import sys

import counter
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from hydra_plugins.example import Example

print("times that the module ran before the search:", counter.runs)
found = [kind for kind in Plugins.instance().discover(SearchPathPlugin) if kind.__name__ == "Example"]
print("registered is the imported class:", found[0] is Example)
print("the module's class is the imported one:", sys.modules["hydra_plugins.example"].Example is Example)
print("times that the module ran:", counter.runs)
PYTHON
cat > expected <<'TEXT'
times that the module ran before the search: 1
registered is the imported class: False
the module's class is the imported one: False
times that the module ran: 2
TEXT
PYTHONPATH="$folder" venv/bin/python -W ignore show.py | tee seen
diff expected seen
