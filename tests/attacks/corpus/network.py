"""Reaching out: the network, other sockets, escapes that need the kernel."""

from corpus import MARK, attack, raid

_FILTER = "The system-call filter refuses to make or connect a socket, and the network namespace has no way out."


@attack(tries="Connects to services of this machine over TCP and UDP, and asks for names (DNS).", stopped=_FILTER)
def reaches_for_the_network():
    return raid(
        """
import socket, urllib.request
for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0"):
    for port in (22, 53, 80, 5432, 8888):
        attempt(host, lambda: socket.create_connection((host, port), timeout=1))
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 53)))
attempt("dns", lambda: socket.getaddrinfo("localhost", 80) and socket.gethostbyname("example.invalid"))
attempt("http", lambda: urllib.request.urlopen("http://127.0.0.1:8888/", timeout=1))
attempt("raw", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt("vsock", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
""",
        count=26,
    )


@attack(
    tries="Listens and connects on unix sockets, by path and by abstract name, to meet another submission.",
    stopped=_FILTER,
)
def meets_others_on_unix_sockets():
    return raid(
        f"""
import socket
for name in ("\\0{MARK}", "/tmp/{MARK}-socket", "/dev/shm/{MARK}-socket", "/run/docker.sock", "/tmp/.X11-unix/X0"):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        attempt(name, lambda: socket.socket(socket.AF_UNIX, kind).bind(name) is None)
        attempt(name, lambda: socket.socket(socket.AF_UNIX, kind).connect(name) is None)
pair = socket.socketpair()
attempt("bind a pair", lambda: pair[0].bind("\\0{MARK}-pair") is None)
attempt("listen on a pair", lambda: pair[0].listen() is None)
""",
        count=22,
    )


@attack(
    tries="Asks the kernel for more: namespaces, mounts, a new root, keyrings, io_uring, bpf, capabilities.",
    stopped="The system-call filter refuses them, and there are no capabilities to use them with.",
)
def asks_the_kernel_for_more():
    return raid(
        """
import ctypes, os, platform, resource
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
CALLS = {"unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "pivot_root": (155, 41), "chroot": (161, 51),
         "bpf": (321, 280), "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "add_key": (248, 217),
         "perf_event_open": (298, 241), "open_by_handle_at": (304, 265), "kexec_load": (246, 104),
         "fsopen": (430, 430), "memfd_secret": (447, 447), "execveat": (322, 281)}
for name, numbers in CALLS.items():
    attempt(name, lambda: libc.syscall(numbers[not X86], 0x10000000, b"/tmp", 0, 0, 0) >= 0)
attempt("uid", lambda: os.setuid(0) is None or os.getuid() == 0)
attempt("chown", lambda: os.chown("/tmp", 0, 0) is None)
attempt("limits", lambda: resource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6)) is None)
attempt("processes", lambda: resource.setrlimit(resource.RLIMIT_NPROC, (10**6, 10**6)) is None)
attempt("nice", lambda: os.nice(-5) < 0)
attempt("device", lambda: os.mknod("/tmp/device", 0o600 | 0o060000, os.makedev(8, 0)) is None)
""",
        count=21,
    )


@attack(
    tries="Writes outside /tmp through links, .. and the folders of the libraries, and overwrites the interpreter.",
    stopped="All mounts but /tmp are read-only, and a link leads only to what the jail's root holds.",
)
def writes_outside_its_folder():
    return raid(
        f"""
import os, sys
for target in ("/", "/etc", "/usr/lib", sys.prefix, os.path.dirname(np.__file__), "/dev", "/proc", "/root", "/var/tmp",
               "/tmp/../../..", "/dev/shm/../.."):
    attempt(target, lambda: open(os.path.join(target, "{MARK}"), "w"))
    attempt(target, lambda: os.rename("/tmp", os.path.join(target, "{MARK}")) is None)
    try:
        os.symlink(target, "/tmp/link")
        attempt(target, lambda: open("/tmp/link/{MARK}", "w"))
    finally:
        os.unlink("/tmp/link")
attempt("python", lambda: open(os.path.realpath(sys.executable), "r+b"))
attempt("numpy", lambda: open(np.__file__, "a"))
attempt("remove", lambda: os.remove(np.__file__) is None)
attempt("chmod", lambda: os.chmod(np.__file__, 0o777) is None)
""",
        count=37,
    )
