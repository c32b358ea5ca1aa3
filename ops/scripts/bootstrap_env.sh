#!/bin/bash
# bootstrap_env.sh: the repository's own environment and the folders of its caches. Nothing is written outside var/.
#
#   bash ops/scripts/bootstrap_env.sh              make var/openr1, or update it
#   bash ops/scripts/bootstrap_env.sh --extras vllm,wandb
#
#   CONDA         conda | mamba | micromamba; unset: the first that is there
#   CONDA_ENV     the environment's folder (var/openr1)
#   TORCH_INDEX   wheel index for torch, e.g. https://download.pytorch.org/whl/cpu on a machine without a GPU
#   --extras A,B  extras of pyproject.toml (dev)
#   --dry-run     print the commands
#   --help
#
# Without any conda `make venv` makes var/venv, which the launchers take as well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD extras=dev dry=
while [[ $# -gt 0 ]]; do
  case $1 in
    --help | -h)
      sed -n '/^# bootstrap_env.sh:/,/^set /{/^set /d;s/^# \{0,1\}//;p}' ops/scripts/bootstrap_env.sh
      exit 0
      ;;
    --dry-run) dry=yes ;;
    --extras)
      extras=${2:?--extras needs a list}
      shift
      ;;
    *)
      echo "bootstrap_env.sh: $1: no such option; see --help" >&2
      exit 2
      ;;
  esac
  shift
done

run() {
  echo "+ $*"
  [[ -n $dry ]] || "$@"
}

conda=${CONDA:-}
for candidate in conda mamba micromamba; do
  [[ -n $conda ]] || ! command -v $candidate >/dev/null || conda=$candidate
done
if [[ -z $conda ]]; then
  echo "bootstrap_env.sh: no conda, mamba or micromamba on PATH; install one, or use \`make venv\`" >&2
  exit 2
fi

prefix=${CONDA_ENV:-$root/var/openr1}
export CONDA_PKGS_DIRS=$root/var/cache/conda PIP_CACHE_DIR=$root/var/cache/pip TMPDIR=$root/var/tmp PYTHONNOUSERSITE=1
run mkdir -p "$CONDA_PKGS_DIRS" "$PIP_CACHE_DIR" "$TMPDIR" var/artifacts/logs var/data

made=
[[ -d $prefix/conda-meta ]] && made=yes
case $(basename "$conda")${made:+ again} in
  "conda again") run "$conda" env update --prune --prefix "$prefix" --file configs/environment.yml ;;
  conda) run "$conda" env create --yes --prefix "$prefix" --file configs/environment.yml ;;
  *again) run "$conda" install --yes --prefix "$prefix" --file configs/environment.yml ;;
  *) run "$conda" create --yes --prefix "$prefix" --file configs/environment.yml ;;
esac

pip=("$prefix/bin/python" -m pip --disable-pip-version-check install --quiet -c configs/constraints.txt)
# torch goes first and pinned: asked for by another package, pip would fetch the newest build with its CUDA packages.
run "${pip[@]}" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
run "${pip[@]}" -e ".[$extras]"
echo "conda activate $prefix"
