#!/bin/sh
# Makes image.tar.zst: an OCI layout of our own making (image.py), converted by
# SOCI's own program, with index manifests of both versions. Wants the sources of
# github.com/awslabs/soci-snapshotter, gcc, zlib1g-dev, python3 and zstd.
#
# usage: make.sh SOCI-SOURCES
#
# The one here is of commit 77fb4266a671d3905ca95fbcaac5a556853b7733 (v0.16.1 and later), Python 3.11.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$1"
mkdir -p out cmd/soci/commands/v1
cp "$(gcc -print-file-name=libz.a)" out/
cp "$here/v1.go.txt" cmd/soci/commands/v1/main.go
cd cmd
export GOFLAGS=-mod=mod
go build -o "$tmp/soci" ./soci
go build -o "$tmp/v1" ./soci/commands/v1
python3 "$here/image.py" "$tmp/image"
"$tmp/soci" convert --standalone --format oci-dir --span-size 8192 --min-layer-size 0 \
	--prefetch-file data/part03 "$tmp/image" "$tmp/v2"
"$tmp/v1" "$tmp/v2" "$tmp/both" "$tmp" >"$tmp/digest"
tail -n 1 "$tmp/digest" >"$tmp/both/v1-index"
rm -rf "$tmp/both/ingest"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$tmp/both" -cf - . | zstd -19 --long=27 -q -f -o "$here/image.tar.zst"
