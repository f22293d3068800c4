/* What the file carries: a manifest, and behind it the files, compressed.
 *
 * The file, from its start: the launcher; frames of zstd; the manifest, text; the trailer, which ends the file.
 * The manifest, one item a line, in the order in which things are made:
 *
 *   edgeapp content 1              the format
 *   program edgeapp                what is started
 *   glibc 2.31                     the oldest C library that all of it runs with; may be missing
 *   time 1700000000                the modification time that everything gets, seconds since 1970
 *   dir PATH                       PATH is relative; the last field, so that it may hold spaces
 *   link TARGET PATH               a symbolic link
 *   frame OFFSET SIZE              from the first frame; the files of the lines behind it, one after another
 *   file MODE SIZE SHA256 PATH     MODE is octal
 *
 * The SHA-256 of the manifest names the content: it holds those of all files. */
#ifndef EDGEAPP_CONTENT_H
#define EDGEAPP_CONTENT_H

#include "sha256.h"

#include <signal.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <time.h>

#define MANIFEST_NAME "manifest" /* a copy of it lies beside the program */

struct trailer { /* little-endian, as every machine that TensorRT knows */
    uint8_t magic[8];
    uint64_t frames_at;
    uint64_t manifest_at, manifest_size;
    uint8_t manifest_sha256[SHA256_SIZE];
};

struct item {
    enum { DIRECTORY, LINK, REGULAR } kind;
    mode_t mode;
    uint64_t size;
    uint8_t sha256[SHA256_SIZE];
    const char *path, *target;
};

struct frame {
    uint64_t offset, size;
    size_t first, count; /* items */
};

struct content {
    int file; /* the launcher's own */
    char *manifest, *lines;
    size_t manifest_size;
    uint64_t frames_at, unpacked; /* bytes */
    char name[33]; /* the first half of the manifest's SHA-256, hexadecimal */
    const char *program;
    int glibc[2]; /* 0 if the manifest does not say */
    time_t time;
    struct item *items;
    size_t item_count;
    struct frame *frames;
    size_t frame_count;
};

/* A signal that asks to end, or 0. */
extern volatile sig_atomic_t stop_signal;

/* Why something did not work: the text ends a sentence. */
struct reason {
    int code; /* an errno: EBADMSG if the launcher's file is damaged, ESTALE if what is unpacked is, EINTR after a signal */
    char text[512];
};

/* Each returns whether it worked; if not, `why` says why. */
bool content_read(struct content *content, int file, struct reason *why);
bool content_unpack(const struct content *content, int folder, struct reason *why);
/* Sizes, kinds, times and owners; every byte too, if `every_byte`. */
bool content_is_whole(const struct content *content, int folder, bool every_byte, struct reason *why);

bool fail(struct reason *why, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Whether nobody but `owner`, this user or root, can have changed it. */
bool safe_owner(const struct stat *stat);

#endif
