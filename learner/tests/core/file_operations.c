/* Loaded before the C library (LD_PRELOAD): writes down, in order, what a program does to the files below
 * $FILE_OPERATIONS_ROOT, one line each in $FILE_OPERATIONS_LOG. What is removed is kept under a number of its
 * own in $FILE_OPERATIONS_KEPT, so that its content is known. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *root, *kept;
static int out = -1;
static int removed;

__attribute__((constructor)) static void begin(void) {
    const char *log = getenv("FILE_OPERATIONS_LOG");
    root = getenv("FILE_OPERATIONS_ROOT");
    kept = getenv("FILE_OPERATIONS_KEPT");
    if (log && root && kept)
        out = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

/* The path relative to the root, which is ".", or none where it is not below it. */
static const char *below(const char *path) {
    size_t length = root ? strlen(root) : 0;
    if (!length || strncmp(path, root, length))
        return NULL;
    if (!path[length])
        return ".";
    return path[length] == '/' ? path + length + 1 : NULL;
}

static void say(const char *what, const char *path, const char *other) {
    char line[2 * PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%s\t%s%s%s\n", what, path, other ? "\t" : "", other ? other : "");
    if (out >= 0 && syscall(SYS_write, out, line, length) != length)
        abort();
}

/* The path of what is open under a number, and of a name in a folder that is. */
static const char *path_of(int fd, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, buffer, PATH_MAX - 1);
    if (length < 0)
        return NULL;
    buffer[length] = 0;
    return below(buffer);
}

static const char *path_at(int dir, const char *name, char *buffer) {
    if (name[0] == '/' || dir == AT_FDCWD)
        return below(name);
    if (!path_of(dir, buffer))
        return NULL;
    strncat(buffer, "/", PATH_MAX - strlen(buffer) - 1);
    strncat(buffer, name, PATH_MAX - strlen(buffer) - 1);
    return below(buffer);
}

static void say_of(const char *what, int fd) {
    char buffer[PATH_MAX];
    const char *path = out >= 0 ? path_of(fd, buffer) : NULL;
    if (path)
        say(what, path, NULL);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int opened(int fd, int flags) {
    int error = errno;
    if (fd >= 0 && flags & (O_CREAT | O_TRUNC))
        say_of("create", fd);
    errno = error;
    return fd;
}

#define MODE(flags) \
    mode_t mode = 0; \
    va_list rest; \
    va_start(rest, flags); \
    if (flags & O_CREAT) \
        mode = va_arg(rest, mode_t); \
    va_end(rest);

int open(const char *path, int flags, ...) {
    MODE(flags)
    return opened(REAL(open)(path, flags, mode), flags);
}
int open64(const char *path, int flags, ...) {
    MODE(flags)
    return opened(REAL(open64)(path, flags, mode), flags);
}
int openat(int dir, const char *path, int flags, ...) {
    MODE(flags)
    return opened(REAL(openat)(dir, path, flags, mode), flags);
}
int openat64(int dir, const char *path, int flags, ...) {
    MODE(flags)
    return opened(REAL(openat64)(dir, path, flags, mode), flags);
}

ssize_t write(int fd, const void *bytes, size_t count) {
    say_of("write", fd);
    return REAL(write)(fd, bytes, count);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    say_of("write", fd);
    return REAL(writev)(fd, parts, count);
}
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    say_of("write", fd);
    return REAL(pwrite64)(fd, bytes, count, at);
}
ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *there, size_t count, unsigned flags) {
    say_of("write", to);
    return REAL(copy_file_range)(from, at, to, there, count, flags);
}
int ftruncate64(int fd, off64_t length) {
    say_of("write", fd);
    return REAL(ftruncate64)(fd, length);
}

int fsync(int fd) {
    int done = REAL(fsync)(fd);
    if (!done)
        say_of("flush", fd);
    return done;
}
int fdatasync(int fd) {
    int done = REAL(fdatasync)(fd);
    if (!done)
        say_of("flush", fd);
    return done;
}

int rename(const char *from, const char *to) {
    const char *source = below(from), *target = below(to);
    int done = REAL(rename)(from, to);
    if (!done && source && target)
        say("rename", source, target);
    return done;
}

int mkdir(const char *path, mode_t mode) {
    int done = REAL(mkdir)(path, mode);
    if (!done && below(path))
        say("mkdir", below(path), NULL);
    return done;
}

static int remove_at(int dir, const char *name, int flags) {
    char buffer[PATH_MAX], copy[PATH_MAX], number[16];
    const char *path = out >= 0 ? path_at(dir, name, buffer) : NULL;
    snprintf(number, sizeof number, "%d", removed);
    if (path && !(flags & AT_REMOVEDIR)) {
        snprintf(copy, sizeof copy, "%s/%s", kept, number);
        removed += !linkat(dir, name, AT_FDCWD, copy, 0);
    }
    int done = REAL(unlinkat)(dir, name, flags);
    if (!done && path)
        say("remove", path, flags & AT_REMOVEDIR ? NULL : number);
    return done;
}
int unlinkat(int dir, const char *name, int flags) { return remove_at(dir, name, flags); }
int unlink(const char *name) { return remove_at(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return remove_at(AT_FDCWD, name, AT_REMOVEDIR); }
