/* SPDX-License-Identifier: MIT
 *
 * Files: a writer shows its file only when complete; maps, whole reads, directories. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/base/bytes.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "tests/base/dead.h"
#include "tests/scratch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64];

static char *in_dir(const char *name)
{
    char *p = NULL;
    assert_int_equal(file_join(&p, dir, name), OK);
    return p;
}

static int entries(void)
{
    int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n - 2;
}

static int setup(void **state)
{
    snprintf(dir, sizeof(dir), "test_file.XXXXXX");
    err_clear();
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    return !scratch_remove(dir);
}

static void a_file_appears_when_it_is_whole(void **state)
{
    char *path = in_dir("a.txt"), *text = NULL;
    size_t n = 0;
    struct file_writer *w = NULL;
    assert_int_equal(file_write_all(path, "old", 3), OK);
    assert_int_equal(file_writer_open(&w, path), OK);
    assert_int_equal(file_write(w, "new ", 4), OK);
    assert_int_equal(file_printf(w, "%d", 42), OK);
    assert_true(file_writer_bytes(w) == 6);
    assert_int_equal(file_writer_crc(w), bytes_crc32(0, "new 42", 6));
    assert_int_equal(entries(), 2);
    assert_true(file_size(path) == 3); /* still the old one */
    assert_int_equal(file_writer_commit(&w), OK);
    assert_null(w);
    assert_int_equal(entries(), 1);
    assert_int_equal(file_read_all(&text, &n, path, 100), OK);
    assert_true(n == 6);
    assert_string_equal(text, "new 42");
    mem_free(text);
    mem_free(path);
}

static void an_aborted_write_leaves_nothing(void **state)
{
    char *path = in_dir("a.txt");
    struct file_writer *w = NULL;
    assert_int_equal(file_write_all(path, "old", 3), OK);
    assert_int_equal(file_writer_open(&w, path), OK);
    assert_int_equal(file_write(w, "new", 3), OK);
    file_writer_abort(&w);
    assert_null(w);
    file_writer_abort(&w);
    assert_int_equal(entries(), 1);
    assert_true(file_size(path) == 3);
    mem_free(path);
}

/* More than the buffer, in pieces of all sizes. */
static void large_files(void **state)
{
    char *path = in_dir("large");
    struct file_writer *w = NULL;
    const size_t total = (3u << 20) + 12345;
    uint8_t *data = NULL;
    assert_int_equal(mem_alloc(&data, total, 1), OK);
    for (size_t i = 0; i < total; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 13);
    assert_int_equal(file_writer_open(&w, path), OK);
    for (size_t at = 0, n = 1; at < total; at += n, n = n * 3 + 1) {
        n = n < total - at ? n : total - at;
        assert_int_equal(file_write(w, data + at, n), OK);
    }
    assert_int_equal(file_writer_commit(&w), OK);
    struct file_map m = {0};
    assert_int_equal(file_map_open(&m, path), OK);
    assert_true(m.size == total);
    assert_memory_equal(m.data, data, total);
    file_map_close(&m);
    file_map_close(&m);
    /* a copy does not change with the file */
    assert_int_equal(file_map_load(&m, path), OK);
    assert_true(m.loaded && m.size == total);
    assert_int_equal(truncate(path, 1), 0);
    assert_memory_equal(m.data, data, total);
    file_map_close(&m);
    assert_int_equal(file_write_all(path, data, total), OK);
    uint32_t crc = 0;
    uint64_t bytes = 0;
    assert_int_equal(file_crc32(&crc, &bytes, path), OK);
    assert_true(crc == bytes_crc32(0, data, total) && bytes == total);
    mem_free(data);
    mem_free(path);
}

static void what_cannot_be_read(void **state)
{
    char *path = in_dir("none"), *text = NULL;
    size_t n = 0;
    struct file_map m = {0};
    assert_int_equal(file_map_open(&m, path), ERR_NOT_FOUND);
    assert_non_null(strstr(err_text(), "none: No such file"));
    assert_int_equal(file_map_load(&m, path), ERR_NOT_FOUND);
    assert_int_equal(file_map_open(&m, dir), ERR_NOT_FOUND);
    assert_true(file_size(path) == -1);
    assert_false(file_exists(path));
    assert_int_equal(file_write_all(path, "", 0), OK);
    assert_int_equal(file_map_open(&m, path), OK);
    assert_true(m.size == 0 && m.data == NULL);
    file_map_close(&m);
    assert_int_equal(file_map_load(&m, path), OK);
    assert_true(m.size == 0 && m.data == NULL);
    file_map_close(&m);
    assert_int_equal(file_write_all(path, "12345", 5), OK);
    assert_int_equal(file_read_all(&text, &n, path, 4), ERR_FORMAT);
    assert_null(text);
    assert_int_equal(file_read_all(&text, &n, path, 5), OK);
    mem_free(text);
    mem_free(path);
}

static void what_cannot_be_written(void **state)
{
    char *path = in_dir("no/such/dir/file"), *sub = in_dir("sub"), *link = in_dir("link");
    struct file_writer *w = NULL;
    assert_int_equal(file_writer_open(&w, path), ERR_USAGE);
    assert_null(w);
    assert_int_equal(file_writer_probe(path), ERR_USAGE);
    assert_int_equal(file_make_dir(sub), OK);
    assert_int_equal(file_write_all(sub, "x", 1), ERR_USAGE);
    assert_int_equal(file_writer_probe(sub), ERR_USAGE);
    assert_int_equal(entries(), 1);
    assert_int_equal(rmdir(sub), 0);
    assert_int_equal(symlink("nowhere", link), 0);
    assert_int_equal(file_write_all(link, "x", 1), ERR_USAGE);
    assert_int_equal(entries(), 1);
    mem_free(path);
    mem_free(sub);
    mem_free(link);
}

static void assert_holds(const char *path, const char *want)
{
    char *text = NULL;
    size_t n;
    assert_int_equal(file_read_all(&text, &n, path, 100), OK);
    assert_string_equal(text, want);
    mem_free(text);
}

/* The temporary file is a new one, even if its name exists already. */
static void a_taken_temporary_name(void **state)
{
    char *path = in_dir("a"), tag[OWNER_TAG_MAX], name[100], *taken;
    struct file_writer *w = NULL;
    owner_tag(tag);
    snprintf(name, sizeof(name), "a.tmp.%s", tag);
    taken = in_dir(name);
    FILE *f = fopen(taken, "w");
    assert_non_null(f);
    fputs("theirs", f);
    fclose(f);
    assert_int_equal(file_writer_open(&w, path), OK);
    assert_int_equal(file_write(w, "ours", 4), OK);
    assert_int_equal(file_writer_commit(&w), OK);
    assert_holds(path, "ours");
    assert_holds(taken, "theirs");
    assert_int_equal(file_writer_open(&w, path), OK);
    file_writer_abort(&w);
    assert_holds(taken, "theirs");
    mem_free(taken);
    mem_free(path);
}

static int write_and_die(void *ctx)
{
    struct file_writer *w = NULL;
    return file_writer_open(&w, ctx) || file_write(w, "half", 4);
}

static char *make_file(const char *name)
{
    char *path = in_dir(name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fclose(f);
    return path;
}

/* What killed writers of a name left is removed by the next writer of it, and nothing else:
 * not what a living process or one of another host writes, a pipe, a link to a file, nor another
 * name's file. */
static void what_a_dead_writer_left(void **state)
{
    char *path = in_dir("a"), tag[OWNER_TAG_MAX], dead[OWNER_TAG_MAX], name[6][100];
    struct file_writer *w = NULL;
    owner_tag(tag);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(dead_run(write_and_die, path), 0);
        assert_int_equal(entries(), 1); /* the second removed what the first had left */
    }
    assert_int_equal(dead_tag(dead), 0);
    snprintf(name[0], sizeof(name[0]), "a.tmp.%s", tag);
    snprintf(name[1], sizeof(name[1]), "b.tmp.%s", dead);
    snprintf(name[2], sizeof(name[2]), "a.tmp.%s.txt", dead);
    snprintf(name[3], sizeof(name[3]), "a.tmp.%s", dead);
    snprintf(name[4], sizeof(name[4]), "a.tmp.%s.1", dead);
    snprintf(name[5], sizeof(name[5]), "a.tmp.%s", dead);
    char *crc_end = name[5] + strlen(name[5]) - 1; /* the CRC is of host and boot */
    *crc_end = *crc_end == '0' ? '1' : '0';
    for (int i = 0; i < 3; i++)
        mem_free(make_file(name[i]));
    mem_free(make_file(name[5]));
    char *pipe_path = in_dir(name[3]), *link = in_dir(name[4]);
    assert_int_equal(mkfifo(pipe_path, 0600), 0);
    assert_int_equal(symlink(name[1], link), 0);
    assert_int_equal(file_writer_probe(path), OK);
    assert_int_equal(entries(), 6);
    assert_int_equal(file_writer_open(&w, path), OK);
    assert_int_equal(file_writer_commit(&w), OK);
    assert_int_equal(entries(), 7);
    mem_free(pipe_path);
    mem_free(link);
    mem_free(path);
}

/* A link stays a link, and a device is written directly: a rename would replace both. */
static void links_and_devices(void **state)
{
    char *path = in_dir("a"), *link = in_dir("link"), *pipe_path = in_dir("pipe");
    struct stat st;
    assert_int_equal(file_write_all(path, "old", 3), OK);
    assert_int_equal(symlink("a", link), 0);
    assert_int_equal(file_write_all(link, "new", 3), OK);
    assert_holds(path, "new");
    assert_true(!lstat(link, &st) && S_ISLNK(st.st_mode));

    assert_int_equal(mkfifo(pipe_path, 0600), 0);
    const int fd = open(pipe_path, O_RDONLY | O_NONBLOCK);
    assert_true(fd >= 0);
    char text[8] = "";
    assert_int_equal(file_writer_probe(pipe_path), OK);
    assert_int_equal(file_write_all(pipe_path, "stream", 6), OK);
    assert_int_equal(read(fd, text, sizeof(text)), 6);
    assert_string_equal(text, "stream");
    close(fd);
    assert_true(!lstat(pipe_path, &st) && S_ISFIFO(st.st_mode));
    assert_int_equal(entries(), 3);
    mem_free(path);
    mem_free(link);
    mem_free(pipe_path);
}

static bool named_a(const void *ctx, const char *name)
{
    return *name == 'a';
}

static void only_known_names_are_removed(void **state)
{
    static const char *const files[] = {"d/a1", "d/a2", "d/b"};
    char *sub = in_dir("d"), *link = in_dir("d/alink"), *deep = in_dir("d/adir"), *left;
    assert_int_equal(file_make_dir(deep), OK);
    assert_int_equal(symlink("b", link), 0);
    for (size_t i = 0; i < ARRAY_LEN(files); i++) {
        char *path = in_dir(files[i]);
        assert_int_equal(file_write_all(path, "x", 1), OK);
        mem_free(path);
    }
    assert_int_equal(file_remove_known(&left, sub, named_a, NULL), OK);
    assert_true(*left);
    mem_free(left);
    char *b = in_dir("d/b"), *a = in_dir("d/a1");
    struct stat st;
    assert_true(file_exists(b) && !file_exists(a) && file_is_dir(deep));
    assert_int_equal(lstat(link, &st), 0);
    assert_int_equal(unlink(link), 0);
    assert_int_equal(unlink(b), 0);
    assert_int_equal(rmdir(deep), 0);
    assert_int_equal(file_remove_known(&left, sub, named_a, NULL), OK);
    assert_string_equal(left, "");
    mem_free(left);
    assert_false(file_exists(sub));
    assert_int_equal(file_remove_known(NULL, sub, named_a, NULL), OK); /* missing */
    mem_free(a);
    mem_free(b);
    mem_free(sub);
    mem_free(link);
    mem_free(deep);
}

/* What is gone belongs to nobody. A link without a target is still there. */
static void vanished_entries(void **state)
{
    char *file = in_dir("v"), *link = in_dir("w");
    DIR *d = opendir(dir);
    assert_non_null(d);
    assert_int_equal(file_write_all(file, "x", 1), OK);
    assert_int_equal(symlink("nowhere", link), 0);
    assert_false(file_vanished(dirfd(d), "v"));
    assert_false(file_vanished(dirfd(d), "w"));
    assert_int_equal(unlink(file), 0);
    assert_int_equal(unlink(link), 0);
    assert_true(file_vanished(dirfd(d), "v"));
    assert_true(file_vanished(dirfd(d), "w"));
    assert_false(file_vanished(-1, "v")); /* cannot be looked at */
    closedir(d);
    mem_free(file);
    mem_free(link);
}

static void temporary_names(void **state)
{
    char tag[OWNER_TAG_MAX], mine[OWNER_TAG_MAX], name[120];
    owner_tag(mine);
    snprintf(name, sizeof(name), "a.bin.tmp.%s", mine);
    assert_true(file_is_temp(tag, name, "a.bin"));
    assert_string_equal(tag, mine);
    assert_false(file_is_temp(tag, name, "a.bi"));
    assert_false(file_is_temp(tag, name, "b.bin"));
    snprintf(name, sizeof(name), "a.bin.tmp.%s.12", mine);
    assert_true(file_is_temp(tag, name, "a.bin"));
    static const char *const off[] = {"a.bin.tmp.%s.", "a.bin.tmp.%s.x", "a.bin.tmp.%s.1x",
                                      "a.bin.tmp.%s~", "A.bin.tmp.%s",   "a.bin.old.%s",
                                      "a.bin.tmp.%s.0"};
    for (size_t i = 0; i < ARRAY_LEN(off); i++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(name, sizeof(name), off[i], mine);
#pragma GCC diagnostic pop
        assert_false(file_is_temp(tag, name, "a.bin"));
    }
    assert_false(file_is_temp(tag, "a.bin.tmp.123", "a.bin"));
    assert_false(file_is_temp(tag, "a.bin.tmp.20240101", "a.bin"));
}

static void a_place_is_probed(void **state)
{
    char *deep = in_dir("x/y/z"), *file = in_dir("f"), *in_file = in_dir("f/x"),
         *link = in_dir("link");
    assert_int_equal(file_probe_dir(deep), OK);
    assert_int_equal(entries(), 0);
    assert_int_equal(file_write_all(file, "x", 1), OK);
    assert_int_equal(file_probe_dir(file), ERR_USAGE);
    assert_int_equal(file_probe_dir(in_file), ERR_USAGE);
    assert_non_null(strstr(err_text(), "/f: exists and is not a directory"));
    assert_int_equal(symlink("nowhere", link), 0);
    assert_int_equal(file_probe_dir(link), ERR_USAGE);
    assert_int_equal(file_probe_dir("/proc/no/such"), ERR_USAGE);
    mem_free(deep);
    mem_free(file);
    mem_free(in_file);
    mem_free(link);
}

static void directories(void **state)
{
    char *deep = in_dir("a/b/c"), *file = in_dir("f"), *a = in_dir("a"), *b = in_dir("a/b");
    bool taken;
    assert_int_equal(file_make_dir(deep), OK);
    assert_int_equal(file_make_dir(deep), OK);
    assert_true(file_is_dir(deep) && file_exists(deep));
    assert_int_equal(file_write_all(file, "x", 1), OK);
    assert_false(file_is_dir(file));
    assert_int_equal(file_make_dir(file), ERR_USAGE);
    assert_int_equal(file_make_dir(""), ERR_USAGE);
    assert_int_equal(file_make_new_dir(&taken, deep), OK);
    assert_true(taken);
    assert_int_equal(rmdir(deep), 0);
    assert_int_equal(file_make_new_dir(&taken, deep), OK);
    assert_false(taken);
    assert_int_equal(rmdir(deep), 0);
    assert_int_equal(rmdir(b), 0);
    assert_int_equal(file_make_new_dir(&taken, deep), ERR_USAGE);
    assert_int_equal(rmdir(a), 0);
    mem_free(deep);
    mem_free(file);
    mem_free(a);
    mem_free(b);
}

static void names(void **state)
{
    char *p = NULL;
    assert_int_equal(file_join(&p, "a/", "b"), OK);
    assert_string_equal(p, "a/b");
    mem_free(p);
    assert_string_equal(file_base_name("a/b/c.txt"), "c.txt");
    assert_string_equal(file_base_name("c.txt"), "c.txt");
}

static void a_pointer_of_git_lfs_is_recognized(void **state)
{
    static const char pointer[] =
        "version https://git-lfs.github.com/spec/v1\n"
        "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
        "size 12345\n";
    char large[2000] = {0};
    memcpy(large, pointer, sizeof(pointer) - 1);
    assert_true(file_is_lfs_pointer(pointer, sizeof(pointer) - 1));
    assert_true(file_is_lfs_pointer(large, 1023));
    assert_false(file_is_lfs_pointer(large, 1024)); /* a text that starts like one */
    assert_false(file_is_lfs_pointer(pointer, 20));
    assert_false(file_is_lfs_pointer("{}", 2));
    assert_false(file_is_lfs_pointer(NULL, 0));
}

static void is_final(const char *path, const char *want)
{
    char name[400];
    file_final_name(name, path);
    assert_string_equal(name, want);
}

static void a_temporary_name_is_not_shown(void **state)
{
    char tag[OWNER_TAG_MAX], path[400], want[400];
    owner_tag(tag);
    snprintf(path, sizeof(path), "a/model.tmp.%s", tag);
    is_final(path, "a/model");
    snprintf(path, sizeof(path), "/a.tmp.%s.3", tag);
    is_final(path, "/a");
    snprintf(path, sizeof(path), "x/a.tmp.%s/data/data.tmp.%s", tag, tag);
    is_final(path, "x/a/data");
    snprintf(path, sizeof(path), "x/.wkvq.tmp.%s/data/model", tag);
    is_final(path, "x/model");
    snprintf(path, sizeof(path), "data/a.tmp.%s/owner", tag);
    is_final(path, "data/a/owner");
    is_final("x/data/a.tmp.old/data/b", "x/data/a.tmp.old/data/b");
    is_final("", "");
    snprintf(path, sizeof(path), "x/a.tmp.b.tmp.%s", tag);
    is_final(path, "x/a.tmp.b");
    snprintf(path, sizeof(path), "x/%0240d.tmp.%s/file", 7, tag);
    assert_true(strlen(path) > 250);
    snprintf(want, sizeof(want), "x/%0240d/file", 7);
    is_final(path, want);
    is_final("/", "/");
}

static void advises(int why, enum err kind, const char *cause, const char *advice)
{
    char tag[OWNER_TAG_MAX], name[256], want[512];
    owner_tag(tag);
    snprintf(name, sizeof(name), "%s/out.tmp.%s/data/file", dir, tag);
    assert_int_equal(file_write_error(name, why), kind);
    snprintf(want, sizeof(want), "%s/out/file: cannot write: %s; ", dir, cause);
    assert_memory_equal(err_text(), want, strlen(want));
    if (!strstr(err_text(), advice))
        fail_msg("%s\nlacks: %s", err_text(), advice);
    err_clear();
}

static void a_failed_write_says_what_to_do(void **state)
{
    char disk[128];
    struct rlimit old, small;
    snprintf(disk, sizeof(disk), "the disk of %s has ", dir);
    advises(ENOSPC, ERR_IO, "No space left on device", disk);
    advises(ENOSPC, ERR_IO, "No space left on device", " MB free: free some space there");
    advises(EACCES, ERR_USAGE, "Permission denied", "change the mode of its directory");
    advises(EROFS, ERR_USAGE, "Read-only file system", "name a place that can be written");
    advises(EIO, ERR_IO, "Input/output error", "check the disk");
    advises(ENAMETOOLONG, ERR_USAGE, "File name too long", "give a shorter name");
    getrlimit(RLIMIT_FSIZE, &old);
    small = (struct rlimit){12345, old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    advises(EFBIG, ERR_IO, "File too large",
            "files may have at most 12345 bytes: raise the limit");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
}

static void a_link_to_nothing_is_named(void **state)
{
    char *path = in_dir("link");
    struct file_map m = {0};
    assert_int_equal(symlink("../blobs/none", path), 0);
    assert_int_equal(file_check_link(path), ERR_NOT_FOUND);
    assert_non_null(strstr(err_text(), "link: a link to ../blobs/none, which is missing"));
    err_clear();
    assert_int_equal(file_map_open(&m, path), ERR_NOT_FOUND);
    assert_non_null(strstr(err_text(), "which is missing"));
    err_clear();
    assert_int_equal(unlink(path), 0);
    /* a missing file is reported by the caller */
    assert_int_equal(file_check_link(path), OK);
    assert_int_equal(file_write_all(path, "", 0), OK);
    assert_int_equal(file_check_link(path), OK);
    mem_free(path);
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(a_file_appears_when_it_is_whole),
        CASE(an_aborted_write_leaves_nothing),
        CASE(large_files),
        CASE(what_cannot_be_read),
        CASE(what_cannot_be_written),
        CASE(a_taken_temporary_name),
        CASE(what_a_dead_writer_left),
        CASE(links_and_devices),
        CASE(only_known_names_are_removed),
        CASE(vanished_entries),
        CASE(temporary_names),
        CASE(a_place_is_probed),
        CASE(directories),
        CASE(names),
        CASE(a_pointer_of_git_lfs_is_recognized),
        CASE(a_temporary_name_is_not_shown),
        CASE(a_failed_write_says_what_to_do),
        CASE(a_link_to_nothing_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
