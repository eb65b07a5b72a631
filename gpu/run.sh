#!/usr/bin/env bash
# tokenring on a GPU node: ./run.sh check | nccl | bench | sweep | demo | doctor, each with --help.
# Needs the NVIDIA driver and a python3 with PyTorch (TOKENRING_PYTHON names another); everything else is in the bundle.
# Nothing is downloaded, and nothing is written but results/ and runs/ in the folder that this is started from.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# In a checkout this file lies in gpu/, in the bundle at its top.
root=$here
[[ -d $here/gpu ]] || root=$(dirname "$here")
python=${TOKENRING_PYTHON:-python3}
usage="usage: ./run.sh check|nccl|bench|sweep|demo|doctor [options]; --help after one of them lists its options"
if [[ $# -eq 0 || $1 == --help || $1 == -h ]]; then
  echo "$usage"
  exit $(($# == 0))
fi
command -v "$python" >/dev/null || {
  echo "run.sh: $python was not found; TOKENRING_PYTHON names a python3 with PyTorch" >&2
  exit 1
}

# CUDA's libraries come as Python packages: nvidia/*/lib in one of the folders that Python looks in.
find_library() {
  "$python" - "$@" <<'PY'
import glob, sys
from pathlib import Path
for folder in sys.path:
    for pattern in sys.argv[1:]:
        found = sorted(glob.glob(str(Path(folder) / "nvidia" / "*" / "lib" / pattern)), reverse=True)
        if found:
            print(found[0])
            sys.exit()
PY
}
if [[ -z ${TOKENRING_CUBLASLT:-} ]]; then
  found=$(find_library 'libcublasLt.so.1[23]')
  [[ -z $found ]] || export TOKENRING_CUBLASLT=$found
fi
if [[ -z ${TOKENRING_NCCL:-} ]]; then
  found=$(find_library 'libnccl.so.2')
  [[ -z $found ]] || export TOKENRING_NCCL=$found
fi
# Where the driver's library lies in containers.
for folder in /usr/local/nvidia/lib64 /usr/lib/x86_64-linux-gnu; do
  if [[ -e $folder/libcuda.so.1 ]]; then
    export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
    break
  fi
done
if [[ -x $root/bin/node ]]; then export TOKENRING_NODE=$root/bin/node PATH=$root/bin:$PATH; fi
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

command=$1
shift
if [[ $command != doctor && $command != nccl ]] && ! "$python" -c 'import torch' 2>/dev/null; then
  echo "run.sh: $python has no PyTorch, which is oracle and peer here; TOKENRING_PYTHON names one that has" >&2
  exit 1
fi
case $command in
  check | nccl | bench | sweep | demo) exec "$python" "$root/gpu/$command.py" "$@" ;;
  doctor) exec "${TOKENRING_NODE:-node}" "$root/dist/cli/main.js" doctor "$@" ;;
  *)
    echo "$usage" >&2
    exit 2
    ;;
esac
