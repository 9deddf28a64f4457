"""Reaching out: the network, other sockets, escapes that need the kernel."""

from corpus import MARK, attack, raid

_FILTER = "The system-call filter refuses to make or connect a socket, and the network namespace has no way out."


@attack(
    tries="Connects to services of this machine over TCP, UDP and HTTP, asks for a name, and makes raw sockets.",
    stopped=_FILTER,
)
def reaches_for_the_network():
    return raid(
        """
import socket, urllib.request
for host in ("127.0.0.1", "localhost", "0.0.0.0"):
    attempt(host, lambda: socket.create_connection((host, BAIT_TCP), timeout=1))
attempt("http", lambda: urllib.request.urlopen("http://127.0.0.1:BAIT_TCP/", timeout=2).read())
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", BAIT_UDP)))
attempt("name", lambda: socket.gethostbyname("BAIT_HOST"))
attempt("raw", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
""",
        count=8,
    )


@attack(
    tries="Listens and connects on unix sockets, by path and by abstract name, to meet other submissions and services.",
    stopped=_FILTER,
)
def meets_others_on_unix_sockets():
    return raid(
        f"""
import socket
def unix(kind=socket.SOCK_STREAM):
    return socket.socket(socket.AF_UNIX, kind)
def listen(name):
    one = unix()
    one.bind(name)
    one.listen()
    return one
def connect(name, kind=socket.SOCK_STREAM):
    one = unix(kind)
    one.connect(name)
    return one
KEPT = []
for name in ("\\0{MARK}-own", "/tmp/{MARK}-socket", "/dev/shm/{MARK}-socket"):
    attempt("listen", lambda: KEPT.append(listen(name)) or KEPT)
    attempt("connect", lambda: connect(name))
    attempt("datagram", lambda: unix(socket.SOCK_DGRAM).bind(name + "-datagram") is None)
attempt("abstract service", lambda: connect("\\0BAIT_ABSTRACT"))
attempt("service", lambda: connect("BAIT_UNIX"))
attempt("bind a pair", lambda: socket.socketpair()[0].bind("\\0{MARK}-pair") is None)
""",
        count=12,
    )


@attack(
    tries="Asks the kernel for more: namespaces, mounts, a new root, keyrings, io_uring, bpf, capabilities.",
    stopped="The system-call filter refuses them, and there are no capabilities to use them with.",
)
def asks_the_kernel_for_more():
    return raid(
        f"""
import ctypes, errno, os, platform, resource
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
# Arguments that are none: a kernel that would let us complains of them, one that does not says so first.
CALLS = {{"unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "pivot_root": (155, 41), "chroot": (161, 51),
         "bpf": (321, 280), "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "add_key": (248, 217),
         "perf_event_open": (298, 241), "open_by_handle_at": (304, 265), "fsopen": (430, 430), "execveat": (322, 281)}}
def asked(numbers):
    if libc.syscall(numbers[not X86], -1, -1, -1, -1, -1, -1) >= 0:
        return True
    return ctypes.get_errno() not in (errno.EPERM, errno.EACCES, errno.ENOSYS)
for name, numbers in CALLS.items():
    attempt(name, lambda: asked(numbers))
def in_a_child(asks):
    child = os.fork()
    if child == 0:
        os._exit(not asks())
    return os.waitpid(child, 0)[1] == 0
attempt("user namespace", lambda: in_a_child(lambda: libc.unshare(0x10000000) == 0))
attempt("clone", lambda: os.waitpid(libc.syscall((56, 220)[not X86], 0x20000000 | 17, 0, 0, 0, 0) or os._exit(0), 0))
attempt("uid", lambda: os.getuid() == 0 or os.setuid(0) is None)
attempt("chown", lambda: os.chown("/tmp", 0, 0) is None)
attempt("limits", lambda: resource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6)) is None)
attempt("processes", lambda: resource.setrlimit(resource.RLIMIT_NPROC, (64, 64)) is None)
attempt("nice", lambda: os.nice(-5) < 0)
attempt("device", lambda: os.mknod("/tmp/{MARK}-device", 0o600 | 0o020000, os.makedev(1, 3)) is None)
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
for target in ("/", "/etc", "/usr/lib", sys.prefix, os.path.dirname(np.__file__), "/dev", "/root", "/var/tmp",
               "/tmp/../../..", "/dev/shm/../.."):
    attempt(target, lambda: open(os.path.join(target, "{MARK}"), "w"))
    attempt(target, lambda: os.mkdir(os.path.join(target, "{MARK}" + str(len(TRIED)))) is None)
    try:
        os.symlink(target, "/tmp/link")
        attempt(target, lambda: open("/tmp/link/{MARK}-link", "w"))
    finally:
        os.unlink("/tmp/link")
attempt("python", lambda: open(os.path.realpath(sys.executable), "r+b"))
attempt("numpy", lambda: open(np.__file__, "a"))
attempt("chmod", lambda: os.chmod(np.__file__, 0o777) is None)
attempt("remove", lambda: os.remove(np.__file__) is None)
""",
        count=34,
    )
