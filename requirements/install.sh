#!/bin/sh
# requirements/install.sh VENV EXTRA
#
# Installs convserve into a virtual environment, with one of its extras ("serve" stands for none), in the versions of
# requirements/EXTRA.txt. Without an NVIDIA GPU, ONNX Runtime's small build comes, as requirements/EXTRA-cpu.txt says;
# ONNXRUNTIME=gpu or ONNXRUNTIME=cpu decides otherwise.
set -eu
python=$1/bin/python extra=$2
locked=requirements/$extra

has_gpu() { [ -e /dev/nvidiactl ] || nvidia-smi --list-gpus >/dev/null 2>&1; }
pip() { "$python" -m pip --disable-pip-version-check "$@" -qq; }
installed() { "$python" -m pip show "$1" >/dev/null 2>&1; }

if [ -f "$locked-cpu.txt" ] && ! has_gpu; then build=cpu; else build=gpu; fi
build=${ONNXRUNTIME:-$build}

case $extra in
serve | docs) size="150 MB, about a minute" ;;
train | dev) size="400 MB, some minutes; gigabytes more where PyTorch comes with CUDA" ;;
*) size="some gigabytes, many minutes" ;;
esac
[ "$extra" = serve ] && name= || name="[$extra]"
echo "Installing convserve$name with ONNX Runtime for the $(echo "$build" | tr '[:lower:]' '[:upper:]') into $1: $size"

# Both builds are the same Python package: one would leave half of the other behind.
[ "$build" = cpu ] && other=onnxruntime-gpu || other=onnxruntime
if [ "$(uname -sm)" = "Linux x86_64" ] && installed "$other"; then pip uninstall --yes onnxruntime onnxruntime-gpu; fi

pip install --constraint "$locked.txt" setuptools # builds convserve; without isolation, so that its version is locked
if [ "$build" = cpu ]; then
    pip install --no-deps --requirement "$locked-cpu.txt"
    if grep -q '^torch==' "$locked.txt"; then pip install --constraint "$locked.txt" torch; fi
    pip install --no-deps --no-build-isolation --editable .
else
    pip install --constraint "$locked.txt" --no-build-isolation --editable ".$name"
fi
