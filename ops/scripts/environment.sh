# shellcheck shell=bash
# Sourced by the launchers: finds the checkout, goes there, and puts its Python first. Sets ROOT and PYTHON.
#
#   MAXENT_ROOT   the checkout; unset: where the job was submitted from, else where the script lies
#   ENV_MODE      conda | venv; unset: var/openr1 if it is there, else var/venv
#   CONDA_ENV     conda environment, a name or a folder (var/openr1)
#   CONDA_SH      conda's profile.d/conda.sh; unset: asked of the `conda` command, or not used
#   ENV_ACTIVATE  activation script of the virtual environment (var/venv/bin/activate)
#   CUDA_MODULE   environment module to load (cuda/12.6); empty: none. Skipped where there is no `module` command
#   CUDA_HOME     its bin and lib64 go to the front of PATH and LD_LIBRARY_PATH

fail() {
  echo "$(basename "$0"): $1" >&2
  exit 2
}

for ROOT in "${MAXENT_ROOT:-}" "${SLURM_SUBMIT_DIR:-}" "$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"; do
  [[ -n $ROOT && -f $ROOT/ops/scripts/environment.sh ]] && break
done
cd "$ROOT" || fail "cannot enter $ROOT"

activate() { # a script of somebody else's, which may read unset variables
  set +u
  # shellcheck disable=SC1090
  source "$@" || fail "cannot source $1"
  set -u
}

if [[ -z ${ENV_MODE:-} ]]; then
  if [[ -x ${CONDA_ENV:-var/openr1}/bin/python ]]; then ENV_MODE=conda; else ENV_MODE=venv; fi
fi
case $ENV_MODE in
  conda)
    CONDA_ENV=${CONDA_ENV:-$ROOT/var/openr1}
    if [[ -z ${CONDA_SH:-} ]] && command -v conda >/dev/null; then
      CONDA_SH=$(conda info --base)/etc/profile.d/conda.sh
    fi
    if [[ -n ${CONDA_SH:-} ]]; then
      activate "$CONDA_SH"
      set +u
      conda activate "$CONDA_ENV" || fail "conda cannot activate $CONDA_ENV; bash ops/scripts/bootstrap_env.sh makes it"
      set -u
    elif [[ -x $CONDA_ENV/bin/python ]]; then
      export PATH="$CONDA_ENV/bin:$PATH"
    else
      fail "there is no environment $CONDA_ENV; bash ops/scripts/bootstrap_env.sh makes it, or set ENV_MODE=venv"
    fi
    ;;
  venv)
    ENV_ACTIVATE=${ENV_ACTIVATE:-$ROOT/var/venv/bin/activate}
    [[ -f $ENV_ACTIVATE ]] || fail "there is no $ENV_ACTIVATE; make venv makes it, or set ENV_ACTIVATE"
    activate "$ENV_ACTIVATE"
    ;;
  *) fail "ENV_MODE=$ENV_MODE: conda or venv" ;;
esac

if [[ -n ${CUDA_MODULE=cuda/12.6} ]] && type module >/dev/null 2>&1; then
  set +u
  module load "$CUDA_MODULE" || fail "module load $CUDA_MODULE failed; name yours in CUDA_MODULE, or set it empty"
  set -u
fi
if [[ -n ${CUDA_HOME:-} ]]; then
  export CUDA_HOME PATH="$CUDA_HOME/bin:$PATH" LD_LIBRARY_PATH="$CUDA_HOME/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi

export PYTHONNOUSERSITE=1
export PYTHONPATH="$ROOT/src${PYTHONPATH:+:$PYTHONPATH}" # the checkout that a job is submitted from is the one that runs
PYTHON=$(command -v python) || fail "no python in the activated environment"
export PYTHON ROOT
