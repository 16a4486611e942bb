"""Makes the OCI layout of an image whose layers are of every kind that SOCI meets.

usage: image.py DIR

zlib's memLevel 1 ends a block after 128 symbols, so that few bytes have many
blocks, most of which begin inside of a byte.
"""
import hashlib, io, json, os, random, struct, sys, tarfile, zlib

rnd = random.Random(20)
words = ["".join(rnd.choice("etaoinshrdlu") for _ in range(rnd.randint(2, 7))) for _ in range(24)]


def text(n):
    out = []
    while sum(map(len, out)) < n:
        out.append(" ".join(rnd.choice(words) for _ in range(9)) + ".\n")
    return "".join(out).encode()[:n]


class Layer:
    def __init__(self):
        self.buf = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.buf, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name, data=None, **kw):
        t = tarfile.TarInfo(name)
        t.mtime, t.mode = 1700000000, 0o644
        for k, v in kw.items():
            setattr(t, k, v)
        if data is not None:
            t.size = len(data)
        self.tar.addfile(t, io.BytesIO(data) if data is not None else None)

    def dir(self, name, **kw):
        self.add(name, type=tarfile.DIRTYPE, **{"mode": 0o755, **kw})

    def done(self):
        self.tar.close()
        return self.buf.getvalue()


def deflate(data, level=6, mem=1):
    z = zlib.compressobj(level, zlib.DEFLATED, -15, mem)
    return z.compress(data) + z.flush()


def member(data, name=b"", extra=b"", **kw):
    flags = (8 if name else 0) | (4 if extra else 0)
    head = b"\x1f\x8b\x08" + bytes([flags]) + b"\0\0\0\0\0\x03"
    if extra:
        head += struct.pack("<H", len(extra)) + extra
    if name:
        head += name + b"\0"
    return head + deflate(data, **kw) + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def base():
    l = Layer()
    l.dir("./")
    l.dir("./bin/")
    l.add("./bin/app", text(19000), mode=0o4755, uid=7, gid=70000)
    l.add("./bin/app2", type=tarfile.LNKTYPE, linkname="./bin/app")
    l.add("./bin/sh", type=tarfile.SYMTYPE, linkname="../bin/app")
    l.add("./empty", b"", mode=0o600)
    l.add("./" + "deep/" * 30 + "name-that-needs-a-pax-header", b"long\n", mtime=1700000000.123456789)
    l.add("./caps", b"capable\n", pax_headers={"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x20", "SCHILY.xattr.user.note": "k\u00e4se"})
    l.dir("./dev/")
    l.add("./dev/null", type=tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3)
    l.add("./dev/loop0", type=tarfile.BLKTYPE, mode=0o660, devmajor=7)
    l.add("./dev/pipe", type=tarfile.FIFOTYPE)
    l.add("./data/table", text(14000))
    l.add("./data/replaced", b"the first\n")
    l.add("./data/replaced", b"the second\n")
    return l.done()


def top():
    l = Layer()
    l.add("data/.wh..wh..opq", b"")
    l.add("bin/.wh.sh", b"")
    for i in range(12):
        l.add(f"data/part{i:02}", text(2400))
    return l.done()


def plain():
    l = Layer()
    l.add("etc/motd", b"hello\n")
    l.add("etc/words", text(5000))
    return l.done()


def main(root):
    blobs = os.path.join(root, "blobs", "sha256")
    os.makedirs(blobs)

    def put(b, media):
        h = hashlib.sha256(b).hexdigest()
        with open(os.path.join(blobs, h), "wb") as f:
            f.write(b)
        return {"mediaType": media, "digest": "sha256:" + h, "size": len(b)}

    oci = "application/vnd.oci.image."
    a, b, c = base(), top(), plain()
    cut = len(b) // 3 + 100
    layers = [
        # a name and an extra field make the header longer than ten bytes
        (a, member(a, name=b"layer.tar", extra=b"ab\x02\x00xy"), "layer.v1.tar+gzip"),
        # several members, as parallel compressors write
        (b, member(b[:cut]) + member(b[cut : 2 * cut], level=1) + member(b[2 * cut :], level=9, mem=2), "layer.v1.tar+gzip"),
        (c, c, "layer.v1.tar"),
    ]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(p).hexdigest() for p, _, _ in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": oci + "manifest.v1+json",
        "config": put(json.dumps(config).encode(), oci + "config.v1+json"),
        "layers": [put(s, oci + m) for _, s, m in layers],
    }
    desc = put(json.dumps(manifest).encode(), oci + "manifest.v1+json")
    desc["platform"] = {"architecture": "amd64", "os": "linux"}
    index = {"schemaVersion": 2, "mediaType": oci + "index.v1+json", "manifests": [desc]}
    with open(os.path.join(root, "index.json"), "w") as f:
        json.dump(index, f)
    with open(os.path.join(root, "oci-layout"), "w") as f:
        f.write('{"imageLayoutVersion": "1.0.0"}')


main(sys.argv[1])
