#!/usr/bin/env bash
# hydra-core 1.3.8: completion in a shell ignores --config-dir, --config-path and --config-name of the line that is being
# completed. The files of that folder are not offered, and with a configuration from there nothing is offered at all.
#
# The shell calls the program without the options of the line, `python app.py -sc query=bash`, with the line in COMP_LINE.
# The search path is made of the call's options; those of the line are taken apart, but only its overrides and --multirun
# are used. With --config-dir beside -sc, which the installed function never gives, the files are found.
#
# Seen on 2026-11-30, Python 3.11:
#   run with --config-dir more db=extra: extra
#   completing "--config-dir more db=": db=a
#   completing "--config-path more db=": db=a
#   completing "--config-dir more --config-name mine spe": nothing
#   the same two, --config-dir and --config-name given to the query, too: db=a db=extra; speed=
#
# The command seqlab hands the --config-dir of the line on to the query.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile hydra-core==1.3.8 omegaconf==2.3.1
mkdir -p conf/db more/db
printf 'defaults: [{db: a}]\n' > conf/config.yaml
echo "name: a" > conf/db/a.yaml
echo "name: extra" > more/db/extra.yaml
printf 'defaults: [config, _self_]\nspeed: 2\n' > more/mine.yaml
cat > app.py <<'PYTHON'
import hydra


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(config):
    print(config.db.name)


main()
PYTHON

complete() {  # LINE [options of the query]: as the function does that -sc install=bash writes
  local line="python app.py $1"
  shift
  COMP_LINE="$line" COMP_POINT=${#line} venv/bin/python -W ignore app.py "$@" -sc query=bash
}
cat > expected <<'TEXT'
extra
db=a
db=a

db=a db=extra
speed=
TEXT
{
  venv/bin/python -W ignore app.py --config-dir more db=extra hydra.run.dir=. hydra.output_subdir=null
  complete "--config-dir more db="
  complete "--config-path more db="
  complete "--config-dir more --config-name mine spe"
  complete "--config-dir more db=" --config-dir more
  complete "--config-dir more --config-name mine spe" --config-dir more --config-name mine
} | tee seen
diff expected seen
