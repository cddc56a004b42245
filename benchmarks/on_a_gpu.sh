#!/usr/bin/env bash
# Everything that needs a GPU, in one go: tests first, then speed beside the stock way; at most eight minutes on an H100.
#
#   benchmarks/on_a_gpu.sh [OUT]              # default gpu-output; from a fresh clone, no data needed
#   benchmarks/on_a_gpu.sh --dry-run [OUT]    # the same on this CPU with tiny sizes: whether it would run
#
# Wanted: Python 3.11 or newer with torch (CUDA) and transformers; PYTHON names another than python3. What else is
# missing is installed into OUT/venv where pip reaches an index, or wheels in PIP_FIND_LINKS; else it uses what is there,
# and says what is not. Each step has its own time limit and writes as it goes, so a run that is cut off leaves what it
# has: OUT/table.md, OUT/rows.jsonl, OUT/tests.txt, OUT/steps.jsonl.
#
# Order: first whether results are right, without which no speed means anything; then figures, most asked for first.
set -u
cd "$(dirname "$0")/.."
dry=""
if [ "${1:-}" = --dry-run ]; then dry=yes; shift; fi
out=${1:-gpu-output}
case $out in /*) ;; *) out=$PWD/$out ;; esac
mkdir -p "$out"
export out python=${PYTHON:-python3}
began=$SECONDS
slack=${dry:+8}  # a dry run is about whether, not how fast, and its machine may be busy
slack=${slack:-1}
total=$((${SECONDS_IN_ALL:-480} * slack))
failed=0
: > "$out/steps.jsonl"

step() {  # NAME LIMIT COMMAND...: run it within its limit, and within what is left of all
    local name=$1 limit=$2 started=$SECONDS status=0
    shift 2
    local left=$((total - SECONDS + began - 5))
    [ "$limit" -gt "$left" ] && limit=$left
    if [ "$limit" -lt 5 ]; then status=124; else timeout --kill-after 5 "$limit" bash -c '"$@"' step "$@" || status=$?; fi
    printf '{"step": "%s", "status": %d, "seconds": %d, "limit": %d}\n' "$name" "$status" $((SECONDS - started)) "$limit" \
        | tee -a "$out/steps.jsonl"
    [ "$status" -eq 0 ] || failed=1
    return "$status"
}

missing() {  # packages of setup.cfg and of the tests that this Python lacks, but torch and transformers
    "$python" - <<'PYTHON'
import configparser, re
from importlib.metadata import PackageNotFoundError, version

config = configparser.ConfigParser()
config.read("setup.cfg")
wanted = [line.strip() for line in config["options"]["install_requires"].splitlines() if line.strip()]
for name in [*wanted, "pytest>=9", "pytest-timeout>=2.3", "hypothesis>=6.100", "matplotlib>=3.8", "psutil"]:
    try:
        version(re.match(r"[\w-]+", name)[0])
    except PackageNotFoundError:
        print(name)
PYTHON
}

install_into() {  # FOLDER PACKAGES...: what is there already stays, and is not replaced
    local venv=$1
    shift
    "$python" -m venv --system-site-packages "$venv" || return
    # A Python that is itself an environment hands its packages on by their path, not as the system's.
    "$python" -c 'import site; print(*site.getsitepackages(), sep="\n")' > "$(echo "$venv"/lib/python3*/site-packages)/parent.pth"
    "$venv/bin/python" -m pip install --quiet --retries 1 --timeout 15 --constraint "$out/constraints.txt" "$@"
}
export -f install_into

for needed in torch transformers; do
    "$python" -c "import $needed" || { echo "needed: $python with $needed, on a machine with a GPU" >&2; exit 2; }
done
absent=$(missing)
if [ -n "$absent" ]; then
    echo "missing:" $absent
    "$python" -c 'from importlib.metadata import version
for name in ("torch", "transformers", "numpy"): print(name, version(name), sep="==")' > "$out/constraints.txt"
    if step install $((120 * slack)) install_into "$out/venv" $absent; then
        python=$out/venv/bin/python
    else
        echo "pip did not get them; going on with what is there. Needed: $absent" >&2
    fi
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

[ -n "$dry" ] && export GPU_TESTS_ON=cpu OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Settings of pyproject.toml that a plugin must know are left out where it is absent, and its warnings are no errors.
step tests $((150 * slack)) "$python" -m pytest -o addopts= -W default -q -ra -p no:cacheprovider -m gpu --durations=5 \
    tests/test_on_a_gpu.py tests/test_attention.py > "$out/tests.txt" 2>&1
tail -n 15 "$out/tests.txt"
left=$((total - SECONDS + began - 10))
step figures "$left" "$python" benchmarks/bench.py --gpu ${dry:+--quick} --out "$out" \
    --minutes "$("$python" -c "print(max(0, $left - 5) / 60)")"
echo "$((SECONDS - began)) s in all; results are in $out"
exit "$failed"
