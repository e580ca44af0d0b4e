#!/usr/bin/env bash
# Snakemake runs this once, in the environment that eigendet.yaml describes, to put the library into it. The workflow
# sets EIGENDET_SOURCE to what pip installs it from: what runs the workflow itself. A checkout is installed so that edits reach
# the jobs. All that the library needs is in the environment, so that pip brings nothing else.
set -euo pipefail

version=0.2.0.dev0 # a part of what Snakemake knows this environment by: for another version it makes another
source=${EIGENDET_SOURCE:-eigendet==$version}
if [ -d "$source" ]; then
  python -m pip install --no-input --no-deps --no-build-isolation --editable "$source"
else
  python -m pip install --no-input --no-deps --no-build-isolation "$source"
fi
eigendet --version
