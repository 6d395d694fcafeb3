#!/usr/bin/env bash
# Makes the environment of a peer: benchmarks/speed/peers/make_env.sh torchrec FOLDER
# (or rechub, tfrs, recbole). Its scripts are run by FOLDER/bin/python.
set -euo pipefail

peer=${1:?which peer: torchrec, rechub, tfrs or recbole}
folder=${2:?the folder of the environment}
pins=$(dirname "$0")/environments/$peer.txt

"${PYTHON:-python3}" -m venv "$folder"
if [ "$peer" != tfrs ]; then
  # First and pinned: anything else would fetch a newer one with its CUDA libraries.
  "$folder/bin/pip" install --quiet torch==2.13.0
fi
# Every package is in the list, so none is looked for: TorchRec would ask for fbgemm's CUDA build,
# which overwrites the one for CPUs, and RecBole for no version in particular.
"$folder/bin/pip" install --quiet --no-deps -r "$pins"
