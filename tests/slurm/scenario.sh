#!/bin/bash
set -euo pipefail
. /opt/sluice/tests/nodes.sh
for i in $(seq 30); do sinfo -h -o '%T %D' | grep -q 'idle 4' && break; sleep 0.5; done
sinfo
cd /share/researcher
setpriv --reuid researcher --regid researcher --init-groups srun -N4 hostname
