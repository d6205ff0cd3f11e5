/* Interposed libc: counts, records, kills, tears and fails the calls that a process makes beneath one directory.
 *
 * Loaded by LD_PRELOAD; driven from the same process (crash/shim/__init__.py) through the shim_* functions at the end.
 * Every call of one of the classes below whose file lies beneath the root is one *call*: it is counted if its class is
 * in the mask, and the n-th counted call meets the fault that was armed. Recording happens under one mutex around call
 * and record, so the log's order is the order in which things happened, whatever the threads.
 *
 * What is done is done by the raw system call, so no function here can call another one by accident.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum class_ { WRITE = 1, SYNC = 2, NAME = 4, CREATE = 8, META = 16, TRUNC = 32, OPEN = 64, READ = 128 };
enum fault { NONE, KILL, TEAR, SHORT, FAIL_ONCE, FAIL_ON };
enum verdict { GO, FAIL, HALF, HALF_THEN_DIE };

/* ---- state ---------------------------------------------------------------------------------------------------- */

static char root[4096];
static size_t root_length;
static int mask, fault, fault_errno, log_fd = -1, trace_fd = -1;
static long target, counted;

/* What the fault met: shared with the process that forked this one after shim_share(), which reads it after our death. */
struct landed { long fired, nth; char op[16], path[4096]; };
static struct landed own_landed, *landed = &own_landed;
static pthread_mutex_t mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

static void after_fork(void) {
    pthread_mutex_t fresh = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
    mutex = fresh;
}

__attribute__((constructor)) static void start(void) { pthread_atfork(0, 0, after_fork); }

static void die(void) {
    syscall(SYS_kill, (long)syscall(SYS_getpid), SIGKILL);
    for (;;) syscall(SYS_pause);
}

/* ---- which file ------------------------------------------------------------------------------------------------ */

static int beneath(const char *path) {
    return root_length && path && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static const char *path_of_fd(int fd, char *buffer) {
    char link[64];
    char digits[16];
    int n = 0;
    if (fd < 0) return 0;
    strcpy(link, "/proc/self/fd/");
    do digits[n++] = (char)('0' + fd % 10); while ((fd /= 10));
    size_t at = strlen(link);
    while (n) link[at++] = digits[--n];
    link[at] = 0;
    ssize_t length = syscall(SYS_readlink, link, buffer, 4095);
    if (length < 0) return 0;
    buffer[length] = 0;
    return buffer;
}

static const char *path_at(int dir, const char *name, char *buffer) {
    if (!name) return 0;
    if (!strncmp(name, "/proc/self/fd/", 14)) {   /* what has no *at call is reached through its directory's descriptor */
        const char *rest = name + 14;
        int fd = 0;
        while (*rest >= '0' && *rest <= '9') fd = fd * 10 + *rest++ - '0';
        return *rest == '/' ? path_at(fd, rest + 1, buffer) : *rest ? name : path_of_fd(fd, buffer);
    }
    if (name[0] == '/') return name;
    if (dir == AT_FDCWD) {
        if (syscall(SYS_getcwd, buffer, 4096) < 0) return 0;
    } else if (!path_of_fd(dir, buffer)) return 0;
    size_t length = strlen(buffer), more = strlen(name);
    if (length + more + 2 > 4096) return 0;
    if (!strcmp(name, ".") || !more) return buffer;
    buffer[length] = '/';
    memcpy(buffer + length + 1, name, more + 1);
    return buffer;
}

/* ---- counting and recording -------------------------------------------------------------------------------------- */

struct __attribute__((packed)) header {
    uint32_t a_length, b_length;
    uint64_t data_length, offset, inode;
    int64_t result;
    uint32_t pid;
    char op[12];
};

static uint64_t inode_of_fd(int fd) {
    struct stat s;
    return fd >= 0 && syscall(SYS_fstat, fd, &s) == 0 ? s.st_ino : 0;
}

static uint64_t inode_at(const char *path) {
    struct stat s;
    return path && syscall(SYS_newfstatat, AT_FDCWD, path, &s, AT_SYMLINK_NOFOLLOW) == 0 ? s.st_ino : 0;
}

static void record(const char *op, const char *a, const char *b, uint64_t inode, uint64_t offset, const void *data,
                   size_t length, int64_t result) {
    if (log_fd < 0) return;
    struct header h = {a ? strlen(a) : 0, b ? strlen(b) : 0, data ? length : 0, offset, inode, result,
                       (uint32_t)syscall(SYS_getpid), {0}};
    strncpy(h.op, op, sizeof h.op - 1);
    struct iovec parts[4] = {{&h, sizeof h}, {(void *)a, h.a_length}, {(void *)b, h.b_length}, {(void *)data, h.data_length}};
    int keep = errno;
    syscall(SYS_writev, log_fd, parts, 4);
    errno = keep;
}

/* Every counted call, whether it succeeds or not: what a rig goes through to know what its n-th call is. */
static void trace(long n, const char *op, int fd, const char *path) {
    struct __attribute__((packed)) { uint32_t n; int32_t fd; uint32_t length; char op[12]; } h = {n, fd, strlen(path), {0}};
    if (trace_fd < 0) return;
    strncpy(h.op, op, sizeof h.op - 1);
    struct iovec parts[2] = {{&h, sizeof h}, {(void *)path, h.length}};
    int keep = errno;
    syscall(SYS_writev, trace_fd, parts, 2);
    errno = keep;
}

/* Count one call; what must happen to it. *fd* is -1 for a call by name. */
static enum verdict meet(int class_, const char *op, int fd, const char *path) {
    if (!(mask & class_)) return GO;
    long n = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
    trace(n, op, fd, path);
    if (fault == NONE || n < target || (n > target && fault != FAIL_ON)) return GO;
    if (fault == SHORT && class_ != WRITE) return GO;
    if (!landed->fired++) {
        landed->nth = n;
        strncpy(landed->op, op, sizeof landed->op - 1);
        strncpy(landed->path, path, sizeof landed->path - 1);
    }
    switch (fault) {
    case KILL: die(); return GO;
    case TEAR:
        if (class_ != WRITE) die();
        return HALF_THEN_DIE;
    case SHORT: return HALF;
    default:
        errno = fault_errno;
        return FAIL;
    }
}

#define LOCK pthread_mutex_lock(&mutex)
#define DONE(value) do { int keep_ = errno; pthread_mutex_unlock(&mutex); errno = keep_; return value; } while (0)

/* ---- writes ------------------------------------------------------------------------------------------------------ */

static ssize_t put(int fd, const struct iovec *parts, int count, off_t offset, int positional) {
    char buffer[4096];
    const char *path = root_length ? path_of_fd(fd, buffer) : 0;
    if (!beneath(path))
        return positional ? syscall(SYS_pwritev, fd, parts, count, offset, 0) : syscall(SYS_writev, fd, parts, count);
    LOCK;
    enum verdict what = meet(WRITE, "write", fd, path);
    if (what == FAIL) DONE(-1);
    size_t total = 0, at = 0;
    for (int i = 0; i < count; i++) total += parts[i].iov_len;
    char *data = malloc(total ? total : 1);
    for (int i = 0; i < count; at += parts[i++].iov_len) memcpy(data + at, parts[i].iov_base, parts[i].iov_len);
    if (what != GO) total = total > 1024 ? (total / 2) & ~511ul : total / 2;
    int flags = syscall(SYS_fcntl, fd, F_GETFL);
    off_t where = positional ? offset
                : flags & O_APPEND ? (off_t)syscall(SYS_lseek, fd, 0, SEEK_END) : (off_t)syscall(SYS_lseek, fd, 0, SEEK_CUR);
    ssize_t done = positional ? syscall(SYS_pwrite64, fd, data, total, offset) : syscall(SYS_write, fd, data, total);
    if (done >= 0) {
        uint64_t inode = inode_of_fd(fd);
        record("write", path, 0, inode, where, data, done, done);
        if (flags & (O_DSYNC | O_SYNC)) record("fdatasync", path, "O_DSYNC", inode, where, 0, 0, done);
    }
    if (what == HALF_THEN_DIE) die();
    int keep = errno;
    free(data);
    errno = keep;
    DONE(done);
}

ssize_t write(int fd, const void *data, size_t n) { struct iovec v = {(void *)data, n}; return put(fd, &v, 1, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t n, off_t o) { struct iovec v = {(void *)data, n}; return put(fd, &v, 1, o, 1); }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t o) { return pwrite(fd, data, n, o); }
ssize_t writev(int fd, const struct iovec *v, int n) { return put(fd, v, n, 0, 0); }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t o) { return put(fd, v, n, o, 1); }
ssize_t pwritev2(int fd, const struct iovec *v, int n, off_t o, int f) { (void)f; return put(fd, v, n, o, o != -1); }
ssize_t pwritev64v2(int fd, const struct iovec *v, int n, off64_t o, int f) { return pwritev2(fd, v, n, o, f); }
ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t o) { return put(fd, v, n, o, 1); }

/* ---- syncs, sizes, attributes: by descriptor ---------------------------------------------------------------------- */

/* What an attribute was set to goes into the record: name_ as the second text, value_ as the data. */
#define BY_FD(class_, op, off_, call) BY_FD_WITH(class_, op, off_, 0, 0, 0, call)
#define BY_FD_WITH(class_, op, off_, name_, value_, size_, call)                   \
    char buffer_[4096];                                                            \
    const char *path_ = root_length ? path_of_fd(fd, buffer_) : 0;                 \
    if (!beneath(path_)) return call;                                              \
    LOCK;                                                                          \
    if (meet(class_, op, fd, path_) == FAIL) DONE(-1);                             \
    long done_ = call;                                                             \
    if (done_ >= 0) record(op, path_, name_, inode_of_fd(fd), off_, value_, size_, done_); \
    DONE(done_)

/* What copies within the kernel: a short one is a short write. */
#define COPY(n, to, call) do {                                                     \
    char buffer_[4096];                                                            \
    const char *path_ = root_length ? path_of_fd(to, buffer_) : 0;                 \
    if (!beneath(path_)) return call;                                              \
    LOCK;                                                                          \
    enum verdict what_ = meet(WRITE, "copy", to, path_);                           \
    if (what_ == FAIL) DONE(-1);                                                   \
    if (what_ != GO) n = n / 2;                                                    \
    long done_ = call;                                                             \
    if (what_ == HALF_THEN_DIE) die();                                             \
    if (done_ >= 0) record("copy", path_, 0, inode_of_fd(to), 0, 0, 0, done_);     \
    DONE(done_);                                                                   \
} while (0)
ssize_t copy_file_range(int in, off64_t *i, int out, off64_t *o, size_t n, unsigned f) { COPY(n, out, syscall(SYS_copy_file_range, in, i, out, o, n, f)); }
ssize_t sendfile(int out, int in, off_t *o, size_t n) { COPY(n, out, syscall(SYS_sendfile, out, in, o, n)); }
ssize_t sendfile64(int out, int in, off64_t *o, size_t n) { return sendfile(out, in, o, n); }

int fsync(int fd) { BY_FD(SYNC, "fsync", 0, syscall(SYS_fsync, fd)); }
int fdatasync(int fd) { BY_FD(SYNC, "fdatasync", 0, syscall(SYS_fdatasync, fd)); }
int syncfs(int fd) { BY_FD(SYNC, "syncfs", 0, syscall(SYS_syncfs, fd)); }
int ftruncate(int fd, off_t n) { BY_FD(TRUNC, "truncate", n, syscall(SYS_ftruncate, fd, n)); }
int ftruncate64(int fd, off64_t n) { return ftruncate(fd, n); }
int fallocate(int fd, int mode, off_t o, off_t n) { BY_FD(TRUNC, "fallocate", o + n, syscall(SYS_fallocate, fd, mode, o, n)); }
int fallocate64(int fd, int mode, off64_t o, off64_t n) { return fallocate(fd, mode, o, n); }
int posix_fallocate(int fd, off_t o, off_t n) { return fallocate(fd, 0, o, n) ? errno : 0; }
int posix_fallocate64(int fd, off64_t o, off64_t n) { return posix_fallocate(fd, o, n); }
int fchmod(int fd, mode_t m) { BY_FD(META, "chmod", m, syscall(SYS_fchmod, fd, m)); }
int fchown(int fd, uid_t u, gid_t g) { BY_FD_WITH(META, "chown", u, 0, &g, sizeof g, syscall(SYS_fchown, fd, u, g)); }
int futimens(int fd, const struct timespec t[2]) { BY_FD_WITH(META, "utimens", 0, 0, t, sizeof(struct timespec[2]), syscall(SYS_utimensat, fd, 0, t, 0)); }
int fsetxattr(int fd, const char *k, const void *v, size_t n, int f) { BY_FD_WITH(META, "setxattr", 0, k, v, n, syscall(SYS_fsetxattr, fd, k, v, n, f)); }
int fremovexattr(int fd, const char *k) { BY_FD_WITH(META, "removexattr", 0, k, 0, 0, syscall(SYS_fremovexattr, fd, k)); }
ssize_t read(int fd, void *b, size_t n) { if (!(mask & READ)) return syscall(SYS_read, fd, b, n); BY_FD(READ, "read", 0, syscall(SYS_read, fd, b, n)); }
ssize_t pread(int fd, void *b, size_t n, off_t o) { if (!(mask & READ)) return syscall(SYS_pread64, fd, b, n, o); BY_FD(READ, "read", o, syscall(SYS_pread64, fd, b, n, o)); }
ssize_t pread64(int fd, void *b, size_t n, off64_t o) { return pread(fd, b, n, o); }

/* ---- names: by directory and name ---------------------------------------------------------------------------------- */

#define BY_NAME(class_, op, dir, name, off_, call) BY_NAME_WITH(class_, op, dir, name, off_, 0, 0, 0, call)
#define BY_NAME_WITH(class_, op, dir, name, off_, name_, value_, size_, call)      \
    char buffer_[4096];                                                            \
    const char *path_ = root_length ? path_at(dir, name, buffer_) : 0;             \
    if (!beneath(path_)) return call;                                              \
    LOCK;                                                                          \
    if (meet(class_, op, -1, path_) == FAIL) DONE(-1);                             \
    uint64_t inode_ = inode_at(path_);                                             \
    long done_ = call;                                                             \
    if (done_ >= 0) record(op, path_, name_, inode_ ? inode_ : inode_at(path_), off_, value_, size_, done_); \
    DONE(done_)

int unlinkat(int d, const char *n, int f) { BY_NAME(NAME, f & AT_REMOVEDIR ? "rmdir" : "unlink", d, n, 0, syscall(SYS_unlinkat, d, n, f)); }
int unlink(const char *n) { return unlinkat(AT_FDCWD, n, 0); }
int rmdir(const char *n) { return unlinkat(AT_FDCWD, n, AT_REMOVEDIR); }
int mkdirat(int d, const char *n, mode_t m) { BY_NAME(NAME, "mkdir", d, n, m, syscall(SYS_mkdirat, d, n, m)); }
int mkdir(const char *n, mode_t m) { return mkdirat(AT_FDCWD, n, m); }
int mknodat(int d, const char *n, mode_t m, dev_t v) { BY_NAME_WITH(NAME, "mknod", d, n, m, 0, &v, sizeof v, syscall(SYS_mknodat, d, n, m, v)); }
int mknod(const char *n, mode_t m, dev_t v) { return mknodat(AT_FDCWD, n, m, v); }
int mkfifoat(int d, const char *n, mode_t m) { return mknodat(d, n, m | S_IFIFO, 0); }
int mkfifo(const char *n, mode_t m) { return mkfifoat(AT_FDCWD, n, m); }
int fchmodat(int d, const char *n, mode_t m, int f) { (void)f; BY_NAME(META, "chmod", d, n, m, syscall(SYS_fchmodat, d, n, m)); }
int chmod(const char *n, mode_t m) { return fchmodat(AT_FDCWD, n, m, 0); }
int fchownat(int d, const char *n, uid_t u, gid_t g, int f) { BY_NAME_WITH(META, "chown", d, n, u, 0, &g, sizeof g, syscall(SYS_fchownat, d, n, u, g, f)); }
int lchown(const char *n, uid_t u, gid_t g) { return fchownat(AT_FDCWD, n, u, g, AT_SYMLINK_NOFOLLOW); }
int chown(const char *n, uid_t u, gid_t g) { return fchownat(AT_FDCWD, n, u, g, 0); }
int utimensat(int d, const char *n, const struct timespec t[2], int f) {
    if (!n) return futimens(d, t);
    BY_NAME_WITH(META, "utimens", d, n, 0, 0, t, sizeof(struct timespec[2]), syscall(SYS_utimensat, d, n, t, f));
}
int setxattr(const char *n, const char *k, const void *v, size_t l, int f) { BY_NAME_WITH(META, "setxattr", AT_FDCWD, n, 0, k, v, l, syscall(SYS_setxattr, n, k, v, l, f)); }
int lsetxattr(const char *n, const char *k, const void *v, size_t l, int f) { BY_NAME_WITH(META, "setxattr", AT_FDCWD, n, 0, k, v, l, syscall(SYS_lsetxattr, n, k, v, l, f)); }
int removexattr(const char *n, const char *k) { BY_NAME_WITH(META, "removexattr", AT_FDCWD, n, 0, k, 0, 0, syscall(SYS_removexattr, n, k)); }
int lremovexattr(const char *n, const char *k) { BY_NAME_WITH(META, "removexattr", AT_FDCWD, n, 0, k, 0, 0, syscall(SYS_lremovexattr, n, k)); }
int truncate(const char *n, off_t l) { BY_NAME(TRUNC, "truncate", AT_FDCWD, n, l, syscall(SYS_truncate, n, l)); }
int truncate64(const char *n, off64_t l) { return truncate(n, l); }

#define BY_TWO(op, dir1, name1, dir2, name2, off_, call)                           \
    char one_[4096], two_[4096];                                                   \
    const char *a_ = root_length ? path_at(dir1, name1, one_) : 0;                 \
    const char *b_ = root_length ? path_at(dir2, name2, two_) : 0;                 \
    if (!beneath(a_) && !beneath(b_)) return call;                                 \
    LOCK;                                                                          \
    if (meet(NAME, op, -1, beneath(b_) ? b_ : a_) == FAIL) DONE(-1);               \
    uint64_t inode_ = inode_at(a_);                                                \
    long done_ = call;                                                             \
    if (done_ >= 0) record(op, a_, b_, inode_, off_, 0, 0, done_);                 \
    DONE(done_)

int renameat2(int d, const char *a, int e, const char *b, unsigned f) { BY_TWO("rename", d, a, e, b, f, syscall(SYS_renameat2, d, a, e, b, f)); }
int rename(const char *a, const char *b) { return renameat2(AT_FDCWD, a, AT_FDCWD, b, 0); }
int renameat(int d, const char *a, int e, const char *b) { return renameat2(d, a, e, b, 0); }
int linkat(int d, const char *a, int e, const char *b, int f) { BY_TWO("link", d, a, e, b, f, syscall(SYS_linkat, d, a, e, b, f)); }
int link(const char *a, const char *b) { return linkat(AT_FDCWD, a, AT_FDCWD, b, 0); }

int symlinkat(const char *to, int d, const char *n) {
    char buffer[4096];
    const char *path = root_length ? path_at(d, n, buffer) : 0;
    if (!beneath(path)) return syscall(SYS_symlinkat, to, d, n);
    LOCK;
    if (meet(NAME, "symlink", -1, path) == FAIL) DONE(-1);
    int done = syscall(SYS_symlinkat, to, d, n);
    if (done == 0) record("symlink", path, to, inode_at(path), 0, 0, 0, 0);
    DONE(done);
}
int symlink(const char *to, const char *n) { return symlinkat(to, AT_FDCWD, n); }

/* ---- opening --------------------------------------------------------------------------------------------------------- */

static int do_open(int d, const char *n, int flags, mode_t m) {
    char buffer[4096];
    const char *path = root_length ? path_at(d, n, buffer) : 0;
    if (!beneath(path)) return syscall(SYS_openat, d, n, flags, m);
    LOCK;
    struct stat s;
    int there = syscall(SYS_newfstatat, AT_FDCWD, path, &s, 0) == 0;
    int creates = (flags & O_CREAT) && !there;
    int empties = there && (flags & O_TRUNC) && S_ISREG(s.st_mode) && s.st_size;
    int class_ = creates ? CREATE : empties ? TRUNC : OPEN;
    if (meet(class_, creates ? "create" : empties ? "truncate" : "open", -1, path) == FAIL) DONE(-1);
    int fd = syscall(SYS_openat, d, n, flags, m);
    if (fd >= 0 && creates) record("create", path, 0, inode_of_fd(fd), m, 0, 0, 0);
    if (fd >= 0 && empties) record("truncate", path, 0, inode_of_fd(fd), 0, 0, 0, 0);
    DONE(fd);
}

#define MODE mode_t m = 0; if (flags & (O_CREAT | __O_TMPFILE)) { va_list a; va_start(a, flags); m = va_arg(a, mode_t); va_end(a); }
int open(const char *n, int flags, ...) { MODE return do_open(AT_FDCWD, n, flags, m); }
int open64(const char *n, int flags, ...) { MODE return do_open(AT_FDCWD, n, flags | O_LARGEFILE, m); }
int openat(int d, const char *n, int flags, ...) { MODE return do_open(d, n, flags, m); }
int openat64(int d, const char *n, int flags, ...) { MODE return do_open(d, n, flags | O_LARGEFILE, m); }
int creat(const char *n, mode_t m) { return do_open(AT_FDCWD, n, O_CREAT | O_WRONLY | O_TRUNC, m); }
int creat64(const char *n, mode_t m) { return creat(n, m); }

/* glibc's own opens within these do not pass the ones above */
#define BY_REAL(type, function, args, given)                                       \
    static type (*real_) args;                                                     \
    if (!real_) *(void **)&real_ = dlsym(RTLD_NEXT, #function);                    \
    char buffer_[4096];                                                            \
    const char *path_ = root_length ? path_at(AT_FDCWD, n, buffer_) : 0;           \
    if (!beneath(path_)) return real_ given;                                       \
    LOCK;                                                                          \
    if (meet(OPEN, "open", -1, path_) == FAIL) DONE(NULL);                         \
    type done_ = real_ given;                                                      \
    DONE(done_)
DIR *opendir(const char *n) { BY_REAL(DIR *, opendir, (const char *), (n)); }
FILE *fopen(const char *n, const char *m) { BY_REAL(FILE *, fopen, (const char *, const char *), (n, m)); }
FILE *fopen64(const char *n, const char *m) { BY_REAL(FILE *, fopen64, (const char *, const char *), (n, m)); }

/* ---- driven from Python ----------------------------------------------------------------------------------------------- */

void shim_root(const char *path) { strncpy(root, path, sizeof root - 1); root_length = strlen(root); }
void shim_log(int fd) { log_fd = fd; }
void shim_mark(const char *text) { LOCK; record("mark", text, 0, 0, 0, 0, 0, 0); pthread_mutex_unlock(&mutex); }
void shim_arm(int classes, int what, long n, int error) {
    LOCK;
    mask = classes; fault = what; target = n; fault_errno = error;
    counted = 0;
    memset(landed, 0, sizeof *landed);
    pthread_mutex_unlock(&mutex);
}
int shim_share(void) {
    void *page = mmap(0, sizeof *landed, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return -1;
    landed = page;
    return 0;
}
void shim_trace(int fd) { trace_fd = fd; }
long shim_counted(void) { return counted; }
long shim_fired(void) { return landed->fired; }
long shim_landed(void) { return landed->nth; }
const char *shim_landed_op(void) { return landed->op; }
const char *shim_landed_path(void) { return landed->path; }
