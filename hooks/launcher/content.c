#define _GNU_SOURCE
#include "content.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ZSTD_STATIC_LINKING_ONLY
#include "zstd.h"
#include "zstd_errors.h"

static const uint8_t MAGIC[8] = "edgeapp\1";
enum {
    MANIFEST_MAX = 64 << 20,
    WINDOW_LOG_MAX = 27,   /* bounds the memory that a frame asks for: 128 MiB */
    THREADS_MAX = 4,       /* more gain nothing: the largest library is one frame */
    CHUNK = 256 << 10,
};

bool fail(struct reason *why, int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why->text, sizeof why->text, format, arguments);
    va_end(arguments);
    why->code = code;
    return false;
}

bool safe_owner(const struct stat *stat) {
    return (stat->st_uid == 0 || stat->st_uid == geteuid()) && !(stat->st_mode & (S_IWGRP | S_IWOTH));
}

static bool damaged(struct reason *why, const char *what) {
    return fail(why, EBADMSG, "%s; the file is not what was built", what);
}

/* All of it, or an error. */
static bool read_at(int file, void *buffer, size_t size, uint64_t offset, struct reason *why) {
    for (uint8_t *to = buffer; size;) {
        ssize_t got = pread(file, to, size, (off_t)offset);
        if (got < 0 && errno == EINTR && !stop_signal)
            continue;
        if (got < 0)
            return damaged(why, strerror(errno));
        if (got == 0)
            return damaged(why, "it ends too early");
        to += got, size -= (size_t)got, offset += (uint64_t)got;
    }
    return true;
}

static bool write_all(int file, const void *buffer, size_t size) {
    for (const uint8_t *from = buffer; size;) {
        ssize_t put = write(file, from, size);
        if (put < 0 && errno == EINTR && !stop_signal)
            continue;
        if (put <= 0)
            return false;
        from += put, size -= (size_t)put;
    }
    return true;
}

/* ---- the manifest ---- */

/* A path that stays inside the folder. */
static bool inside(const char *path) {
    if (!*path || *path == '/')
        return false;
    for (const char *part = path; part; part = strchr(part, '/'), part = part ? part + 1 : NULL)
        if (strncmp(part, "..", 2) == 0 && (part[2] == '/' || !part[2]))
            return false;
    return true;
}

static bool from_hex(const char *text, uint8_t digest[SHA256_SIZE]) {
    for (int i = 0; i < SHA256_SIZE; i++)
        if (sscanf(text + 2 * i, "%2hhx", &digest[i]) != 1)
            return false;
    return true;
}

/* The next field, up to a space; the last one ends with the line. */
static char *field(char **rest) {
    char *start = *rest ? *rest : "";
    *rest = strchr(start, ' ');
    if (*rest)
        *(*rest)++ = '\0';
    return start;
}

static bool parse_line(struct content *content, char *line) {
    char *rest = line, *word = field(&rest);
    if (strcmp(word, "program") == 0)
        return inside(content->program = rest ? rest : "");
    if (strcmp(word, "glibc") == 0)
        return sscanf(field(&rest), "%d.%d", &content->glibc[0], &content->glibc[1]) == 2;
    if (strcmp(word, "time") == 0)
        return (content->time = strtoll(field(&rest), NULL, 10)) > 0;
    if (strcmp(word, "frame") == 0) {
        struct frame *frame = &content->frames[content->frame_count++];
        frame->offset = strtoull(field(&rest), NULL, 10);
        frame->size = strtoull(field(&rest), NULL, 10);
        frame->first = content->item_count;
        return true;
    }
    struct item *item = &content->items[content->item_count++];
    if (strcmp(word, "dir") == 0) {
        item->kind = DIRECTORY;
    } else if (strcmp(word, "link") == 0) {
        item->kind = LINK;
        item->target = field(&rest);
    } else if (strcmp(word, "file") == 0) {
        item->kind = REGULAR;
        item->mode = (mode_t)strtoul(field(&rest), NULL, 8) & 0777;
        item->size = strtoull(field(&rest), NULL, 10);
        char *digest = field(&rest);
        if (strlen(digest) != 2 * SHA256_SIZE || !from_hex(digest, item->sha256) || !content->frame_count)
            return false;
        content->frames[content->frame_count - 1].count++;
        content->unpacked += item->size;
    } else {
        return false;
    }
    item->path = rest ? rest : "";
    return inside(item->path);
}

bool content_read(struct content *content, int file, struct reason *why) {
    struct stat stat;
    struct trailer trailer;
    memset(content, 0, sizeof *content);
    content->file = file;
    if (fstat(file, &stat) || (size_t)stat.st_size < sizeof trailer)
        return damaged(why, "it is too small");
    if (!read_at(file, &trailer, sizeof trailer, (uint64_t)stat.st_size - sizeof trailer, why))
        return false;
    if (memcmp(trailer.magic, MAGIC, sizeof MAGIC) || trailer.manifest_size > MANIFEST_MAX ||
        trailer.manifest_at + trailer.manifest_size + sizeof trailer != (uint64_t)stat.st_size)
        return damaged(why, "its end is missing or is not its own");
    content->frames_at = trailer.frames_at;
    content->manifest_size = trailer.manifest_size;
    content->manifest = malloc(content->manifest_size);
    content->lines = malloc(content->manifest_size + 1);
    if (!content->manifest || !content->lines)
        return fail(why, ENOMEM, "not enough memory");
    if (!read_at(file, content->manifest, content->manifest_size, trailer.manifest_at, why))
        return false;
    struct sha256 hash;
    uint8_t digest[SHA256_SIZE];
    sha256_begin(&hash);
    sha256_add(&hash, content->manifest, content->manifest_size);
    sha256_end(&hash, digest);
    if (memcmp(digest, trailer.manifest_sha256, sizeof digest))
        return damaged(why, "the SHA-256 of its list of files differs");
    for (int i = 0; i < 16; i++)
        snprintf(content->name + 2 * i, 3, "%02x", digest[i]);

    memcpy(content->lines, content->manifest, content->manifest_size);
    content->lines[content->manifest_size] = '\0';
    size_t line_count = 0;
    for (const char *c = content->lines; *c; c++)
        line_count += *c == '\n';
    content->items = calloc(line_count + 1, sizeof *content->items);
    content->frames = calloc(line_count + 1, sizeof *content->frames);
    if (!content->items || !content->frames)
        return fail(why, ENOMEM, "not enough memory");
    char *rest = content->lines, *line = strsep(&rest, "\n");
    if (strcmp(line, "edgeapp content 1"))
        return damaged(why, "its list of files has an unknown format");
    while ((line = strsep(&rest, "\n")))
        if (*line && !parse_line(content, line))
            return damaged(why, "a line of its list of files cannot be understood");
    if (!content->program || !content->time)
        return damaged(why, "its list of files is incomplete");
    return true;
}

/* ---- work that threads share ---- */

struct job {
    const struct content *content;
    int folder;
    bool (*step)(struct job *job, size_t index, struct reason *why);
    size_t count;
    atomic_size_t next;
    atomic_bool failed;
    pthread_mutex_t lock;
    struct reason *why; /* of the first that failed */
};

static void *work(void *argument) {
    struct job *job = argument;
    size_t index;
    while (!job->failed && (index = atomic_fetch_add(&job->next, 1)) < job->count) {
        struct reason why = {0};
        if (!job->step(job, index, &why)) {
            pthread_mutex_lock(&job->lock);
            if (!job->failed)
                *job->why = why;
            job->failed = true;
            pthread_mutex_unlock(&job->lock);
        }
    }
    return NULL;
}

/* Every step of 0 to count - 1, on several processors. */
static bool work_together(struct job *job) {
    cpu_set_t processors;
    pthread_t threads[THREADS_MAX - 1]; /* this one works too */
    int started = 0, others = sched_getaffinity(0, sizeof processors, &processors) ? 0 : CPU_COUNT(&processors) - 1;
    if (others > THREADS_MAX - 1)
        others = THREADS_MAX - 1;
    pthread_mutex_init(&job->lock, NULL);
    while (started < others && pthread_create(&threads[started], NULL, work, job) == 0)
        started++;
    work(job);
    while (started)
        pthread_join(threads[--started], NULL);
    return !job->failed;
}

static bool go_on(const struct job *job, struct reason *why) {
    if (stop_signal)
        return fail(why, EINTR, "a signal came");
    return !job->failed;
}

/* ---- unpacking ---- */

static bool cannot_write(struct reason *why, const char *path) {
    return fail(why, errno, "cannot write %s: %s", path, strerror(errno));
}

static bool set_time(const struct content *content, int folder, const char *path) {
    const struct timespec times[2] = {{.tv_sec = content->time}, {.tv_sec = content->time}};
    return utimensat(folder, path, times, AT_SYMLINK_NOFOLLOW) == 0;
}

/* The frame as a stream. */
struct stream {
    const struct job *job;
    ZSTD_DCtx *context;
    uint64_t offset, left; /* of what is not read yet */
    ZSTD_inBuffer input;
    uint8_t *buffer;
};

/* Exactly `size` bytes. */
static bool stream_read(struct stream *stream, void *buffer, size_t size, struct reason *why) {
    ZSTD_outBuffer output = {buffer, size, 0};
    while (output.pos < output.size) {
        if (stream->input.pos == stream->input.size && stream->left) {
            const size_t part = stream->left < CHUNK ? stream->left : CHUNK;
            if (!read_at(stream->job->content->file, stream->buffer, part, stream->offset, why))
                return false;
            stream->offset += part, stream->left -= part;
            stream->input = (ZSTD_inBuffer){stream->buffer, part, 0};
        }
        const size_t out_before = output.pos, in_before = stream->input.pos;
        const size_t result = ZSTD_decompressStream(stream->context, &output, &stream->input);
        if (ZSTD_isError(result) && ZSTD_getErrorCode(result) == ZSTD_error_memory_allocation)
            return fail(why, ENOMEM, "not enough memory");
        if (ZSTD_isError(result))
            return damaged(why, ZSTD_getErrorName(result));
        if (output.pos == out_before && stream->input.pos == in_before && !stream->left)
            return damaged(why, "compressed data is missing");
    }
    return true;
}

static bool unpack_file(struct stream *stream, const struct item *item, uint8_t *chunk, struct reason *why) {
    const int folder = stream->job->folder;
    bool done = false;
    struct sha256 hash;
    uint8_t digest[SHA256_SIZE];
    int file = openat(folder, item->path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0)
        return cannot_write(why, item->path);
    sha256_begin(&hash);
    for (uint64_t left = item->size; left;) {
        const size_t part = left < CHUNK ? left : CHUNK;
        if (!go_on(stream->job, why) || !stream_read(stream, chunk, part, why))
            goto end;
        sha256_add(&hash, chunk, part);
        if (!write_all(file, chunk, part)) {
            cannot_write(why, item->path);
            goto end;
        }
        left -= part;
    }
    sha256_end(&hash, digest);
    if (memcmp(digest, item->sha256, sizeof digest))
        damaged(why, "the SHA-256 of a file in it differs");
    else if (fchmod(file, item->mode) || !set_time(stream->job->content, folder, item->path))
        cannot_write(why, item->path);
    else
        done = true;
end:
    if (close(file) && done)
        done = cannot_write(why, item->path);
    return done;
}

static bool unpack_frame(struct job *job, size_t index, struct reason *why) {
    const struct content *content = job->content;
    const struct frame *frame = &content->frames[index];
    struct stream stream = {job, ZSTD_createDCtx(), content->frames_at + frame->offset, frame->size, {0}, NULL};
    uint8_t *chunk = malloc(CHUNK);
    stream.buffer = malloc(CHUNK);
    bool done = stream.context && chunk && stream.buffer;
    if (done)
        ZSTD_DCtx_setParameter(stream.context, ZSTD_d_windowLogMax, WINDOW_LOG_MAX);
    else
        fail(why, ENOMEM, "not enough memory");
    for (size_t i = frame->first; done && i < frame->first + frame->count; i++)
        done = unpack_file(&stream, &content->items[i], chunk, why);
    ZSTD_freeDCtx(stream.context);
    free(stream.buffer);
    free(chunk);
    return done;
}

static bool write_manifest(const struct content *content, int folder, struct reason *why) {
    int file = openat(folder, MANIFEST_NAME, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    bool done = file >= 0 && write_all(file, content->manifest, content->manifest_size) && !fchmod(file, 0444) &&
                set_time(content, folder, MANIFEST_NAME);
    if (!done)
        cannot_write(why, MANIFEST_NAME);
    if (file >= 0)
        close(file);
    return done;
}

bool content_unpack(const struct content *content, int folder, struct reason *why) {
    for (size_t i = 0; i < content->item_count; i++) {
        const struct item *item = &content->items[i];
        if ((item->kind == DIRECTORY && mkdirat(folder, item->path, 0755)) ||
            (item->kind == LINK && (symlinkat(item->target, folder, item->path))))
            return cannot_write(why, item->path);
    }
    struct job job = {content, folder, unpack_frame, content->frame_count, .why = why};
    if (!work_together(&job) || !write_manifest(content, folder, why))
        return false;
    /* The times of the folders last, for each new file changes them: this way a planted file is noticed. */
    for (size_t i = content->item_count; i--;)
        if (content->items[i].kind == DIRECTORY && !set_time(content, folder, content->items[i].path))
            return cannot_write(why, content->items[i].path);
    if (fchmod(folder, 0755) || !set_time(content, folder, "."))
        return cannot_write(why, "the folder");
    /* One call for all the files; each alone would wait for the disk a hundred times. */
    if (syncfs(folder))
        return cannot_write(why, "to the disk");
    return go_on(&job, why);
}

/* ---- checking ---- */

static bool check_bytes(struct job *job, size_t index, struct reason *why) {
    const struct item *item = &job->content->items[index];
    if (item->kind != REGULAR)
        return true;
    struct sha256 hash;
    uint8_t digest[SHA256_SIZE];
    uint8_t *chunk = malloc(CHUNK);
    int file = openat(job->folder, item->path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    ssize_t got = chunk && file >= 0 ? 1 : -1;
    sha256_begin(&hash);
    while (got > 0 && go_on(job, why))
        if ((got = read(file, chunk, CHUNK)) > 0)
            sha256_add(&hash, chunk, (size_t)got);
    sha256_end(&hash, digest);
    if (got < 0)
        fail(why, chunk ? errno : ENOMEM, "%s: %s", item->path, strerror(chunk ? errno : ENOMEM));
    else if (got == 0 && memcmp(digest, item->sha256, sizeof digest))
        fail(why, ESTALE, "the SHA-256 of %s differs", item->path), got = -1;
    if (file >= 0)
        close(file);
    free(chunk);
    return got == 0;
}

static bool check_item(const struct content *content, int folder, const struct item *item, struct reason *why) {
    struct stat stat;
    char target[512];
    if (fstatat(folder, item->path, &stat, AT_SYMLINK_NOFOLLOW))
        return fail(why, errno, "%s: %s", item->path, strerror(errno));
    if (stat.st_uid != 0 && stat.st_uid != geteuid())
        return fail(why, ESTALE, "%s belongs to user %u", item->path, stat.st_uid);
    if (item->kind == LINK) {
        ssize_t size = readlinkat(folder, item->path, target, sizeof target);
        if (size < 0 || (size_t)size != strlen(item->target) || memcmp(target, item->target, (size_t)size))
            return fail(why, ESTALE, "%s leads elsewhere", item->path);
        return true;
    }
    if ((item->kind == DIRECTORY) != S_ISDIR(stat.st_mode) || (item->kind == REGULAR) != S_ISREG(stat.st_mode))
        return fail(why, ESTALE, "%s is of another kind", item->path);
    if (stat.st_mode & (S_IWGRP | S_IWOTH) || ~stat.st_mode & item->mode & S_IXUSR)
        return fail(why, ESTALE, "%s has mode %03o", item->path, stat.st_mode & 0777);
    if (item->kind == REGULAR && (uint64_t)stat.st_size != item->size)
        return fail(why, ESTALE, "%s has another size", item->path);
    if (stat.st_mtim.tv_sec != content->time || stat.st_mtim.tv_nsec)
        return fail(why, ESTALE, "%s was changed", item->path);
    return true;
}

bool content_is_whole(const struct content *content, int folder, bool every_byte, struct reason *why) {
    const struct item itself = {.kind = DIRECTORY, .path = "."};
    const struct item manifest = {.kind = REGULAR, .size = content->manifest_size, .path = MANIFEST_NAME};
    if (!check_item(content, folder, &itself, why) || !check_item(content, folder, &manifest, why))
        return false;
    for (size_t i = 0; i < content->item_count; i++)
        if (!check_item(content, folder, &content->items[i], why))
            return false;
    struct job job = {content, folder, check_bytes, content->item_count, .why = why};
    return !every_byte || work_together(&job);
}
