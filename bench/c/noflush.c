/* LD_PRELOAD: nothing is flushed. For measuring what durability costs, and for nothing else: the product has no such switch.
 *
 * Every call that makes data durable succeeds and does nothing, and files are opened without O_SYNC and O_DSYNC (LMDB
 * writes its meta page through such a descriptor). Whether that is all of them is seen with strace (bench/flushes.py). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/types.h>

int fsync(int fd) { (void)fd; return 0; }
int fdatasync(int fd) { (void)fd; return 0; }
int syncfs(int fd) { (void)fd; return 0; }
void sync(void) { }
int msync(void *start, size_t size, int flags) { (void)start; (void)size; (void)flags; return 0; }
int sync_file_range(int fd, off64_t from, off64_t size, unsigned flags)
{ (void)fd; (void)from; (void)size; (void)flags; return 0; }

#define WITHOUT(flags) ((flags) & ~(O_SYNC | O_DSYNC))
#define MODE(flags, last) mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list more; va_start(more, last); mode = va_arg(more, mode_t); va_end(more); }
#define OPEN(name) int name(const char *path, int flags, ...) { \
    static int (*real)(const char *, int, ...); MODE(flags, flags) \
    if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name); \
    return real(path, WITHOUT(flags), mode); }
#define OPENAT(name) int name(int dir, const char *path, int flags, ...) { \
    static int (*real)(int, const char *, int, ...); MODE(flags, flags) \
    if (!real) real = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #name); \
    return real(dir, path, WITHOUT(flags), mode); }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
