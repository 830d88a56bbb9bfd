"""Is a path on a network file system? SQLite's locks and shared memory do not work there, and it loses data silently."""

import re
from pathlib import Path

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "ncpfs", "davfs"}
    | {f"fuse.{kind}" for kind in ("sshfs", "glusterfs", "ceph-fuse", "s3fs", "rclone", "gcsfuse", "davfs2", "smbnetfs", "beegfs")}
)


def network_file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The network file system that holds `path`, or None. None as well where the system does not list its mounts."""
    if not mounts.exists():
        return None
    real, best, kind = path.resolve(), Path("/"), ""
    for line in mounts.read_text("utf-8", "surrogateescape").splitlines():
        fields = line.split(" ")
        point = Path(_unescaped(fields[4]))
        if real.is_relative_to(point) and len(point.parts) >= len(best.parts):  # a later mount covers an earlier one
            best, kind = point, fields[fields.index("-") + 1]
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
