#!/bin/sh
# Munge, by which Slurm knows its users, on this node.
set -eu
mkdir -p /run/munge
chown munge:munge /run/munge
chmod 755 /run/munge
exec setpriv --reuid munge --regid munge --clear-groups munged
