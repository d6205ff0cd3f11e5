/* Create a tree and nothing else: create LIST, in the current directory. The least that any unpacker must ask of the kernel.
 *
 * LIST has an entry a line, parents first: "d PATH", "f SIZE PATH" or "l TARGET<tab>PATH" (symbolic links). Directory
 * descriptors are kept open, contents come from memory, times are set; nothing is read, hashed, compared or flushed.
 * Prints the seconds that creating took, and the seconds of one syncfs(2) after it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CACHED 256
struct entry { char kind; long long size; char *target, *path; };
static struct { char *name; size_t length; int fd; } cache[CACHED];
static char buffer[1 << 20];

static void die(const char *what) { perror(what); exit(1); }

/* The descriptor of PATH's directory, and in NAME what remains. One slot for each hash: a stranger there is closed. */
static int parent(char *path, char **name)
{
    char *slash = strrchr(path, '/');
    *name = slash ? slash + 1 : path;
    if (!slash) return AT_FDCWD;
    size_t length = slash - path;
    unsigned hash = 5381;
    for (size_t i = 0; i < length; i++) hash = hash * 33 + (unsigned char)path[i];
    hash %= CACHED;
    if (cache[hash].name && cache[hash].length == length && !memcmp(cache[hash].name, path, length)) return cache[hash].fd;
    if (cache[hash].name) close(cache[hash].fd);
    *slash = 0;
    cache[hash].fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (cache[hash].fd < 0) die(path);
    *slash = '/';
    cache[hash].name = path;
    cache[hash].length = length;
    return cache[hash].fd;
}

static void file(int dir, const char *name, long long size)
{
    static const struct timespec times[2] = {{1700000000, 0}, {1700000000, 0}};
    int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0) die(name);
    while (size > 0) {
        ssize_t n = write(fd, buffer, size < (long long)sizeof buffer ? (size_t)size : sizeof buffer);
        if (n < 0) die(name);
        size -= n;
    }
    if (futimens(fd, times) || close(fd)) die(name);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static struct entry *read_list(const char *path, size_t *count)
{
    FILE *list = fopen(path, "r");
    if (!list) die(path);
    struct entry *all = NULL;
    size_t room = 0;
    char *line = NULL;
    ssize_t length;
    for (size_t space = 0; (length = getline(&line, &space, list)) > 0; line = NULL, space = 0) {
        line[length - 1] = 0;
        if (*count == room && !(all = realloc(all, (room = room ? 2 * room : 1024) * sizeof *all))) die("memory");
        struct entry *one = &all[(*count)++];
        one->kind = line[0];
        one->path = line + 2;
        if (one->kind == 'f') one->size = strtoll(line + 2, &one->path, 10), one->path++;
        if (one->kind == 'l') {
            one->target = line + 2;
            one->path = strchr(line, '\t') + 1;
            one->path[-1] = 0;
        }
    }
    fclose(list);
    return all;
}

int main(int argc, char **argv)
{
    size_t count = 0;
    char *name;

    if (argc != 2) return 2;
    struct entry *all = read_list(argv[1], &count);
    umask(0);
    memset(buffer, 'x', sizeof buffer);
    double begun = now();
    for (size_t i = 0; i < count; i++) {
        int dir = parent(all[i].path, &name);
        if (all[i].kind == 'd' && mkdirat(dir, name, 0755) && errno != EEXIST) die(name);
        if (all[i].kind == 'l' && symlinkat(all[i].target, dir, name)) die(name);
        if (all[i].kind == 'f') file(dir, name, all[i].size);
    }
    double created = now();
    int here = open(".", O_RDONLY | O_DIRECTORY);
    if (here < 0 || syncfs(here)) die("syncfs");
    printf("%.6f %.6f\n", created - begun, now() - created);
    return 0;
}
