#!/bin/sh
# In a build stage: /requirements.txt -> /opt/convserve. Packages come as wheels, so that no compiler is needed, and only as
# the lock's hashes say.
set -eu
if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi
if [ -f /run/secrets/pip ]; then export PIP_CONFIG_FILE=/run/secrets/pip; fi
python3 -m venv --without-pip /opt/convserve
python3 -m pip --disable-pip-version-check --python /opt/convserve/bin/python install --root-user-action=ignore \
    --require-hashes --no-deps --only-binary :all: --no-compile --requirement /requirements.txt
# The packages' own tests: a tenth of all.
find /opt/convserve/lib -type d \( -name test -o -name tests \) -prune -exec rm -rf {} +
# ONNX Runtime a second time, for programs in C: Python's is linked into its own module.
rm -f /opt/convserve/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.*
# Nobody can write bytecode later. It is not compared with its source, whose time may change with a layer.
/opt/convserve/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/convserve/lib
