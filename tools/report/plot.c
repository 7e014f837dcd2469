/* SPDX-License-Identifier: MIT */
#include "tools/report/plot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs gnuplot -d (no init files), reading from in and writing to out. Does not return. */
static void run_gnuplot(int in, int out, const char *option)
{
    const int null = open("/dev/null", O_RDWR);
    if (null < 0 || dup2(in < 0 ? null : in, 0) < 0 || dup2(out < 0 ? null : out, 1) < 0 ||
        dup2(null, 2) < 0)
        _exit(127);
    execlp("gnuplot", "gnuplot", option, (char *)NULL);
    _exit(127);
}

static bool wait_ok(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR)
            return false;
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool plot_available(void)
{
    const pid_t pid = fork();
    if (pid == 0)
        run_gnuplot(-1, -1, "--version");
    return pid > 0 && wait_ok(pid);
}

enum err plot_begin(struct plot *p, int width, int height)
{
    static int pictures; /* ids of pictures in one page must differ */
    p->script = tmpfile();
    FAIL_IF(!p->script, ERR_IO, "cannot make a temporary file: %s", strerror(errno));
    fprintf(p->script,
            "set terminal svg size %d,%d dynamic noenhanced name \"p%d\" font "
            "\"sans-serif,14\"\n"
            "set border 3\nset tics nomirror\nset grid lc rgb \"#c8c8c8\"\n"
            "set key outside right top samplen 1.5\n",
            width, height, ++pictures);
    return OK;
}

void plot_abort(struct plot *p)
{
    if (p->script)
        fclose(p->script);
    p->script = NULL;
}

static bool read_all(char **out, int fd)
{
    char buffer[16384];
    size_t size = 0;
    FILE *f = open_memstream(out, &size);
    ssize_t n;
    if (!f)
        return false;
    while ((n = read(fd, buffer, sizeof(buffer))) > 0 || (n < 0 && errno == EINTR)) {
        if (n > 0)
            fwrite(buffer, 1, (size_t)n, f);
    }
    const bool whole = n == 0 && !ferror(f);
    return !fclose(f) && whole;
}

static enum err run(char **text, int script)
{
    int fd[2];
    FAIL_IF(pipe(fd), ERR_IO, "cannot make a pipe: %s", strerror(errno));
    const pid_t pid = fork();
    if (pid == 0) {
        close(fd[0]);
        run_gnuplot(script, fd[1], "-d");
    }
    close(fd[1]);
    const bool read_whole = pid > 0 && read_all(text, fd[0]);
    close(fd[0]);
    const bool ended_well = pid > 0 && wait_ok(pid);
    FAIL_IF(!read_whole || !ended_well, ERR_IO, "gnuplot failed");
    return OK;
}

enum err plot_end(char **svg, struct plot *p)
{
    char *text = NULL;
    const bool written = !fflush(p->script) && !ferror(p->script);
    rewind(p->script);
    enum err err = lseek(fileno(p->script), 0, SEEK_SET) == 0 && written
                       ? run(&text, fileno(p->script))
                       : err_set(ERR_IO, __FILE__, __LINE__, "cannot write a script");
    plot_abort(p);
    char *start = err ? NULL : strstr(text, "<svg");
    if (!err && (!start || !strstr(start, "</svg>")))
        err = err_set(ERR_IO, __FILE__, __LINE__, "gnuplot wrote no picture");
    if (!err) {
        memmove(text, start, strlen(start) + 1);
        *svg = text;
        return OK;
    }
    free(text);
    return err;
}
