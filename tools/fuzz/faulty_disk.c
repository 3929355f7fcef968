/* A disk that fails: preloaded, it makes the N-th chosen call below one folder fail with a chosen error.

   gcc -shared -fPIC -O1 -o faulty_disk.so faulty_disk.c -ldl
   LD_PRELOAD=./faulty_disk.so FAULT_UNDER=/store FAULT_CALLS=write,fsync FAULT_ERRNO=5 FAULT_AT=12 FAULT_TIMES=1 PROGRAM

   FAULT_CALLS: write (also pwrite, writev), fsync (also fdatasync), rename, open (for writing or making), link, mkdir,
   unlink, read (also pread). FAULT_TIMES=0: every one from the N-th on. FAULT_TOLD: a file that gets a line for each
   fault. FAULT_ERRNO=-1: calls are told, none fails. Variables are read when a process makes its first such call, so that a fork may set its own. */
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
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static pid_t known;
static char under[PATH_MAX], calls[256], told[PATH_MAX];
static int error_number, at, times, seen;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void settings(void) {
    if (known == getpid()) return;
    known = getpid();
    const char *value = getenv("FAULT_UNDER");
    snprintf(under, sizeof under, "%s", value ? value : "");
    value = getenv("FAULT_CALLS");
    snprintf(calls, sizeof calls, ",%s,", value ? value : "");
    value = getenv("FAULT_TOLD");
    snprintf(told, sizeof told, "%s", value ? value : "");
    error_number = (value = getenv("FAULT_ERRNO")) ? atoi(value) : 0;
    at = (value = getenv("FAULT_AT")) ? atoi(value) : 0;
    times = (value = getenv("FAULT_TIMES")) ? atoi(value) : 1;
    seen = 0;
}

static int fails(const char *call, const char *path) {
    settings();
    if (!error_number || !under[0] || !path) return 0;
    char wanted[64];
    snprintf(wanted, sizeof wanted, ",%s,", call);
    if (!strstr(calls, wanted) || strncmp(path, under, strlen(under))) return 0;
    int number = __sync_add_and_fetch(&seen, 1);
    if (number < at || (times && number >= at + times)) return 0;
    if (told[0]) {
        char line[PATH_MAX + 64];
        int size = snprintf(line, sizeof line, "%s %s\n", call, path);
        int file = REAL(open)(told, O_WRONLY | O_CREAT | O_APPEND, 0644);
        if (file >= 0) {
            ssize_t ignored = REAL(write)(file, line, size);
            (void)ignored;
            close(file);
        }
    }
    if (error_number < 0) return 0;
    errno = error_number;
    return 1;
}

static int fails_fd(const char *call, int file) {
    char name[64], path[PATH_MAX];
    settings();
    if (!error_number || !under[0]) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    ssize_t size = readlink(name, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return fails(call, path);
}

static int fails_at(const char *call, int folder, const char *path) {
    if (path && path[0] == '/') return fails(call, path);
    char name[64], whole[PATH_MAX];
    if (folder == AT_FDCWD) snprintf(name, sizeof name, "/proc/self/cwd");
    else snprintf(name, sizeof name, "/proc/self/fd/%d", folder);
    ssize_t size = readlink(name, whole, sizeof whole - 1);
    if (size < 0 || !path) return 0;
    snprintf(whole + size, sizeof whole - size, "/%s", path);
    return fails(call, whole);
}

ssize_t write(int file, const void *data, size_t size) { return fails_fd("write", file) ? -1 : REAL(write)(file, data, size); }
ssize_t pwrite(int file, const void *data, size_t size, off_t place) { return fails_fd("write", file) ? -1 : REAL(pwrite)(file, data, size, place); }
ssize_t pwrite64(int file, const void *data, size_t size, off64_t place) { return fails_fd("write", file) ? -1 : REAL(pwrite64)(file, data, size, place); }
ssize_t writev(int file, const struct iovec *parts, int count) { return fails_fd("write", file) ? -1 : REAL(writev)(file, parts, count); }
ssize_t read(int file, void *data, size_t size) { return fails_fd("read", file) ? -1 : REAL(read)(file, data, size); }
ssize_t pread(int file, void *data, size_t size, off_t place) { return fails_fd("read", file) ? -1 : REAL(pread)(file, data, size, place); }
ssize_t pread64(int file, void *data, size_t size, off64_t place) { return fails_fd("read", file) ? -1 : REAL(pread64)(file, data, size, place); }
int fsync(int file) { return fails_fd("fsync", file) ? -1 : REAL(fsync)(file); }
int fdatasync(int file) { return fails_fd("fsync", file) ? -1 : REAL(fdatasync)(file); }
int rename(const char *from, const char *to) { return fails("rename", to) ? -1 : REAL(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) { return fails_at("rename", b, to) ? -1 : REAL(renameat)(a, from, b, to); }
int link(const char *from, const char *to) { return fails("link", to) ? -1 : REAL(link)(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) { return fails_at("link", b, to) ? -1 : REAL(linkat)(a, from, b, to, flags); }
int symlink(const char *from, const char *to) { return fails("link", to) ? -1 : REAL(symlink)(from, to); }
int mkdir(const char *path, mode_t mode) { return fails("mkdir", path) ? -1 : REAL(mkdir)(path, mode); }
int unlink(const char *path) { return fails("unlink", path) ? -1 : REAL(unlink)(path); }

#define OPEN(name)                                                             \
    int name(const char *path, int flags, ...) {                               \
        mode_t mode = 0;                                                       \
        if (flags & (O_CREAT | O_TMPFILE)) {                                   \
            va_list more;                                                      \
            va_start(more, flags);                                             \
            mode = va_arg(more, mode_t);                                       \
            va_end(more);                                                      \
        }                                                                      \
        if ((flags & (O_CREAT | O_WRONLY | O_RDWR)) && fails("open", path)) return -1; \
        return REAL(name)(path, flags, mode);                                  \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                           \
    int name(int folder, const char *path, int flags, ...) {                   \
        mode_t mode = 0;                                                       \
        if (flags & (O_CREAT | O_TMPFILE)) {                                   \
            va_list more;                                                      \
            va_start(more, flags);                                             \
            mode = va_arg(more, mode_t);                                       \
            va_end(more);                                                      \
        }                                                                      \
        if ((flags & (O_CREAT | O_WRONLY | O_RDWR)) && fails_at("open", folder, path)) return -1; \
        return REAL(name)(folder, path, flags, mode);                          \
    }
OPENAT(openat)
OPENAT(openat64)
