/* SPDX-License-Identifier: MIT */
#include "tools/report/plot.h"

#include "kernels/base/log.h"
#include "tools/report/html.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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

/* A file in memory: no directory for temporary files is needed. */
static FILE *open_script(void)
{
    const int fd = memfd_create("gnuplot", MFD_CLOEXEC);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "w+");
    if (fd >= 0 && !f)
        close(fd);
    return f;
}

enum err plot_begin(struct plot *p, int width, int height)
{
    *p = (struct plot){.width = width, .height = height};
    p->over = open_memstream(&p->over_text, &p->over_bytes);
    p->script = open_script();
    if (!p->script || !p->over) {
        plot_abort(p);
        FAIL(ERR_IO, "cannot make a file in memory for a picture: %s", strerror(errno));
    }
    fprintf(p->script,
            "set terminal svg size %d,%d dynamic noenhanced font \"sans-serif,12\"\n"
            "set border 3 lc rgb \"#707070\"\nset tics nomirror textcolor rgb \"#000000\"\n"
            "set grid lc rgb \"#d8d8d8\"\nunset key\n",
            width, height);
    return OK;
}

void plot_abort(struct plot *p)
{
    if (p->script)
        fclose(p->script);
    if (p->over)
        fclose(p->over);
    free(p->over_text);
    *p = (struct plot){0};
}

/* --- places ------------------------------------------------------------------------- */

/* Writes tics that a logarithmic axis of less than a few decades needs. */
static void put_log_tics(FILE *f, const char *axis, struct plot_range r)
{
    static const double steps[] = {1, 1.5, 2, 3, 5, 7};
    const double span = r.hi / r.lo;
    const int by = span < 8 ? 1 : span < 40 ? 2 : 0; /* else powers of ten */
    const char *comma = "";
    fprintf(f, "set %stics (", axis);
    for (double ten = pow(10, floor(log10(r.lo))); ten <= r.hi; ten *= 10)
        for (size_t i = 0; i < ARRAY_LEN(steps); i += by ? (size_t)by : ARRAY_LEN(steps)) {
            const double v = ten * steps[i];
            if (v >= r.lo && v <= r.hi) {
                fprintf(f, "%s%.9g", comma, v);
                comma = ", ";
            }
        }
    fprintf(f, ")\nset logscale %s\n", axis);
}

void plot_axes(struct plot *p, struct box area, struct plot_range x, struct plot_range y)
{
    const double w = p->width, h = p->height;
    p->area = area;
    p->x = x;
    p->y = y;
    fprintf(p->script,
            "set lmargin at screen %.9g\nset rmargin at screen %.9g\n"
            "set tmargin at screen %.9g\nset bmargin at screen %.9g\n"
            "set xrange [%.9g:%.9g]\nset yrange [%.9g:%.9g]\n",
            area.left / w, area.right / w, 1 - area.top / h, 1 - area.bottom / h, x.lo,
            x.hi, y.lo, y.hi);
    if (x.log)
        put_log_tics(p->script, "x", x);
    if (y.log)
        put_log_tics(p->script, "y", y);
}

/* Returns where a value is between the ends of a range, from 0 to 1. */
static double share(struct plot_range r, double v)
{
    return r.log ? log(v / r.lo) / log(r.hi / r.lo) : (v - r.lo) / (r.hi - r.lo);
}

double plot_x(const struct plot *p, double x)
{
    return p->area.left + share(p->x, x) * (p->area.right - p->area.left);
}

double plot_y(const struct plot *p, double y)
{
    return p->area.bottom - share(p->y, y) * (p->area.bottom - p->area.top);
}

/* --- text over the picture ---------------------------------------------------------- */

void plot_text(struct plot *p, double x, double y, const char *anchor, const char *text)
{
    const int n = label_bytes(text);
    fprintf(p->over, "<text class=\"name\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x,
            y + 0.35 * LABEL_SIZE, anchor);
    html_text_bytes(p->over, text, (size_t)n);
    fprintf(p->over, "%s</text>\n", text[n] ? "&#8230;" : "");
}

static double clamp(double x, double lo, double hi)
{
    return x < lo ? lo : x > hi ? hi : x;
}

/* Draws a line from a point to the nearest place of a name that is not beside it. */
static void put_leader(struct plot *p, const struct label *l)
{
    const double x = clamp(l->x, l->box.left, l->box.right);
    const double y = clamp(l->y, l->box.top + 2, l->box.bottom - 2);
    if (hypot(x - l->x, y - l->y) > 10)
        fprintf(p->over, "<path class=\"leader\" d=\"M%.1f %.1fL%.1f %.1f\"/>\n", l->x,
                l->y, x, y);
}

void plot_labels(struct plot *p, const struct label *l, int n)
{
    for (int i = 0; i < n; i++)
        if (l[i].placed)
            put_leader(p, &l[i]);
    for (int i = 0; i < n; i++)
        if (l[i].placed)
            plot_text(p, 0.5 * (l[i].box.left + l[i].box.right),
                      0.5 * (l[i].box.top + l[i].box.bottom), "middle", l[i].text);
}

/* --- gnuplot ------------------------------------------------------------------------ */

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

/* Returns the bytes of a <title> or <desc> at s, which would name gnuplot's commands; 0 for
 * anything else. */
static size_t skipped(const char *s)
{
    static const char *const element[][2] = {{"<title>", "</title>"},
                                             {"<desc>", "</desc>"}};
    for (size_t i = 0; i < ARRAY_LEN(element); i++) {
        const char *end = strncmp(s, element[i][0], strlen(element[i][0]))
                              ? NULL
                              : strstr(s, element[i][1]);
        if (end)
            return (size_t)(end - s) + strlen(element[i][1]);
    }
    return 0;
}

/* Returns whether gnuplot uses the word at s as an id, or as a part of one. */
static bool is_id(const char *s)
{
    static const char *const ids[] = {"gpPt", "gpDot", "gnuplot_", "textbox", "greybox"};
    for (size_t i = 0; i < ARRAY_LEN(ids); i++)
        if (!strncmp(s, ids[i], strlen(ids[i])))
            return true;
    return false;
}

/* Copies a picture with what stands over it. Ids get a prefix of their own, because those of
 * all pictures in a page must differ. */
static void put_finished(FILE *out, const char *svg, const char *over)
{
    static int pictures;
    const char *end = strstr(svg, "</svg>");
    pictures++;
    for (const char *s = svg; s < end;) {
        const size_t skip = skipped(s);
        if (skip) {
            s += skip;
            continue;
        }
        if (is_id(s) && (s[-1] == '#' || s[-1] == '\'' || s[-1] == '"'))
            fprintf(out, "p%d-", pictures);
        fputc(*s++, out);
    }
    fprintf(out, "%s</svg>", over);
}

static enum err finish(char **out, const char *text, const char *over)
{
    const char *start = strstr(text, "<svg");
    size_t n;
    FAIL_IF(!start || !strstr(start, "</svg>"), ERR_IO, "gnuplot wrote no picture");
    FILE *f = open_memstream(out, &n);
    FAIL_IF(!f, ERR_MEMORY, "out of memory for a picture");
    put_finished(f, start, over);
    FAIL_IF(fclose(f), ERR_MEMORY, "out of memory for a picture");
    return OK;
}

enum err plot_end(char **svg, struct plot *p)
{
    char *text = NULL;
    *svg = NULL;
    const bool written = !fflush(p->script) && !ferror(p->script) && !fflush(p->over);
    enum err err = lseek(fileno(p->script), 0, SEEK_SET) == 0 && written
                       ? run(&text, fileno(p->script))
                       : err_set(ERR_IO, __FILE__, __LINE__, "cannot write a script");
    if (!err)
        err = finish(svg, text, p->over_text);
    free(text);
    plot_abort(p);
    if (err != ERR_IO)
        return err;
    log_warn("%s, so the page lacks a picture", err_text());
    err_clear();
    return OK;
}
