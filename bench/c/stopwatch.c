/* Run one command and say what it took: stopwatch COMMAND ARGUMENT...
 *
 * Prints, on standard error's last line: wall seconds, user and system seconds (it and all that it waited for), the
 * greatest resident set of any one process of them in KiB, and its exit status. Only this program stands between the
 * clock and the command: a Python parent would lend the child its own resident set before exec, and wait4(2) would tell
 * that one. The command finds in its environment when it was begun: STOPWATCH_BEGUN, in seconds of CLOCK_MONOTONIC.
 * Nothing else belongs here. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds(struct timeval t) { return t.tv_sec + t.tv_usec / 1e6; }

int main(int argc, char **argv)
{
    struct timespec a, b;
    struct rusage used;
    int status;

    if (argc < 2) return 2;
    clock_gettime(CLOCK_MONOTONIC, &a);
    char begun[40];
    snprintf(begun, sizeof begun, "%lld.%09ld", (long long)a.tv_sec, a.tv_nsec);
    setenv("STOPWATCH_BEGUN", begun, 1);
    pid_t pid = fork();
    if (pid < 0) { perror("fork"); return 2; }
    if (pid == 0) {
        execvp(argv[1], argv + 1);
        perror(argv[1]);
        _exit(127);
    }
    if (wait4(pid, &status, 0, &used) != pid) { perror("wait4"); return 2; }
    clock_gettime(CLOCK_MONOTONIC, &b);
    fprintf(stderr, "\n%.6f %.6f %.6f %ld %d\n", (b.tv_sec - a.tv_sec) + (b.tv_nsec - a.tv_nsec) / 1e9,
            seconds(used.ru_utime), seconds(used.ru_stime), used.ru_maxrss,
            WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    return 0;
}
