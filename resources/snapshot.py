#!/usr/bin/env python3
"""Prints `path value` of all files but histograms: snapshot.py /run/statsfs/.stats/snapshot (format: statsfs/src/snapshot/format.rs)"""
import sys
from struct import unpack_from
data = open(sys.argv[1], "rb").read()
word, pair = lambda at: unpack_from("<Q", data, at)[0], lambda at: unpack_from("<II", data, at)
assert data[:8] == b"STATSNAP" and pair(8)[0] == 1 and word(16) == len(data), "no whole snapshot of version 1"
dirs, _, kinds, files, groups, values, cells, parts, words, texts = (word(48 + 16 * n) for n in range(10))
text = lambda at: data[texts + pair(at)[0]:texts + sum(pair(at))].decode()
records = lambda at, base, size: range(base + size * pair(at)[0], base + size * sum(pair(at)), size)
signed = lambda n, ty: n - (1 << 64) if 5 <= ty <= 8 and n >> 63 else n
def instances(at):  # of one directory: own, identity, sum, exact sum without what departed, number, zeros, least, greatest
    for cell in records(at + 56, cells, 24):
        (group, flags), (raw, base) = pair(cell), unpack_from("<QQ", data, cell + 8)
        for value in records(groups + 32 * group + 16, values, 64):
            ty, buckets, has_sum, _, _, semantics = unpack_from("<6B", data, value + 16)
            n, width = word(words + 8 * raw), 64 if flags & 2 or not 1 <= ty <= 3 else 4 << ty
            if flags & 4 and semantics == 0:
                n = (n - word(words + 8 * base)) % (1 << width)
            raw, base, n = raw + (buckets + has_sum or 1), base + (buckets + has_sum or 1), signed(n, ty)
            yield (flags & 1, pair(value + 24)[0]) + ((n, 0, 0, 0, 0, 0) if flags & 2 else (n, n, 1, n == 0, n, n))
    for part in records(at + 64, parts, 16):
        (value, flags), ty = pair(part), data[values + 64 * pair(part)[0] + 16]
        at = words + 8 * (word(part + 8) + (7 if flags & 4 else 0))
        n = unpack_from("<QQqQQQQ", data, at) if ty < 9 else [0] * 7
        yield flags & 1, pair(values + 64 * value + 24)[0], n[0], n[1] + (n[2] << 64), n[3], n[4], signed(n[5], ty), signed(n[6], ty)
found, paths = [list(instances(dirs + 72 * n)) for n in range(word(56))], []
for d, at in enumerate(range(dirs, dirs + 72 * word(56), 72)):
    paths.append(paths[pair(at + 16)[0]] + "/" + text(at + 24) if d else text(40))
    below = [one for of in found[d + 1:pair(at + 16)[1]] for one in of]
    for file in records(kinds + 8 * pair(at + 40)[0], files, 16):
        value, part = pair(file + 8)
        ty, identity = data[values + 64 * value + 16], pair(values + 64 * value + 24)[0]
        all = [one[2:] for one in found[d] + (below if part else []) if one[1] == identity and (part or one[0])]
        wrapped, total, n, zeros = (sum(one[k] for one in all) for k in range(4))
        mean, live = abs(total) // (n or 1) * (-1 if total < 0 else 1), [one for one in all if one[2]]
        least, most = min((one[4] for one in live), default=0), max((one[5] for one in live), default=0)
        if part < 8:
            shown = signed(wrapped % (1 << 64), ty), least, most, mean, zeros, n - zeros
            print((paths[d] + "/" + text(file)).lstrip("/"), shown[part - 1 if part else 0])
