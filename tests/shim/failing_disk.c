/* A disk that fails on command, for a real process: LD_PRELOAD this, and calls on the chosen files fail.
 *
 * Place: tests/failing_disk.rs compiles it and starts the real agent under it. FAILING_DISK names a control file. While
 * that file exists, each of its lines `OPS SUBSTRING ERRNO` makes the named calls fail with that errno on files whose
 * path holds the substring; OPS is a comma-separated list of: fdatasync, fsync, write (write, writev, pwrite, pwritev),
 * change (opening for writing or creating, mkdir, unlink, rename), open (any open). A sync that is made to fail does not
 * happen. With -1 as ERRNO, a call on an open file (fdatasync, fsync, write) does not come back for as long as the file says so.
 * Nothing else changes, and without the file nothing does.
 *
 * What it cannot do: drop pages that were written before the failed sync, as a kernel may. The simulator does that.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* The errno with which `op` on `path` fails now, or 0. Raw system calls, so that it does not meet itself. */
static int fault(const char *op, const char *path) {
    const char *control = getenv("FAILING_DISK");
    if (!control) return 0;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) return 0;
    char text[1024];
    long n = syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    if (n <= 0) return 0;
    text[n] = 0;
    char *rest = text, *line;
    while ((line = strsep(&rest, "\n"))) {
        char ops[128], part[256];
        int error;
        if (sscanf(line, "%127s %255s %d", ops, part, &error) != 3 || !strstr(path, part)) continue;
        char *left = ops, *name;
        while ((name = strsep(&left, ",")))
            if (!strcmp(name, op)) return error;
    }
    return 0;
}

static int fault_fd(const char *op, int fd) {
    int before = errno, error = 0;
    if (getenv("FAILING_DISK")) {
        char link[64], path[4096];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, path, sizeof path - 1);
        /* Sockets and pipes are no disk. */
        if (n > 0 && path[0] == '/') {
            path[n] = 0;
            while ((error = fault(op, path)) == -1) usleep(5000);
        }
    }
    errno = before;
    return error;
}

static int fault_path(const char *op, const char *path) {
    int before = errno, error = fault(op, path);
    errno = before;
    return error;
}

#define FAIL(error)      \
    do {                 \
        int e = (error); \
        if (e) {         \
            errno = e;   \
            return -1;   \
        }                \
    } while (0)

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fdatasync(int fd) {
    FAIL(fault_fd("fdatasync", fd));
    return REAL(fdatasync)(fd);
}

int fsync(int fd) {
    FAIL(fault_fd("fsync", fd));
    return REAL(fsync)(fd);
}

ssize_t write(int fd, const void *bytes, size_t n) {
    FAIL(fault_fd("write", fd));
    return REAL(write)(fd, bytes, n);
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    FAIL(fault_fd("write", fd));
    return REAL(writev)(fd, parts, n);
}

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) {
    FAIL(fault_fd("write", fd));
    return REAL(pwrite)(fd, bytes, n, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at) {
    FAIL(fault_fd("write", fd));
    return REAL(pwrite64)(fd, bytes, n, at);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int n, off64_t at) {
    FAIL(fault_fd("write", fd));
    return REAL(pwritev64)(fd, parts, n, at);
}

static int open_fault(const char *path, int flags) {
    int error = fault_path("open", path);
    if (!error && (flags & (O_WRONLY | O_RDWR | O_CREAT))) error = fault_path("change", path);
    return error;
}

#define OPEN(name)                                        \
    int name(const char *path, int flags, ...) {          \
        va_list more;                                     \
        va_start(more, flags);                            \
        mode_t mode = va_arg(more, mode_t);               \
        va_end(more);                                     \
        FAIL(open_fault(path, flags));                    \
        return REAL(name)(path, flags, mode);             \
    }

OPEN(open)
OPEN(open64)

int mkdir(const char *path, mode_t mode) {
    FAIL(fault_path("change", path));
    return REAL(mkdir)(path, mode);
}

int unlink(const char *path) {
    FAIL(fault_path("change", path));
    return REAL(unlink)(path);
}

int rename(const char *from, const char *to) {
    FAIL(fault_path("change", from));
    FAIL(fault_path("change", to));
    return REAL(rename)(from, to);
}
